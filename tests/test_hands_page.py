"""The page draws the hands that a model looks for over the browser's own camera."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from small_models import make_base
from test_hands import FakeModels, hand_at
from test_ui import CAMERA, NO_SERVICE, browser, needs_browser, served  # noqa: F401

from demo.clip_store import ClipStore
from demo.live_sessions import LiveSessions
from demo.server import build_app
from demo.trainer import Trainer
from engines.hands import HAND_FEATURES
from stream.recognizer import Recognizer

SEEN = """
() => {
    const canvas = document.getElementById("hands"), found = [];
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    for (let y = 0, i = 3; y < canvas.height; y++)
        for (let x = 0; x < canvas.width; x++, i += 4)
            if (pixels[i]) found.push([x / canvas.width, y / canvas.height]);
    return found;
}
"""


@needs_browser
def test_hands_are_drawn_where_they_are(browser: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,  # noqa: F811
                                        unused_port: int) -> None:
    scene = FakeModels()
    monkeypatch.setattr("engines.hands.open_models", lambda: scene)
    monkeypatch.setattr("engines.hands.tracker.open_models", lambda: scene)
    file = str(make_base(tmp_path / "m.safetensors", HAND_FEATURES))
    picture = base64.b64encode(cv2.imencode(".jpg", np.zeros((144, 192, 3), np.uint8))[1].tobytes()).decode()
    with (LiveSessions(Recognizer.open(file, "eager", slots=1), file) as sessions,
          served(build_app(sessions, Trainer(ClipStore(tmp_path), file, "eager", lambda model: None), NO_SERVICE),
                 unused_port) as address, browser.new_page() as page):
        page.goto(f"{address}/live")
        page.evaluate(CAMERA)
        page.click("#use-own")
        page.wait_for_selector("#video", state="visible")
        for hands in ([(hand_at(80, 100, 20), 0.5)], []):
            scene.hands = hands
            for _ in range(4):
                page.evaluate("jpeg => window.give(jpeg, 125)", picture)
            (canvas, video) = (page.locator(place).bounding_box() for place in ("#hands", "#video"))
            assert [canvas[side] for side in ("width", "height")] == pytest.approx(
                [video[side] for side in ("width", "height")], abs=2)
            points = np.array(page.evaluate(SEEN)).reshape(-1, 2) * (192, 144)
            assert (len(points) > 0) == bool(hands)
            for landmarks, _ in hands:
                np.testing.assert_allclose(points.min(axis=0), landmarks[:, :2].min(axis=0), atol=4)
                np.testing.assert_allclose(points.max(axis=0), landmarks[:, :2].max(axis=0), atol=4)
