"""The page, in a real browser with a camera made of pictures: what is looked at is recognised, faults are sentences."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import cv2
import httpx
import numpy as np
import pytest

pytest.importorskip("gradio", reason="needs the page's server (gatestream[ui])")
uvicorn = pytest.importorskip("uvicorn", reason="needs the page's server (gatestream[ui])")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright, which drives the browser")

from test_teach import six  # noqa: E402
from websockets.exceptions import InvalidStatus  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from demo.allowed_sources import AllowedSources  # noqa: E402
from demo.clip_store import ClipStore  # noqa: E402
from demo.live_sessions import LiveSessions  # noqa: E402
from demo.pages import mount_pages  # noqa: E402
from demo.server import build_app  # noqa: E402
from demo.service_api import ServiceClient  # noqa: E402
from demo.trainer import Trainer  # noqa: E402
from demo.video_results import POINTS, VideoResults, _Curves, recognize_video, render_track  # noqa: E402
from engines.synthetic import Simulation  # noqa: E402
from stream.commands.cli import main  # noqa: E402
from stream.frame import Event, Frame, HeadScores, Prediction  # noqa: E402
from stream.recognizer import Recognizer  # noqa: E402
from stream.sinks.video import write_video  # noqa: E402

CHROMIUM = shutil.which("chromium")
PATIENCE_S = 60.0
RATE = 15.0
NARROW = 10_000  # bytes a second of a slow network: three small pictures
NOT_A_TIME = np.float64("nan").tobytes()
NO_SERVICE = ServiceClient("127.0.0.1:9")
LISTED = AllowedSources(["sim://gestures?seed=7"], any_source=True)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs the browser Chromium, which is not installed")


def wait(condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    until = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def sessions(engine_cache: str) -> Iterator[LiveSessions]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GATESTREAM_CACHE", engine_cache)
        with LiveSessions(Recognizer.open("gesture", slots=4), sources=LISTED) as found:
            yield found


@pytest.fixture(scope="module")
def trainer(sessions: LiveSessions, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return Trainer(ClipStore(tmp_path_factory.mktemp("lessons")), "gesture", "auto", lambda model: None)


@contextmanager
def served(app: Any, port: int) -> Iterator[str]:
    config = uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1)
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


@contextmanager
def relayed(address: str) -> Iterator[tuple[str, threading.Event]]:
    """The address of a relay to a server, through which NARROW bytes pass in a second, each way, unless it is free."""
    free = threading.Event()
    free.set()

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while part := source.recv(1024):
                free.wait(len(part) / NARROW)
                target.sendall(part)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                near = listening.accept()[0]
                far = socket.create_connection(("127.0.0.1", urlsplit(address).port or 80))
                opened.extend((near, far))
                for ends in ((near, far), (far, near)):
                    ends[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threads.append(threading.Thread(target=pump, args=ends))
                    threads[-1].start()

    opened: list[socket.socket] = []
    threads = [threading.Thread(target=accept)]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threads[0].start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", free
        finally:
            free.set()
            for one in (listening, *opened):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(PATIENCE_S)
            for one in opened:
                one.close()


@contextmanager
def serving(service: ServiceClient, port: int) -> Iterator[str]:
    """The page beside a service, where nobody shows it a camera of its own."""
    with LiveSessions(Recognizer.open("gesture", slots=1)) as sessions, TemporaryDirectory() as folder:
        trainer = Trainer(ClipStore(Path(folder)), "gesture", "auto", lambda model: None)
        with served(build_app(sessions, trainer, service), port) as address:
            yield address


@contextmanager
def launched(folder: Path) -> Iterator[Any]:
    """Chromium, whose camera shows fourteen seconds of a hand that draws gestures, again and again."""
    film = folder / "hand.mjpeg"
    room = Simulation(3, (120, 160), RATE, idle_s=(1.5, 2.5))
    with film.open("wb") as file:
        for k in range(round(14 * RATE)):
            jpeg = cv2.imencode(".jpg", room.frame(k))[1].tobytes()
            file.write(jpeg + jpeg)  # Chromium plays 30 frames a second
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=[
            "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={film}"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with launched(tmp_path_factory.mktemp("camera")) as found:
        yield found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def address(sessions: LiveSessions, trainer: Trainer) -> Iterator[str]:
    """Of a server with all pages."""
    with served(mount_pages(build_app(sessions, trainer, NO_SERVICE), "auto", trainer), free_port()) as found:
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


def accessible(page: Any) -> None:
    """Nobody is kept out by what the page looks like, in the light or in the dark: axe finds nothing serious."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page.add_style_tag(content="* { transition: none !important; }")
    found = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        found += axe.Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")] == []


