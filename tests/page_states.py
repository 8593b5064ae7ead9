"""The states that pages can be in, a row each, for tests and pictures. Draws them all, and a contact sheet:

    python tests/page_states.py FOLDER [STATE ...]

A state is real where that can be; where it hangs on a moment or a model, the server's part of the feed is scripted.
"""

from __future__ import annotations

import json
import re
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import cv2
import numpy as np
from fakes import FakeEngine, FakeModel
from test_ui import LISTED, LOST, NO_SERVICE, free_port, launched, served, use_own_camera

from demo.clip_store import ClipStore
from demo.live_sessions import LiveSessions
from demo.pages import mount_pages
from demo.server import build_app, hello
from demo.trainer import Trainer
from engines.synthetic import LABELS, Simulation
from stream.frame import Event, HeadScores, Prediction
from stream.recognizer import Recognizer

PATIENCE_MS = 60_000
WIDTHS, HEIGHT = (1280, 400), 800
SCHEMES = ("light", "dark")
LONG = "takes the small yellow screwdriver from the magnetic bar"
RIGHT_TO_LEFT = "يفتح الدرج"
VERBS = (*LABELS, LONG, RIGHT_TO_LEFT, "Donaudampfschifffahrtsgesellschaftskapitän",
         *(f"verb {k}" for k in range(1, 18)), "none")
NOUNS = (*(f"object of work {k}" for k in range(1, 30)), "كوب", "none")


class State(NamedTuple):
    """How a state comes about, and how one knows that it is there."""

    name: str
    path: str  # of the page
    shown: str  # selector of what is visible then
    before: Callable[[Any], None] = lambda page: None  # is done to the page before it opens
    after: Callable[[Any], None] = lambda page: None  # and once it is open


def scripted(answers: Callable[[], list[dict[str, Any] | bytes]] = list, model: FakeModel | None = None,
             greets: bool = True, closes: bool = False) -> Callable[[Any], None]:
    """A server that greets, and answers the first wish for a source so."""
    contract = model or FakeModel(heads={"gesture": (*LABELS, "background")}, background="background")
    greeting = hello(LiveSessions(Recognizer(contract, FakeEngine(contract))))

    def serve(socket: Any) -> None:
        def hear(text: str | bytes) -> None:
            if isinstance(text, bytes) or "source" not in json.loads(text):
                return
            socket.send(json.dumps({"stopped": True, "at": 0.0, "records": []}))
            for one in answers():
                socket.send(one if isinstance(one, bytes) else json.dumps(one))

        socket.on_message(hear)
        if closes:
            socket.close()
        elif greets:
            socket.send(json.dumps({"hello": greeting}))

    return lambda page: page.route_web_socket(re.compile("/live/feed$"), serve)


def picture(seed: int = 41) -> bytes:
    room = Simulation(seed, (480, 640), 30.0, demonstration=True)
    return struct.pack("<d", time.time()) + cv2.imencode(".jpg", room.frame(100))[1].tobytes()


def prediction(heads: dict[str, Sequence[str]], warm: bool = True) -> dict[str, Any]:
    scores = {head: HeadScores(*[tuple((label, 0.8 / (k + 1)) for k, label in enumerate(labels[:5]))] * 2)
              for head, labels in heads.items()}
    parts = {"queue": 0.4, "preprocess": 0.6, "engine": 6.2, "total": 7.2}
    said = Prediction("viewer 1", 200, time.time(), warm, scores, (0.1, 0.9, 0.7, 0.2), parts, 3, 1)
    return {"at": time.time(), "records": [said.as_json()]}


def happened(*events: tuple[str, str, float, float | None]) -> dict[str, Any]:
    """Of head, label, seconds ago that it began and ended, None for one that goes on."""
    return {"at": time.time(), "records": [Event(
        "viewer 1", head, label, time.time() - began, time.time() - (ended or 0.0), 0.93, ended is None, number=k,
    ).as_json() for k, (head, label, began, ended) in enumerate(events)]}


def refused(error: str) -> Callable[[Any], None]:
    """A browser whose camera does not start."""
    return lambda page: page.add_init_script(
        "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', '" + error + "'))")


def ask_for_camera(page: Any) -> None:
    page.click("#use-own", timeout=PATIENCE_MS)


def lose_camera(page: Any) -> None:
    use_own_camera(page)
    page.evaluate(LOST)


def show_moment(page: Any) -> None:
    page.wait_for_selector("#events li", timeout=PATIENCE_MS)
    page.locator("#events button", has_text="Show").first.click()


def correct(page: Any) -> None:
    page.locator("#events button", has_text="That was").first.click(timeout=PATIENCE_MS)


GESTURES = {"gesture": LABELS}
WORK = FakeModel(heads={"verb": VERBS, "noun": NOUNS}, background="none")


def quiet() -> list[dict[str, Any] | bytes]:
    return [picture(), prediction(GESTURES)]


def busy() -> list[dict[str, Any] | bytes]:
    return [picture(), happened(("gesture", "circlecc", 17.0, 14.0), ("gesture", "unknown", 11.0, 10.2),
                                ("gesture", "left", 6.0, 4.5), ("gesture", "star", 1.5, None)), prediction(GESTURES)]


