"""The gateway against `mlflow models serve`, as in `row_gateway_mlflow`: the slowest hundredth of the answers."""
from benchmarks.harness import Row
from benchmarks.load import middle
from benchmarks.row_gateway_mlflow import loads

NAME, BAR = "gateway against mlflow models serve, 16 connections: p99", "<= 1/30"


def row() -> Row:
    mine, peer = (middle(side, "p99") for side in loads())
    return Row(NAME, round(mine, 2), round(peer, 1), "ms", round(mine / peer, 4), BAR, mine / peer <= 1 / 30)
