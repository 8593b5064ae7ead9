"""Starting, watching, ending and measuring the service's own processes."""

import json
import logging
import math
import os
import random
import signal
import site
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from typing import Any

from engines.errors import GatestreamError
from stream.notices import ignore_terminal_signals, inheritable_stderr, log_to_stderr, silence_decoders

log = logging.getLogger("gatestream.service")

# Before the next start, times a random 0.5 to 1, so that many do not come back at once; the last is repeated.
BACK_OFF_S = {"engine": (0.0, 0.5, 1.0, 2.0, 5.0, 10.0), "camera": (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)}
LASTING_S = 10.0  # a process that lived this long starts the row anew
PARENT_S = 0.5  # between two looks at whether it lives
KILLED_WITHIN_S = 1.0  # a process that waits for a device may not even end then
ROOT = Path(__file__).resolve().parents[3]  # where this package is imported from


def start_process(module: str, request: Mapping[str, Any]) -> Popen[bytes]:
    """Starts `python -m module` with a JSON request on its stdin: command lines can be read by other users. Nothing is
    imported from the current folder, where a file may be called as a library is."""
    environment = dict(os.environ)
    if str(ROOT) not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    process = Popen([sys.executable, "-P", "-m", module], stdin=PIPE, env=environment, stderr=inheritable_stderr())

    def write() -> None:
        assert process.stdin is not None
        with suppress(OSError), process.stdin as stdin:  # it may have ended
            stdin.write(json.dumps({**request, "parent": os.getpid()}).encode())

    threading.Thread(target=write, daemon=True).start()  # it may be stuck, and never read
    return process


def run_process(work: Callable[[dict[str, Any]], None], name: Callable[[dict[str, Any]], str]) -> int:
    """The main function of such a process: does `work`, logs an error under its `name`. Returns the exit code.
    The process ends with the one that started it, whatever it waits for."""
    ignore_terminal_signals()
    silence_decoders()
    request = json.load(sys.stdin)
    threading.Thread(target=_end_with, args=(request.pop("parent", os.getppid()),), daemon=True).start()
    with log_to_stderr():
        try:
            work(request)
        except GatestreamError as error:
            log.error("%s: %s", name(request), " ".join(str(error).split()))
            return error.exit_code
    return 0


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_S)
    os._exit(1)


class ChildProcess:
    """A process of ours that is watched, ended when it hangs, and started again after a growing pause. Never waits.

        engine = ChildProcess("the engine's process", BACK_OFF_S["engine"], start)
        if engine.supervise(hang_reason) is not None:      # ten times a second or so
            engine.restart()

    Owned by one thread; others may read its attributes. Times are steady seconds."""

    def __init__(self, name: str, pauses_s: tuple[float, ...], start: Callable[[], Popen[bytes]],
                 steady: Callable[[], float] = time.monotonic) -> None:
        self._name, self._pauses_s, self._start, self._steady = name, pauses_s, start, steady
        self.process: Popen[bytes] | None = None
        self.started_at = self.next_at = 0.0
        self.restarts = self.deaths = 0  # in all; one soon after the other
        self.hung: str | None = None  # why it was ended, if it was

    def supervise(self, hang_reason: Callable[[], str | None]) -> int | None:
        """Starts it when that is due, ends it for a reason. Returns its exit code once; `restart` has it come back."""
        now = self._steady()
        if self.process is None:
            if now >= self.next_at:
                self.started_at, self.hung = now, None
                try:
                    self.process = self._start()
                except OSError as error:
                    log.error("%s cannot be started: %s", self._name, error)
                    self.restart()
            return None
        code = self.process.poll()
        if code is None and (reason := hang_reason()) is not None:
            log.warning("%s hangs (%s): it is ended", self._name, reason)
            self.hung, code = reason, -signal.SIGKILL
            self.process.kill()
            threading.Thread(target=end_processes, args=([self.process],), daemon=True).start()
        if code is not None:
            self.process, self.next_at = None, math.inf
        return code

    @property
    def finished(self) -> bool:
        """Whether it has ended, and is not to be started again."""
        return self.process is None and self.next_at == math.inf

    def restart(self) -> None:
        """Has it started again after a pause, a longer one each time that it did not last."""
        self.deaths = 1 if self._steady() - self.started_at > LASTING_S else self.deaths + 1
        pause_s = self._pauses_s[min(self.deaths, len(self._pauses_s)) - 1] * (0.5 + 0.5 * random.random())
        self.restarts, self.next_at = self.restarts + 1, self._steady() + pause_s
        log.warning("%s: next try in %.1f s", self._name, pause_s)


def end_processes(processes: Iterable[Popen[bytes] | None], within_s: float = 0.0, terminate: bool = False) -> None:
    """Waits for processes, kills those left after `within_s` (for all together), leaves alone what a driver holds."""
    left = [process for process in processes if process is not None]
    for process in left if terminate else ():
        process.terminate()
    for limit_s, killed in ((within_s, False), (KILLED_WITHIN_S, True)):
        until = time.monotonic() + limit_s
        for process in left:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except TimeoutExpired:
                process.kill()
                if killed:
                    log.error("process %d was killed and does not end, as a driver holds it: left alone", process.pid)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 where the system does not say (not Linux)."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
