"""Appending to the ledger, one process: hashed, chained and on the disk, against one bare insert under the same pragmas. The bar is ours."""
import tempfile
from contextlib import closing
from pathlib import Path
from secrets import token_hex

from benchmarks.harness import SIZE, Row, at_most, in_turns
from benchmarks.homes import START, plain_connection

NAME, BAR, ENTRIES = "ledger: append, against a bare insert", "<= 5 x", max(20, int(200 * SIZE))


def row() -> Row:
    from within.clock import FrozenClock
    from within.context import Context
    from within.ledger import append

    body = {"outcome": "passed", "reason": "x" * 300, "stage": "evaluate", "figures": list(range(40))}
    with tempfile.TemporaryDirectory() as place:
        ctx = Context.open(home=Path(place, "home"), clock=FrozenClock(START), database_url=f"sqlite:///{place}/ours.db")
        with closing(plain_connection(Path(place, "bare.db"))) as db:
            columns = "seq INTEGER PRIMARY KEY, at TEXT, kind TEXT, subject TEXT, actor TEXT, body TEXT, previous TEXT, hash TEXT UNIQUE"
            db.execute(f"CREATE TABLE ledger ({columns})")
            count = [0]

            def bare() -> None:
                for _ in range(ENTRIES):
                    count[0] += 1
                    db.execute("INSERT INTO ledger VALUES (?, 't', 'decision', 'r', 'a', ?, 'p', ?)", (count[0], str(body), token_hex(32)))

            def ours() -> None:
                for _ in range(ENTRIES): append(ctx, "decision", "r", body)
            mine, peer = in_turns(ours, bare)
        ctx.close()
    why = f"{ENTRIES / mine:,.0f} entries a second against {ENTRIES / peer:,.0f}; the figures are milliseconds an entry"
    return at_most(NAME, 1000 * mine / ENTRIES, 1000 * peer / ENTRIES, 5, "ms", why)
