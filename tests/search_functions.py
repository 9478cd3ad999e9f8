"""Evaluation functions that other processes can import."""
import os
import time

SPACE = {"x": list(range(12)), "rate": [0.01, 0.03, 0.1, 0.3, 1.0], "grow": ["deep", "wide"]}


def bowl(params, data=None) -> float:
    return (params["x"] - 7) ** 2 + 20 * abs(params["rate"] - 0.1) + (params["grow"] == "wide")


def uneven(params, data) -> float:
    "Later proposals often end first; one of them is no number."
    time.sleep(0.002 * ((params["x"] * 7) % 5))
    return float("nan") if params["x"] == 3 else bowl(params)


def stepwise(params, data, trial) -> float:
    "Reports on the way, and may be pruned."
    import optuna
    for step in range(3):
        time.sleep(0.001 * ((params["x"] * 5 + step) % 4))
        trial.report(bowl(params) + step, step)
        if trial.should_prune(): raise optuna.TrialPruned()
    return bowl(params)


def deadly(params, data) -> float:
    if params["x"] == 3: os.kill(os.getpid(), 9)
    return bowl(params)


def logged(params, data) -> float:
    "Writes down each call, and waits at the tenth so that a test can kill the process there."
    with open(data["log"], "a") as file: file.write(f"{params}\n")
    with open(data["log"]) as file: count = len(file.readlines())
    if count == data.get("stop_at"):
        open(data["log"] + ".there", "w").close()
        time.sleep(60)
    return bowl(params)
