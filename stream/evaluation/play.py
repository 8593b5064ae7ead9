"""What is played to the recogniser, as (picture, seconds): recordings, clips joined by idle footage, rooms."""

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import numpy as np

from engines.datasets import Media, Segment
from engines.decoding.paths import image_number, list_images
from engines.synthetic import Simulation, distinct_stray
from stream.evaluation.metrics import Truth
from stream.frame import Frame, Picture
from stream.sources import open_path

Frames = Iterator[tuple[Picture, float]]
Played = Generator[tuple[Picture, float], None, float]  # frames; returns the time after the last one

CAMERA = "evaluation"
ROOM_S = 300.0  # a rendered room serves so long
ROOM_HW = (240, 320)
ROOM_SEED = 900_000  # far from the seeds that training draws


def read_images(media: Media) -> Frames:
    """Every image of a recording with its time in it. Raises SourceError or UsageError where it cannot be read."""
    times: list[float | None] = []  # of a folder whose numbers are times: a missing image leaves a hole
    if media.rate is not None and media.first is not None and media.path.is_dir():
        numbers = map(image_number, list_images(media.path))
        times = [None if number is None else (number - media.first) / media.rate for number in numbers]
    with open_path(media.path, camera=CAMERA, fps=media.rate) as source:
        for item in source.frames():
            if isinstance(item, Frame):
                at = times[item.index] if times else None
                yield item.picture, item.captured_at if at is None else at


def join_clips(clips: Sequence[Segment], idle: Sequence[Path], seed: int, idle_s: tuple[float, float] = (2.0, 5.0),
               rounds: int = 1) -> tuple[Frames, dict[str, list[Truth]]]:
    """One stream of whole recordings in random order with stretches of idle footage before, between and after them.
    rounds: the whole of it so often on end, always the same. Returns (frames, truths of each head); the truths fill
    while the frames are read."""
    truths: dict[str, list[Truth]] = {head: [] for clip in clips for head in clip.labels}

    def play() -> Frames:
        at = 0.0
        for _ in range(rounds):
            rng = np.random.default_rng(seed)
            for i in rng.permutation(len(clips)):
                at = yield from _idle_stretch(idle, rng, rng.uniform(*idle_s), at)
                started = at
                at = yield from _play(clips[i].media, at)
                for head, label in clips[i].labels.items():
                    truths[head].append(Truth(label, started, at))
        yield from _idle_stretch(idle, rng, rng.uniform(*idle_s), at)

    return play(), truths


def concatenate_videos(paths: Sequence[Path]) -> Frames:
    """Videos one after another as one stream."""
    at = 0.0
    for path in paths:
        at = yield from _play(Media(path), at)


def render_idle(seconds: float, rate: float, seed: int = 0, room_s: float = ROOM_S) -> list[Frames]:
    """Rendered rooms, one stream each, in which hands move and make no gesture. rate: images per second."""
    def play(room: Simulation, images: int) -> Frames:
        for k in range(images):
            yield room.frame(k), k / rate

    rooms = max(1, round(seconds / room_s))
    each_s = seconds / rooms
    return [play(idle_room(each_s, rate, ROOM_SEED + 1000 * seed + k), round(each_s * rate)) for k in range(rooms)]


def idle_room(seconds: float, rate: float, seed: int) -> Simulation:
    """A room whose first gesture comes after `seconds`."""
    never_s = 2 * seconds + 60.0
    return Simulation(seed, ROOM_HW, rate, idle_s=(never_s, never_s), strays=distinct_stray)


def _play(media: Media, at: float, start_s: float = 0.0, seconds: float = float("inf")) -> Played:
    """A part of a recording, its first frame at time `at`; returns the time after its last frame."""
    step, last = 1 / 30, at
    for picture, captured_at in read_images(media):
        if captured_at < start_s:
            continue
        when = at + captured_at - start_s
        if when - at > seconds:
            break
        step = when - last if when > last else step
        last = when
        yield picture, when
    return last + step


def _idle_stretch(idle: Sequence[Path], rng: np.random.Generator, seconds: float, at: float) -> Played:
    path = idle[int(rng.integers(len(idle)))]
    return (yield from _play(Media(path), at, float(rng.uniform(0, 4.0)), seconds))
