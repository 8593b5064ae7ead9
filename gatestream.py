"""The program `gatestream`: this name is its own, where `engines`, `stream` and `demo` may be other distributions'."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def main() -> int:
    """Runs the command line of the packages that lie beside this file; returns its exit code."""
    spec = spec_from_file_location("gatestream_start", Path(__file__).parent / "stream" / "commands" / "start.py")
    assert spec is not None
    assert spec.loader is not None
    start = module_from_spec(spec)  # by its path: a foreign `stream` would be run by importing it
    spec.loader.exec_module(start)
    return int(start.start())


if __name__ == "__main__":
    sys.exit(main())
