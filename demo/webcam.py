"""A camera in a window, with what is recognised drawn in: python -m demo.webcam [SOURCE] [--model NAME|FILE]

    q      quits
    space  freezes the picture; recognition goes on
    r      records what is shown to gatestream-1.mp4, until r again
    t      teaches: type the action's name, Enter, wait for the countdown, show it once. From three times on, the model
           learns it in the background and is used as soon as it has: taught/ and taught.safetensors. Escape: not now
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from contextlib import closing
from itertools import count
from pathlib import Path

import cv2

from engines.errors import GatestreamError, UsageError
from stream.clock import Clock
from stream.frame import Frame, Image
from stream.recognizer import Recognizer
from stream.sinks.overlay import OverlayState, draw
from stream.sinks.video import AnnotatedVideo
from stream.sources import open_source
from stream.teaching.teach import teach_folder

WINDOW = "gatestream"
ESCAPE, NO_KEY = 27, 0xFF
LESSONS, TAUGHT = Path("taught"), Path("taught.safetensors")
LESSON_RATE = 15.0  # pictures a second
COUNTDOWN_S, LESSON_S = 3.0, 3.0
TIMES = 3  # that an action is shown before it is learnt


class Lesson:
    """One showing of an action: its name is typed, a countdown runs, pictures are kept."""

    def __init__(self) -> None:
        self.name, self.named = "", False
        self.began_at = 0.0
        self.clock = Clock(LESSON_RATE, max_gap_s=LESSON_S)
        self.images: list[Image] = []

    def typed(self, key: int, now: float) -> None:
        """Takes a key of the name."""
        if key in (10, 13) and self.name:
            self.named, self.began_at = True, now + COUNTDOWN_S
        elif key in (8, 127):
            self.name = self.name[:-1]
        elif chr(key).isalnum() or (chr(key) in "-_ " and self.name):
            self.name += chr(key)

    def see(self, frame: Frame) -> bool:
        """Keeps a picture, if it is time; whether the lesson is over."""
        begun = self.named and frame.captured_at >= self.began_at
        over = begun and frame.captured_at > self.began_at + LESSON_S
        if begun and not over and self.clock.tick(frame.captured_at).use:
            self.images.append(frame.image_bgr)
        return over

    def says(self, now: float) -> str:
        """What the window tells of it."""
        if not self.named:
            return f"name of the action: {self.name}_  (Enter)"
        return f"show {self.name} in {self.began_at - now:.0f}" if now < self.began_at else f"show {self.name} now"

    def keep(self) -> int:
        """Writes the pictures; how often the action has been shown by now."""
        folder = next(folder for n in count(1) if not (folder := LESSONS / self.name / str(n)).exists())
        folder.mkdir(parents=True)
        for k, image in enumerate(self.images):
            cv2.imwrite(str(folder / f"{k:04d}.jpg"), image)
        return int(folder.name)


class Teacher:
    """Learns in the background what lessons have shown."""

    def __init__(self, model: str) -> None:
        self._model, self._thread = model, threading.Thread()
        self.learnt: Recognizer | None = None
        self.says = ""

    def learn(self) -> None:
        """Begins, unless it is at it already: then the next lesson makes it begin again."""
        if not self._thread.is_alive():
            self._thread = threading.Thread(target=self._learn, daemon=True)
            self._thread.start()

    def _learn(self) -> None:
        try:
            self.says = "learning ..."
            outcome = teach_folder(self._model, LESSONS, TAUGHT, fps=LESSON_RATE)
            self.learnt = Recognizer.open(TAUGHT, slots=1)
            self.says = f"learnt: {outcome.report.accuracy:.0%} right when left out"
        except GatestreamError as error:
            self.says = str(error)


class Window:
    """What the keys change: one object for as long as the window is open."""

    def __init__(self, model: str, rate: float | None) -> None:
        self.recognizer, self.teacher = Recognizer.open(model, slots=1), Teacher(model)
        self.state, self.rate = OverlayState(self.recognizer.contract.background), rate
        self.lesson: Lesson | None = None
        self.video: AnnotatedVideo | None = None
        self.frozen = False
        cv2.namedWindow(WINDOW, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)

    def show(self, frame: Frame) -> None:
        """Recognises a picture and shows it."""
        records = self.recognizer.push(frame.image_bgr, frame.captured_at, lost=frame.lost)
        self.state.update(records, frame)
        if self.video is not None:
            self.video.write(frame, records)
        if self.lesson is not None and self.lesson.see(frame):
            if self.lesson.keep() >= TIMES:
                self.teacher.learn()
            self.lesson = None
        if self.teacher.learnt is not None:
            self.recognizer.close()
            self.recognizer, self.teacher.learnt = self.teacher.learnt, None
        if not self.frozen:
            image = draw(frame.image_bgr, self.state)
            text = self.lesson.says(frame.captured_at) if self.lesson is not None else self.teacher.says
            cv2.putText(image, text[:60], (10, image.shape[0] // 2), cv2.FONT_HERSHEY_SIMPLEX, image.shape[1] / 900,
                        (255, 255, 255), 2, cv2.LINE_AA)
            cv2.imshow(WINDOW, image)

    def press(self, key: int, now: float) -> bool:
        """Does what a key says; whether to go on."""
        if self.lesson is not None and not self.lesson.named and key != ESCAPE:
            self.lesson.typed(key, now)
        elif key == ord("q"):
            return False
        elif key == ord(" "):
            self.frozen = not self.frozen
        elif key == ord("t"):
            self.lesson = Lesson()
        elif key == ESCAPE:
            self.lesson = None
        elif key == ord("r") and self.video is None:
            path = next(path for n in count(1) if not (path := Path(f"gatestream-{n}.mp4")).exists())
            self.video = AnnotatedVideo(path, self.rate, self.recognizer.contract.background)
        elif key == ord("r"):
            self.stop_video()
        return True

    def stop_video(self) -> None:
        """Finishes the video, if there is one."""
        if self.video is not None:
            self.video.close()
            self.video = None

    def close(self) -> None:
        """Closes everything."""
        self.stop_video()
        self.recognizer.close()
        cv2.destroyAllWindows()


def run(source: str, model: str) -> None:
    """Shows a camera until q is pressed, or it ends. Raises UsageError without a screen, or for a wrong source."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UsageError("no screen", "a desktop to open a window on", "use gatestream ui, or gatestream run")
    with open_source(source, policy="newest") as camera, closing(Window(model, camera.info.fps)) as window:
        for frame in camera.frames():
            if isinstance(frame, Frame):
                window.show(frame)
                key = cv2.waitKey(1) & 0xFF
                if key != NO_KEY and not window.press(key, frame.captured_at):
                    break
                if cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) < 1:  # closed with the mouse
                    break


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m demo.webcam", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="0", help="a webcam's number, or any source of gatestream run")
    parser.add_argument("--model", default="gesture", help="a bundled model, or a model file")
    said = parser.parse_args()
    try:
        run(said.source, said.model)
    except GatestreamError as error:
        print(f"gatestream: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
