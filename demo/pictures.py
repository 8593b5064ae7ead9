"""Draws the pictures of the README from a real run: python -m demo.pictures demo/pictures"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
from rich.console import Console

from stream.frame import Frame, Gap
from stream.overlay import OverlayState, draw
from stream.recognizer import Recognizer
from stream.sinks.terminal import TerminalView
from stream.sources import open_source

SOURCE = "sim://gestures?seed=41&realtime=0&seconds=30"


def main(folder: Path, moment_s: float = 21.5) -> None:
    """Runs the simulated camera and keeps the terminal view and the annotated frame of one moment."""
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(record=True, width=100, height=24, force_terminal=True, file=sys.stderr)
    with Recognizer.open("gesture", slots=1) as recognizer, open_source(SOURCE, camera="sim://gestures") as source:
        contract, engine = recognizer.contract, recognizer.engine
        view = TerminalView("sim://gestures", f"{contract.name}, {engine.name} {engine.precision}",
                            contract.background, Console(file=sys.stderr))
        overlay = OverlayState(contract.background)
        for item in source.frames():
            if isinstance(item, Gap) or item.captured_at > moment_s:
                break
            assert isinstance(item, Frame)
            records = recognizer.push(item.image_bgr, item.captured_at, item.camera)
            view.write(item, records)
            overlay.update(records, item)
        console.print(view.picture())
        view.close()
    console.save_svg(str(folder / "run.svg"), title="gatestream run")
    cv2.imwrite(str(folder / "frame.jpg"), draw(item.image_bgr, overlay), [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
