"""What a page may have the server open, and under which names the page is answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

pytest.importorskip("gradio", reason="needs the page's server (gatestream[ui])")

from fakes import FakeEngine, FakeModel

import demo.server
from demo.allowed_sources import AllowedSources
from demo.clip_store import ClipStore
from demo.live_sessions import LiveSessions
from demo.server import build_app
from demo.service_api import ServiceClient
from demo.trainer import Trainer
from engines.errors import UsageError
from stream.commands.cli import main
from stream.recognizer import Recognizer

PATIENCE_S = 20.0
SECRET = "rtsp://ada:lovelace@10.0.0.9/door"


@contextmanager
def page(folder: Path, sources: AllowedSources | None = None, hosts: Sequence[str] = ()) -> Iterator[Any]:
    model = FakeModel()
    with LiveSessions(Recognizer(model, FakeEngine(model)), sources=sources) as sessions:
        trainer = Trainer(ClipStore(folder), "gesture", "eager", lambda model: None)
        yield build_app(sessions, trainer, ServiceClient("127.0.0.1:9"), hosts)


def status(app: Any, method: str, path: str, headers: dict[str, str]) -> int:
    async def ask() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:7860") as client:
            return (await client.request(method, path, headers=headers)).status_code

    return asyncio.run(ask())


def heard(app: Any, headers: dict[str, str], *requests: dict[str, Any]) -> list[dict[str, Any]]:
    """What the feed says to a page up to its first error, or to its greeting if it asks for nothing; [] if refused."""
    async def join() -> list[dict[str, Any]]:
        said, over = list[dict[str, Any]](), asyncio.Event()
        waiting = [{"type": "websocket.connect"}, *({"type": "websocket.receive", "text": json.dumps(one)}
                                                    for one in requests)]

        async def receive() -> dict[str, Any]:
            if waiting:
                return waiting.pop(0)
            await over.wait()
            return {"type": "websocket.disconnect", "code": 1000}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "websocket.send":
                said.append(json.loads(message["text"]))
            if message["type"] != "websocket.accept" and (not requests or any("error" in one for one in said)):
                over.set()

        scope = {"type": "websocket", "path": "/live/feed", "query_string": b"", "subprotocols": [], "scheme": "ws",
                 "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
        await asyncio.wait_for(app(scope, receive, send), PATIENCE_S)
        return said

    return asyncio.run(join())


@pytest.mark.parametrize("wanted", ["/etc/hostname", "/etc/*", "http://10.0.0.1/admin", "zmq://10.0.0.1:5555", "a.mp4",
                                    "rtsp://10.0.0.9/window", SECRET.replace("lovelace", "guess")])
def test_a_page_opens_nothing_that_is_not_listed(wanted: str, tmp_path: Path) -> None:
    (tmp_path / "b.mp4").touch()
    with page(tmp_path, AllowedSources([SECRET, str(tmp_path / "b.mp4")])) as app:
        said = heard(app, {"host": "localhost:7860", "origin": "http://localhost:7860"}, {"source": wanted})
    assert said[0]["hello"]["sources"] == ["rtsp://10.0.0.9/door", str(tmp_path / "b.mp4")]
    assert not said[0]["hello"]["any_source"]
    assert "is not listed" in said[-1]["error"]
    assert "lovelace" not in str(said)


@pytest.mark.parametrize(("name", "spec"), [("0", "0"), ("sim://gestures?seed=2", "sim://gestures?seed=2"),
                                            ("rtsp://10.0.0.9/door", SECRET), (SECRET, None), ("clip.mp4", None)])
@pytest.mark.parametrize("any_source", [False, True])
def test_listed_sources_webcams_and_simulated_ones_are_opened(name: str, spec: str | None, any_source: bool) -> None:
    sources = AllowedSources([SECRET], any_source)
    if spec is None and not any_source:
        with pytest.raises(UsageError, match="not listed"):
            sources.resolve(name)
    else:
        assert sources.resolve(name) == (spec or name)


@pytest.mark.parametrize("listed", [["nowhere.mp4"], [SECRET, "rtsp://eve:x@10.0.0.9/door"]])
def test_a_list_that_cannot_be_is_refused_at_the_start(listed: list[str]) -> None:
    with pytest.raises(UsageError):
        AllowedSources(listed)


@pytest.mark.parametrize(("host", "origin", "answered"), [
    ("gates.example.org", "https://gates.example.org", True),  # a proxy that passes the Host header on
    ("gates.example.org:8443", "https://gates.example.org:8443", True),
    ("127.0.0.1:7860", "https://gates.example.org", True),  # one that does not
    ("127.0.0.1:7860", "https://gates.example.org:1", False),  # another program on that host
    ("localhost:7860", "http://localhost:7860", True),
    ("127.0.0.1:7860", "https://evil.example.org", False),
    ("evil.example.org", "https://evil.example.org", False),
    ("evil.example.org", "https://gates.example.org", False)])
def test_behind_a_proxy_page_requests_and_feed_are_answered_alike(host: str, origin: str, answered: bool,
                                                                  tmp_path: Path) -> None:
    headers = {"host": host, "origin": origin}
    known = not host.startswith("evil")
    with page(tmp_path, hosts=("gates.example.org", "gates.example.org:8443")) as app:
        assert status(app, "GET", "/live", headers) == (200 if known else 400)
        assert (status(app, "POST", "/teach/learn", headers) == 403) == (known and not answered)
        assert bool(heard(app, headers)) == answered


@pytest.mark.parametrize(("options", "any_source", "hosts"), [
    ([], True, ()), (["--source", "sim://gestures"], True, ()), (["--host", "0.0.0.0"], False, ("*",)),
    (["--host", "0.0.0.0", "--any-source"], True, ("*",)),
    (["--allow-host", "Gates.example.org", "--allow-host", "b:8443"], False, ("gates.example.org", "b:8443")),
    (["--allow-host", "gates.example.org", "--any-source"], True, ("gates.example.org",))])
def test_only_a_page_for_this_machine_alone_opens_anything(options: list[str], any_source: bool, hosts: tuple[str, ...],
                                                           tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = SimpleNamespace()

    def remember(sessions: LiveSessions, trainer: Trainer, service: ServiceClient, hosts: Sequence[str] = ()) -> Any:
        seen.any_source, seen.hosts = sessions.sources.any_source, tuple(hosts)
        raise UsageError("enough", "x", "y")

    model = FakeModel()
    monkeypatch.setattr(demo.server, "build_app", remember)
    monkeypatch.setattr(Recognizer, "open", lambda *_, **__: Recognizer(model, FakeEngine(model)))
    assert main(["ui", "--no-browser", "--port", "0", "--lessons", str(tmp_path), *options]) == 2
    assert (seen.any_source, seen.hosts) == (any_source, hosts)


@pytest.mark.parametrize("options", [["--source", "nowhere.mp4"], ["--allow-host", "https://gates.example.org"],
                                     ["--allow-host", "*"]])
def test_what_cannot_be_is_told(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", "--no-browser", "--lessons", str(tmp_path), *options]) == 2
    assert options[1] in capsys.readouterr().err
