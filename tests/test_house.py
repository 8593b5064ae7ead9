"""The plan of the house: which room may import which, how long a file may be, and the names that outsiders rely on."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import engines
import stream

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 350  # lines of a file
# From the ground up: a room may import itself and what stands before it.
ORDER = [
    "engines.errors", "engines.decoding", "engines.synthetic", "engines.networks", "engines.model", "engines.runtime",
    "engines.hands", "engines.datasets", "engines.training", "engines.bench", "engines.zoo", "engines",
    "stream.frame", "stream.clock", "stream.window", "stream.scoring", "stream.events", "stream.trackers",
    "stream.recognizer", "stream.stage", "stream.notices", "stream.wire", "stream.sources", "stream.evaluation",
    "stream.sinks", "stream.access", "stream.sender", "stream.runner", "stream.teaching", "stream.archive",
    "stream.service", "stream.cluster", "stream.bench", "stream.commands", "stream.__main__", "stream", "demo"]
FILES = {str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__"): path
         for floor in ("engines", "stream", "demo") for path in sorted((ROOT / floor).rglob("*.py"))}


def room(module: str) -> str:
    """Of ORDER; a module that is in no room is its own."""
    first, two = module.partition(".")[0], ".".join(module.split(".")[:2])
    return two if two in ORDER else "demo" if first == "demo" else module


def imports(path: Path) -> Iterator[str]:
    """The modules of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else node.module for name in names]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] in ("engines", "stream", "demo"))


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down_only(module: str) -> None:
    own = room(module)
    assert own in ORDER, f"{module} is in no room of the plan"
    above = [name for name in imports(FILES[module]) if ORDER.index(room(name)) > ORDER.index(own)]
    # A floor's __init__ offers names of its rooms, which are imported when they are asked for.
    assert own in ("engines", "stream") or not above


@pytest.mark.parametrize("module", FILES)
def test_files_are_short(module: str) -> None:
    assert len(FILES[module].read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES.values()}), ids=lambda path: path.name)
def test_a_room_says_in_few_lines_what_it_is_for(folder: Path) -> None:
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    public = folder.name in ("engines", "stream")  # their docstrings show how they are used
    assert 1 <= len(text.splitlines()) <= (30 if public else 5)


def test_few_files_lie_loose() -> None:
    assert len([path for path in (ROOT / "stream").iterdir() if path.is_file() and path.suffix != ".md"]) <= 14
    assert {path.name for path in (ROOT / "engines").glob("*.py")} == {"__init__.py", "errors.py"}


@pytest.mark.parametrize(("module", "names"), [
    (engines, "load build compile export official clip_scores causal"),
    (engines.official, "load"),
    (stream, "Recognizer Prediction Event Gap Summary Frame open_source run"),
    (stream.Recognizer, "open push flush")])
def test_outsiders_find_what_they_rely_on(module: object, names: str) -> None:
    assert [name for name in names.split() if not callable(getattr(module, name, None))] in ([], ["official"])
