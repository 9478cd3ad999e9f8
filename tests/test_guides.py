"""Every guide of nbs/guides runs as it stands, from the project's root, and is committed with small outputs that name no machine.

A guide says in its metadata which data sets of ../shared/data it reads, `{"within": {"data": ["drift_elec2"]}}`; it is skipped where one is absent."""
from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from conftest import on_path
from nbclient import NotebookClient
from notebooks import ROOT

GUIDES = sorted((ROOT / "nbs" / "guides").glob("*.ipynb"))
MOST, PATIENCE = 400_000, 600      # bytes in git; seconds a cell

every_guide = pytest.mark.parametrize("path", GUIDES, ids=lambda p: p.stem)


def read(path: Path) -> nbformat.NotebookNode: return nbformat.read(path, as_version=4)


def needed(notebook: nbformat.NotebookNode) -> list[str]:
    "The data sets that a guide says it reads, relative to the project's root."
    assert "within" in notebook.metadata, 'the metadata says what the guide reads: {"within": {"data": []}} for nothing'
    return [f"../shared/data/{name}" for name in notebook.metadata["within"]["data"]]


@every_guide
def test_a_guide_has_a_question_and_says_what_it_reads(path):
    notebook = read(path)
    lines = [line for line in notebook.cells[0].source.splitlines() if line.strip()]
    assert notebook.cells[0].cell_type == "markdown" and lines[0].startswith("# ") and lines[1].startswith("> ")
    code = "".join(c.source for c in notebook.cells if c.cell_type == "code")
    assert all(Path(name).name in code for name in needed(notebook)), "it names a data set that it does not read"


@every_guide
def test_a_guide_is_committed_with_small_outputs_that_name_no_machine(path):
    notebook, text = read(path), path.read_text()
    assert len(text.encode()) <= MOST, f"{len(text):,} bytes"
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert outputs and not [o for o in outputs if o.output_type == "error"], "committed as it ran"
    said = "".join(c.source for c in notebook.cells) + "".join(str({k: v for k, v in o.items() if k != "image/png"}) for o in outputs)
    assert str(ROOT) not in said and not re.search(r"(?<![\w.])/(home|root|Users|tmp|work)/\w", said)


@pytest.mark.slow
@every_guide
def test_a_guide_runs(path, tmp_path, monkeypatch):
    notebook = read(path)
    if absent := [name for name in needed(notebook) if not (ROOT / name).exists()]: pytest.skip(f"not here: {', '.join(absent)}")
    monkeypatch.setenv("PYTHONPATH", on_path(ROOT))
    monkeypatch.setenv("WITHIN_HOME", str(tmp_path / "home"))
    for cell in notebook.cells:
        if cell.cell_type == "code": cell.outputs = []
    NotebookClient(notebook, timeout=PATIENCE, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
