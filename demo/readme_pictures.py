"""Draws the pictures of the README from a real run: python -m demo.readme_pictures demo/pictures"""

import io
import sys
from pathlib import Path

import cv2
from rich.console import Console

from stream.frame import Frame
from stream.recognizer import Recognizer
from stream.sinks.overlay import draw
from stream.sinks.terminal import TerminalView
from stream.sources import open_source

SOURCE = "sim://gestures?realtime=0&seconds=60"
CLOSED_EVENTS = 4  # the picture is taken while the next gesture after these is being recognised


def main(folder: Path) -> None:
    """Runs the simulated camera and keeps the terminal view and the annotated frame of one moment."""
    folder.mkdir(parents=True, exist_ok=True)
    at = 0.0
    with Recognizer.open("gesture", slots=1) as recognizer, open_source(SOURCE, camera="sim://gestures") as source:
        contract, engine = recognizer.contract, recognizer.engine
        terminal = Console(file=io.StringIO(), force_terminal=True, width=100, height=24)
        view = TerminalView("sim://gestures", f"{contract.name}, {engine.name} {engine.precision}",
                            contract.background, terminal, clock=lambda: at)
        for frame in source.frames():
            assert isinstance(frame, Frame)
            at = frame.captured_at
            view.write(frame, recognizer.push(frame.image_bgr, at, frame.camera))
            if view.state.closed_count >= CLOSED_EVENTS and view.state.open:
                break
    paper = Console(record=True, width=100, height=24, file=io.StringIO())
    paper.print(view.render())
    paper.save_svg(str(folder / "run.svg"), title="gatestream run")
    cv2.imwrite(str(folder / "frame.jpg"), draw(frame.image_bgr, view.state), [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
