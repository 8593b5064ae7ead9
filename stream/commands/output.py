"""Standard output as a command finds it: in any encoding, and with a reader that may leave."""

import errno
import os
import select
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import TextIOWrapper
from typing import Self, TextIO

from engines.decoding.silence import discard_writes


class StandardOutput:
    """Around a command: no character is a fault that the encoding lacks ('?' stands for it), and a reader that leaves
    (`gatestream models | head -1`) is none either."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._streams = sys.stdout, sys.stderr
        self._fd: int | None = None

    def __enter__(self) -> Self:
        for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
            if isinstance(stream, TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
                self._stack.enter_context(suppress(ValueError, OSError))  # it is closed, or its reader has left by then
                self._stack.callback(stream.reconfigure, errors=stream.errors)
                stream.reconfigure(errors=errors)
        with suppress(OSError, ValueError, AttributeError):  # no stdout, or one of a test that is no file
            self._fd = os.dup(sys.stdout.fileno())  # a library that fails at writing may point stdout elsewhere
            self._stack.callback(os.close, self._fd)
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout, sys.stderr = self._streams  # typer wraps them where a pipe breaks
        try:
            self.flush()
        except OSError:
            self.discard()
        self._stack.close()

    def flush(self) -> None:
        """Writes what is buffered. Raises OSError."""
        if sys.stdout is not None and not sys.stdout.closed:
            sys.stdout.flush()

    def reader_left(self, error: OSError) -> bool:
        """Whether `error` came of it that nobody reads standard output any more; then what is buffered is discarded."""
        left = error.errno == errno.EPIPE and self._fd is not None and _is_broken(self._fd)
        if left:
            self.discard()
        return left

    def discard(self) -> None:
        """What is buffered goes to nowhere: Python would try to write it when it ends, and complain."""
        with suppress(OSError, ValueError):
            discard_writes(1 if sys.stdout is None else sys.stdout.fileno())


@contextmanager
def utf8_stdout() -> Iterator[TextIO]:
    """Standard output for file formats that are UTF-8 with plain line ends, whatever the terminal's are."""
    sys.stdout.flush()
    text = TextIOWrapper(sys.stdout.buffer, encoding="utf-8", newline="")
    try:
        yield text
    finally:
        text.detach()


def _is_broken(fd: int) -> bool:
    """Whether a pipe has no reader. Where that cannot be asked (Windows), the error that was raised must do."""
    if not hasattr(select, "poll"):
        return True
    asked = select.poll()
    asked.register(fd, 0)
    return any(events & select.POLLERR for _, events in asked.poll(0))
