"""The gateway against an ASGI app that sends back what came, on the same server with the same settings and the same bodies; 16 connections."""
from benchmarks.harness import Row
from benchmarks.load import echo, gateway, loads_in_turns, middle, requests, wrk

NAME, BAR, CONNECTIONS, LEAST = "gateway against a bare ASGI echo, 16 connections: rate", ">= 15 %", 16, 0.15


def measured(name: str, bar: str, connections: int, least: float) -> Row:
    with gateway("1.0.0") as (_, url, folder):
        bodies = requests(folder)
        with echo(bodies) as bare: ours, theirs = loads_in_turns(*(lambda u=u: wrk(u, bodies, connections=connections) for u in (url, bare)))
    mine, peer = middle(ours, "rate"), middle(theirs, "rate")
    why = f"p99 {middle(ours, 'p99'):.2f} ms, the echo {middle(theirs, 'p99'):.2f} ms; wrk, gateway and host share the cores, the echo has no host"
    return Row(name, round(mine), round(peer), "req/s", round(mine / peer, 3), bar, mine / peer >= least, why)


def row() -> Row: return measured(NAME, BAR, CONNECTIONS, LEAST)
