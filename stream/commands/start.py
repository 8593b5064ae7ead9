"""The program's start: looks whether the packages it consists of are its own, before any of them is imported.

`engines`, `stream` and `demo` are common words. Another distribution's package of such a name overwrites ours, or comes
before it on the path; what fails then names neither. Imports nothing of ours before it has looked.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start() -> int:
    """Runs the command line and returns its exit code; Ctrl-C while it is imported ends it quietly, too."""
    try:
        for name in ("engines", "stream"):
            check_package(name)
        from stream.commands.cli import main

        return main()
    except ForeignPackageError as error:
        print("gatestream: error:", error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


class ForeignPackageError(ImportError):
    """A package of this program would be imported from another distribution."""


def check_package(name: str) -> None:
    """Raises ForeignPackageError where `import name` gives another package than gatestream's, which lies beside ours.

    The error says where the other one is, whose it is as far as pip knows, and what to do.
    """
    own = ROOT / name / "__init__.py"
    spec = find_spec(name)
    found = None if spec is None or spec.origin is None else Path(spec.origin)
    replaced = found is not None and own.is_file() and found.samefile(own)
    if replaced and "gatestream" in own.read_text(encoding="utf-8", errors="replace"):
        return
    owner = None if found is None else _distribution_of(found)
    restore = "pip install --force-reinstall --no-deps gatestream"
    if found is None:
        got, do = f"no {own}", restore
    elif owner is not None:
        do = f"install gatestream in a virtual environment of its own, or pip uninstall {owner}"
        got, do = f"{found} of the distribution {owner}", f"{do} and then {restore}" if replaced else do
    elif replaced:
        got, do = f"{found} of something else", restore
    else:
        entry = found.parents[found.name == "__init__.py"]
        got, do = f"{found}", f"rename it, or take {entry} off Python's path (PYTHONPATH, the current folder)"
    raise ForeignPackageError(f"{got} in the place of gatestream's package {name!r}; wanted {own} as gatestream "
                              f"installs it; {do}")


def _distribution_of(file: Path) -> str | None:
    """The installed distribution, other than gatestream, that a file belongs to."""
    from importlib.metadata import distributions

    for distribution in distributions():
        name = distribution.metadata["Name"]
        for one in distribution.files or () if name != "gatestream" else ():
            located = Path(str(distribution.locate_file(one)))
            if one.name == file.name and located.exists() and located.samefile(file):
                return name
    return None
