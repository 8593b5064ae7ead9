"""CURVE keys of a service and of the cameras that may connect to it.

    keys/server.key, server.key_secret     the service's own pair
    keys/allowed/<name>.key                the public key of a camera, which may connect under that name
    <name>.key_secret                      a camera's pair; it needs server.key as well

The files are those of pyzmq (`zmq.auth`), which checks them."""

import logging
import re
import shutil
from pathlib import Path

import zmq
import zmq.auth
from platformdirs import user_config_path

from engines.errors import UsageError
from stream.sinks.base import sink_errors

log = logging.getLogger("gatestream.service")

SERVER, ALLOWED = "server", "allowed"
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


def check_name(name: str, what: str) -> None:
    """Raises UsageError for a name that no file could have; what: is called so."""
    if not NAME.fullmatch(name):
        raise UsageError(f"a {what} called {name!r}", "letters, digits, dots and dashes", "choose another name")
