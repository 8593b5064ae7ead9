"""Who may connect to the sockets: owners of allowed CURVE keys, or those at a list of IP addresses, or both."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import zmq
from zmq.auth.thread import ThreadAuthenticator

from engines.errors import UsageError
from stream.access.keys import ALLOWED, SERVER, allowed_keys, read_keys
from stream.notices import NoticeLimiter

log = logging.getLogger("gatestream.service")

DOMAIN = "gatestream"


class SocketAuth:
    """Checks who connects to the sockets that it secures: an allowed CURVE key, an allowed address, or both.

        auth = SocketAuth(context, folder, curve=True, addresses=())
        auth.secure(socket)         # before it is bound

    pyzmq's authenticator has a thread of its own, which calls `callback`; methods may be called from any. Raises
    UsageError without keys."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: Path, curve: bool,
                 addresses: Sequence[str]) -> None:
        self._pair = read_keys(folder / f"{SERVER}.key_secret") if curve else None
        if self._pair is not None and self._pair[1] is None:
            raise UsageError(f"{folder / SERVER}.key_secret without a secret key", "the service's pair",
                             "make it with `gatestream keys new server`")
        self._folder, self._authenticator = folder, ThreadAuthenticator(context)
        self.curve, self._cameras = curve, dict[str, str]()  # by public key
        self._notices = NoticeLimiter()
        self._authenticator.start()
        self._authenticator.configure_curve_callback(DOMAIN, self)
        if addresses:
            self._authenticator.allow(*addresses)
        self.reload()

    def reload(self) -> None:
        """Reads the allowed keys again."""
        if self._pair is not None:
            (self._folder / ALLOWED).mkdir(parents=True, exist_ok=True)
            self._cameras = {key.decode(): name for name, key in allowed_keys(self._folder).items()}

    def camera_of_key(self, key: str) -> str | None:
        """The camera that a sender with this public key is; None for a key that is not allowed (any more)."""
        return self._cameras.get(key)

    def callback(self, _: str, key: bytes) -> bool:
        """Whether the owner of a public key may connect: pyzmq asks under this name."""
        allowed = key.decode() in self._cameras
        if not allowed and self._notices.passes(key, time.monotonic()):
            log.warning("refused: a sender with the key %s, which is not allowed", key.decode())
        return allowed

    def secure(self, socket: zmq.Socket[bytes]) -> None:
        """Secures a socket that is not bound yet."""
        socket.zap_domain = DOMAIN.encode()
        if self._pair is not None:
            socket.curve_server = True
            socket.curve_publickey, socket.curve_secretkey = self._pair

    def close(self) -> None:
        """Stops; nobody new can connect to the sockets from then on."""
        self._authenticator.stop()
