"""A call in a process of its own ends with its caller."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CALLER = """
import sys
from test_own_process import hold
from engines.runtime.own_process import call
call(hold, sys.argv[1])
"""


def hold(fifo: str) -> None:
    """Has a fifo open for a minute."""
    with open(fifo, "w"):
        time.sleep(60)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends it")
def test_it_ends_when_its_caller_is_killed(tmp_path: Path) -> None:
    os.mkfifo(fifo := tmp_path / "fifo")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    with (subprocess.Popen([sys.executable, "-c", CALLER, str(fifo)], env=environment) as caller,
          fifo.open("rb", buffering=0) as held):  # opens once the other side has
        caller.kill()
        assert select.select([held], [], [], 20)[0], "it lives on"  # readable at its end only: nothing is written
