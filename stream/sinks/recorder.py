"""Records a source so that it replays exactly.

    record(open_source("0"), Path("desk.frames"))       # gatestream record 0 --out desk.frames
"""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import cv2

from engines.errors import SinkError
from stream.frame import Gap
from stream.sinks.base import output_path, sink_errors
from stream.sources.base import Source
from stream.sources.replay import SCHEMA


def record(source: Source, path: str | Path, *, max_seconds: float | None = None, max_frames: int | None = None,
           stop: threading.Event | None = None) -> int:
    """Records a source to its end, for `max_seconds` of its time, `max_frames`, or until `stop`; how many frames.
    Raises SinkError for a file that is there already or cannot be written, SourceError when the source fails; what was
    recorded before stays."""
    target = output_path(path)
    if target.exists():
        raise SinkError(f"{target}, which is there already", "a new file", "delete it, or choose another one")
    with sink_errors("opening", target):
        db = sqlite3.connect(target, isolation_level=None)
    recorded, first_at = 0, None
    with closing(db), sink_errors("writing", target):
        db.executescript(SCHEMA)
        db.execute("INSERT INTO about VALUES (?, ?)", (source.info.camera, source.info.fps))
        for item in source.frames():
            if (stop is not None and stop.is_set()) or recorded == max_frames:
                break
            if isinstance(item, Gap):
                db.execute("INSERT INTO gaps VALUES (?, ?, ?, ?)", (recorded + 1, item.at, item.seconds, item.action))
                continue
            first_at = item.captured_at if first_at is None else first_at
            if max_seconds is not None and item.captured_at - first_at >= max_seconds:
                break
            _, png = cv2.imencode(".png", item.image_bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])
            db.execute("INSERT INTO frames (at, number, lost, image) VALUES (?, ?, ?, ?)",
                       (item.captured_at, item.index, item.lost, png.tobytes()))
            recorded += 1
    return recorded
