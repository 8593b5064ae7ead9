"""uvicorn with limits on what a client may hold: connections, and the time to send a request or to read an answer."""

import asyncio
import logging
import socket
from collections import Counter
from functools import partial
from typing import Any

import anyio.to_thread
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from stream.notices import NoticeLimiter
from stream.service.config import ApiConfig
from stream.service.resources import file_limit

log = logging.getLogger("gatestream.service")

CONNECTIONS, FILES_SHARE = 100, 1 / 4  # at a time, at most; or that share of the file descriptors there may be
QUEUE, ACCEPTS = 128, 8  # connections that wait to be accepted, and that are at a time
THREADS = 8  # that read files and the log
REQUEST_S = 10.0  # for a request to arrive, and between two of one connection
STALLED_S = 10.0  # without reading what was sent
HEADERS_BYTES = 16 * 1024
MESSAGE_BYTES = 4096  # of what a WebSocket client may send
LOG_AGAIN_S = 60.0
ENDS_AFTER_S = 0.3  # answers that are under way when the service ends
NOTICES = NoticeLimiter()


class _Unstalled:
    """Ends a connection whose client does not read."""

    _timer: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()  # type: ignore[misc]
        self._timer = asyncio.get_running_loop().call_later(STALLED_S, self.transport.abort)  # type: ignore[attr-defined]

    def resume_writing(self) -> None:
        super().resume_writing()  # type: ignore[misc]
        if self._timer is not None:
            self._timer.cancel()


class _WebSocketConnection(_Unstalled, WebSocketsSansIOProtocol):
    pass


class _HttpConnection(_Unstalled, H11Protocol):
    """most: connections at a time; a further one takes the place of the one that has waited longest for a request."""

    def __init__(self, most: int, counts: Counter[str], **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._most, self._counts = most, counts

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._made_at = self.loop.time()
        present = [one for one in self.connections if not one.transport.is_closing()]
        if len(present) > self._most:
            idle = (one for one in present if isinstance(one, _HttpConnection) and one._idle)
            min(idle, key=lambda one: (one is self, one._made_at)).transport.abort()
            self._counts["refused: connections"] += 1
            if NOTICES.passes("connections", self.loop.time()):
                log.warning("the API has %d connections: for each new one, the one that is idle longest is closed",
                            self._most)
        self.loop.call_later(REQUEST_S, self._end_if_idle, None)

    def _end_if_idle(self, before: object) -> None:
        """Ends a connection that has brought no whole request since its latest one was `before`."""
        if self in self.connections and not self.transport.is_closing():  # and is no WebSocket now
            if self._idle and self.cycle is before:
                self.transport.abort()
            self.loop.call_later(REQUEST_S, self._end_if_idle, self.cycle if self._idle else self)


class _Server(uvicorn.Server):
    _logged_at = -LOG_AGAIN_S

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._log_fault)
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(QUEUE)  # asyncio has one number for both

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(ENDS_AFTER_S, self._end_connections)
        await super().shutdown(sockets)

    def _end_connections(self) -> None:
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()

    def _log_fault(self, loop: asyncio.AbstractEventLoop, fault: dict[str, Any]) -> None:
        """Logs in one line what asyncio would with a traceback, such as that no file descriptor is left."""
        if loop.time() - self._logged_at >= LOG_AGAIN_S:
            self._logged_at = loop.time()
            log.error("the API: %s (%s)", fault["message"], fault.get("exception"))


def make_server(app: FastAPI, settings: ApiConfig, counts: Counter[str]) -> uvicorn.Server:
    """A server that runs with sockets that are bound already. counts: connections refused."""
    for name in ("uvicorn", "uvicorn.error"):  # in our own form, JSON too, whatever another server has set up
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn").parent = log
    most = min(CONNECTIONS, int(FILES_SHARE * file_limit()))
    return _Server(uvicorn.Config(
        app, http=partial(_HttpConnection, most, counts),  # type: ignore[arg-type]
        ws=_WebSocketConnection, lifespan="off", log_config=None, log_level="error",
        access_log=False, server_header=False, timeout_graceful_shutdown=1, backlog=ACCEPTS,
        h11_max_incomplete_event_size=HEADERS_BYTES, ws_max_size=MESSAGE_BYTES, ws_per_message_deflate=False,
        ssl_certfile=settings.certificate, ssl_keyfile=settings.certificate_key))