def events(page: Any) -> list[str]:
    return [text.split()[0] for text in page.locator("#events li").all_inner_texts()]


def says(page: Any, text: str) -> None:
    told = page.locator("#message, #state").filter(has_text=text)  # in the picture's place where there is none
    playwright.expect(told).to_be_visible(timeout=1000 * PATIENCE_S)


def use_own_camera(page: Any) -> None:
    page.click("#use-own", timeout=1000 * PATIENCE_S)
    page.wait_for_selector("#video", state="visible", timeout=1000 * PATIENCE_S)


LOST = "document.getElementById('video').srcObject.getVideoTracks()[0].dispatchEvent(new Event('ended'))"


@needs_browser
class TestLive:
    def test_the_browsers_own_camera_is_recognised(self, tab: Any, sessions: LiveSessions) -> None:
        use_own_camera(tab)
        wait(lambda: len(events(tab)) >= 2)
        assert set(events(tab)) & {"left", "carret", "del", "up", "down"}
        assert tab.locator("#bars .bar").count() == 5
        assert tab.inner_text("#message") == ""
        accessible(tab)
        assert len(sessions.recognizer.cameras) == 1

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_every_label_can_be_read(self, scheme: str, tab: Any) -> None:
        tab.emulate_media(color_scheme=scheme)
        paper, *labels = np.array(tab.evaluate("""async () => {
            const { colour } = await import("/page/labels.js"), pen = document.createElement("canvas").getContext("2d");
            const labels = Array.from({ length: 359 }, (_, i) => colour(String.fromCodePoint(i + 359)));
            return [getComputedStyle(document.body).backgroundColor, ...labels].map(shade => {
                pen.fillStyle = shade;
                pen.fillRect(0, 0, 1, 1);
                return [...pen.getImageData(0, 0, 1, 1).data];
            });
        }""")) / 255
        assert len({tuple(shade) for shade in labels}) > 300
        luminance = [0.05 + np.where(shade <= 0.04045, shade / 12.92, ((shade + 0.055) / 1.055) ** 2.4)[:3]
                     @ (0.2126, 0.7152, 0.0722) for shade in (paper, *labels)]
        contrast = [max(one, luminance[0]) / min(one, luminance[0]) for one in luminance[1:]]
        assert min(contrast) >= 4.5  # WCAG's AA

    def test_a_camera_of_the_server_is_shown_and_a_closed_tab_leaves_nothing(
            self, tab: Any, sessions: LiveSessions) -> None:
        tab.select_option("#camera", "sim://gestures?seed=7")
        wait(lambda: events(tab))
        drawn = tab.evaluate("document.getElementById('picture').getContext('2d').getImageData(0, 0, 64, 64).data.some("
                             "(value, i) => i % 4 < 3 && value > 0)")
        assert drawn
        for hidden in (True, False):  # as a browser tells when another tab comes to the front
            tab.evaluate("""hidden => {
                Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
                document.dispatchEvent(new Event("visibilitychange"));
            }""", hidden)
            wait(lambda hidden=hidden: (json.loads(tab.evaluate("document.body.dataset.facts"))["rate"] == 0) == hidden)
        tab.close()
        wait(lambda: sessions.recognizer.cameras == (), patience_s=5)

    def test_gates_are_drawn_over_the_picture_and_a_mistake_is_kept(self, tab: Any, trainer: Trainer) -> None:
        tab.click("#details-toggle")
        tab.click("#gates")
        playwright.expect(tab.locator("#open")).to_be_visible(timeout=1000 * PATIENCE_S)
        wait(lambda: tab.evaluate("(open => open.getContext('2d').getImageData(0, 0, open.width, open.height).data"
                                  ".some(value => value))(document.getElementById('open'))"))
        over, under = (tab.locator(place).bounding_box() for place in ("#open", "#picture"))
        assert over["width"] == pytest.approx(under["width"], abs=2)  # this model sees the whole of a 4:3 picture
        tab.click("#gates")
        playwright.expect(tab.locator("#open")).to_be_hidden()
        tab.locator("#events button", has_text="That was").first.click(timeout=1000 * PATIENCE_S)
        tab.fill("#was-label", "something else")
        tab.click("#was button[value=keep]")
        says(tab, "Kept: recording 1 of something else")
        [clip] = trainer.store.clips()
        assert clip.seconds > 1
        trainer.store.remove(clip.label, clip.number)

    def test_each_tab_has_its_own_state(self, tab: Any, sessions: LiveSessions, address: str) -> None:
        other = tab.context.new_page()
        other.goto(f"{address}/live")
        wait(lambda: len(sessions.recognizer.cameras) == 2)
        other.close()
        wait(lambda: len(sessions.recognizer.cameras) == 1, patience_s=5)

    def test_a_slow_network_is_told_and_nothing_gets_stuck(self, browser: Any, address: str,
                                                           sessions: LiveSessions) -> None:
        with relayed(address) as (through, free), browser.new_page() as tab:
            tab.goto(f"{through}/live")
            use_own_camera(tab)
            free.clear()
            says(tab, "the network or the server is slow")
            free.set()
            playwright.expect(tab.locator("#message")).to_have_text("", timeout=1000 * PATIENCE_S)
            wait(lambda: events(tab))

    @pytest.mark.parametrize(("error", "text"), [
        ("NotAllowedError", "may not use the camera"), ("NotFoundError", "no camera in this browser"),
        ("NotReadableError", "in use by another program"), ("OverconstrainedError", "does not start")])
    def test_a_camera_that_does_not_start(self, error: str, text: str, tab: Any) -> None:
        tab.evaluate("name => { navigator.mediaDevices.getUserMedia = "
                     "() => Promise.reject(new DOMException('', name)) }", error)
        tab.click("#use-own", timeout=1000 * PATIENCE_S)
        says(tab, text)

    def test_a_camera_that_is_lost(self, tab: Any) -> None:
        use_own_camera(tab)
        tab.evaluate(LOST)
        says(tab, "The camera is gone")

    @pytest.mark.parametrize(("source", "text"), [
        ("nowhere.mp4", "no such file"), ("zmq://here", "check the address"), ("gopher://x", "no source of kind")])
    def test_a_camera_of_the_server_that_cannot_be(self, source: str, text: str, tab: Any) -> None:
        tab.select_option("#camera", "other")
        tab.fill("#address", source)
        tab.click("#address-form button")
        says(tab, text)

    def test_a_server_that_comes_back_is_found(self, browser: Any, sessions: LiveSessions, trainer: Trainer,
                                               unused_port: int) -> None:
        with browser.new_context() as context:
            page = context.new_page()
            with served(build_app(sessions, trainer, NO_SERVICE), unused_port) as address:
                page.goto(f"{address}/live")
                wait(lambda: sessions.recognizer.cameras)
            says(page, "The server does not answer")
            with served(build_app(sessions, trainer, NO_SERVICE), unused_port):
                wait(lambda: sessions.recognizer.cameras)
                playwright.expect(page.locator("#state")).to_be_hidden(timeout=1000 * PATIENCE_S)


