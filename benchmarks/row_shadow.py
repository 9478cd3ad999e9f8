"""What a shadow at 100 % costs live answers: the same gateway under the same load, with the copies on and off in turns."""
from dataclasses import replace

from benchmarks.harness import Row, at_most
from benchmarks.load import NAME as MODEL
from benchmarks.load import REPEATS, gateway, loads_in_turns, middle, requests, wrk

NAME, BAR = "a shadow at 100 %: live p99 against none, 16 connections", "<= 1.2 x"


def row() -> Row:
    from within.serving.routes import Shadow, change, current

    with gateway("1.0.0", "1.1.0", "1.2.0") as (ctx, url, folder):
        bodies = requests(folder)

        def routed(*shadows: str):
            def load():
                route = current(ctx, "production", MODEL)
                change(ctx, replace(route, shadows=tuple(Shadow(v) for v in shadows)), route.revision, by="bench")
                wrk(url, bodies)   # a host that is not needed ends after seconds: this load sees the shadow's host come up, or go
                return wrk(url, bodies)
            return load

        # what is measured is the copying, not the start of a process
        with_shadow, without = loads_in_turns(routed("1.1.0"), routed(), repeats=2 * REPEATS)
    why = f"{middle(with_shadow, 'rate'):,.0f} requests/s with, {middle(without, 'rate'):,.0f} without; milliseconds, medians of {len(without)} turns"
    return at_most(NAME, middle(with_shadow, "p99"), middle(without, "p99"), 1.2, "ms", why)
