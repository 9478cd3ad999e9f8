"""A model that answers one number, and misbehaves on request: it leaks, hangs, or cannot be loaded while a file says so."""
import os
import time
from pathlib import Path

import numpy as np

from within.ml.base import BaselineModel

KEPT: list[bytearray] = []


class Moody(BaselineModel):
    "`x` above 0 leaks that many MiB; below 0 it hangs that many seconds. `$MOODY_FOLDER/<answer>` makes the version with this answer unloadable, or mute."
    name = "moody"

    def mood(self) -> str:
        place = Path(os.environ.get("MOODY_FOLDER", "/nonexistent")) / f"{self.answer:g}"
        return place.read_text().strip() if place.exists() else ""

    def read_weights(self, folder: Path, body: dict) -> None:
        super().read_weights(folder, body)
        if self.mood() == "breaks": raise RuntimeError("the weights are not what they were")

    def predict_records(self, records: list[dict]) -> list[float]:
        for r in records:
            x = float(r.get("x") or 0.0)
            if x > 0: KEPT.append(bytearray(os.urandom(1 << 20) * int(x)))
            if x < 0: time.sleep(-x)
        return list(np.full(len(records), np.nan if self.mood() == "mute" else self.answer))
