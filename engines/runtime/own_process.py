"""A call in a process of its own, which takes the memory of all that it imports with it when it ends. It ends with its
caller."""

import ctypes
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from engines.errors import EngineError, GatestreamError, engine_error

_CHILD = """
import pickle, sys
parent, sys.path[:] = pickle.load(sys.stdin.buffer)
from engines.runtime.own_process import answer, end_with
end_with(parent)
answer()
"""
_PR_SET_PDEATHSIG = 1
_REMEDY = "one that ends well", "see that there is memory for it, or use --engine eager"


def call(function: Callable[..., Any], *args: Any) -> Any:
    """What a function of a module returns for these arguments. Raises what it raises, of gatestream's errors;
    EngineError where the process ends otherwise. Arguments and result are pickled."""
    request = pickle.dumps((os.getpid(), sys.path)) + pickle.dumps((function, args))
    with engine_error(f"a process for {function.__name__} that cannot be started", *_REMEDY, kinds=OSError):
        ended = subprocess.run([sys.executable, "-c", _CHILD], input=request, capture_output=True)
    if ended.returncode:
        last = (ended.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        raise EngineError(f"a process for {function.__name__} that failed ({last})", *_REMEDY)
    result, error = pickle.loads(ended.stdout)  # from the process that was just started
    if error is not None:
        raise error
    return result


def end_with(parent: int) -> None:
    """Has this process killed when the thread that started it ends, even by a kill. Linux only: elsewhere it goes on.
    The system does it: a library that builds something may hold up all of Python's threads."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended already
            os._exit(1)


def answer() -> None:
    """The other side of `call`: what is to be called from stdin, what comes of it to stdout."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
        function, args = pickle.load(sys.stdin.buffer)
        try:
            result, error = function(*args), None
        except GatestreamError as raised:
            result, error = None, raised
        out.write(pickle.dumps((result, error)))
