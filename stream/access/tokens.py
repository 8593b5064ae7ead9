"""Tokens of those who may use the API.

    tokens file    a line "NAME RIGHT,RIGHT SHA256" for each, readable by its owner only; the token itself is nowhere"""

import hashlib
import hmac
import logging
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_config_path

from engines.errors import UsageError
from engines.model.file import whole_file
from stream.access.keys import check_name
from stream.sinks.base import sink_errors

log = logging.getLogger("gatestream.service")

READ, PICTURES, ADMIN = "read", "pictures", "admin"  # an admin may do whatever the others may
RIGHTS = (READ, PICTURES, ADMIN)


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token."""

    name: str
    rights: tuple[str, ...]
    sha256: str

    def may(self, right: str) -> bool:
        """Whether its owner has a right."""
        return right in self.rights or ADMIN in self.rights


def default_file() -> Path:
    """Where this user's tokens are."""
    return user_config_path("gatestream") / "tokens"


def create_token(file: Path, name: str, rights: Iterable[str]) -> str:
    """Adds a token to a file, which is made if absent, and returns it. Raises UsageError for a name that is taken or a
    right that there is not, SinkError."""
    check_name(name, "token")
    chosen, tokens = tuple(rights), read_tokens(file) if file.exists() else []
    if not chosen or set(chosen) - set(RIGHTS):
        raise UsageError(f"rights {','.join(chosen)!r}", f"some of {', '.join(RIGHTS)}", "separate them by commas")
    if name in (token.name for token in tokens):
        raise UsageError(f"a token called {name!r}, which exists", "another name",
                         f"revoke it first, with `gatestream tokens revoke {name}`")
    secret = secrets.token_urlsafe(32)
    _write(file, [*tokens, Token(name, chosen, _hash(secret))])
    return secret


def revoke_token(file: Path, name: str) -> None:
    """Removes a token; a service that runs refuses it from then on. Raises UsageError, SinkError."""
    tokens = read_tokens(file)
    if name not in (token.name for token in tokens):
        raise UsageError(f"a token called {name!r}, which is not in {file}",
                         f"one of {[token.name for token in tokens]}", "see `gatestream tokens list`")
    _write(file, [token for token in tokens if token.name != name])


def read_tokens(file: Path) -> list[Token]:
    """The tokens in a file. Raises UsageError."""
    try:
        rows = [line.split(" ") for line in file.read_text(encoding="utf-8").splitlines() if line]
        tokens = [Token(name, tuple(rights.split(",")), sha256) for name, rights, sha256 in rows]
        if any(len(bytes.fromhex(token.sha256)) != hashlib.sha256().digest_size for token in tokens):
            raise ValueError
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}, which is no file of tokens", "one that `gatestream tokens new` made",
                         "check the path") from error
    return tokens


def _write(file: Path, tokens: Iterable[Token]) -> None:
    with sink_errors("making", file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as aside:
        aside.touch(mode=0o600)
        aside.write_text("".join(f"{token.name} {','.join(token.rights)} {token.sha256}\n" for token in tokens))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class TokenFile:
    """The tokens of a file, which is read again when it changes. While it cannot be read, nobody has any right.
    Raises UsageError for a file that is none at the start."""

    def __init__(self, file: Path) -> None:
        self._file, self._tokens = file, read_tokens(file)
        self._read = self._stamp()

    def find(self, secret: str) -> Token | None:
        """The token that somebody has brought, if it is one."""
        if (stamp := self._stamp()) != self._read:
            self._read = stamp
            try:
                self._tokens = read_tokens(self._file)
            except UsageError as error:
                self._tokens = []
                log.error("nobody may use the API: %s", error)
        wanted = _hash(secret)
        return next((token for token in self._tokens if hmac.compare_digest(token.sha256, wanted)), None)

    def _stamp(self) -> tuple[int, int, int]:
        try:
            found = self._file.stat()
        except OSError:
            return (0, 0, 0)
        return found.st_mtime_ns, found.st_ino, found.st_size
