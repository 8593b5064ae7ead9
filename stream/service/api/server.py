"""Serves the API in a thread of its own. FastAPI is imported there: the engine's process need not wait for it."""

import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from engines.errors import SourceError, UsageError
from stream.access.tokens import read_tokens
from stream.service.config import ApiConfig, Config
from stream.service.egress.health import Metrics
from stream.sinks.live_feed import LiveFeed
from stream.sources.address import split_address

if TYPE_CHECKING:
    import uvicorn

log = logging.getLogger("gatestream.service")

STOPS_WITHIN_S = 2.0  # were it still importing


@contextmanager
def serve_api(config: Config, metrics: Metrics, live_feed: LiveFeed | None = None) -> Iterator[str | None]:
    """Serves the API at `health.bind`, if there is one; gives the address with its port.
    live_feed: of cameras, where they may be looked at; it is closed. Raises SourceError for an address that is taken,
    UsageError for files of tokens and certificates that are none."""
    bind = config.health.bind
    if bind is None:
        yield None
        return
    check_files(config.api)
    if live_feed is not None:
        live_feed.counts = metrics.api
    host, port = split_address(bind)
    try:
        listener = socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET,
                                        dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6())
    except OSError as error:
        raise SourceError(f"health at {bind} ({error})", "an address of this machine that is free",
                          "stop what uses it, or choose another one") from error
    thread = _Thread(listener, config, metrics, live_feed)
    thread.start()
    host, port = listener.getsockname()[:2]
    try:
        yield f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    finally:
        thread.stop()


def check_files(settings: ApiConfig) -> None:
    """Raises UsageError for files of tokens and certificates that are none."""
    if settings.tokens is not None and not read_tokens(settings.tokens):
        raise UsageError(f"{settings.tokens}, in which there is no token", "a token", "`gatestream tokens new`")
    if settings.certificate is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.certificate, settings.certificate_key)
        except OSError as error:
            raise UsageError(f"certificate {settings.certificate} ({error})", "PEM files that belong to one another",
                             "correct api.certificate and api.certificate_key") from error


class _Thread(threading.Thread):
    def __init__(self, listener: socket.socket, config: Config, metrics: Metrics, live_feed: LiveFeed | None) -> None:
        super().__init__(name="api", daemon=True)
        self._listener, self._config, self._metrics, self._live_feed = listener, config, metrics, live_feed
        self._server: uvicorn.Server | None = None
        self._stopped = False

    def run(self) -> None:
        try:
            from stream.service.api.app import build_app
            from stream.service.api.connections import make_server

            app = build_app(self._config, self._metrics, self._live_feed)
            self._server = make_server(app, self._config.api, self._metrics.api)
            if not self._stopped:
                self._server.run([self._listener])
        except BaseException as error:
            log.exception("the API has ended (%s): start the service again", type(error).__name__)
        finally:
            self._listener.close()

    def stop(self) -> None:
        """Ends all streams, then the thread."""
        self._stopped = True
        if self._live_feed is not None:
            self._live_feed.close()
        if self._server is not None:
            self._server.should_exit = True
        self.join(STOPS_WITHIN_S)
