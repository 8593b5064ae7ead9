"""Who may ask what: names the service is called by, requests per second, tokens and their rights."""

import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stream.access.tokens import TokenFile
from stream.service.config import ApiConfig

BURST_S = 2.0  # of requests that may come at once
CLIENTS = 1000  # whose requests are counted
ENDLESS = ("/live", "/live/sse", ".mjpg")  # ends of the paths of streams


class Access:
    """Checks tokens. counts: how many requests were refused, by cause."""

    def __init__(self, settings: ApiConfig, counts: Counter[str]) -> None:
        self._tokens = None if settings.tokens is None else TokenFile(settings.tokens)
        self._counts = counts

    def refusal(self, connection: HTTPConnection, right: str) -> tuple[int, str] | None:
        """Why somebody has not got this right (now: tokens may be revoked), as a status and a sentence."""
        if self._tokens is None:
            return None
        kind, _, secret = connection.headers.get("authorization", "").partition(" ")
        token = self._tokens.find(secret if kind.lower() == "bearer" else connection.query_params.get("token", ""))
        if token is None:
            return 401, "a token is needed, as `Authorization: Bearer TOKEN` or ?token=; see `gatestream tokens`"
        return None if token.may(right) else (403, f"the token {token.name} has no right {right!r}")

    def needs(self, right: str) -> Any:
        """A dependency of FastAPI's: answers those that have not got this right."""
        async def check(connection: HTTPConnection) -> None:
            if refusal := self.refusal(connection, right):
                self._counts["refused: token"] += 1
                raise HTTPException(*refusal, headers={"WWW-Authenticate": "Bearer"})

        return Depends(check)


class Guard:
    """ASGI middleware before all pages: refuses foreign names and clients that ask too often, answers HEAD as GET.

    A page of another site that a browser here shows may give its name our address, or open a WebSocket to us: where no
    token is asked for, only names of ours may be called, and only by our own pages."""

    def __init__(self, app: ASGIApp, settings: ApiConfig, counts: Counter[str]) -> None:
        self._app, self._counts, self._rate = app, counts, settings.requests_per_s
        self._asks_tokens, self._any_host = settings.tokens is not None, "*" in settings.hosts
        self._named = {host.lower() for host in settings.hosts}
        self._hosts = self._named | {host.lower() for host in ("localhost", socket.gethostname())}
        self._left: dict[str, tuple[float, float]] = {}  # of each client: requests left, when they were counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request or WebSocket."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        self._counts["requests"] += 1
        app, secured = self._app, self._secured(send)
        if refusal := self._refusal(scope):
            cause, status, text = refusal
            self._counts[f"refused: {cause}"] += 1
            app = JSONResponse({"detail": text}, status, {"Retry-After": "1"} if status == 429 else None)
        elif scope.get("method") == "HEAD" and not scope["path"].endswith(ENDLESS):
            scope = {**scope, "method": "GET"}  # the server, which has the other one, leaves the body out
        await app(scope, receive, secured)

    def _refusal(self, scope: Scope) -> tuple[str, int, str] | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not (self._asks_tokens or self._is_ours(host)):
            return "host", 403, f"not called {host!r} here: add the name to api.hosts of the configuration"
        if scope["type"] == "websocket" and origin and not self._asks_tokens and not self._is_own_page(origin, host):
            return "origin", 403, f"a page of {origin} may not listen here: add its name to api.hosts"
        if not self._within_quota(scope["client"][0] if scope["client"] else ""):
            return "rate", 429, f"more than {self._rate:g} requests a second: ask less often (api.requests_per_s)"
        return None

    def _is_ours(self, host: str) -> bool:
        with suppress(ValueError):
            name = (urlsplit(f"//{host}").hostname or "").lower()
            if self._any_host or name in self._hosts:
                return True
            return bool(ip_address(name))  # which is nobody's name
        return False

    def _is_own_page(self, origin: str, host: str) -> bool:
        with suppress(ValueError):
            page = urlsplit(origin)
            return self._any_host or page.netloc == host or (page.hostname or "").lower() in self._named
        return False

    def _within_quota(self, client: str) -> bool:
        now, most = time.monotonic(), max(1.0, BURST_S * self._rate)
        left, counted_at = self._left.pop(client, (most, now))
        left = min(most, left + (now - counted_at) * self._rate)
        self._left[client] = (left - 1 if left >= 1 else left), now
        if len(self._left) > CLIENTS:
            del self._left[next(iter(self._left))]
        return left >= 1

    def _secured(self, send: Send) -> Callable[[Message], Awaitable[None]]:
        async def secured(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"  # a picture is what some sender says is one
                headers["Referrer-Policy"] = "no-referrer"  # an address may have a token
                headers["Cross-Origin-Resource-Policy"] = "cross-origin" if self._asks_tokens else "same-origin"
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        return secured
