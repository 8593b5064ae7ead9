"""The routes of the Teach page: recordings are uploaded, cut and deleted, and other sites' pages are refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="needs the page's server (gatestream[ui])")

from fastapi import FastAPI
from test_clip_store import pictures

from demo.clip_store import ClipStore
from demo.teach_api import teach_router
from demo.trainer import Trainer
from stream.sinks.video import write_video


class Client:
    """A browser whose page is at `origin`."""

    def __init__(self, app: FastAPI) -> None:
        self._app, self.origin = app, "http://localhost:7860"

    def get(self, path: str) -> httpx.Response:
        return self._asked("GET", path)

    def post(self, path: str, **said: Any) -> httpx.Response:
        return self._asked("POST", path, **said)

    def _asked(self, method: str, path: str, **said: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self._app), base_url="http://localhost:7860",
                                         headers={"origin": self.origin}) as client:
                return await client.request(method, path, **said)

        return asyncio.run(ask())


@pytest.fixture
def client(tmp_path: Path) -> Client:
    app = FastAPI()
    app.include_router(teach_router(Trainer(ClipStore(tmp_path / "lessons"), "gesture", "auto", lambda model: None)))
    return Client(app)


def test_a_page_uploads_cuts_and_deletes(client: Client, tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    write_video(video, pictures(2.0))
    said = client.post("/teach/clips", params={"label": "wave"}, content=video.read_bytes()).json()
    assert [(clip["label"], clip["number"]) for clip in said["clips"]] == [("wave", 1)]
    which = {"label": "wave", "number": 1}
    assert client.get("/teach/clips/wave/1.mp4").content[4:8] == b"ftyp"
    assert client.post("/teach/cut", json={**which, "from": 0.5, "to": 1.5}).json()["clips"][0]["seconds"] < 1.5
    assert client.post("/teach/remove", json=which).json()["clips"] == []
    assert client.post("/teach/remove", json=which).status_code == 400
    assert client.get("/teach/clips/wave/1.mp4").status_code == 404
    assert client.get("/teach/model").status_code == 404
    said = client.post("/teach/clips", params={"label": "wave"}, content=b"no video").json()
    assert said["error"].startswith("this file: ")
    assert "error" in client.post("/teach/undo").json()
    assert client.post("/teach/cut", json={"label": "wave"}).status_code == 422
    said = client.post("/teach/learn", json={"start": "../x", "hands": False}).json()
    assert "one from base or gesture" in said["error"]
    assert client.post("/teach/learn", json={"hands": "perhaps"}).status_code == 422


@pytest.mark.parametrize("path", ["clips?label=a", "cut", "remove", "learn", "undo"])
@pytest.mark.parametrize("origin", ["http://evil.example", "null", ""])
def test_other_sites_pages_may_not_teach(path: str, origin: str, client: Client) -> None:
    client.origin = origin
    assert client.post(f"/teach/{path}", json={}).status_code == 403
    assert client.get("/teach/state").status_code == 200
