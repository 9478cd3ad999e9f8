"""State by eight processes at once: put, get and find against the same statements on bare sqlite3. The bar is ours: the design gives none."""
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.harness import SIZE, Row, at_most
from benchmarks.homes import plain_connection

NAME, BAR = "store: put, get, find by 8 processes, against bare sqlite3", "<= 5 x"
PROCESSES, ROUNDS = 8, max(5, int(60 * SIZE))
BODY = {"phase": "running", "model": "ads", "reason": "x" * 200, "figures": list(range(20))}


def ours(path: str, who: int, ready) -> tuple[float, float]:
    from within.store import Store
    store = Store(f"sqlite:///{path}")
    ready.wait()
    start, revision = time.monotonic(), None
    for i in range(ROUNDS):
        revision = store.put("rollout", f"r{who}", {**BODY, "n": i}, revision)
        assert store.get("rollout", f"r{who}").body["n"] == i
        if i % 10 == 0: assert store.find("rollout", n=i)
    return start, time.monotonic()


def bare(path: str, who: int, ready) -> tuple[float, float]:
    db = plain_connection(Path(path))
    ready.wait()
    start, key = time.monotonic(), ("rollout", f"r{who}")
    for i in range(ROUNDS):
        text = json.dumps({**BODY, "n": i}, sort_keys=True)
        db.execute("BEGIN IMMEDIATE")
        found = db.execute("SELECT revision FROM state WHERE kind = ? AND id = ?", key).fetchone()
        new = (found[0] if found else 0) + 1
        if found: db.execute("UPDATE state SET revision = ?, at = ?, body = ? WHERE kind = ? AND id = ? AND revision = ?", (new, "t", text, *key, found[0]))
        else: db.execute("INSERT INTO state VALUES (?, ?, ?, ?, ?)", (*key, new, "t", text))
        db.execute("INSERT INTO transitions (kind, id, revision, at, body) VALUES (?, ?, ?, ?, ?)", (*key, new, "t", text))
        db.execute("COMMIT")
        assert json.loads(db.execute("SELECT body FROM state WHERE kind = ? AND id = ?", key).fetchone()[0])["n"] == i
        if i % 10: continue
        first = "(SELECT min(seq) FROM transitions t WHERE t.kind = s.kind AND t.id = s.id)"
        assert [r for (b,) in db.execute(f"SELECT body FROM state s WHERE kind = 'rollout' ORDER BY {first}") if (r := json.loads(b))["n"] == i]
    return start, time.monotonic()


def worker(side: str, path: str, who: int, ready, told) -> None: told.put({"ours": ours, "bare": bare}[side](path, who, ready))


def together(side: str) -> float:
    "Operations a second of all processes, from the first one's start to the last one's end."
    from within.store import Store
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        Store(f"sqlite:///{place}/within.db").close()   # the same tables for both
        ready, told = spawn.Barrier(PROCESSES), spawn.Queue()
        crowd = [spawn.Process(target=worker, args=(side, f"{place}/within.db", n, ready, told)) for n in range(PROCESSES)]
        for p in crowd: p.start()
        spans = [told.get(timeout=300) for _ in crowd]
        for p in crowd: p.join()
    return PROCESSES * (2 * ROUNDS + -(-ROUNDS // 10)) / (max(e for _, e in spans) - min(s for s, _ in spans))


def row() -> Row:
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    for turn in range(3):
        for side in (("ours", "bare") if turn % 2 else ("bare", "ours")): rates[side].append(together(side))
    mine, peer = (statistics.median(rates[s]) for s in ("ours", "bare"))
    why = f"{mine:,.0f} operations a second against {peer:,.0f}; the figures are milliseconds an operation"
    return at_most(NAME, 1000 / mine, 1000 / peer, 5, "ms", why)
