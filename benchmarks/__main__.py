"""`python -m benchmarks [ROW…]`: each row in a process of its own, then the table and results.json."""
from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import ROOT, SIZE, HardwareAbsent, Row, machine

HERE = Path(__file__).parent
ROWS = sorted(p.stem for p in HERE.glob("row_*.py"))


def measure(row: str) -> dict:
    "One row, here; what goes wrong becomes part of the row."
    module = importlib.import_module(f"benchmarks.{row}")
    try: found = module.row()
    except HardwareAbsent as absent: found = Row(module.NAME, None, None, "", None, module.BAR, None, str(absent))
    except Exception as problem: found = Row(module.NAME, None, None, "", None, module.BAR, False, f"{type(problem).__name__}: {str(problem)[:500]}")
    return found.to_dict()


def measure_apart(row: str) -> dict:
    "One row in a fresh interpreter, so that no row pays for or profits from another."
    done = subprocess.run([sys.executable, "-m", "benchmarks", "--measure", row], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try: return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return Row(row, None, None, "", None, "", False, f"the process ended with {done.returncode} and no result").to_dict()


def table(rows: list[dict]) -> str:
    def number(v) -> str: return "–" if v is None else f"{v:,.3g}" if isinstance(v, float) and v < 1000 else f"{v:,.0f}"
    lines = [("what", "ours", "peer", "unit", "ratio", "bar", "")]
    lines += [(r["name"], number(r["ours"]), number(r["peer"]), r["unit"], number(r["ratio"]), r["bar"], {True: "ok", False: "MISSED", None: "absent"}[r["ok"]])
              for r in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(7)]
    text = ["  ".join(c.rjust(w) if 0 < i < 5 else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))).rstrip() for line in lines]
    return "\n".join([text[0], "  ".join("-" * w for w in widths), *text[1:], *(f"  {r['name']}: {r['why']}" for r in rows if r.get("why"))])


def main(words: list[str]) -> int:
    if words[:1] == ["--measure"]:
        print(json.dumps(measure(words[1])))
        return 0
    if unknown := [w for w in words if f"row_{w.removeprefix('row_')}" not in ROWS]:
        print(f"unknown row {unknown[0]!r}; there are {', '.join(r.removeprefix('row_') for r in ROWS)}", file=sys.stderr)
        return 2
    rows = []
    for row in [f"row_{w.removeprefix('row_')}" for w in words] or ROWS:
        print(f"measuring {row.removeprefix('row_').replace('_', ' ')} …", file=sys.stderr, flush=True)
        rows.append(measure_apart(row))
    print(table(rows))
    body = {"machine": machine(), "rows": rows} | ({} if SIZE == 1 else {"size": SIZE})
    (HERE / "results.json").write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n")
    return 1 if any(r["ok"] is False for r in rows) else 0


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
