"""The program `gatestream`, installed as a module of that name beside the packages (see pyproject.toml).
That name is its own, where `engines`, `stream` and `demo` may be other distributions'."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

START = Path("stream", "commands", "start.py")


def main() -> int:
    """Runs the command line of the packages that lie beside this file, or where an editable installation has them."""
    for folder in (Path(__file__).parent, *map(Path, sys.path)):
        spec = spec_from_file_location("gatestream_start", folder / START) if (folder / START).is_file() else None
        if spec is not None and spec.loader is not None:
            start = module_from_spec(spec)  # by its path: a foreign `stream` would be run by importing it
            spec.loader.exec_module(start)
            return int(start.start())
    print(f"gatestream: error: no {Path(__file__).parent / START}; wanted gatestream's own packages beside it; "
          "pip install --force-reinstall --no-deps gatestream", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
