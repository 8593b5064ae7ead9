"""Starting, ending and measuring the service's own processes."""

import json
import logging
import os
import signal
import site
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engines.errors import GatestreamError
from stream.notices import ignore_terminal_signals, inheritable_stderr, log_to_stderr, silence_decoders

log = logging.getLogger("gatestream.service")


KILLED_WITHIN_S = 1.0  # a process that waits for a device may not even end then
ROOT = Path(__file__).resolve().parents[3]  # where this package is imported from


def start_process(module: str, request: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    """Starts `python -m module` with a JSON request on its stdin: command lines can be read by other users. Nothing is
    imported from the current folder, where a file may be called as a library is."""
    environment = dict(os.environ)
    if str(ROOT) not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    process = subprocess.Popen([sys.executable, "-P", "-m", module], stdin=subprocess.PIPE, env=environment,
                               stderr=inheritable_stderr())
    assert process.stdin is not None
    with process.stdin as stdin:
        stdin.write(json.dumps(request).encode())
    return process


def run_process(work: Callable[[dict[str, Any]], None], name: Callable[[dict[str, Any]], str]) -> int:
    """The main function of such a process: does `work`, logs an error under its `name`. Returns the exit code."""
    ignore_terminal_signals()
    silence_decoders()
    request = json.load(sys.stdin)
    with log_to_stderr():
        try:
            work(request)
        except GatestreamError as error:
            log.error("%s: %s", name(request), " ".join(str(error).split()))
            return error.exit_code
    return 0


def wait_or_kill(process: subprocess.Popen[bytes], within_s: float) -> int:
    """Waits for a process to end, and kills it after `within_s`; returns its exit code. One that the system cannot end,
    as its driver holds it, is left alone."""
    try:
        return process.wait(max(0.0, within_s))
    except subprocess.TimeoutExpired:
        process.kill()
    try:
        return process.wait(KILLED_WITHIN_S)
    except subprocess.TimeoutExpired:
        log.error("process %d was killed and does not end: a driver holds it; it is left alone", process.pid)
        return -signal.SIGKILL


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 where the system does not say (not Linux)."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
