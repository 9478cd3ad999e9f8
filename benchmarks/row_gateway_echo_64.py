"""The gateway against a bare ASGI echo, as in `row_gateway_echo`, with 64 connections."""
from benchmarks.harness import Row
from benchmarks.row_gateway_echo import measured

NAME, BAR = "gateway against a bare ASGI echo, 64 connections: rate", ">= 30 %"


def row() -> Row: return measured(NAME, BAR, 64, 0.30)
