"""The recordings of a folder, and the support clips that an engine makes of them.

    FOLDER/wave/1.mp4           a recording is a video file
    FOLDER/wave/2/0001.jpg ...  or a folder of images
    FOLDER/idle/...             background: see BACKGROUNDS
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.datasets.media import is_video
from engines.errors import DatasetError, SourceError, UsageError
from engines.model.file import Model
from engines.model.preprocess import prepare
from engines.runtime.engine import Engine
from engines.training.support_clips import SupportClip, action_span
from stream.frame import Frame, Image
from stream.recognizer import Recognizer
from stream.scoring import Scores
from stream.sources import open_source
from stream.sources.images import is_image, natural_key

BACKGROUNDS = frozenset({"background", "idle", "nothing", "none", "unclassified"})
CAMERA = "teaching"
MIN_TICKS = 3  # of the model's clock, in a recording


class Playback(NamedTuple):
    """How a recording is played: at this speed, its first image held before it and its last one after it."""

    speed: float = 1.0
    before_s: float = 0.0
    after_s: float = 0.0


PLAYBACKS = (Playback(), Playback(1.0, 1.2, 1.0), Playback(0.75, 0.6, 1.0), Playback(1.33, 0.3, 0.6))


class SupportVideo(NamedTuple):
    """A video file or a folder of images, and the label of what it shows."""

    path: Path
    label: str


def find_videos(folder: Path, background: str, idle: Sequence[Path] = ()) -> list[SupportVideo]:
    """The recordings of a folder with a folder for each label, and of folders of idle footage.
    Raises UsageError where there is no such folder, DatasetError for a folder without labels, a label without
    recordings, and the same recording under two labels. A copy under its own label is left out."""
    for place in (folder, *idle):
        if not place.is_dir():
            raise UsageError(f"{place}: no such folder", "a folder of recordings", "check the path")
    places = sorted((entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")),
                    key=natural_key)
    labelled = [(place, background if place.name.lower() in BACKGROUNDS else place.name) for place in places]
    if all(label == background for _, label in labelled):
        raise DatasetError(f"{folder}, which has no folder of a label in it", "a folder for each label, named after "
                           "it, with its recordings", "make one, such as " + str(folder / "wave"))
    found: dict[str, SupportVideo] = {}
    for place, label in (*labelled, *((place, background) for place in idle)):
        paths = list(_videos(place))
        if not paths:
            raise DatasetError(f"{place}, which has no recordings", "video files, or folders of images",
                               "record some, or remove the folder")
        for path in paths:
            twin = found.setdefault(_digest(path), SupportVideo(path, label))
            if twin.label != label:
                raise DatasetError(f"{path} and {twin.path}, which are the same", "each recording under one label",
                                   "remove it where it does not belong")
    return list(found.values())


def _videos(place: Path) -> Iterator[Path]:
    entries = sorted((entry for entry in place.iterdir() if not entry.name.startswith(".")), key=natural_key)
    if any(is_image(entry) for entry in entries):
        yield place
    for entry in entries:
        if is_video(entry) or (entry.is_dir() and any(map(is_image, entry.iterdir()))):
            yield entry


def _digest(path: Path) -> str:
    """The checksum of a recording's content."""
    files = sorted(filter(is_image, path.iterdir()), key=natural_key) if path.is_dir() else [path]
    total = hashlib.sha256()
    try:
        for file in files:
            with file.open("rb") as opened:
                total.update(hashlib.file_digest(opened, "sha256").digest())
    except OSError:
        return str(path)  # reading it will say what is wrong
    return total.hexdigest()


class FeatureExtractor:
    """Plays recordings to an engine just as live use would, and collects its features. The caller closes the engine."""

    def __init__(self, model: Model, engine: Engine, fps: float | None = None) -> None:
        """fps: the rate of images."""
        self._model, self._fps = model, fps
        contract = model.contract
        ready = Model(contract.model_copy(update={"cover_hw": contract.input_size_hw}), model.tensors, model.digest)
        self._recognizer = Recognizer(ready, engine)

    def extract(self, video: SupportVideo, name: str, background: str) -> list[SupportClip]:
        """A support clip for each playback. Raises SourceError where it cannot be read, DatasetError if too short."""
        images, times_s = self._decode(video.path)
        rate = self._model.contract.frame_rate
        features_TD, windows_TD, motion_T = self._play(images, times_s, PLAYBACKS[0])
        if len(features_TD) < MIN_TICKS:
            raise DatasetError(f"{video.path}, of {times_s[-1]:.2f} s", f"{MIN_TICKS / rate:.2f} s or more",
                               "record it again, a little longer")
        if video.label == background:
            return [SupportClip(name, background, features_TD, windows_TD, 0, 0)]
        started, ended = action_span(motion_T)
        clips = [SupportClip(name, video.label, features_TD, windows_TD, started, ended)]
        for playback in PLAYBACKS[1:]:
            features_TD, windows_TD, _ = self._play(images, times_s, playback)
            first, last = (round(playback.before_s * rate + at / playback.speed) for at in (started, ended))
            last = min(max(last, first + 1), len(features_TD))
            clips.append(SupportClip(name, video.label, features_TD, windows_TD, min(first, last - 1), last,
                                     natural=False))
        return clips

    def _decode(self, path: Path) -> tuple[list[Image], NDArray[np.float64]]:
        """Images at the model's size, and their seconds from the first one on."""
        images, times = [], []
        with open_source(str(path), camera=CAMERA, fps=self._fps if path.is_dir() else None) as source:
            for item in source.frames():
                if isinstance(item, Frame):
                    images.append(prepare(item.image_bgr, self._model.contract))
                    times.append(item.captured_at)
        if not images:
            raise SourceError(f"{path}, of which no image can be read", "a video or images", "record it again")
        times_s = np.array(times) - times[0]
        longest_s = self._model.contract.max_gap_s * min(playback.speed for playback in PLAYBACKS)
        if len(times_s) > 1 and np.diff(times_s).max() > longest_s:
            raise DatasetError(f"{path}, with a hole of {np.diff(times_s).max():.2f} s in it",
                               f"holes of {longest_s:.2f} s at most", "record it again in one piece")
        return images, times_s

    def _play(self, images: Sequence[Image], times_s: NDArray[np.float64], playback: Playback) -> tuple[
            NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
        """Features [T, D], window descriptors [T, D] and change of the image [T] at each tick."""
        ticks: list[tuple[float, Scores]] = []
        self._recognizer.score_listeners[CAMERA] = lambda at, _, scores: ticks.append((at, scores))
        step_s = 1 / self._model.contract.frame_rate
        before_s = np.arange(0, playback.before_s - step_s / 2, step_s)
        body_s = playback.before_s + times_s / playback.speed
        after_s = body_s[-1] + np.arange(step_s, playback.after_s + step_s / 2, step_s)
        shown = [*([images[0]] * len(before_s)), *images, *([images[-1]] * len(after_s))]
        image_at = dict(zip(np.concatenate([before_s, body_s, after_s]).tolist(), shown, strict=True))
        for at, image in image_at.items():
            self._recognizer.push(image, at, CAMERA)
        self._recognizer.flush(CAMERA)
        motion, last = [], image_at[ticks[0][0]].astype(np.int16)
        for at, _ in ticks:  # a held tick has no image of its own: nothing moves
            image_i16 = image_at[at].astype(np.int16) if at in image_at else last
            motion.append(float(np.abs(image_i16 - last).mean()))
            last = image_i16
        return (np.array([scores.features_D for _, scores in ticks]),
                np.array([scores.descriptor_D for _, scores in ticks]), np.array(motion))
