"""What the guides say holds: their commands run, or at least name commands and options that there are.

The guides are README.md and every other Markdown file of the rooms. The info string of a fence decides:

    ```sh run        bash runs the block, in a folder that the guide's blocks share; it ends with 0 within a minute
    ```python run    likewise, by Python
    ```sh            (or any other, or none) lines that begin with `gatestream`, `python -m` or `torchrun` are parsed:
                     command, options and required arguments must exist. A word in CAPITALS stands for a value.
    ```python        is compiled, and what it imports of ours must exist

So a command that takes a camera, a network or minutes is left unmarked. Commands in the text, `like --this`, have to
name commands and options that there are, and links into the repository have to lead somewhere.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from typer.main import get_command

from stream.commands.cli import app

ROOT = Path(__file__).resolve().parents[1]
GUIDES = sorted([ROOT / "README.md", *(path for room in ("engines", "stream", "demo", "tests")
                                       for path in (ROOT / room).rglob("*.md"))])
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
STARTS = {("gatestream",), ("python", "-m", "stream"), ("python", "-m", "gatestream")}
SHELL = 'gatestream() { python -m stream "$@"; }\nset -euo pipefail\n'
OWN = ("engines", "stream", "demo")


def without_callbacks(command: Any) -> Any:
    """The command, whose options do nothing while they are parsed: --install-completion would change this machine."""
    for option in command.params:
        option.callback = None
    for one in getattr(command, "commands", {}).values():
        without_callbacks(one)
    return command


COMMAND = without_callbacks(get_command(app))


class Block(NamedTuple):
    """A fenced block of a guide. info: such as ("sh", "run")."""

    info: tuple[str, ...]
    text: str


def blocks(guide: Path) -> list[Block]:
    return [Block(tuple(info.split()), re.sub(f"^{indent}", "", text, flags=re.MULTILINE))
            for indent, info, text in FENCE.findall(guide.read_text(encoding="utf-8"))]


def command_lines(text: str) -> Iterator[list[str]]:
    """The commands of ours in a shell block, as words after `gatestream`."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=";&|<>")
        lexer.whitespace_split = True
        try:
            words = [word for word in lexer if word != "..."]
        except ValueError:  # prose with an apostrophe
            continue
        start = 0
        for end in [*(i for i, word in enumerate(words) if set(word) <= set(";&|<>")), len(words)]:
            yield from _ours(words[start:end])
            start = end + 1


def _ours(words: list[str]) -> Iterator[list[str]]:
    if words[:1] == ["torchrun"] and "-m" in words:
        words = ["python", *words[words.index("-m"):]]
    for length in (1, 3):
        if tuple(words[:length]) in STARTS:
            yield words[length:]
            return
    if words[:2] == ["python", "-m"]:
        assert find_spec(words[2]) is not None, f"python -m {words[2]}: no such module"


def parse(words: list[str], whole: bool = True) -> None:
    """Parses a command line as the program does, without running it. Raises typer's usage errors.

    whole: else what is required may be missing. A file need not be there.
    """
    words = [word for word in words if word != "--debug"]  # it may stand anywhere
    values = [re.sub(r"^[A-Z][A-Z_:]*$", "1", word) for word in words]
    command = COMMAND
    fine = set() if whole else {"MissingParameter", "BadOptionUsage", "NoArgsIsHelpError"}
    fine |= {"BadParameter"} if values != words else set()
    try:
        context = command.make_context("gatestream", values)
        while rest := [*getattr(context, "_protected_args", ()), *context.args]:
            _, command, rest = command.resolve_command(context, rest)
            context = command.make_context(command.name, rest, parent=context)
    except typer.Exit:  # --help
        pass
    except Exception as error:
        if type(error).__name__ not in fine and "not exist" not in str(error):
            raise


def faults(texts: Iterable[str], whole: bool = True) -> list[str]:
    """What is wrong with the commands in these texts."""
    found = []
    for text in texts:
        for words in command_lines(text):
            try:
                if words:
                    parse(words, whole)
            except Exception as error:
                found.append(f"gatestream {shlex.join(words)}: {error!r}")
    return found


@pytest.mark.parametrize(("text", "wrong", "wrong_in_text"), [
    ("gatestream run 0 --log events.db --debug", 0, 0),
    ("$ gatestream run \\\n    --jsn -", 1, 1),
    ("pip install . && gatestream fly", 1, 1),
    ("gatestream bench --cameras 64", 1, 1),
    ("gatestream bench gsf-resnet50 --steps N; gatestream bench cameras N", 0, 0),
    ("gatestream train DATASET --out FILE | head", 0, 0),
    ("torchrun --nproc-per-node N -m stream train DATASET", 1, 0),  # without --out
    ("python -m stream evaluate gesture data --fold first", 1, 1),
    ("gatestream evaluate --max-false-events", 1, 0),
    ("gatestream's command line; python -m demo.webcam", 0, 0),
    ("gatestream --install-completion; gatestream --version; gatestream run --help", 0, 0),
])
def test_what_is_wrong_is_found(text: str, wrong: int, wrong_in_text: int) -> None:
    assert (len(faults([text])), len(faults([text], whole=False))) == (wrong, wrong_in_text)


def run(block: Block, folder: Path) -> None:
    """Runs a block that is marked so. Raises AssertionError where it fails."""
    if "run" in block.info[1:]:
        text = block.text if block.info[0] == "python" else SHELL + block.text
        program = [sys.executable if block.info[0] == "python" else "bash", "-c", text]
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        done = subprocess.run(program, cwd=folder, env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
                              capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, f"{block.text}\n{done.stderr}"


def test_marked_blocks_run_in_one_folder(tmp_path: Path) -> None:
    guide, folder = tmp_path / "guide.md", tmp_path / "folder"
    folder.mkdir()
    guide.write_text("```sh run\ngatestream --version > version\n```\n"
                     "  ```python run\n  assert open('version').read()\n  ```\n"
                     "```sh\nrm version\n```\n```sh run\ntest -s version\nfalse | cat\n```\n")
    first, second, unmarked, failing = blocks(guide)
    for block in (first, second, unmarked):
        run(block, folder)
    with pytest.raises(AssertionError, match="false"):
        run(failing, folder)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.relative_to(ROOT).as_posix())
class TestGuide:
    def test_its_commands_can_be_parsed(self, guide: Path) -> None:
        text = FENCE.sub("", guide.read_text(encoding="utf-8"))
        assert faults(block.text for block in blocks(guide) if block.info[:1] != ("python",)) == []
        assert faults((" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)), whole=False) == []

    def test_its_python_compiles_and_imports_what_there_is(self, guide: Path) -> None:
        for block in blocks(guide):
            for node in ast.walk(ast.parse(block.text)) if block.info[:1] == ("python",) else ():
                if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OWN:
                    module = importlib.import_module(node.module)
                    assert [name.name for name in node.names if not hasattr(module, name.name)] == []

    def test_its_links_lead_somewhere(self, guide: Path) -> None:
        text = FENCE.sub("", guide.read_text(encoding="utf-8"))
        links = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)]
        assert [link for link in links if not re.match(r"https?:|#", link)
                and not (guide.parent / link.split("#")[0]).exists()] == []

    def test_what_is_marked_runs(self, guide: Path, tmp_path: Path) -> None:
        for block in blocks(guide):
            run(block, tmp_path)