TAKES, TRIES = 4, 3  # performances that are learnt, and shown afterwards
CAMERA = """
() => {                                                     // gives a picture when it is asked for one, with its time
    const pictures = Object.assign(document.createElement("canvas"), { width: 192, height: 144 });
    const video = document.getElementById("video"), pen = pictures.getContext("2d"), draw = pen.drawImage;
    CanvasRenderingContext2D.prototype.drawImage = function (image, ...where) {
        draw.call(this, image === video ? pictures : image, ...where);
    };
    Object.defineProperties(video, { videoWidth: { value: 192 }, videoHeight: { value: 144 } });
    video.play = async () => {};
    navigator.mediaDevices.getUserMedia = async () => pictures.captureStream();
    let due = null, at = 1000;                              // milliseconds
    video.requestVideoFrameCallback = take => { due = take; };
    window.give = async (jpeg, ms) => {                     // returns once it has been recognised
        const { seenAt } = await import("/page/camera.js");
        const image = await createImageBitmap(await (await fetch("data:image/jpeg;base64," + jpeg)).blob());
        draw.call(pen, image, 0, 0);
        const before = seenAt();
        at += ms;
        due(0, { captureTime: at });
        for (const until = Date.now() + 60000; seenAt() === before;) {
            if (Date.now() > until) throw new Error(`no answer: ${document.getElementById("message").textContent}`);
            await new Promise(done => setTimeout(done, 1));
        }
    };
}
"""


def performance(label: str, seed: int) -> list[str]:
    """A gesture, as JPEGs in base64; as long as the others, with some idle time around it."""
    room = Simulation(seed, (144, 192), RATE, labels=(label,), idle_s=(0.4, 0.6))
    first = int((room.spans(10.0)[0].started_at - 0.3) * RATE)
    return [base64.b64encode(cv2.imencode(".jpg", room.frame(first + k))[1].tobytes()).decode()
            for k in range(round(2.2 * RATE))]


