"""The recordings of a folder, and the support clips that an engine makes of them.

    FOLDER/wave/1.mp4           a recording is a video file
    FOLDER/wave/2/0001.jpg ...  or a folder of images
    FOLDER/idle/...             background: see BACKGROUNDS
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.decoding.paths import is_image, is_video, list_images, list_visible, normalise_label, printable
from engines.errors import DatasetError, FrameError, SourceError, UsageError
from engines.model.contract import Contract
from engines.model.file import Model
from engines.model.preprocess import prepare
from engines.runtime.engine import Engine
from engines.training.support_clips import SupportClip, action_span
from stream.evaluation.play import idle_room
from stream.frame import Frame, Image, Picture
from stream.recognizer import Recognizer
from stream.scoring import Scores
from stream.sources import open_path

BACKGROUNDS = frozenset({"background", "idle", "nothing", "none", "unclassified"})
CAMERA = "teaching"
STRETCH_TICKS = 600  # of background, of a model whose features are many
MAX_STRETCHES = 8  # of a recording that are kept
RENDERED_ROOMS, RENDERED_S, RENDERED_SEED = 60, 8.0, 500_000  # the seed: neither training's nor evaluation's
MIN_TICKS = 3  # of the model's clock, in a recording
_Tick = tuple[float, Scores]  # of the model's clock: its time, and what came of it


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
    places = [(entry, normalise_label(entry.name)) for entry in list_visible(folder) if entry.is_dir()]
    labelled = [(place, background if label.casefold() in BACKGROUNDS else label) for place, label in places]
    if all(label == background for _, label in labelled):
        raise DatasetError(f"{folder}, which has no folder of a label in it", "a folder for each label, named after "
                           "it, with its recordings", "make one, such as " + str(folder / "wave"))
    found: dict[str, SupportVideo] = {}
    for place, label in (*labelled, *((place, background) for place in idle)):
        paths = _videos(place)
        if not paths:
            raise DatasetError(f"{printable(place)}, which has no recordings", "video files, or folders of images",
                               "record some, or remove the folder")
        for path in paths:
            twin = found.setdefault(_digest(path), SupportVideo(path, label))
            if twin.label != label:
                raise DatasetError(f"{printable(path)} and {printable(twin.path)}, which are the same",
                                   "each recording under one label",
                                   "remove it where it does not belong")
    return list(found.values())


def _videos(place: Path) -> list[Path]:
    entries = list_visible(place)
    found = [entry for entry in entries if is_video(entry) or (entry.is_dir() and any(map(is_image, entry.iterdir())))]
    return [place, *found] if any(map(is_image, entries)) else found


def _digest(path: Path) -> str:
    """The checksum of a recording's content."""
    files = list_images(path) if path.is_dir() else [path]
    total = hashlib.sha256()
    if not all(file.is_file() for file in files):  # a pipe would be waited for
        return str(path)
    try:
        for file in files:
            with file.open("rb") as opened:
                total.update(hashlib.file_digest(opened, "sha256").digest())
    except OSError:
        return str(path)  # reading it will say what is wrong
    return total.hexdigest()


class _Stretches:
    """Ticks of a recording of any length, in evenly spaced stretches of so many (None: all in one)."""

    def __init__(self, ticks: int | None) -> None:
        self._ticks, self._every, self._seen = ticks, 1, 0
        self.kept: list[list[_Tick]] = [[]]

    def append(self, tick: _Tick) -> None:
        if self._ticks is not None and self._seen and self._seen % self._ticks == 0:
            if len(self.kept) == MAX_STRETCHES:
                self.kept, self._every = self.kept[::2], 2 * self._every
            if self._seen // self._ticks % self._every == 0:
                self.kept.append([])
        if self._ticks is None or self._seen // self._ticks % self._every == 0:
            self.kept[-1].append(tick)
        self._seen += 1


