"""A real network of the least size, as a model class that can be trained data-parallel."""
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd

from within.errors import InvalidInput
from within.ml.base import FeatureSpec, Model, Setting

class TinyText(Model):
    "Letters of a text to a probability, by a small network with dropout."
    name, task, files = "tiny_text", "classification", ("model.json", "weights.safetensors")
    settings = {"width": Setting(16, 1, 1024), "dropout": Setting(0.2, 0.0, 0.9), "pause": Setting(0.0, 0.0, 10.0), "random_state": Setting(0, 0, 2**31 - 1)}

    def network(self, seed):
        import torch
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(26, self.config["width"]), torch.nn.ReLU(), torch.nn.Dropout(self.config["dropout"]),
                                   torch.nn.Linear(self.config["width"], 1))

    def letters(self, texts):
        import torch
        counts = np.zeros((len(texts), 26), dtype=np.float32)
        for row, text in zip(counts, texts, strict=True):
            for c in str(text).lower():
                if "a" <= c <= "z": row[ord(c) - 97] += 1
        return torch.from_numpy(np.log1p(counts))

    def batch(self, rows):
        import torch
        if bad := [v for v in rows["label"] if str(v) not in ("positive", "negative")]: raise InvalidInput(f"label {bad[0]!r} cannot be meant")
        if self.config["pause"]: time.sleep(self.config["pause"])
        if os.environ.get("TINY_TEXT_BREAKS"): raise RuntimeError("a wheel came off")
        return {"letters": self.letters(rows["text"]), "label": torch.tensor((rows["label"] == "positive").to_numpy(dtype=np.float32))}

    def loss(self, network, batch):
        import torch
        return torch.nn.functional.binary_cross_entropy_with_logits(network(batch["letters"])[:, 0], batch["label"], reduction="none")

    def lengths(self, rows): return rows["text"].str.len().to_numpy()

    def adopt(self, network, target="label", target_mean=None):
        self.net, self.target, self.target_mean, self.signature = network, target, target_mean, [FeatureSpec("text", "text")]
        return self

    def fit(self, x, y, validation=None, early_stopping_rounds=None, progress=None): raise InvalidInput("this one is only trained data-parallel")

    def predict(self, x: pd.DataFrame) -> np.ndarray:
        import torch
        with torch.no_grad(): return torch.sigmoid(self.net(self.letters(x["text"])))[:, 0].double().numpy()

    def write_weights(self, folder: Path) -> None:
        from safetensors.torch import save_model
        save_model(self.net, str(folder / "weights.safetensors"))

    def read_weights(self, folder: Path, body: dict) -> None:
        from safetensors.torch import load_model
        self.net = self.network(0).eval()
        load_model(self.net, str(folder / "weights.safetensors"))
