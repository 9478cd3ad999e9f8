"""Notebooks as data: what the floor, shape and stage tests look at."""
from __future__ import annotations

import ast
import json
import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIB, STAGES = ROOT / "nbs" / "lib", ROOT / "nbs" / "stages"
DIRECTIVE = re.compile(r"^\s*#\s*\|\s*(\w+)\s*(.*)$")


def is_import(node: ast.stmt) -> bool:
    "An import, or `if TYPE_CHECKING:` around imports."
    return isinstance(node, ast.Import | ast.ImportFrom) or (
        isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and all(is_import(n) for n in node.body))


@dataclass(frozen=True)
class Cell:
    index: int       # from 0, as in the file
    kind: str        # "code" or "markdown"
    source: str
    tags: tuple[str, ...]
    outputs: tuple

    @cached_property
    def directives(self) -> dict[str, str]:
        return {m[1]: m[2].strip() for line in self.source.splitlines() if (m := DIRECTIVE.match(line))}

    @property
    def exported(self) -> bool: return bool({"export", "exporti", "exports"} & set(self.directives))

    @property
    def hidden(self) -> bool: return "hide" in self.directives

    @cached_property
    def code(self) -> str:
        "The source without directives and without empty lines at either end."
        return "\n".join(line for line in self.source.splitlines() if not DIRECTIVE.match(line)).strip("\n")

    @property
    def lines(self) -> int: return len(self.code.splitlines())

    @cached_property
    def tree(self) -> ast.Module: return ast.parse(self.code)

    @property
    def only_imports(self) -> bool: return bool(self.tree.body) and all(is_import(n) for n in self.tree.body)


@dataclass(frozen=True)
class Notebook:
    path: Path

    @cached_property
    def cells(self) -> list[Cell]:
        raw = json.loads(self.path.read_text(encoding="utf-8"))["cells"]
        return [Cell(i, c["cell_type"], "".join(c["source"]), tuple(c["metadata"].get("tags", ())), tuple(map(json.dumps, c.get("outputs", ()))))
                for i, c in enumerate(raw)]

    @property
    def code(self) -> list[Cell]: return [c for c in self.cells if c.kind == "code" and c.code.strip()]

    @property
    def prose(self) -> list[Cell]: return [c for c in self.cells if c.kind == "markdown"]

    @property
    def number(self) -> int: return int(self.path.name.split("_")[0])

    @property
    def floor(self) -> int: return self.number // 100

    @property
    def dotted(self) -> str: return self.path.stem.split("_", 1)[1]

    @cached_property
    def module(self) -> str:
        "The module it exports, e.g. `ml.registry`; a package's own chapter is the package, e.g. `stats`."
        found = [c.directives["default_exp"] for c in self.cells if c.kind == "code" and "default_exp" in c.directives]
        return found[0].removesuffix(".__init__") if found else ""

    def imports(self, packages: frozenset[str] | set[str] = frozenset()) -> set[str]:
        "Modules of `within` that the exported cells import, anywhere in them: `within.ml.base` is `ml.base`."
        found: set[str] = set()
        for cell in self.code:
            if not cell.exported: continue
            for node in ast.walk(cell.tree):
                if isinstance(node, ast.Import):
                    found |= {a.name.removeprefix("within.") for a in node.names if a.name.startswith("within.")}
                elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "within":
                    base = node.module.removeprefix("within").removeprefix(".")
                    for alias in node.names:   # `from within.ml import base` names the module in the second half
                        deeper = f"{base}.{alias.name}".strip(".")
                        found.add(deeper if deeper in packages else base)
        return found - {""}


def chapters() -> list[Notebook]: return [Notebook(p) for p in sorted(LIB.glob("*.ipynb"))]


def stages() -> list[Notebook]: return [Notebook(p) for p in sorted(STAGES.glob("*.ipynb"))]


def advise(text: str) -> None:
    "A limit that is an aim: pytest's summary shows it, nothing fails."
    warnings.warn(pytest.PytestWarning(text), stacklevel=2)
