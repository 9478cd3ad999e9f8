"""A stage notebook reads like a lab report: one question, a few calls into `within`, a verdict. What does not fit is a missing library function."""
import ast
import re
import tokenize
from io import StringIO

import pytest
import yaml
from notebooks import ROOT, STAGES, Cell, Notebook, advise, stages

MAX_CELLS, AIM_LINES, MAX_LINES = 16, 60, 75
IMPORTS_ALLOWED = {"within", "pandas", "numpy", "matplotlib", "IPython"}
NAMES = ["s10_trigger", "s20_prepare", "s25_optimize", "s30_train", "s40_evaluate", "s50_register", "s60_validate", "s65_review", "s70_stage",
         "s80_shadow", "s85_abtest", "s90_rollout", "s92_finalize", "s95_monitor"]
FORBIDDEN = {ast.FunctionDef: "def", ast.AsyncFunctionDef: "async def", ast.ClassDef: "class", ast.For: "for", ast.While: "while", ast.Try: "try",
             ast.AnnAssign: "an annotation (it crashes Ploomber's strict check)"}
SQL = re.compile(r"\b(select\s.+\sfrom|insert\s+into|update\s.+\sset|delete\s+from|create\s+table)\b", re.IGNORECASE | re.DOTALL)

every_stage = pytest.mark.parametrize("notebook", stages(), ids=lambda n: n.path.stem)


def parameters_cell(notebook: Notebook) -> Cell:
    tagged = [c for c in notebook.cells if "parameters" in c.tags]
    assert len(tagged) == 1, f"{len(tagged)} cells tagged 'parameters'; without exactly one papermill silently runs with the defaults"
    return tagged[0]


def parameters(notebook: Notebook) -> dict[str, ast.expr]:
    return {n.targets[0].id: n.value for n in parameters_cell(notebook).tree.body if isinstance(n, ast.Assign)}


def tasks() -> dict[str, dict]:
    spec = yaml.safe_load((ROOT / "pipeline.yaml").read_text())
    return {task["source"].split("/")[-1].removesuffix(".ipynb"): task for task in spec["tasks"]}


def test_every_stage_is_there():
    assert [n.path.stem for n in stages()] == NAMES
    assert (STAGES / ".notest").exists() and (STAGES / ".nodoc").exists()


@every_stage
def test_shape(notebook):
    lines = sum(c.lines for c in notebook.code)
    assert len(notebook.cells) <= MAX_CELLS and lines <= MAX_LINES, f"{len(notebook.cells)} cells, {lines} lines of code"
    if lines > AIM_LINES: advise(f"{notebook.path.name}: {lines} lines of code, about {AIM_LINES} is the aim")
    title = [line for line in notebook.cells[0].source.splitlines() if line.strip()]
    assert notebook.cells[0].kind == "markdown" and title[0].startswith("# ") and title[1].startswith("> ")


@every_stage
def test_calls_into_the_library_and_nothing_else(notebook):
    for cell in notebook.code:
        assert not re.search(r"^\s*[%!]", cell.code, re.MULTILINE), f"cell {cell.index}: no magics, no shell"
        for node in ast.walk(cell.tree):
            assert type(node) not in FORBIDDEN, f"cell {cell.index}: {FORBIDDEN[type(node)]} belongs in the library"
            if isinstance(node, ast.Constant) and isinstance(node.value, str): assert not SQL.search(node.value), f"cell {cell.index}: SQL"
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {n.split(".")[0] for n in names} <= IMPORTS_ALLOWED, f"cell {cell.index} imports {names}"


@every_stage
def test_parameters_are_documented(notebook):
    cell, given = parameters_cell(notebook), parameters(notebook)
    assert {"upstream", "product"} <= set(given) and ast.unparse(given["product"]) == "None"
    comments = {t.start[0] for t in tokenize.generate_tokens(StringIO(cell.source).readline) if t.type == tokenize.COMMENT}
    bare = [line for i, line in enumerate(cell.source.splitlines(), 1) if re.match(r"\w+ = ", line) and i not in comments
            and not line.startswith(("upstream", "product"))]
    assert not bare, f"write `name = default  # type, meaning`: {bare}"


@every_stage
def test_committed_without_outputs(notebook):
    assert not [c.index for c in notebook.cells if c.outputs]


@every_stage
def test_pipeline_and_notebook_agree(notebook):
    task, given = tasks()[notebook.path.stem], parameters(notebook)
    unknown = set(task.get("params", {})) - set(given)
    assert not unknown, f"pipeline.yaml passes {sorted(unknown)}, which the notebook does not know (papermill only warns)"
    missing = set(given) - {"upstream", "product"} - set(task.get("params", {}))
    assert not missing, f"pipeline.yaml does not pass {sorted(missing)}, and Ploomber's strict check refuses that"
    named = ast.literal_eval(given["upstream"]) or []
    listed = task.get("upstream") or []
    assert sorted(named) == sorted([listed] if isinstance(listed, str) else listed)
    assert {"nb", "html"} <= set(task["product"])


def test_pipeline_uses_the_small_subset_of_ploomber():
    spec = yaml.safe_load((ROOT / "pipeline.yaml").read_text())
    assert set(tasks()) == set(NAMES)
    meta = spec.get("meta", {})
    assert meta.get("extract_upstream") is False and meta.get("extract_product") is False
    defaults = spec.get("meta", {}).get("task_defaults", {}) | spec.get("task_defaults", {})
    allowed = {"source", "name", "product", "nb_product_key", "params", "upstream", "static_analysis", "on_finish", "class"}
    for name, task in tasks().items():
        assert task.get("static_analysis", defaults.get("static_analysis")) == "strict", name
        assert set(task) <= allowed, f"{name}: {sorted(set(task) - allowed)}"
    assert (ROOT / "env.yaml").exists()
