"""Looking at a service's cameras: pictures, records as they come, and who may."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from stream.access.tokens import create_token
from stream.frame import Event, OtherRecord
from stream.service.api.server import serve_api
from stream.service.config import ApiConfig, Config, HealthConfig
from stream.service.egress.health import COUNTERS, GAUGES, Metrics
from stream.sinks.live_feed import WAITING, LiveFeed
from stream.sinks.log import EventLog, clip_name, read_events
from stream.wire.frames import PendingFrame, RecentFrames
from stream.wire.messages import Limits, Message

JPEG = cv2.imencode(".jpg", np.full((48, 64, 3), 200, np.uint8))[1].tobytes()
RAW = np.full((4, 6, 3), 90, np.uint8)
ODD = 'gate 7/a "x"'
ANYWHERE = Config(health=HealthConfig(bind="127.0.0.1:0"))


def frame(camera: str, message: Message, at: float = 0.0) -> PendingFrame:
    return PendingFrame(camera, message, 0, 0, at, at)


def prediction(camera: str, at: float = 1.0) -> dict[str, Any]:
    return {"type": "prediction", "camera": camera, "captured_at": at}


def write(live_feed: LiveFeed, *records: dict[str, Any]) -> None:
    live_feed.write(None, [OtherRecord(record["camera"], record) for record in records])


@pytest.fixture
def recent() -> RecentFrames:
    found = RecentFrames(2.0)
    found.add(frame("cell", Message("gatestream", "cell", JPEG)))
    found.add(frame("raw", Message("gatestream", "raw", RAW.tobytes(), "raw", RAW.shape)))
    found.add(frame("broken", Message("gatestream", "broken", b"no picture", "png")))
    found.add(frame(ODD, Message("gatestream", ODD, JPEG)))
    return found


@pytest.fixture
def live_feed(recent: RecentFrames) -> LiveFeed:
    return LiveFeed(recent, Limits())


def test_the_newest_picture_is_a_jpeg(live_feed: LiveFeed, recent: RecentFrames) -> None:
    assert live_feed.picture("cell") == JPEG
    shown = cv2.imdecode(np.frombuffer(live_feed.picture("raw") or b"", np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == RAW.shape
    assert abs(shown.mean() - 90) < 2
    assert live_feed.picture("broken") is None
    recent.add(frame("cell", Message("gatestream", "cell", b"newer"), 99.0))
    assert live_feed.picture("cell") == b"newer"
    recent.forget("cell")
    assert live_feed.picture("cell") is None


def test_a_reader_gets_what_it_asked_for_and_is_never_waited_for(live_feed: LiveFeed) -> None:
    async def read() -> None:
        with live_feed.reader(["cell"], ["prediction"]) as reader, live_feed.reader() as other:
            for k in range(WAITING + 50):
                write(live_feed, prediction("other"), prediction("cell", k), {**prediction("cell"), "type": "gap"})
            *said, missed = map(json.loads, await reader.get() or [])
            assert [one["captured_at"] for one in said] == list(range(WAITING))
            assert {(one["camera"], one["type"]) for one in said} == {("cell", "prediction")}
            assert missed == {"type": "missed", "records": 50}
            assert len(await other.get() or []) == WAITING + 1
            write(live_feed, prediction("cell", 7.0))
            assert [json.loads(line)["captured_at"] for line in await reader.get() or []] == [7.0]
            live_feed.close()
            assert await reader.get() is None

    asyncio.run(read())
    assert live_feed.counts["missed"] == 50 + 3 * (WAITING + 50) - WAITING
    write(live_feed, prediction("cell"))


@pytest.mark.parametrize(("settings", "shows"), [
    ({}, True), ({"bind": "[::1]:1"}, True), ({"bind": "localhost:1"}, True), ({"bind": "0.0.0.0:1"}, False),
    ({"bind": "10.0.0.1:1"}, False), ({"bind": "0.0.0.0:1", "pictures": True}, True), ({"pictures": False}, False),
    ({"bind": None}, False)])
def test_pictures_are_shown_to_this_machine_by_default(settings: dict[str, Any], shows: bool) -> None:
    assert Config.model_construct(health=HealthConfig(**settings)).serves_pictures == shows


def state(**changes: Any) -> dict[str, Any]:
    camera = {**dict.fromkeys([*COUNTERS, *GAUGES], 0), "present": True, "staleness_seconds": 0.1, "predictions": 5,
              "received": 10, "taken": 9, "bytes": 100, "dropped": {"overtaken": 1}, "gaps": {},
              "labels": {"gesture": ["left", 0.97]}}
    return {"healthy": True, "model": "gesture", "background": "background", "engine": "gesture, openvino f32",
            "log": None, "clips_folder": None, "refused": {}, "results": {}, "clips": {}, "waiting": 0,
            "engine_restarts": 0, "memory_bytes": 1, "faults": {}, "sinks": {},
            "cameras": {"cell": camera, ODD: camera, "away": {**camera, "present": False}}, **changes}


@pytest.fixture
def served(live_feed: LiveFeed, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A health page with cameras to look at; `state` is what it says."""
    said = SimpleNamespace(state=state())
    metrics = Metrics(lambda: said.state)
    with serve_api(ANYWHERE, metrics, live_feed) as address:
        said.address, said.metrics = address, metrics
        yield said
        live_feed.close()