class FeatureExtractor:
    """Plays recordings to an engine just as live use would, and collects its features. The caller closes the engine."""

    def __init__(self, model: Model, engine: Engine, fps: float | None = None) -> None:
        """fps: the rate of images."""
        self._model, self._fps = model, fps
        if not self._pooled:  # recordings are played several times: their images are kept at the model's size
            small = model.contract.model_copy(update={"cover_hw": model.contract.input_size_hw})
            model = Model(small, model.tensors, model.digest)
        self._recognizer = Recognizer(model, engine)

    @property
    def _pooled(self) -> bool:
        return self._model.contract.pooling is not None

    def extract(self, video: SupportVideo, name: str, background: str) -> list[SupportClip]:
        """A support clip for each playback. Raises SourceError where it cannot be read, DatasetError if too short."""
        if video.label == background or self._pooled:  # may last for hours: none of its images is kept
            background_ticks = STRETCH_TICKS if self._pooled and video.label == background else None
            stretches = _Stretches(background_ticks)
            self._push(self._decode(video.path), stretches.append)
            self._check_length(video, stretches.kept[0])
            rows = [_features(ticks) for ticks in stretches.kept]
            if video.label != background:
                return [SupportClip(name, video.label, *rows[0], *action_span(self._changes(rows[0][0])))]
            return [SupportClip(name, background, *each, 0, 0, natural=i == 0) for i, each in enumerate(rows)]
        frames = []
        for at, make in self._decode(video.path):
            with suppress(FrameError):
                frames.append((at, make()))
        ticks, motion_T = self._play(frames, PLAYBACKS[0])
        self._check_length(video, ticks)
        rate, (started, ended) = self._model.contract.frame_rate, action_span(motion_T)
        clips = [SupportClip(name, video.label, *_features(ticks), started, ended)]
        for playback in PLAYBACKS[1:]:
            ticks, _ = self._play(frames, playback)
            first = round(playback.before_s * rate + started / playback.speed)
            last = min(max(round(playback.before_s * rate + ended / playback.speed), first + 1), len(ticks))
            clips.append(SupportClip(name, video.label, *_features(ticks), min(first, last - 1), last, natural=False))
        return clips

    def learns_from_rooms(self, videos: Iterable[SupportVideo], background: str) -> bool:
        """Whether `play_rendered` adds to a lesson of these: one of a pooled head with idle footage of its own."""
        return self._pooled and any(video.label == background for video in videos)

    def play_rendered(self, background: str) -> list[SupportClip]:
        """Support clips of rooms in which rendered hands move and make no gesture."""
        rate, clips = self._model.contract.frame_rate, []
        for number in range(RENDERED_ROOMS):
            room, ticks = idle_room(RENDERED_S, rate, RENDERED_SEED + number), list[_Tick]()
            self._push(((k / rate, room.frame(k)) for k in range(round(RENDERED_S * rate))), ticks.append)
            clips.append(SupportClip(f"rendered room {number}", background, *_features(ticks), 0, 0, natural=False,
                                     rendered=True))
        return clips

    def _decode(self, path: Path) -> Iterator[tuple[float, Callable[[], Image]]]:
        """Seconds from the first image on, and what makes the image at the model's size."""
        first_at = before_at = math.nan
        longest_s = self._model.contract.max_gap_s * min(playback.speed for playback in PLAYBACKS)
        with open_path(path, camera=CAMERA, fps=self._fps if path.is_dir() else None) as source:
            for item in source.frames():
                if not isinstance(item, Frame):
                    continue
                if item.captured_at - before_at > longest_s:
                    raise DatasetError(f"{printable(path)}, with a hole of {item.captured_at - before_at:.2f} s in it",
                                       f"holes of {longest_s:.2f} s at most", "record it again in one piece")
                before_at = item.captured_at
                first_at = before_at if math.isnan(first_at) else first_at
                yield before_at - first_at, (partial(getattr, item, "image_bgr") if self._pooled
                                             else partial(_prepare, item, self._model.contract))
        if math.isnan(first_at):
            raise SourceError(f"{printable(path)}, of which no image can be read", "a video or images",
                              "record it again")

    def _changes(self, features_TD: NDArray[np.float32]) -> NDArray[np.floating]:
        """How much what the network sees changes at each tick."""
        assert self._model.contract.pooling is not None
        seen_TD = features_TD[:, :features_TD.shape[1] - self._model.contract.pooling.hands]
        return np.asarray(np.abs(np.diff(seen_TD, axis=0, prepend=seen_TD[:1])).mean(axis=1))

    def _check_length(self, video: SupportVideo, ticks: Sequence[_Tick]) -> None:
        if len(ticks) < MIN_TICKS:
            rate = self._model.contract.frame_rate
            raise DatasetError(f"{printable(video.path)}, of {max(len(ticks) - 1, 0) / rate:.2f} s",
                               f"{MIN_TICKS / rate:.2f} s or more", "record it again, a little longer")

    def _push(self, frames: Iterable[tuple[float, Picture]], keep: Callable[[_Tick], None]) -> None:
        self._recognizer.score_listeners[CAMERA] = lambda at, _, scores: keep((at, scores))
        try:
            for at, picture in frames:
                with suppress(FrameError):  # one that cannot be used is left out
                    self._recognizer.push(picture, at, CAMERA)
        finally:
            self._recognizer.flush(CAMERA)

    def _play(self, frames: Sequence[tuple[float, Image]], playback: Playback
              ) -> tuple[list[_Tick], NDArray[np.float64]]:
        """The ticks, and how much the image changed at each."""
        step_s, (times_s, images) = 1 / self._model.contract.frame_rate, zip(*frames, strict=True)
        before_s = np.arange(0, playback.before_s - step_s / 2, step_s)
        body_s = playback.before_s + np.array(times_s) / playback.speed
        after_s = body_s[-1] + np.arange(step_s, playback.after_s + step_s / 2, step_s)
        shown = [*([images[0]] * len(before_s)), *images, *([images[-1]] * len(after_s))]
        image_at = dict(zip(np.concatenate([before_s, body_s, after_s]).tolist(), shown, strict=True))
        ticks: list[_Tick] = []
        self._push(image_at.items(), ticks.append)
        motion, last = [], image_at[ticks[0][0]].astype(np.int16)
        for at, _ in ticks:  # a held tick has no image of its own: nothing moves
            image_i16 = image_at[at].astype(np.int16) if at in image_at else last
            motion.append(float(np.abs(image_i16 - last).mean()))
            last = image_i16
        return ticks, np.array(motion)


def _prepare(frame: Frame, contract: Contract) -> Image:
    return prepare(frame.image_bgr, contract)


def _features(ticks: Sequence[_Tick]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features [T, D] and window descriptors [T, D] at each tick."""
    return np.array([scores.features_D for _, scores in ticks]), np.array([scores.descriptor_D for _, scores in ticks])
