"""The users' document, block by block, through its own runner: what it calls must work to the letter."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RUNNER = ROOT.parent / "shared" / "guide" / "run_guide.py"


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not RUNNER.is_file(), reason="the guide is not beside this checkout (../shared/guide)")
def test_every_block_passes(tmp_path):
    out = tmp_path / "blocks.json"
    env = {k: v for k, v in os.environ.items() if not k.startswith("WITHIN_")} | {"TMPDIR": str(tmp_path)}
    run = subprocess.run([sys.executable, str(RUNNER), "--json", str(out)], cwd=ROOT, env=env, capture_output=True, text=True)
    assert "still running ten seconds after the end" not in run.stdout, run.stdout
    blocks = {b["block"]: b for b in json.loads(out.read_text())}
    assert len(blocks) == 19
    failed = {n: b["error"] for n, b in blocks.items() if not b["ok"]}
    assert not failed, run.stdout + run.stderr[-4000:]
    printed = {n: b["printed"] for n, b in blocks.items()}
    assert "Retraining recommended" in printed[1] and "Model passed all required validation suites" in printed[8]
    assert "Integration tests passed" in printed[9] and "New model outperformed current production model" in printed[11]
    assert "Transfer learning complete" in printed[18] and "Best parameters" in printed[19]
    assert "ad_score_predictor v2.2.0 is now in production" in printed[13] and "Rolling back to version: 2.1.0" in printed[15]