def test_cameras_are_served(served: SimpleNamespace, live_feed: LiveFeed) -> None:
    answer = httpx.get(f"http://{served.address}/cameras/cell.jpg")
    assert answer.content == JPEG
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert httpx.get(f"http://{served.address}/cameras/gate%207%2Fa%20%22x%22.jpg").content == JPEG
    for path, status in (("/cameras/nobody.jpg", 404), ("/cameras/", 404), ("/cameras/cell/else", 404)):
        assert httpx.get(f"http://{served.address}{path}").status_code == status
    with httpx.stream("GET", f"http://{served.address}/cameras/cell/live") as answer:
        lines = answer.iter_lines()
        assert json.loads(next(lines)) == []  # nothing yet
        write(live_feed, prediction("cell"))
        assert json.loads(next(lines)) == [prediction("cell")]


@pytest.mark.parametrize("path", ["cell.jpg", "cell/live"])
def test_another_sites_page_and_a_service_that_does_not_show(path: str, served: SimpleNamespace) -> None:
    answer = httpx.get(f"http://{served.address}/cameras/{path}", headers={"host": "evil.example:80"})
    assert answer.status_code == 403
    with serve_api(ANYWHERE, served.metrics) as address:
        assert httpx.get(f"http://{address}/cameras/{path}").status_code == 403


