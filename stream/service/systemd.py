"""What systemd is told of a service that it started with Type=notify: that it is ready, reloads, lives, stops.
https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html"""

import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Self

log = logging.getLogger("gatestream.service")

Ask = Callable[[Callable[[], None]], object]  # has a thread call a function soon


class Systemd:
    """Does nothing where another program started the service.

        with Systemd() as systemd:
            while not stop.wait(0.1):
                systemd.poll(ready=engine_is_ready, reloads=False, ask=receiver.call_soon)"""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._address = clock, os.environ.pop("NOTIFY_SOCKET", "")  # not for processes that we start
        ours = os.environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        limit_s = int(os.environ.pop("WATCHDOG_USEC", "0")) / 1e6 if ours else 0.0
        self._every_s, self._due_s = limit_s / 3, 0.0
        self._ready = self._reloads = False
        self._answered = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tell("STOPPING=1")

    def poll(self, ready: bool, reloads: bool, ask: Ask) -> None:
        """Call it often. ready: the engine is; reloads: a configuration is taken before the next call; ask: of the
        thread that must live: no answer, no sign of life, and systemd starts the service anew."""
        if (ready and not self._ready) or self._reloads:
            self._tell("READY=1")
        self._ready, self._reloads = self._ready or ready, reloads and self._ready
        now = self._clock()
        if self._reloads:
            self._tell(f"RELOADING=1\nMONOTONIC_USEC={round(now * 1e6)}")
        if self._every_s and self._answered and now >= self._due_s:
            self._due_s, self._answered = now + self._every_s, False
            self._tell("WATCHDOG=1")
            ask(self._on_answer)

    def _on_answer(self) -> None:
        self._answered = True

    def _tell(self, state: str) -> None:
        if self._address:
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                    sender.connect("\0" + self._address[1:] if self._address.startswith("@") else self._address)
                    sender.send(state.encode())
            except OSError as error:
                log.warning("systemd cannot be told %s: %s", state.partition("\n")[0], error)
