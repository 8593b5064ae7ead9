"""`python -m stream` is `gatestream`."""

import sys

from stream.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
