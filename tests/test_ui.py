"""The page, in a real browser with a camera made of pictures: what is looked at is recognised, faults are sentences."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import httpx
import pytest

pytest.importorskip("fastapi", reason="needs the page's server (gatestream[ui])")
uvicorn = pytest.importorskip("uvicorn", reason="needs the page's server (gatestream[ui])")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright, which drives the browser")

from websockets.exceptions import InvalidStatus  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from demo.server import app_of  # noqa: E402
from demo.viewers import Viewers  # noqa: E402
from engines.synthetic import Simulation  # noqa: E402
from stream.recognizer import Recognizer  # noqa: E402

CHROMIUM = shutil.which("chromium")
PATIENCE_S = 60.0
RATE = 15.0
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs the browser Chromium, which is not installed")


def wait(condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    until = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def viewers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewers]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GATESTREAM_CACHE", str(tmp_path_factory.getbasetemp() / "engine-cache"))
        with Recognizer.open("gesture", slots=4) as recognizer, Viewers(recognizer) as found:
            yield found


@contextmanager
def served(viewers: Viewers, port: int) -> Iterator[str]:
    config = uvicorn.Config(app_of(viewers), port=port, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait(lambda: server.started)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium, whose camera shows twenty seconds of a hand that draws gestures, again and again."""
    film = tmp_path_factory.mktemp("camera") / "hand.mjpeg"
    room = Simulation(3, (240, 320), RATE, idle_s=(1.5, 2.5))
    with film.open("wb") as file:
        for k in range(round(20 * RATE)):
            jpeg = cv2.imencode(".jpg", room.frame(k))[1].tobytes()
            file.write(jpeg + jpeg)  # Chromium plays 30 frames a second
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=[
            "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={film}"])
        yield opened
        opened.close()


@pytest.fixture
def address(viewers: Viewers, unused_port: int) -> Iterator[str]:
    with served(viewers, unused_port) as found:
        yield found


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Any]:
    """The Live page; it may talk to no other host, and no script of it may fail."""
    context, seen, failures = browser.new_context(), set(), list[Any]()
    page = context.new_page()
    page.on("request", lambda request: seen.add(request.url.split("/")[2]))
    page.on("pageerror", lambda error: failures.append(error))
    page.goto(f"{address}/live")
    yield page
    context.close()
    assert seen == {address.removeprefix("http://")}
    assert failures == []


def events(page: Any) -> list[str]:
    return [text.split()[0] for text in page.locator("#events li").all_inner_texts()]


def says(page: Any, text: str) -> None:
    playwright.expect(page.locator("#trouble")).to_contain_text(text, timeout=1000 * PATIENCE_S)


@needs_browser
class TestLive:
    def test_the_browsers_own_camera_is_recognised(self, tab: Any, viewers: Viewers) -> None:
        tab.click("#start")
        wait(lambda: len(events(tab)) >= 2)
        assert set(events(tab)) & {"left", "carret", "del", "up", "down"}
        assert tab.locator("#bars .bar").count() == 5
        assert tab.inner_text("#trouble") == ""
        assert len(viewers.recognizer.cameras) == 1

    def test_a_camera_of_the_server_is_shown_and_a_closed_tab_leaves_nothing(
            self, tab: Any, viewers: Viewers) -> None:
        tab.select_option("#camera", "sim://gestures")
        tab.click("#start")
        wait(lambda: events(tab))
        drawn = tab.evaluate("document.getElementById('picture').getContext('2d').getImageData(0, 0, 64, 64).data.some("
                             "(value, i) => i % 4 < 3 && value > 0)")
        assert drawn
        tab.close()
        wait(lambda: viewers.recognizer.cameras == (), patience_s=5)

    def test_each_tab_has_its_own_state(self, tab: Any, viewers: Viewers, address: str) -> None:
        other = tab.context.new_page()
        other.goto(f"{address}/live")
        for page in (tab, other):
            page.click("#start")
        wait(lambda: len(viewers.recognizer.cameras) == 2)
        other.close()
        wait(lambda: len(viewers.recognizer.cameras) == 1, patience_s=5)

    @pytest.mark.parametrize(("error", "text"), [
        ("NotAllowedError", "may not use the camera"), ("NotFoundError", "no camera in this browser"),
        ("NotReadableError", "in use by another program"), ("OverconstrainedError", "does not start")])
    def test_a_camera_that_does_not_start(self, error: str, text: str, tab: Any) -> None:
        tab.evaluate("name => { navigator.mediaDevices.getUserMedia = "
                     "() => Promise.reject(new DOMException('', name)) }", error)
        tab.click("#start")
        says(tab, text)

    def test_a_camera_that_is_lost(self, tab: Any, viewers: Viewers) -> None:
        tab.click("#start")
        wait(lambda: viewers.recognizer.cameras)
        tab.evaluate("document.getElementById('video').srcObject.getVideoTracks()[0].dispatchEvent(new Event('ended'))")
        says(tab, "The camera is gone")

    @pytest.mark.parametrize(("source", "text"), [
        ("nowhere.mp4", "no such file"), ("zmq://here", "check the address"), ("gopher://x", "no source of kind")])
    def test_a_camera_of_the_server_that_cannot_be(self, source: str, text: str, tab: Any) -> None:
        tab.select_option("#camera", "other")
        tab.fill("#address", source)
        tab.click("#start")
        says(tab, text)

    def test_a_server_that_comes_back_is_found(self, browser: Any, viewers: Viewers, unused_port: int) -> None:
        with browser.new_context() as context:
            page = context.new_page()
            with served(viewers, unused_port) as address:
                page.goto(f"{address}/live")
                page.click("#start")
                wait(lambda: viewers.recognizer.cameras)
            says(page, "The server does not answer")
            with served(viewers, unused_port):
                wait(lambda: viewers.recognizer.cameras)
                playwright.expect(page.locator("#trouble")).to_have_text("", timeout=1000 * PATIENCE_S)


def test_other_sites_pages_are_not_answered(address: str) -> None:
    assert httpx.get(f"{address}/live").status_code == 200
    assert httpx.get(f"{address}/live", headers={"host": "evil.example"}).status_code == 400
    for origin in ("http://evil.example", None):
        with pytest.raises(InvalidStatus, match="403"), connect(f"ws{address[4:]}/live/feed", origin=origin):
            pass


@pytest.mark.parametrize("said", ["{", "[]", '{"threshold": "x"}', '{"source": 5}', b"short", b"12345678no jpeg"])
def test_nonsense_is_answered_with_a_sentence(said: str | bytes, viewers: Viewers, address: str) -> None:
    with connect(f"ws{address[4:]}/live/feed", origin=address) as socket:
        assert json.loads(socket.recv())["hello"]["model"] == "gesture"
        socket.send(said)
        while "trouble" not in (heard := json.loads(socket.recv(PATIENCE_S))):
            pass
        assert "Traceback" not in heard["trouble"]
    wait(lambda: viewers.recognizer.cameras == ())
