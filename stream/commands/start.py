"""The program's start: checks that the packages it consists of are its own, before any of them is imported.
`engines`, `stream` and `demo` are common words. Another distribution's package of such a name overwrites ours, or comes
before it on the path; what fails then names neither. Imports nothing of ours before it has checked."""

import os
import signal
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

__version__ = "0.1.0"  # also of the distribution
ROOT = Path(__file__).parents[2]


def start() -> int:
    """Runs the command line and returns its exit code; Ctrl-C while it is imported ends it quietly, too."""
    # numpy's products here are small: a second thread would only wait for its turn, for long on a busy machine.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if "serve" in sys.argv[1:3] and hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # to read the configuration again, which was not read yet
    try:
        for name in ("engines", "stream"):
            check_package(name)
        from stream.commands.cli import main

        return leave_drivers(main())
    except ForeignPackageError as error:
        print("gatestream: error:", error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        from engines.errors import is_interrupt

        if is_interrupt(error):
            return 130
        raise


def leave_drivers(code: int) -> int:
    """Returns the exit code; ends the process at once where a camera's thread is still inside its driver, which
    Python's own end would abort."""
    if any(thread.name.startswith("reader of ") for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    return code


class ForeignPackageError(ImportError):
    """A package of this program would be imported from another distribution. `parts`: got, wanted, do."""

    def __init__(self, *parts: str) -> None:
        self.parts = parts
        super().__init__("{}; wanted {}; {}".format(*parts))


def check_package(name: str) -> None:
    """Raises ForeignPackageError where `import name` gives another package than gatestream's, which lies beside ours.
    The error says where the other one is, whose it is as far as pip knows, and what to do."""
    own = ROOT / name / "__init__.py"
    spec = find_spec(name)
    found = None if spec is None or spec.origin is None else Path(spec.origin)
    overwritten = found is not None and own.is_file() and found.samefile(own)
    if overwritten and "gatestream" in own.read_text(encoding="utf-8", errors="replace"):
        return
    restore = "pip install --force-reinstall --no-deps gatestream"
    if found is None or not own.is_file():
        got, do = f"no {own}", restore
    else:
        entry = found.parents[found.name == "__init__.py"]
        owner = _distribution_of(found, found.relative_to(entry).as_posix())
        got = f"{found} of {'the distribution ' + owner if owner else 'something else'}"
        if owner is not None:
            do = f"install gatestream in a virtual environment of its own, or pip uninstall {owner}"
            do += f" and then {restore}" if overwritten else ""
        else:
            do = restore if overwritten else \
                f"rename it, or take {entry} off Python's path (PYTHONPATH, the current folder)"
    raise ForeignPackageError(f"{got} in the place of gatestream's package {name!r}",
                              f"{own} as gatestream installs it", do)


def _distribution_of(file: Path, installed_as: str) -> str | None:
    """The installed distribution, other than gatestream, that a file belongs to."""
    from importlib.metadata import distributions

    for distribution in distributions():
        if f"\n{installed_as}," in "\n" + (distribution.read_text("RECORD") or ""):
            name, place = distribution.metadata["Name"], Path(str(distribution.locate_file(installed_as)))
            if name != "gatestream" and place.exists() and place.samefile(file):
                return name
    return None
