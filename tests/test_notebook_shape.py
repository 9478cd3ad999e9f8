"""Dead prose kills notebook projects: the shape of a chapter is measured. Hard limits fail, the others warn."""
import ast
import re
import statistics

import pytest
from notebooks import Notebook, advise, chapters, is_import

MAX_CELLS, MAX_LINES, MEDIAN_LINES = 80, 60, 12
MIN_PROSE_CELLS, MIN_WORDS, MIN_LESSONS, MAX_HIDDEN, MAX_OUTPUT = 0.35, 25, 0.5, 0.20, 20_000
NOT_OUR_WORDS = re.compile(r"manager|helper|utils|handler|process_data|^do_|^test_|^Test", re.IGNORECASE)

every_chapter = pytest.mark.parametrize("notebook", chapters(), ids=lambda n: n.path.stem)


def working(notebook: Notebook) -> list:
    "Code cells that say something: not the directive naming the module."
    return [c for c in notebook.code if "default_exp" not in c.directives]


def taught(notebook: Notebook) -> list: return [c for c in working(notebook) if c.exported and not c.only_imports]


def lessons(notebook: Notebook) -> list: return [c for c in working(notebook) if not c.exported and not c.hidden]


def asserts(cell) -> bool:
    names = {getattr(n.func, "id", "") for n in ast.walk(cell.tree) if isinstance(n, ast.Call)} if "%" not in cell.code[:1] else set()
    return "assert " in cell.code or bool(names & {"expect_fail", "test_eq", "test_close", "test_fail", "assert_allclose"})


@every_chapter
def test_title_says_module_and_question(notebook):
    first = notebook.cells[0]
    lines = [line for line in first.source.splitlines() if line.strip()]
    assert first.kind == "markdown" and lines[0].startswith("# ") and lines[1].startswith("> "), "first cell: '# module', then '> the question'"
    assert sum("default_exp" in c.directives for c in notebook.cells if c.kind == "code") == 1


@every_chapter
def test_cells_stay_small(notebook):
    assert len(notebook.cells) <= MAX_CELLS, f"{len(notebook.cells)} cells: split the module"
    long = {c.index: c.lines for c in working(notebook) if c.exported and c.lines > MAX_LINES}
    assert not long, f"exported cells over {MAX_LINES} lines (cell: lines): {long}"
    median = statistics.median([c.lines for c in taught(notebook)] or [0])
    if median > MEDIAN_LINES: advise(f"{notebook.path.name}: median exported cell has {median:g} lines, {MEDIAN_LINES} is the aim")


@every_chapter
def test_prose_is_alive(notebook):
    share = len(notebook.prose) / max(1, len(working(notebook)))
    assert share >= MIN_PROSE_CELLS, f"{share:.2f} markdown cells per code cell, at least {MIN_PROSE_CELLS}"
    words = sum(len(c.source.split()) for c in notebook.prose) / max(1, len(taught(notebook)))
    if words < MIN_WORDS: advise(f"{notebook.path.name}: {words:.0f} words of prose per exported cell, {MIN_WORDS} is the aim")


@every_chapter
def test_lessons_assert_what_they_show(notebook):
    assert any(asserts(c) for c in lessons(notebook)), "no lesson cell asserts anything"
    ratio = len(lessons(notebook)) / max(1, len(taught(notebook)))
    if ratio < MIN_LESSONS: advise(f"{notebook.path.name}: {ratio:.2f} lessons per exported cell, {MIN_LESSONS} is the aim")


@every_chapter
def test_little_is_hidden(notebook):
    hidden = [c.index for c in working(notebook) if c.hidden]
    share = len(hidden) / max(1, len(working(notebook)))
    assert share <= MAX_HIDDEN or len(hidden) == 1, f"{share:.0%} of the code cells are hidden: {hidden}"


@every_chapter
def test_imports_stand_alone(notebook):
    for cell in working(notebook):
        if not cell.exported: continue
        top = [is_import(n) for n in cell.tree.body]
        assert all(top) or not any(top), f"cell {cell.index} mixes imports and code: nbdev needs imports alone in their cell"


@every_chapter
def test_words_are_ours(notebook):
    for cell in working(notebook):
        assert "import *" not in cell.code, f"cell {cell.index}: no star imports"
        if not cell.exported: continue
        names = [n.name for n in cell.tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
        assert not [n for n in names if NOT_OUR_WORDS.search(n)], f"cell {cell.index}: {names}"


@every_chapter
def test_outputs_in_git_are_small(notebook):
    size = sum(len(o) for c in notebook.cells for o in c.outputs)
    assert size <= MAX_OUTPUT, f"{size:,} bytes of outputs"
