"""HTTP Basic authentication for the page. Passwords are kept as scrypt hashes only.

    users file: a line "name:salt:hash" for each user, hex; made by `gatestream ui --auth FILE --add-user NAME`
"""

import asyncio
import base64
import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Any

from engines.errors import UsageError
from engines.model.file import write_atomically
from stream.access.keys import check_name
from stream.sinks.base import sink_errors

MIN_PASSWORD = 8  # characters
SCRYPT = {"n": 2**14, "r": 8, "p": 1}  # 16 MB and some 50 ms for each try
CACHED_HEADERS = 64  # that were right: scrypt is slow on purpose


def add_user(file: Path, name: str, password: str) -> None:
    """Adds a user, or changes a user's password. Raises UsageError, SinkError."""
    check_name(name, "user")
    if len(password) < MIN_PASSWORD:
        raise UsageError(f"a password of {len(password)} characters", f"{MIN_PASSWORD} or more", "choose a longer one")
    users = read_users(file) if file.exists() else {}
    salt = os.urandom(16)
    users[name] = salt, _hash(password, salt)
    lines = "".join(f"{one}:{salt.hex()}:{hashed.hex()}\n" for one, (salt, hashed) in users.items())
    write_atomically(file, lines.encode())
    with sink_errors("protecting", file):
        file.chmod(0o600)


def read_users(file: Path) -> dict[str, tuple[bytes, bytes]]:
    """Salt and hash of each user. Raises UsageError."""
    try:
        rows = [line.split(":") for line in file.read_text(encoding="utf-8").split()]
        users = {name: (bytes.fromhex(salt), bytes.fromhex(hashed)) for name, salt, hashed in rows}
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}, which is no file of users", "one that --add-user made", "check the path") from error
    if not users:
        raise UsageError(f"{file}, in which there is nobody", "a user", f"gatestream ui --auth {file} --add-user NAME")
    return users


class BasicAuth:
    """ASGI middleware: passes requests and WebSockets of known users on, answers all others with 401 or a close."""

    def __init__(self, app: Any, users: dict[str, tuple[bytes, bytes]]) -> None:
        self._app, self._users = app, users
        self._accepted: dict[bytes, None] = {}  # digests of headers that were right, oldest first
        self._one_at_a_time = asyncio.Semaphore(1)  # guesses keep one core busy at most

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Serves one connection."""
        if scope["type"] == "lifespan" or await self._accepts(dict(scope["headers"]).get(b"authorization", b"")):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 401, "headers": [
                (b"www-authenticate", b'Basic realm="gatestream", charset="UTF-8"'), (b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"Who are you?\n"})

    async def _accepts(self, header: bytes) -> bool:
        digest = hashlib.sha256(header).digest()
        if digest in self._accepted:
            return True
        try:
            kind, _, rest = header.partition(b" ")
            name, _, password = base64.b64decode(rest, validate=True).decode().partition(":")
        except ValueError:
            return False
        if kind.lower() != b"basic":
            return False
        salt, wanted = self._users.get(name, (b"nobody", secrets.token_bytes(64)))  # unknown names take as long
        async with self._one_at_a_time:
            hashed = await asyncio.to_thread(_hash, password, salt)
        if not hmac.compare_digest(hashed, wanted):
            return False
        self._accepted[digest] = None
        if len(self._accepted) > CACHED_HEADERS:
            del self._accepted[next(iter(self._accepted))]
        return True


def _hash(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, **SCRYPT)
