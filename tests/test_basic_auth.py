"""Who may see the page: nobody without a name and its password, whatever kind of connection it is."""

from __future__ import annotations

import asyncio
import base64
import stat
from pathlib import Path
from typing import Any

import pytest
import typer

from demo.basic_auth import BasicAuth, add_user, read_users
from engines.errors import UsageError
from stream.commands.cli import main


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("users") / "users"
    add_user(file, "ada", "lovelace:1843")
    add_user(file, "bob", "first password")
    add_user(file, "bob", "second password")
    return file


def basic(name: str, password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{name}:{password}".encode())


def asked(app: BasicAuth, header: bytes | None, kind: str = "http") -> list[dict[str, Any]]:
    """What comes back."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": f"{kind}.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": kind, "headers": [] if header is None else [(b"authorization", header)]}
    asyncio.run(app(scope, receive, send))
    return sent


async def page(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "the page"})


CASES = [(None, False), (b"", False), (basic("ada", "lovelace:1843"), True), (basic("ada", "second password"), False),
         (basic("bob", "second password"), True), (basic("bob", "first password"), False), (basic("eve", ""), False),
         (b"Bearer " + basic("ada", "lovelace:1843")[6:], False), (b"Basic !!", False), (b"Basic /w==", False)]


@pytest.mark.parametrize(("header", "known"), CASES)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_only_users_are_let_through(header: bytes | None, known: bool, kind: str, users: Path) -> None:
    said = asked(app := BasicAuth(page, read_users(users)), header, kind)
    assert (said == [{"type": "the page"}]) == known
    if not known:
        assert said[0].get("status", said[0].get("code")) == (401 if kind == "http" else 1008)
    assert asked(app, header, kind) == said  # the second time it is remembered


def test_passwords_are_not_kept(users: Path) -> None:
    assert stat.S_IMODE(users.stat().st_mode) == 0o600
    text = users.read_text()
    assert "password" not in text
    assert "lovelace" not in text
    assert list(read_users(users)) == ["ada", "bob"]


@pytest.mark.parametrize(("name", "password", "says"), [
    ("a b", "long enough", "called 'a b'"), ("", "long enough", "called ''"), ("ada", "short", "5 characters")])
def test_what_cannot_be_is_told(name: str, password: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        add_user(tmp_path / "users", name, password)


@pytest.mark.parametrize("text", ["", "ada", "ada:zz:11", "ada:11:22:33"])
def test_a_file_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "users").write_text(text)
    with pytest.raises(UsageError):
        read_users(tmp_path / "users")


def test_a_user_is_added_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typer, "prompt", lambda *_, **__: "long enough")
    assert main(["ui", "--auth", str(tmp_path / "users"), "--add-user", "ada"]) == 0
    assert list(read_users(tmp_path / "users")) == ["ada"]
    assert main(["ui", "--add-user", "ada"]) == 2
