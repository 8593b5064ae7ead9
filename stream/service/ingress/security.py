"""Who may dial: CURVE keys with a list of the allowed ones, and a list of addresses.

    keys/server.key, server.key_secret     the service's own pair
    keys/allowed/<name>.key                public keys of cameras that may dial
    <name>.key_secret                      a camera's pair; it needs server.key as well

The files are those of pyzmq (`zmq.auth`), which does the checking.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import zmq
import zmq.auth
from platformdirs import user_config_path
from zmq.auth.thread import ThreadAuthenticator

from engines.errors import SinkError, UsageError

SERVER, ALLOWED, DOMAIN = "server", "allowed", "gatestream"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def default_folder() -> Path:
    """Where this user's keys are."""
    return user_config_path("gatestream") / "keys"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A key pair, Z85; secret is None in a file of a public key."""

    public: bytes
    secret: bytes | None


def new(folder: Path, name: str) -> list[Path]:
    """Makes the service's pair (`server`), or an allowed camera's; the files that the owner has to have.

    Raises UsageError for a name that cannot be or is taken, SinkError where files cannot be written.
    """
    _checked(name)
    allowed = folder / ALLOWED
    made = folder / f"{name}.key_secret"
    if made.exists() or (allowed / f"{name}.key").exists():
        raise UsageError(f"keys of {name!r}, which are there", "another name", f"delete {made} to make new ones")
    try:
        allowed.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        zmq.auth.create_certificates(folder, name)
        made.chmod(0o600)
        public = folder / f"{name}.key"
        if name == SERVER:
            return [public, made]
        shutil.move(public, allowed / f"{name}.key")
        return [made, folder / f"{SERVER}.key"]
    except OSError as error:
        raise SinkError(f"{folder} ({error.strerror})", "a folder for keys", "choose another one") from error


def allow(folder: Path, file: Path) -> Path:
    """Allows the owner of a public key to dial: keeps a copy of it. The secret half is never copied."""
    pair = read(file)
    _checked(file.stem)
    target = folder / ALLOWED / f"{file.stem}.key"
    if target.exists():
        raise UsageError(f"a key called {file.stem!r}, which is allowed already", "another name", "rename the file")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f'metadata\ncurve\n    public-key = "{pair.public.decode()}"\n')
    except OSError as error:
        raise SinkError(f"{target} ({error.strerror})", "a folder for keys", "choose another one") from error
    return target


def allowed(folder: Path) -> dict[str, bytes]:
    """Names and public keys of those who may dial."""
    return {file.stem: read(file).public for file in sorted((folder / ALLOWED).glob("*.key"))}


def read(file: Path) -> KeyPair:
    """The key or pair in a file. Raises UsageError."""
    try:
        public, secret = zmq.auth.load_certificate(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}, in which there is no key", "a file of `gatestream keys new`, or of pyzmq",
                         "check the path") from error
    return KeyPair(public, secret)


class SocketAuth:
    """Lets in whom it may: cameras with an allowed key, or any camera without CURVE; from some addresses, or from all.

        auth = SocketAuth(context, folder, curve=True, addresses=())
        auth.guard(socket)       # before it is bound
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: Path, curve: bool,
                 addresses: Sequence[str]) -> None:
        self._pair: KeyPair | None = None
        if curve:
            self._pair = read(folder / f"{SERVER}.key_secret")
            if self._pair.secret is None:
                raise UsageError(f"{folder / SERVER}.key_secret without a secret key", "the service's pair",
                                 "make it with `gatestream keys new server`")
        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.start()
        self._folder = folder
        if addresses:
            self._authenticator.allow(*addresses)
        self.read_again()

    def read_again(self) -> None:
        """Takes the keys that are allowed by now."""
        if self._pair is not None:
            (self._folder / ALLOWED).mkdir(parents=True, exist_ok=True)
            self._authenticator.configure_curve(domain=DOMAIN, location=str(self._folder / ALLOWED))

    def guard(self, socket: zmq.Socket[bytes]) -> None:
        """Guards a socket that is not bound yet."""
        socket.zap_domain = DOMAIN.encode()
        if self._pair is not None:
            socket.curve_server = True
            socket.curve_publickey, socket.curve_secretkey = self._pair.public, self._pair.secret

    def close(self) -> None:
        """Ends; sockets let nobody new in from then on."""
        self._authenticator.stop()


def _checked(name: str) -> None:
    if not NAME.fullmatch(name):
        raise UsageError(f"a key called {name!r}", "letters, digits, dots and dashes", "choose another name")