def work() -> list[dict[str, Any] | bytes]:
    return [picture(), happened(
        ("verb", LONG, 16.0, 9.0), ("verb", RIGHT_TO_LEFT, 12.0, 6.0), ("verb", "verb 3", 10.0, 2.0),
        ("noun", "كوب", 9.0, 3.0), ("noun", "object of work 7", 2.0, None), ("verb", LONG, 3.0, None)),
        prediction(WORK.contract.heads)]


ENDED = {"error": "This source has ended.", "of": "end"}
FAILED = {"error": "rtsp://10.0.0.9/door: no answer; a camera that answers; check the address", "of": "camera"}
FORGOTTEN = {"error": "a moment that is no longer remembered; one of the last 60 s; record it again"}
STATES = [
    State("live-connecting", "/live", "#state", scripted(greets=False)),
    State("live-opening", "/live", "#state >> text=Opening", scripted()),
    State("live-warming-up", "/live", "#banner >> text=Warming up",
          scripted(lambda: [picture(), prediction(GESTURES, warm=False)])),
    State("live-no-events", "/live", "#no-events", scripted(quiet)),
    State("live-running", "/live", "#events li"),
    State("live-events", "/live", ".event.unknown", scripted(busy)),
    State("live-moment", "/live", "#moment canvas", after=show_moment),
    State("live-correction", "/live", "#was", scripted(busy), correct),
    State("live-details", "/live", "#facts dt >> text=Dropped", scripted(busy),
          lambda page: page.click("#details-toggle")),
    State("live-own-camera", "/live", "#first-hint", after=use_own_camera),
    State("live-denied", "/live", "#state >> text=may not use", refused("NotAllowedError"), ask_for_camera),
    State("live-no-camera", "/live", "#state >> text=no camera", refused("NotFoundError"), ask_for_camera),
    State("live-in-use", "/live", "#state >> text=in use", refused("NotReadableError"), ask_for_camera),
    State("live-lost", "/live", "#state >> text=is gone", after=lose_camera),
    State("live-ended", "/live", "#state >> text=has ended", scripted(lambda: [ENDED])),
    State("live-failed", "/live", "#state >> text=no picture", scripted(lambda: [FAILED])),
    State("live-gone", "/live", "#state >> text=does not answer", scripted(closes=True)),
    State("live-error", "/live", "#message", scripted(lambda: [*quiet(), FORGOTTEN])),
    State("live-60-labels", "/live", ".event", scripted(work, model=WORK)),
    State("frame-live", "/", "iframe.page", after=lambda page: page.frame_locator("iframe[title=Live]").locator(
        "#events li").nth(1).wait_for(timeout=PATIENCE_MS)),
    State("teach-idle", "/teach", "#state >> text=Use my camera"),
    State("cameras-no-service", "/cameras", "#message >> text=o service"),
]


def open_state(state: State, page: Any, address: str) -> None:
    """Brings a page into a state."""
    state.before(page)
    page.goto(f"{address}{state.path}")
    state.after(page)
    page.locator(state.shown).first.wait_for(timeout=PATIENCE_MS)


def draw(folder: Path, names: Sequence[str]) -> None:
    """Pictures of states, light and dark, wide and narrow, and a sheet of all that were drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    states = [state for state in STATES if not names or state.name in names]
    with (LiveSessions(Recognizer.open("gesture", slots=4), sources=LISTED) as sessions, TemporaryDirectory() as own,
          launched(Path(own)) as browser):
        trainer = Trainer(ClipStore(Path(own)), "gesture", "auto", lambda model: None)
        app = mount_pages(build_app(sessions, trainer, NO_SERVICE), "auto", trainer)
        with served(app, free_port()) as address:
            for state in states:
                for width in WIDTHS:
                    with browser.new_context(viewport={"width": width, "height": HEIGHT}) as context:
                        page = context.new_page()
                        open_state(state, page, address)
                        for scheme in SCHEMES:
                            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                            page.wait_for_timeout(400)
                            page.screenshot(path=folder / f"{state.name}-{width}-{scheme}.png",
                                            full_page=state.path != "/")
                print(state.name, flush=True)
    for width in WIDTHS:
        cv2.imwrite(str(folder / f"sheet-{width}.png"), contact_sheet(folder, states, width))


def contact_sheet(folder: Path, states: Sequence[State], width: int) -> np.ndarray:
    """A row for each state: its name, light, dark."""
    rows, shown = [], width // 2
    for state in states:
        pair = [cv2.imread(str(folder / f"{state.name}-{width}-{scheme}.png")) for scheme in SCHEMES]
        small = [cv2.resize(one, (shown, round(one.shape[0] / 2)), interpolation=cv2.INTER_AREA) for one in pair]
        tall = max(len(one) for one in small)
        row = np.hstack([cv2.copyMakeBorder(one, 28, 8 + tall - len(one), 4, 4, cv2.BORDER_CONSTANT,
                                            value=(128, 128, 128)) for one in small])
        cv2.putText(row, state.name, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
        rows.append(row)
    return np.vstack(rows)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), sys.argv[2:])
