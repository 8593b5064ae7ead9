"""The window, without a screen: keys do what they say."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest

from demo import webcam
from engines.model.file import load

RATE = 15
ENTER = 13


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The pictures that the window got."""
    pictures: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cv2, "imshow", lambda _, image: pictures.append(image.copy()))
    for name in ("namedWindow", "destroyAllWindows"):
        monkeypatch.setattr(cv2, name, lambda *_: None)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0)
    monkeypatch.setenv("DISPLAY", ":0")
    return pictures


def press(monkeypatch: pytest.MonkeyPatch, keys: dict[int, str | int]) -> None:
    """Has these keys pressed after these pictures, 0 the first."""
    def next_key() -> Iterator[int]:
        for k in range(10_000):
            key = keys.get(k, -1)
            yield ord(key) if isinstance(key, str) else key

    script = next_key()
    monkeypatch.setattr(cv2, "waitKey", lambda _: next(script))


def source(seconds: float) -> str:
    return f"sim://gestures?seed=3&seconds={seconds}&rate={RATE}&realtime=0&width=160&height=120"


def test_it_ends_records_and_freezes(shown: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    press(monkeypatch, {5: "r", 35: "r", 40: " ", 50: " ", 60: "r", 70: "q"})
    webcam.run(source(20), "gesture")
    assert len(shown) == 71 - 10
    for name, frames in (("gatestream-1.mp4", 30), ("gatestream-2.mp4", 10)):
        video = cv2.VideoCapture(str(tmp_path / name))
        assert video.get(cv2.CAP_PROP_FRAME_COUNT) == frames
        video.release()


def test_an_action_that_was_shown_is_learnt(shown: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(webcam, "TIMES", 2)
    lesson = dict(enumerate(["t", "x", 8, *"wave", ENTER], 1))
    again = {k + 8 * RATE: key for k, key in lesson.items()}
    press(monkeypatch, {**lesson, **again, 16 * RATE: "t", 16 * RATE + 1: 27, 16 * RATE + 2: "q"})
    monkeypatch.setattr(webcam.BackgroundTeaching, "start", webcam.BackgroundTeaching._run)
    webcam.run(source(20), "gesture")
    assert [len(list((tmp_path / "taught" / "wave" / n).iterdir())) for n in "12"] == [46, 46]
    assert load(tmp_path / "taught.safetensors").contract.heads["gesture"].count("wave") == 1


def test_a_camera_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["webcam", "nowhere.mp4"])
    monkeypatch.setenv("DISPLAY", ":0")
    assert webcam.main() == 2
    assert "no such file" in capsys.readouterr().err
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    if sys.platform == "linux":
        assert webcam.main() == 2
        assert "no screen" in capsys.readouterr().err