@needs_browser
@pytest.mark.parametrize("start", ["gesture", "base"])
def test_actions_are_recorded_learnt_and_recognised(start: str, browser: Any, tmp_path: Path, unused_port: int) -> None:
    model = six(tmp_path / "six.safetensors")
    trainer = Trainer(ClipStore(tmp_path / "lessons"), str(model), "eager",
                      lambda model: sessions.replace_recognizer(Recognizer.open(model, "eager", slots=2), model))
    with (LiveSessions(Recognizer.open(model, "eager", slots=2)) as sessions,
          served(build_app(sessions, trainer, NO_SERVICE), unused_port) as address, browser.new_context() as context):
        page = context.new_page()
        page.goto(f"{address}/teach")
        films = {(label, k): performance(label, 100 + 10 * ("star", "circlecc").index(label) + k)
                 for label in ("star", "circlecc") for k in range(TAKES + TRIES)}

        def give(picture: str) -> bool:
            page.evaluate("([jpeg, ms]) => window.give(jpeg, ms)", [picture, 1000 / RATE])
            return True

        def labels_now() -> tuple[str, ...]:
            (labels,) = sessions.recognizer.contract.heads.values()
            return labels

        page.evaluate(CAMERA)
        page.locator("#state").get_by_role("button", name="Use my camera").click(timeout=1000 * PATIENCE_S)
        playwright.expect(page.locator("#record")).to_be_enabled(timeout=1000 * PATIENCE_S)
        page.fill("#countdown", "0")
        page.fill("#seconds", "2.25")
        for n, (label, k) in enumerate((label, k) for label, k in films if k < TAKES):
            first, *others = films[label, k]
            give(first)
            page.fill("#name", label)
            page.fill("#place", f"room {k % 2}")
            page.click("#record")
            playwright.expect(page.locator("#banner")).to_have_text(f"{label}: now")
            for picture in (*others, others[-1], others[-1]):
                give(picture)
            says(page, f"Kept: recording {k + 1} of {label}")
            playwright.expect(page.locator(".clip")).to_have_count(n + 1, timeout=1000 * PATIENCE_S)
        assert {(clip.label, clip.number, clip.place) for clip in trainer.store.clips()} == {
            (label, k + 1, f"room {k % 2}") for label in ("star", "circlecc") for k in range(TAKES)}
        assert {cv2.VideoCapture(str(trainer.store.find(clip.label, clip.number))).get(cv2.CAP_PROP_FRAME_COUNT)
                for clip in trainer.store.clips()} == {1 + int(2.25 * RATE)}  # every picture
        page.select_option("#from", start)
        page.click("#learn")
        playwright.expect(page.locator("#report")).to_contain_text("right when left out", timeout=2000 * PATIENCE_S)
        playwright.expect(page.locator("#report")).to_contain_text("give or take")
        playwright.expect(page.locator("#report")).to_contain_text("Would help: ")
        asked = page.locator("#report").get_by_text("at another place")  # where it was is known from both rooms
        playwright.expect(asked).to_have_count(int(start == "gesture"))
        wait(lambda: "star" in labels_now())
        assert ("left" in labels_now()) == (start == "gesture")
        for label in ("star", "circlecc"):
            pictures = itertools.chain(*(films[label, k] for k in range(TAKES, TAKES + TRIES)))
            assert any(give(picture) and label in page.inner_text("#bars .bar:first-child") for picture in pictures)
        accessible(page)
        page.click("#undo")
        wait(lambda: "star" not in labels_now())