class TestPage:
    """The page's side of it, demo/service_api.py."""

    @pytest.fixture
    def service(self, served: SimpleNamespace) -> Iterator[Any]:
        pytest.importorskip("fastapi", reason="needs the page's server (gatestream[ui])")
        from demo.service_api import ServiceClient

        found = ServiceClient(served.address)
        yield found
        found.close()

    def asked(self, service: Any, path: str) -> httpx.Response:
        import asyncio

        from fastapi import FastAPI

        from demo.service_api import service_router

        app = FastAPI()
        app.include_router(service_router(service))

        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
                return await client.get(path)

        return asyncio.run(ask())

    def test_records_and_pictures_come(self, service: Any, live_feed: LiveFeed) -> None:
        followed = service.follow("cell")
        assert next(followed) == []
        write(live_feed, prediction("cell"))
        assert next(followed) == [prediction("cell")]
        followed.close()
        assert service.picture(ODD) == JPEG
        answer = self.asked(service, "/service/cameras/gate%207%2Fa%20%22x%22.jpg")
        assert answer.content == JPEG
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert self.asked(service, "/service/cameras/nobody.jpg").status_code == 404

    def test_a_service_that_is_not_there(self) -> None:
        pytest.importorskip("fastapi", reason="needs the page's server (gatestream[ui])")
        from demo.service_api import ServiceClient
        from engines.errors import SourceError

        nobody = ServiceClient("127.0.0.1:9")
        said = self.asked(nobody, "/service/state").json()
        assert said["health"] is None
        assert "no service at 127.0.0.1:9" in said["error"]
        assert nobody.picture("cell") is None
        with pytest.raises(SourceError):
            next(nobody.follow("cell"))
        assert self.asked(nobody, "/service/events").status_code == 503

    def test_a_service_that_asks_for_a_token(self, live_feed: LiveFeed, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("fastapi", reason="needs the page's server (gatestream[ui])")
        from demo.service_api import ServiceClient
        from engines.errors import SourceError

        token = create_token(tmp_path / "tokens", "page", ["read", "pictures"])
        config = Config(health=ANYWHERE.health, api=ApiConfig(tokens=tmp_path / "tokens"))
        with serve_api(config, Metrics(state), live_feed) as address:
            assert address is not None
            stranger = ServiceClient(address)
            with pytest.raises(SourceError, match="GATESTREAM_TOKEN"):
                stranger.health()
            assert self.asked(stranger, "/service/events").status_code == 503
            monkeypatch.setenv("GATESTREAM_TOKEN", token)
            known = ServiceClient(address)
            assert known.health()["healthy"]
            assert known.picture("cell") == JPEG
            assert next(known.follow("cell")) == []
            for client in (stranger, known):
                client.close()

    @pytest.mark.parametrize("address", ["", "somewhere", "http://a:1", "a b:1", "a:x", "a:1/b", "user@a:1"])
    def test_what_is_no_address(self, address: str) -> None:
        pytest.importorskip("fastapi", reason="needs the page's server (gatestream[ui])")
        from demo.service_api import ServiceClient
        from engines.errors import UsageError

        with pytest.raises(UsageError, match="host:port"):
            ServiceClient(address)

    def test_events_are_filtered_exported_and_played(self, service: Any, served: SimpleNamespace,
                                                     tmp_path: Path) -> None:
        assert "set results.log" in self.asked(service, "/service/events").json()["error"]
        served.state = state(log="/nowhere/events.db")
        assert "not on this machine" in self.asked(service, "/service/events").json()["error"]
        path, folder = tmp_path / "events.db", tmp_path / "clips"
        folder.mkdir()
        with EventLog(path, "gesture", "service") as log:
            log.write(None, [Event(camera, "gesture", label, float(k), k + 1.0, 0.9, False) for k, (camera, label) in
                             enumerate([("cell", "left"), (ODD, "left"), ("cell", "tick")])])
        first = clip_name(read_events(path)[0].id, "cell", "left")
        (folder / first).write_bytes(b"video")
        (tmp_path / "secret.mp4").write_bytes(b"secret")
        served.state = state(log=str(path), clips_folder=str(folder))
        said = self.asked(service, "/service/events").json()
        assert [(one["camera"], one["label"]) for one in said["events"]] == [
            ("cell", "tick"), (ODD, "left"), ("cell", "left")]
        assert (said["total"], said["labels"]) == (3, ["left", "tick"])
        assert [one["clip"] for one in said["events"]] == [None, None, first]
        few = self.asked(service, "/service/events?camera=cell&label=left&last=5").json()
        assert [one["clip"] for one in few["events"]] == [first]
        for query, total in (("last=1", 3), ("last=1&camera=cell", 2), ("last=1&label=tick", 1), ("camera=none", 0)):
            few = self.asked(service, f"/service/events?{query}").json()
            assert (len(few["events"]), few["total"], few["labels"]) == (min(total, 1), total, ["left", "tick"])
        assert len(self.asked(service, "/service/events.csv?camera=cell").text.splitlines()) == 3
        assert json.loads(self.asked(service, "/service/events.jsonl?label=tick").text)["label"] == "tick"
        assert self.asked(service, f"/service/clips/{first}").content == b"video"
        for name in ("..%2Fsecret.mp4", "nothing.mp4", "..%2Fevents.db"):
            assert self.asked(service, f"/service/clips/{name}").status_code == 404

    @pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser Chromium, which is not installed")
    def test_tiles_events_and_the_live_view_are_shown(self, served: SimpleNamespace, service: Any, live_feed: LiveFeed,
                                                      tmp_path: Path, unused_port: int) -> None:
        sync = pytest.importorskip("playwright.sync_api", reason="needs Playwright, which drives the browser")
        from test_ui import PATIENCE_S, accessible, serving

        path = tmp_path / "events.db"
        with EventLog(path, "gesture", "service") as log:
            log.write(None, [Event(ODD, "gesture", "<b>left</b>", 1.0, 2.0, 0.9, False)])
        served.state = state(log=str(path))
        with serving(service, unused_port) as address, sync.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(f"{address}/cameras")
            sync.expect(page.locator(".tile")).to_have_count(3, timeout=1000 * PATIENCE_S)
            sync.expect(page.locator(".tile", has_text="cell")).to_contain_text("left 97 %")
            sync.expect(page.locator(".tile", has_text="away")).to_contain_text("not here")
            sync.expect(page.locator("#rows")).to_contain_text("<b>left</b>", timeout=1000 * PATIENCE_S)
            accessible(page)
            page.locator(".tile", has_text=ODD).click()
            sync.expect(page.locator("#camera")).to_have_value(f"service:{ODD}", timeout=1000 * PATIENCE_S)
            scores = {"gesture": {"now": [["left", 0.5]], "window": [["left", 0.98]]}}
            ended = threading.Event()

            def write_on() -> None:
                while not ended.wait(0.1):
                    write(live_feed, {**prediction(ODD), "heads": scores, "warm": True, "clips": [1.0], "dropped": 0,
                                   "held": 0, "latency_ms": {"total": 1.0}})

            writer = threading.Thread(target=write_on)
            writer.start()
            try:
                sync.expect(page.locator("#bars .bar").first).to_contain_text("98 %", timeout=1000 * PATIENCE_S)
                sync.expect(page.locator("#picture")).to_be_visible()
            finally:
                ended.set()
                writer.join()
            served.state = None  # a service that is not well
            page.goto(f"{address}/cameras")
            sync.expect(page.locator("#message")).to_contain_text("No service at", timeout=1000 * PATIENCE_S)
            browser.close()
