"""The gateway against `mlflow models serve`: the same trees, the same request bodies, 16 connections; requests a second."""
from benchmarks.harness import Row
from benchmarks.load import gateway, loads_in_turns, middle, mlflow, requests, wrk

NAME, BAR = "gateway against mlflow models serve, 16 connections: rate", ">= 60 x"


def loads():
    "What wrk saw of the gateway and of MLflow's server, in turns."
    from within.ml.registry import ModelRegistry

    with gateway("1.0.0") as (ctx, url, folder):
        bodies = requests(folder)
        with mlflow(ModelRegistry(ctx).load("ad_score_predictor", "1.0.0").booster, bodies) as peer:
            return loads_in_turns(lambda: wrk(url, bodies), lambda: wrk(peer, bodies))


def row() -> Row:
    ours, theirs = loads()
    mine, peer = middle(ours, "rate"), middle(theirs, "rate")
    why = f"500 trees of depth 7, 40 features, one row a request; both median of {len(ours)} turns; the gateway logs every answer and MLflow's server none"
    return Row(NAME, round(mine), round(peer, 1), "req/s", round(mine / peer, 1), BAR, mine / peer >= 60, why)
