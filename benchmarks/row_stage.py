"""What a stage costs over its own calls: the trigger stage through the walk (a kernel, papermill, HTML, ledger) against its cells in this process."""
import ast
import json

from benchmarks.harness import ROOT, Row, place

NAME, BAR = "a stage over its own calls in one process", "<= 6 s"


def cells_of(path) -> tuple[str, list[str]]:
    "The parameters cell and the other code cells of a notebook."
    code = [(c["metadata"].get("tags", []), "".join(c["source"])) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    return next(s for tags, s in code if "parameters" in tags), [s for tags, s in code if "parameters" not in tags]


def ordinary(source: str, names: dict) -> None:
    "Executes a cell as a kernel would: the last expression is shown, which is part of its own calls."
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    if last is None: return
    value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    if hasattr(value, "_repr_markdown_"): value._repr_markdown_()


def row() -> Row:
    import statistics

    import matplotlib
    matplotlib.use("agg")
    from benchmarks.harness import seconds
    from within.runs.walk import retrain
    from within.world import bootstrap

    notebook = ROOT / "nbs" / "stages" / "s10_trigger.ipynb"
    through, alone = [], []
    with place():
        bootstrap("2023-10-01", scale=0.02)
        for turn in range(3):
            took: dict[str, float] = {}
            retrain("ad_score_predictor", until="trigger", progress=lambda event, stage, text, s, took=took: took.update({event: s}))

            def by_hand() -> None:
                parameters, rest = cells_of(notebook)
                names = {"__name__": "__main__", "display": lambda *a, **k: None}
                for source in (parameters, *rest): ordinary(source, names)
                matplotlib.pyplot.close("all")
            direct = seconds(by_hand)
            if turn: through.append(took["end"]), alone.append(direct)
    ours, peer = statistics.median(through), statistics.median(alone)
    return Row(NAME, round(ours, 3), round(peer, 3), "s", round(ours - peer, 3), "ours - peer <= 6 s", ours - peer <= 6, "the ratio column is the difference")
