"""Starts the service's own processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from stream.notices import inheritable_stderr


def start_process(module: str, said: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    """A process of one of our modules, which is told what to do over stdin: command lines can be read by others."""
    process = subprocess.Popen([sys.executable, "-m", module], stdin=subprocess.PIPE, stderr=inheritable_stderr())
    assert process.stdin is not None
    with process.stdin as told:
        told.write(json.dumps(said).encode())
    return process
