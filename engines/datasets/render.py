"""Writes recordings of the simulated camera as a dataset in EPIC-KITCHENS-100's own layout.

    render("rendered", hours=1.0)
    open_dataset("rendered")            # read by epic.py, like the real one

    P01/videos/P01_01.MP4               one person in one place; every fifth recording is for validation
    EPIC_100_train.csv, EPIC_100_validation.csv, EPIC_100_{verb,noun}_classes.csv, EPIC_100_video_info.csv

The verb is the gesture drawn, the noun the place behind the hand. Idle hands and strays are the unlabelled gaps."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from engines.datasets.base import Media
from engines.datasets.check import inspect_recording
from engines.datasets.epic_files import Narration, Video, unwritable, write_annotations
from engines.decoding.paths import printable
from engines.errors import UsageError
from engines.synthetic import Simulation
from engines.synthetic.backgrounds import PLACES, random_background

# Names say which way, so that a flip knows: a mirrored circle or square is not the gesture that is meant.
VERBS = {"left": "swipe-left", "right": "swipe-right", "up": "swipe-up", "down": "swipe-down",
         "circlecc": "circle-counterclockwise", "square": "square-clockwise", "star": "draw-star", "del": "draw-delete",
         "carret": "draw-caret", "tick": "draw-tick"}
NOUNS = tuple(PLACES)
VALIDATION_EVERY = 5
_ROOM = 1.3  # how much larger than the frame a place is painted, for the camera to sway in


@dataclass(frozen=True, slots=True)
class RenderedDataset:
    """What was written."""

    videos: int
    segments: int
    seconds: float


def render(out: str | os.PathLike[str], hours: float | None = None, clips: int | None = None, seed: int = 0,
           size_hw: tuple[int, int] = (256, 456), rate: float = 30.0, video_s: float = 60.0,
           progress: Callable[[float], None] = lambda _: None) -> RenderedDataset:
    """Writes about `hours` of video, or as many videos as hold `clips` segments; two videos at least.
    video_s: length of a video, at most; rate: its frames per second. The same arguments give the same files. Raises
    UsageError for a folder that is not empty or not named in text, SinkError where it cannot be written."""
    folder = Path(out)
    if (name := printable(folder)) != str(folder):
        raise UsageError(f"{name}, a name that OpenCV cannot write", "a folder named in plain text", "choose another")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}, which holds something already", "a new or empty folder", "choose another one")
    wanted = hours * 3600 if hours is not None else float(clips or 0)
    rows: dict[str, list[Narration]] = {"train": [], "validation": []}
    info: list[Video] = []
    done = 0.0
    while len(info) < 2 or done < wanted:
        split = "validation" if len(info) % VALIDATION_EVERY == 1 else "train"
        video, narrations, simulation = _simulate(seed, len(info), size_hw, rate, video_s)
        _write_video(folder / video.video_id.partition("_")[0] / "videos" / f"{video.video_id}.MP4", video, simulation)
        rows[split] += narrations
        info.append(video)
        done += video.seconds if hours is not None else len(narrations)
        progress(min(done / max(wanted, 1e-9), 1.0))
    write_annotations(folder, rows, tuple(VERBS.values()), NOUNS, ("gesture", "place"), info)
    return RenderedDataset(len(info), sum(map(len, rows.values())), sum(one.seconds for one in info))


def _simulate(seed: int, number: int, size_hw: tuple[int, int], rate: float, video_s: float
              ) -> tuple[Video, list[Narration], Simulation]:
    """A recording in one place, with its gestures, all of them whole."""
    rng = np.random.default_rng((seed, number))
    validation = number % VALIDATION_EVERY == 1
    turn = number // VALIDATION_EVERY if validation else number - (number + VALIDATION_EVERY - 2) // VALIDATION_EVERY
    bag = np.random.default_rng((seed, validation, turn // len(NOUNS))).permutation(NOUNS)
    place = str(bag[turn % len(NOUNS)])
    painted = random_background(rng, (round(size_hw[0] * _ROOM), round(size_hw[1] * _ROOM)), place)
    simulation = Simulation(int(rng.integers(2 ** 31)), size_hw, rate, background_bgr=np.asarray(painted, np.uint8))
    spans = simulation.spans(video_s)
    frames = int(video_s * rate)
    if spans and spans[-1].ended_at > (frames - 1) / rate:  # a gesture that is cut off is neither one thing nor another
        frames = min(frames, math.ceil(spans.pop().started_at * rate))
    person = f"P{number + 1:02d}"
    narrations = [Narration(f"{person}_01_{k}", person, f"{person}_01", span.started_at, span.ended_at,
                            verb := VERBS[span.label], place, f"{verb.replace('-', ' ')} before {place}")
                  for k, span in enumerate(spans)]
    return Video(f"{person}_01", frames / rate, rate, size_hw), narrations, simulation


def _write_video(path: Path, video: Video, simulation: Simulation) -> None:
    try:
        path.parent.mkdir(parents=True)
    except OSError as error:
        raise unwritable(path, str(error.strerror)) from error
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), video.rate, video.size_hw[::-1])
    if not writer.isOpened():
        raise unwritable(path, "OpenCV cannot open it")
    for k in range(round(video.seconds * video.rate)):
        writer.write(simulation.frame(k))
    writer.release()
    if fault := inspect_recording(Media(path)).detail:  # the writer does not tell when the disk is full
        raise unwritable(path, fault)
