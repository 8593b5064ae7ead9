"""Who may connect: CURVE keys with a list of the allowed ones, and a list of IP addresses.

    keys/server.key, server.key_secret     the service's own pair
    keys/allowed/<name>.key                the public key of a camera, which may connect under that name
    <name>.key_secret                      a camera's pair; it needs server.key as well

The files are those of pyzmq (`zmq.auth`), which checks them."""

import logging
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import zmq
import zmq.auth
from platformdirs import user_config_path
from zmq.auth.thread import ThreadAuthenticator

from engines.errors import UsageError
from stream.notices import NoticeLimiter
from stream.sinks.base import sink_errors

log = logging.getLogger("gatestream.service")

SERVER, ALLOWED, DOMAIN = "server", "allowed", "gatestream"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def default_folder() -> Path:
    """Where this user's keys are."""
    return user_config_path("gatestream") / "keys"


def create_keys(folder: Path, name: str) -> list[Path]:
    """Makes the service's pair (`server`) or an allowed camera's; returns the files that its owner needs.
    Raises UsageError for a name that is not allowed or is taken, SinkError where files cannot be written."""
    check_name(name, "key")
    allowed, secret = folder / ALLOWED, folder / f"{name}.key_secret"
    if secret.exists() or (allowed / f"{name}.key").exists():
        raise UsageError(f"keys of {name!r}, which exist", "another name", f"delete {secret} to make new ones")
    with sink_errors("writing keys to", folder):
        allowed.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        zmq.auth.create_certificates(folder, name)
        secret.chmod(0o600)
        public = folder / f"{name}.key"
        if name != SERVER:
            shutil.move(public, allowed / f"{name}.key")
    return [public, secret] if name == SERVER else [secret, folder / f"{SERVER}.key"]


def allow_key(folder: Path, file: Path, name: str | None = None) -> Path:
    """Lets the owner of the key in `file` connect as camera `name`, by default the file's: copies its public half,
    never the secret one, and returns the copy. Raises UsageError for a file without a key or a name that is taken,
    SinkError where files cannot be written."""
    public, _ = read_keys(file)
    name = name or file.stem
    check_name(name, "key")
    target = folder / ALLOWED / f"{name}.key"
    if target.exists():
        raise UsageError(f"a key called {name!r}, which is allowed already", "another name",
                         f"delete {target} first, or give another name")
    with sink_errors("writing", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f'metadata\ncurve\n    public-key = "{public.decode()}"\n')
    return target


def allowed_keys(folder: Path) -> dict[str, bytes]:
    """Names and public keys of the cameras that may connect; a file without a key is logged."""
    keys = {}
    for file in sorted((folder / ALLOWED).glob("*.key")):
        try:
            keys[file.stem] = read_keys(file)[0]
        except UsageError as error:
            log.error("%s", error)
    return keys


def read_keys(file: Path) -> tuple[bytes, bytes | None]:
    """The public key in a file, and the secret one or None; Z85. Raises UsageError."""
    try:
        return zmq.auth.load_certificate(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}, in which there is no key", "a file of `gatestream keys new`, or of pyzmq",
                         "check the path") from error


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


def check_name(name: str, what: str) -> None:
    """Raises UsageError for a name that no file could have; what: is called so."""
    if not NAME.fullmatch(name):
        raise UsageError(f"a {what} called {name!r}", "letters, digits, dots and dashes", "choose another name")
