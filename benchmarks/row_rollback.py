"""How long until the previous version serves again, under load: from the change of the route to the first answer of the other version."""
import statistics
import threading
from dataclasses import replace

from benchmarks.harness import SIZE, Row, absolute, seconds
from benchmarks.load import NAME as MODEL
from benchmarks.load import gateway, requests, wrk

NAME, BAR = "time to roll back under load, previous version warm", "<= 2 s"
TURNS = max(3, int(20 * SIZE))


def row() -> Row:
    from within.serving.routes import Share, change, current
    from within.serving.supervisor import status
    from within.serving.wire import ask

    with gateway("1.0.0", "1.1.0") as (ctx, url, folder):
        bodies = requests(folder)
        one, failed = bodies.read_bytes().splitlines()[0], []

        def turn(version: str, warm: str | None) -> None:
            "Move everybody to a version; another stays warm as a share of nobody."
            route = current(ctx, "production", MODEL)
            change(ctx, replace(route, default=version, shares=(Share("warm", warm, 0.0),) if warm else ()), route.revision, by="bench")
            while ask(url, "/invocations", one)[1]["version"] != version: pass

        turn("1.0.0", "1.1.0")
        load = threading.Thread(target=lambda: failed.append(wrk(url, bodies, seconds=TURNS * 0.6).failed))
        load.start()
        warm = [seconds(lambda v=v: turn(*v)) for _ in range(TURNS) for v in (("1.1.0", "1.0.0"), ("1.0.0", "1.1.0"))]
        load.join()
        turn("1.0.0", None)
        while len(status(ctx)["hosts"]) > 1: pass   # the other version's process ends when nobody routes it any more
        cold = seconds(lambda: turn("1.1.0", None))
    if any(failed): raise RuntimeError(f"{failed[0]} requests failed meanwhile")
    why = f"median of {len(warm)}, slowest {max(warm):.2f} s, no request failed; {cold:.2f} s when its host must be started first"
    return absolute(NAME, statistics.median(warm), 2.0, why=why)
