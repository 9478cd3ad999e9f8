"""`within ui` of a home with 10,000 runs against one with 100: the home page, as a browser asks for it. The bar is ours: it must not grow with the runs."""
import statistics
import tempfile
import threading
import urllib.request
from pathlib import Path

from benchmarks.harness import SIZE, Row, at_most, in_turns, seconds
from benchmarks.homes import home_of_runs

NAME, BAR, RUNS = "home page of within ui: 10,000 runs against 100", "<= 3 x", max(200, int(10_000 * SIZE))


def row() -> Row:
    from within.ui import Reader

    with tempfile.TemporaryDirectory() as place:
        homes = [home_of_runs(Path(place, str(n)), n) for n in (RUNS, 100)]
        servers = [Reader(c) for c in homes]
        for s in servers: threading.Thread(target=s.serve_forever, daemon=True).start()

        def ask(server: Reader, address: str) -> None:
            with urllib.request.urlopen(f"{server.url}{address}", timeout=60) as answer: assert answer.read()
        first = [seconds(lambda s=s: ask(s, "site/index.html")) for s in servers]   # reads everything
        pages = ("site/index.html", "site/search.html?q=improved+model_3")
        def of(server: Reader) -> list[list[float]]: return [[seconds(lambda p=p: ask(server, p)) for _ in range(20)] for p in pages]
        searches = [statistics.median(of(s)[1]) for s in servers]
        mine, peer = in_turns(*(lambda s=s: [ask(s, pages[0]) for _ in range(50)] for s in servers))
        for s in servers: s.shutdown(), s.server_close()
        for c in homes: c.close()
    why = (f"a search takes {1000 * searches[0]:.0f} ms against {1000 * searches[1]:.0f}; the first page, which reads the home, "
           f"{first[0]:.2f} s against {first[1]:.2f}; the figures are milliseconds a page")
    return at_most(NAME, 20 * mine, 20 * peer, 3, "ms", why)