@needs_browser
def test_a_recording_begins_with_the_first_picture(tab: Any, address: str, sessions: LiveSessions, trainer: Trainer,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    ready, push = threading.Event(), sessions.push
    monkeypatch.setattr(sessions, "push", lambda *said, **more: (ready.wait(PATIENCE_S), push(*said, **more))[1])
    tab.goto(f"{address}/teach")
    tab.fill("#name", "wave")
    tab.fill("#countdown", "0")
    tab.fill("#seconds", "1")
    tab.locator("#state").get_by_role("button", name="Use my camera").click(timeout=1000 * PATIENCE_S)
    tab.click("#record")
    playwright.expect(tab.locator("#banner")).to_contain_text("waiting for the camera", timeout=1000 * PATIENCE_S)
    ready.set()
    says(tab, "Kept: recording 1 of wave")
    trainer.store.remove("wave", 1)
    tab.evaluate(LOST)
    tab.click("#record")
    says(tab, "Press Use my camera, then record")


def test_pictures_that_wait_while_the_model_is_replaced_go_to_the_new_one(tmp_path: Path) -> None:
    jpeg, go_on = cv2.imencode(".jpg", np.zeros((48, 64, 3), np.uint8))[1].tobytes(), threading.Event()
    with LiveSessions(Recognizer.open(six(tmp_path / "six.safetensors"), "eager", slots=1)) as sessions:
        session, before = sessions.join(), sessions.recognizer
        sessions._thread.submit(go_on.wait, PATIENCE_S)
        with ThreadPoolExecutor(2) as others:
            after = Recognizer.open("gesture", "eager", slots=1)
            replaced = others.submit(sessions.replace_recognizer, after, "gesture")
            wait(sessions._thread._work_queue.qsize)
            shown = others.submit(session.recognize, jpeg, 100.0)
            wait(lambda: sessions._thread._work_queue.qsize() == 2)
            go_on.set()
            replaced.result(PATIENCE_S)
            assert isinstance(shown.result(PATIENCE_S), list)
        assert (before.cameras, after.cameras) == ((), (session.camera,))
        session.close()


def test_what_was_shown_is_kept_though_pictures_changed_places(sessions: LiveSessions, tmp_path: Path) -> None:
    session, jpeg = sessions.join(), cv2.imencode(".jpg", np.zeros((48, 64, 3), np.uint8))[1].tobytes()
    for tick in (0, 1, 2, 4, 3, 5, 6, 7, 9, 8):
        session.recognize(jpeg, 100 + tick / 10)
    clip = session.save_clip(ClipStore(tmp_path), "wave", 100, 101)
    session.close()
    assert clip.seconds > 0.7


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds, as browsers can play them."""
    path = tmp_path_factory.mktemp("film") / "hand.mp4"
    room = Simulation(3, (240, 320), RATE, idle_s=(1.5, 2.5))
    write_video(path, ((k / RATE, room.frame(k)) for k in range(round(10 * RATE))))
    return path


def test_a_video_gives_the_events_of_a_run(sessions: LiveSessions, film: Path, tmp_path: Path) -> None:
    assert main(["run", str(film), "--json", str(tmp_path / "said.jsonl")]) == 0
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    shares: list[float] = []
    with Recognizer.open("gesture", slots=1) as recognizer:
        found = recognize_video(recognizer, film, tmp_path, shares.append)
    assert [replace(event, id=None).as_json() for event in found.events] == [
        one for one in said if one["type"] == "event" and not one["open"]]
    assert len({event.id for event in found.events} - {None}) == len(found.events)  # as the log has them
    assert found.events[0].label == "left"
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert "left" in {label for _, label, score in found.curves if score > 0.5}
    assert [file.name for file in found.files] == ["hand.csv", "hand.jsonl", "hand.vtt"]
    assert "left" in found.files[2].read_text()
    assert abs(cv2.VideoCapture(str(found.annotated)).get(cv2.CAP_PROP_FRAME_COUNT) - 10 * RATE) <= 1


def test_curves_of_hours_are_as_long_as_those_of_seconds() -> None:
    curves, image = _Curves("none"), np.zeros((1, 1, 3), np.uint8)
    for k in range(20_000):
        label = "late" if k == 19_000 else "none"
        said = Prediction("a", k, k / 2, True, {"x": HeadScores((), ((label, 0.9),))}, (), {}, 0, 0)
        curves.write(Frame(image, k / 2, k, "a"), [said])
    rows = curves.rows()
    assert POINTS / 2 <= len(rows) <= POINTS
    [[at, _, score]] = [row for row in rows if row[2] > 0]
    assert (at, score) == (pytest.approx(9500, abs=40), 0.9)


def test_labels_in_the_track_are_text() -> None:
    event = Event("a", "x", '<b onclick="1">', 1.0, 2.0, 0.9, False)
    html = render_track(VideoResults([event], 10.0, [], Path("a"), []), "#p")
    assert "<b " not in html
    assert "left:10.00%;width:max(6px,10.00%)" in html


@needs_browser
class TestVideo:
    def test_an_event_that_is_pressed_is_jumped_to(self, browser: Any, address: str, film: Path) -> None:
        with browser.new_context() as context:
            page, hosts = context.new_page(), set()
            page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
            page.goto(address)
            page.get_by_role("tab", name="Video").click()
            page.set_input_files("input[type=file]", film)
            page.locator(".event-track button", has_text="left").click(timeout=1000 * PATIENCE_S)
            wait(lambda: 2 < page.evaluate("document.querySelector('#player video').currentTime") < 4)
            accessible(page)
            assert hosts - {""} == {urlsplit(address).netloc}
            links = page.eval_on_selector_all("a[download]", "links => links.map(link => link.href)")
            files = {Path(urlsplit(link).path).name: httpx.get(link) for link in links}
            assert {"hand.csv", "hand.jsonl", "hand.vtt", "hand-annotated.mp4"} <= set(files)
            assert all(answer.status_code == 200 and answer.content for answer in files.values())

    def test_what_is_no_video_is_a_sentence(self, browser: Any, address: str, tmp_path: Path) -> None:
        wrong = tmp_path / "wrong.mp4"
        wrong.write_bytes(b"no video at all")
        with browser.new_context() as context:
            page = context.new_page()
            page.goto(address)
            page.get_by_role("tab", name="Video").click()
            page.set_input_files("input[type=file]", wrong)
            trouble = page.get_by_text("This video cannot be recognised")
            playwright.expect(trouble).to_be_visible(timeout=1000 * PATIENCE_S)
            playwright.expect(page.get_by_text("wrong.mp4: the file is no video")).to_be_visible()
            assert "Traceback" not in page.content()

    def test_the_models_card_and_contract_are_shown(self, browser: Any, address: str) -> None:
        with browser.new_context() as context:
            page = context.new_page()
            page.goto(address)
            page.get_by_role("tab", name="Model").click()
            playwright.expect(page.get_by_text("Ten pointing gestures")).to_be_visible(timeout=1000 * PATIENCE_S)
            accessible(page)


def test_other_sites_pages_are_not_answered(address: str) -> None:
    assert httpx.get(f"{address}/live").status_code == 200
    assert httpx.get(f"{address}/live", headers={"host": "evil.example"}).status_code == 400
    for origin in ("http://evil.example", None):
        with pytest.raises(InvalidStatus, match="403"), connect(f"ws{address[4:]}/live/feed", origin=origin):
            pass


def test_a_tab_that_nobody_sees_is_recognised_and_gets_no_pictures(sessions: LiveSessions, address: str) -> None:
    with connect(f"ws{address[4:]}/live/feed", origin=address) as feed:
        def pictures_among(predictions: int) -> int:
            """Of the messages that bring so many predictions, how many are pictures."""
            pictures = 0
            while predictions:
                if isinstance(heard := feed.recv(PATIENCE_S), bytes):
                    pictures += 1
                else:
                    records = json.loads(heard).get("records", ())
                    predictions -= any(record["type"] == "prediction" for record in records)
            return pictures

        feed.send(json.dumps({"source": "sim://gestures"}))
        assert pictures_among(5) >= 5
        feed.send(json.dumps({"hidden": True}))
        wait(lambda: pictures_among(5) == 0)
        feed.send(json.dumps({"hidden": False}))
        wait(lambda: pictures_among(5) >= 5)
    wait(lambda: sessions.recognizer.cameras == ())


def test_a_lesson_that_does_not_open_is_told_to_whoever_looks(trainer: Trainer, address: str,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "passed_over", "What was learnt last is not in use: no hands")
    with connect(f"ws{address[4:]}/live/feed", origin=address) as feed:
        assert "hello" in json.loads(feed.recv(PATIENCE_S))
        assert json.loads(feed.recv(PATIENCE_S)) == {"error": trainer.passed_over}


@pytest.mark.parametrize("said", ["{", "[]", '{"threshold": "x"}', '{"source": 5}', b"short", b"12345678no jpeg",
                                  NOT_A_TIME + b"no jpeg"])
def test_nonsense_is_answered_with_a_sentence(said: str | bytes, sessions: LiveSessions, address: str) -> None:
    with connect(f"ws{address[4:]}/live/feed", origin=address) as feed:
        assert json.loads(feed.recv())["hello"]["model"] == "gesture"
        feed.send(said)
        answers = []
        while "error" not in (heard := json.loads(feed.recv(PATIENCE_S))):
            answers.append(heard)
        assert "Traceback" not in heard["error"]
        if isinstance(said, bytes):  # a page waits for an answer to each picture
            assert answers == [{"at": 0.0, "records": []}]
    wait(lambda: sessions.recognizer.cameras == ())
