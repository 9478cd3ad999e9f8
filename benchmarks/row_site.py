"""`within site build` of 10,000 runs, against a short script: read the rows with sqlite3, render the same tables with Jinja, write them. The bar is ours."""
import json
import tempfile
from contextlib import closing
from pathlib import Path

from benchmarks.harness import SIZE, Row, at_most, in_turns
from benchmarks.homes import home_of_runs, plain_connection

NAME, BAR, RUNS = "site build of 10,000 runs, against sqlite3 and Jinja by hand", "<= 5 x", max(200, int(10_000 * SIZE))
PAGE = """<!doctype html><html><body><table>{% for id, b in rows %}<tr><td><a href="../../runs/{{ id }}/index.html">{{ id }}</a></td><td>{{ b.phase }}</td>
<td>{{ b.reason }}</td><td>{{ b.model }}</td><td>{{ b.stage }}</td></tr>{% endfor %}</table></body></html>"""


def row() -> Row:
    from jinja2 import Environment

    from within.site import PER_PAGE, build_site

    template = Environment(autoescape=True).from_string(PAGE)
    with tempfile.TemporaryDirectory() as place:
        ctx = home_of_runs(Path(place, "home"), RUNS)

        def by_hand() -> None:
            to = Path(place, "hand")
            to.mkdir(exist_ok=True)
            with closing(plain_connection(ctx.settings.home / "within.db")) as db:
                rows = [(i, json.loads(b)) for i, b in db.execute("SELECT id, body FROM state WHERE kind = 'run' ORDER BY at DESC, id DESC")]
                told = [json.loads(b) for (b,) in db.execute("SELECT body FROM ledger WHERE kind = 'run'")]
            for n in range(0, len(rows), PER_PAGE): (to / f"{n}.html").write_text(template.render(rows=rows[n:n + PER_PAGE]))
            for model in {b["model"] for b in told}:
                (to / f"{model}.html").write_text(template.render(rows=[("", b) for b in told if b["model"] == model][-300:]))
            (to / "search.json").write_text(json.dumps([[i, *b.values()] for i, b in rows]))
        mine, peer = in_turns(lambda: build_site(ctx=ctx), by_hand, repeats=3)
        pages = list((ctx.settings.home / "site").rglob("*.html"))
        size = sum(p.stat().st_size for p in pages) / (1 << 20)
        ctx.close()
    return at_most(NAME, mine, peer, 5, why=f"{len(pages)} pages, {size:.0f} MiB, each written whole or not at all")
