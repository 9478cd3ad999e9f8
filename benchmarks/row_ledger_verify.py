"""`verify` of 100,000 entries against reading them with bare sqlite3 and hashing their bytes: what no check of the chain can do without. The bar is ours."""
import hashlib
import json
import tempfile
from contextlib import closing
from pathlib import Path

from benchmarks.harness import SIZE, Row, at_most, in_turns
from benchmarks.homes import long_ledger, plain_connection

NAME, BAR, ENTRIES = "ledger: verify 100,000 entries, against reading and hashing them", "<= 5 x", max(1000, int(100_000 * SIZE))


def row() -> Row:
    from within.ledger import FIELDS, verify

    with tempfile.TemporaryDirectory() as place:
        ctx = long_ledger(Path(place, "home"), ENTRIES)

        def ours() -> None:
            found = verify(ctx)
            assert found.ok and found.entries == ENTRIES, found

        def bare() -> None:
            with closing(plain_connection(ctx.settings.home / "within.db")) as db:
                for *values, kept in db.execute(f"SELECT {', '.join(FIELDS)}, hash FROM ledger ORDER BY seq"):
                    text = json.dumps(dict(zip(FIELDS, values, strict=True)), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
                    assert hashlib.sha256(text.encode()).hexdigest() == kept
        mine, peer = in_turns(ours, bare, repeats=3)
        ctx.close()
    return at_most(NAME, mine, peer, 5, why=f"{ENTRIES / mine:,.0f} entries a second")
