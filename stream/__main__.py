"""`python -m stream` is `gatestream`."""

import sys

from stream.commands.start import start

if __name__ == "__main__":
    sys.exit(start())
