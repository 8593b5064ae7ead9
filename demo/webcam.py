"""A camera in a window, with what is recognised drawn in: python -m demo.webcam [SOURCE] [--model NAME|FILE]

    q      quits
    space  freezes the picture; recognition goes on
    r      records what is shown to gatestream-1.mp4, until r again
    t      teaches: type the action's name, Enter, wait for the countdown, show it once. From three times on, the model
           learns it in the background and is used as soon as it has: taught/ and taught.safetensors. Escape: not now
"""

import argparse
import os
import sys
import threading
from contextlib import closing, suppress
from itertools import count
from pathlib import Path

import cv2

from engines.errors import FrameError, GatestreamError, UsageError
from stream.clock import Clock
from stream.frame import Frame, Image
from stream.recognizer import Recognizer
from stream.sinks.overlay import OverlayState, draw
from stream.sinks.video import AnnotatedVideo
from stream.sources import open_source
from stream.teaching.teach import teach_folder

WINDOW = "gatestream"
ESCAPE, NO_KEY = 27, 0xFF
CLIPS, TAUGHT = Path("taught"), Path("taught.safetensors")
CLIP_RATE = 15.0  # images a second
COUNTDOWN_S, CLIP_S = 3.0, 3.0
TIMES = 3  # that an action is shown before it is learnt


class ClipCapture:
    """Captures one recording of an action: its name is typed, a countdown runs, images are collected."""

    def __init__(self) -> None:
        self.name, self.named = "", False
        self.starts_at = 0.0
        self.clock = Clock(CLIP_RATE, max_gap_s=CLIP_S)
        self.images: list[Image] = []

    def on_key(self, key: int, now: float) -> None:
        """Takes a key of the name."""
        if key in (10, 13) and self.name:
            self.named, self.starts_at = True, now + COUNTDOWN_S
        elif key in (8, 127):
            self.name = self.name[:-1]
        elif chr(key).isalnum() or (chr(key) in "-_ " and self.name):
            self.name += chr(key)

    def on_frame(self, frame: Frame) -> bool:
        """Takes an image, if it is time; returns whether the recording is complete."""
        started = self.named and frame.captured_at >= self.starts_at
        over = started and frame.captured_at > self.starts_at + CLIP_S
        if started and not over and self.clock.tick(frame.captured_at).use:
            self.images.append(frame.image_bgr)
        return over

    def prompt(self, now: float) -> str:
        """What the person has to do."""
        if not self.named:
            return f"name of the action: {self.name}_  (Enter)"
        return f"show {self.name} in {self.starts_at - now:.0f}" if now < self.starts_at else f"show {self.name} now"

    def save(self) -> int:
        """Writes the images; returns how many recordings of the action there are."""
        folder = next(folder for n in count(1) if not (folder := CLIPS / self.name / str(n)).exists())
        folder.mkdir(parents=True)
        for k, image in enumerate(self.images):
            cv2.imwrite(str(folder / f"{k:04d}.jpg"), image)
        return int(folder.name)


class BackgroundTeaching:
    """Teaches the model the recordings in a thread of its own."""

    def __init__(self, model: str) -> None:
        self._model, self._thread = model, threading.Thread()
        self.recognizer: Recognizer | None = None  # of the new model, until somebody takes it
        self.status = ""

    def start(self) -> None:
        """Starts, unless it runs: then the next recording makes it start again."""
        if not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            self.status = "learning ..."
            result = teach_folder(self._model, CLIPS, TAUGHT, fps=CLIP_RATE)
            self.recognizer = Recognizer.open(TAUGHT, slots=1)
            self.status = f"learnt: {result.report.accuracy:.0%} right when left out"
        except GatestreamError as error:
            self.status = str(error)


class Window:
    """What the keys change: one object for as long as the window is open."""

    def __init__(self, model: str, rate: float | None) -> None:
        self.recognizer, self.teaching = Recognizer.open(model, slots=1), BackgroundTeaching(model)
        self.state, self.rate = OverlayState(self.recognizer.contract.background), rate
        self.capture: ClipCapture | None = None
        self.video: AnnotatedVideo | None = None
        self.frozen = False
        cv2.namedWindow(WINDOW, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)

    def show(self, frame: Frame) -> None:
        """Recognises a picture and shows it."""
        records = self.recognizer.push(frame.picture, frame.captured_at, lost=frame.lost)
        self.state.update(records, frame)
        if self.video is not None:
            self.video.write(frame, records)
        if self.capture is not None and self.capture.on_frame(frame):
            if self.capture.save() >= TIMES:
                self.teaching.start()
            self.capture = None
        if self.teaching.recognizer is not None:
            self.recognizer.close()
            self.recognizer, self.teaching.recognizer = self.teaching.recognizer, None
        if not self.frozen:
            image = draw(frame.image_bgr, self.state)
            text = self.capture.prompt(frame.captured_at) if self.capture is not None else self.teaching.status
            cv2.putText(image, text[:60], (10, image.shape[0] // 2), cv2.FONT_HERSHEY_SIMPLEX, image.shape[1] / 900,
                        (255, 255, 255), 2, cv2.LINE_AA)
            cv2.imshow(WINDOW, image)

    def on_key(self, key: int, now: float) -> bool:
        """Does what a key says; returns whether to go on."""
        if self.capture is not None and not self.capture.named and key != ESCAPE:
            self.capture.on_key(key, now)
        elif key == ord("q"):
            return False
        elif key == ord(" "):
            self.frozen = not self.frozen
        elif key == ord("t"):
            self.capture = ClipCapture()
        elif key == ESCAPE:
            self.capture = None
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
                with suppress(FrameError):
                    window.show(frame)
                key = cv2.waitKey(1) & 0xFF
                if key != NO_KEY and not window.on_key(key, frame.captured_at):
                    break
                if cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) < 1:  # closed with the mouse
                    break


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m demo.webcam", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="0", help="a webcam's number, or any source of gatestream run")
    parser.add_argument("--model", default="gesture", help="a bundled model, or a model file")
    options = parser.parse_args()
    try:
        run(options.source, options.model)
    except GatestreamError as error:
        print(f"gatestream: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
