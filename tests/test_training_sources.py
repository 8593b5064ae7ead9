"""Sources of training streams, of any dataset: every frame's truth is what covers its time, mirrors swap labels, faults
cost one segment, hands are rendered where they serve a label."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import groupby, islice, pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

import engines
from engines.datasets.base import Dataset, Media, Segment
from engines.datasets.selection import check_classes, with_idle, without_group, without_labels
from engines.errors import DatasetError, UsageError
from engines.networks.network import build
from engines.synthetic import BACKGROUND
from engines.training.loss import UNKNOWN
from engines.training.sections import LabelledFrame
from engines.training.sources import ReadFrames, TrainingSources
from engines.training.stream_loader import SectionShares, TrainingStream
from engines.training.train import Recipe, train

RATE, LENGTH_S, TICK_S = 10.0, 20.0, 0.1
ACTIONS = SectionShares(idle=0.0)  # no sections of idle time
HEADS = {"verb": ("take", "put"), "noun": ("cup", "left hand", "right hand")}
KITCHEN = [Segment("a", Media(Path("kitchen.mp4")), 3.0, 5.0, {"verb": "take", "noun": "cup"}),
           Segment("b", Media(Path("kitchen.mp4")), 4.5, 8.0, {"verb": "put"}),
           Segment("c", Media(Path("kitchen.mp4")), 12.0, 14.0, {"verb": "put", "noun": "left hand"})]
TRIMMED = [Segment("x", Media(Path("x.mp4")), labels={"verb": "take"}),
           Segment("y", Media(Path("y.mp4")), labels={"verb": "put"})]


def dataset(segments: list[Segment], **changes: object) -> Dataset:
    fields: dict[str, object] = {"name": "kitchens", "heads": HEADS, "splits": {"train": segments}}
    return Dataset(**{**fields, **changes})  # type: ignore[arg-type]


def clock(segment: Segment, rate: float, size_hw: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Pictures whose colour tells the time: ten levels a second, darker on the right."""
    times_s = np.arange(np.ceil(segment.start_s * rate) / rate, segment.stop_s or LENGTH_S, 1 / rate)
    images = np.zeros((len(times_s), *size_hw, 3), np.uint8)
    images[:, :, :size_hw[1] // 2] = np.round(times_s * 10)[:, None, None, None]
    return images, times_s


def sources_of(data: Dataset, rendered: bool = False, read: ReadFrames = clock) -> TrainingSources:
    return TrainingSources(data, frame_rate=RATE, read_frames=read, rendered=rendered)


def stream_of(sources: TrainingSources, shares: SectionShares = ACTIONS, seed: int = 0, strength: float = 1.0,
              strict: bool = False) -> TrainingStream:
    return TrainingStream(sources, (16, 32), RATE, np.random.default_rng(seed), shares, strength, strict)


def read_off(sources: TrainingSources, seconds: float = 300.0, shares: SectionShares = ACTIONS
             ) -> list[tuple[float, bool, tuple[int, ...], LabelledFrame]]:
    """(time, mirrored, labels, frame) of each frame of a stream, as its picture tells."""
    frames = list(islice(stream_of(sources, shares, strength=0.0).frames(), int(seconds * RATE)))
    return [(float(frame.image_bgr[8, 4 if left else 28, 0]) / 10, not left, sources.truths[frame.label], frame)
            for frame in frames
            for left in [frame.image_bgr[8, 4, 0] > frame.image_bgr[8, 28, 0]]]


def index(labels: Mapping[str, str], heads: Mapping[str, tuple[str, ...]]) -> tuple[int, ...]:
    return tuple(names.index(labels[head]) if head in labels else UNKNOWN for head, names in heads.items())


def test_a_frame_shows_what_covers_its_time_and_background_elsewhere() -> None:
    sources = sources_of(dataset(KITCHEN, mirrored={"noun": {"cup": "", "left hand": "", "right hand": ""}}))
    assert sources.heads == {"verb": ("take", "put", BACKGROUND),
                             "noun": ("cup", "left hand", "right hand", BACKGROUND)}
    seen = set()
    for time_s, mirrored, labels, _ in read_off(sources):
        if mirrored:  # only the segment without a noun may be
            continue
        sure = [one for one in KITCHEN if one.start_s + TICK_S < time_s < (one.stop_s or 0) - TICK_S]
        near = [one for one in KITCHEN if one.start_s - TICK_S <= time_s <= (one.stop_s or 0) + TICK_S]
        allowed = {index(one.labels, sources.heads) for one in near}
        assert labels in (allowed if sure else allowed | {(2, 3)}), time_s
        seen.add(labels)
    assert seen == {(0, 0), (1, UNKNOWN), (1, 1), (2, 3)}


def test_time_in_which_nothing_is_done_is_found() -> None:
    sources = sources_of(dataset(KITCHEN))
    assert [(gap.start_s, gap.stop_s) for gap in sources.idle] == [(0.0, 3.0), (8.0, 12.0)]
    assert {sources.truth(gap.labels) for gap in sources.idle} == {sources.background}
    idle = [*TRIMMED, Segment("z", Media(Path("z.mp4")), labels={"verb": "nothing"})]
    named = sources_of(dataset(idle, heads={"verb": ("take", "put", "nothing")}, background="nothing"))
    assert named.idle == idle[2:]
    with pytest.raises(DatasetError, match="nothing is done"):
        next(stream_of(sources_of(dataset(TRIMMED))).sparse())


def test_sparse_streams_show_one_action_after_long_time_without_any() -> None:
    sources = sources_of(dataset(KITCHEN))
    frames = islice(stream_of(sources, strength=0.0).sparse((2.0, 3.0)), 3000)
    runs = [(empty, list(run)) for empty, run in groupby(frames, lambda frame: frame.label == sources.background)]
    for empty, run in runs[:-1]:
        times_s = [max(frame.image_bgr[8, 4, 0], frame.image_bgr[8, 28, 0]) / 10 for frame in run]
        if empty:
            assert 2.0 * RATE <= len(run) <= 3.0 * RATE + 1
            assert all(time_s <= 3.1 or 7.9 <= time_s <= 12.1 for time_s in times_s)
        else:
            [source] = {frame.source for frame in run} - {"b"} or {"b"}  # b goes on where a ends, and covers its end
            (one,) = (one for one in KITCHEN if one.id == source)
            assert times_s[0] == pytest.approx(one.start_s, abs=2 * TICK_S)
            assert run[-1].progress > 0.8 or source == "a"
    assert {frame.source for empty, run in runs for frame in run if not empty} == {"a", "b", "c"}


def test_progress_grows_gestures_are_counted_and_the_frames_after_them_do_not_count() -> None:
    frames = [frame for *_, frame in read_off(sources_of(dataset(KITCHEN[2:])), 120)]
    gestures: dict[int, list[float]] = {}
    for frame in frames:
        if frame.gesture >= 0:
            gestures.setdefault(frame.gesture, []).append(frame.progress)
        assert frame.source == "c"
    assert len(gestures) > 10
    for progress in gestures.values():
        assert progress == sorted(progress)
        assert all(0 <= value < 1 for value in progress)
    after = [late for early, late in pairwise(frames) if early.gesture >= 0 > late.gesture]
    assert after
    assert {frame.weight for frame in after} == {0.0}


def test_a_mirror_swaps_left_and_right() -> None:
    mirrored = {"noun": {"left hand": "right hand", "right hand": "left hand"}}
    sources = sources_of(dataset(KITCHEN[2:], mirrored=mirrored))
    nouns = {(turned, labels[1]) for _, turned, labels, frame in read_off(sources, 60) if frame.gesture >= 0}
    assert nouns == {(False, 1), (True, 2)}


def test_trimmed_clips_have_no_background_but_their_own() -> None:
    assert sources_of(dataset(TRIMMED)).heads == HEADS
    assert {labels for _, _, labels, _ in read_off(sources_of(dataset(TRIMMED)))} == {(0, UNKNOWN), (1, UNKNOWN)}
    own = sources_of(dataset(TRIMMED, background="put"))
    assert own.heads == HEADS
    frames = [(labels, frame.gesture >= 0) for _, _, labels, frame in read_off(own, shares=SectionShares())]
    assert set(frames) == {((0, UNKNOWN), True), ((1, UNKNOWN), False)}


def test_a_segment_that_cannot_be_read_is_named_and_skipped(caplog: pytest.LogCaptureFixture) -> None:
    def broken(segment: Segment, rate: float, size_hw: tuple[int, int]) -> tuple[NDArray[np.uint8],
                                                                                  NDArray[np.float64]]:
        if segment.id == "x" or everything:
            raise DatasetError(f"{segment.id}.mp4, which is broken", "a video", "remove it")
        return clock(segment, rate, size_hw)

    everything = False
    sources = sources_of(dataset(TRIMMED), read=broken)
    stream = stream_of(sources)
    with caplog.at_level(logging.WARNING):
        assert {frame.source for frame in islice(stream.frames(), 500)} == {"y"}
    assert "x.mp4, which is broken" in caplog.text
    with pytest.raises(DatasetError, match=r"x\.mp4, which is broken"):
        list(islice(stream_of(sources, strict=True).frames(), 500))
    everything = True
    with pytest.raises(DatasetError, match="broken"):
        next(stream.frames())


@pytest.mark.parametrize(("segments", "message"), [
    ([], "none of them labelled"),
    ([Segment("a", Media(Path("a.mp4")))], "1 segments"),
    ([Segment("a", Media(Path("a.mp4")), labels={"verb": "fly"})], "'fly'"),
    ([Segment("a", Media(Path("a.mp4")), labels={"adverb": "slowly"})], "'adverb'")])
def test_labels_that_make_no_sense_are_refused(segments: list[Segment], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        sources_of(dataset(segments))


FOLDERS = dataset(TRIMMED, heads={"verb": ("take", "put", "left")})  # of trimmed clips: none is of "left"


def test_hands_are_rendered_for_the_labels_that_they_can_draw_and_for_background() -> None:
    drawn = sources_of(FOLDERS, rendered=True)
    assert drawn.drawable == {"left": drawn.truth({"verb": "left"})}
    assert not drawn.renders_idle
    frames = list(islice(stream_of(drawn).frames(), 4000))
    tips = {drawn.truths[frame.label] for frame in frames if frame.tip_xy is not None}
    assert tips == {(2,), (UNKNOWN,)}  # what rendered hands do between gestures has no label
    shown = [(frame.gesture, drawn.truths[frame.label]) for frame in frames if frame.gesture >= 0]
    share = len({gesture for gesture, truth in shown if truth == (2,)}) / len(set(shown))
    assert 0.1 < share < 0.6  # of three labels one can be drawn, by 45 % of the sections, with several in one
    for data, idle in ((dataset(KITCHEN), True), (dataset(TRIMMED), False)):
        sources = sources_of(data, rendered=True)
        assert (sources.drawable, sources.renders_idle, sources.renders) == ({}, idle, idle)
    kitchen = sources_of(dataset(KITCHEN), rendered=True)
    rendered = {kitchen.truths[frame.label] for frame in islice(stream_of(kitchen).frames(), 2000) if not frame.source}
    assert rendered == {(2, 3)}  # only hands that do nothing
    assert not sources_of(dataset(KITCHEN)).renders


def test_idle_footage_gives_a_label_for_nothing_and_comes_as_often_as_other_idle_time(tmp_path: Path) -> None:
    for name in ("one.mp4", "two.mp4", "three.mp4"):
        (tmp_path / name).touch()
    data = with_idle(FOLDERS, [tmp_path], without=["two"])
    assert data.heads == {"verb": ("take", "put", "left", BACKGROUND)}
    assert [one.media.path.name for one in data.splits["validation"]] == ["two.mp4"]
    sources = sources_of(data)
    assert [one.media.path.name for one in sources.idle] == ["one.mp4", "three.mp4"]
    assert {sources.truths[frame.label] for frame in islice(stream_of(sources, SectionShares()).frames(), 2000)} == {
        (0,), (1,), (3,)}
    many = [Segment(f"{k}", Media(Path(f"{k}.mp4")), labels={"verb": "put"}) for k in range(9)]
    own = sources_of(with_idle(dataset([*TRIMMED, *many], background="put"), [tmp_path]))
    assert sum(one.media.path.parent == tmp_path for one in own.idle) == 9
    assert all(one.labels == {"verb": "put"} for one in own.idle)
    with pytest.raises(DatasetError, match="no video"):
        with_idle(FOLDERS, [tmp_path / "nowhere"])


def test_a_label_that_is_left_out_is_neither_shown_nor_there() -> None:
    mirrored = {"noun": {"left hand": "right hand", "right hand": "left hand"}}
    data = without_labels(dataset(KITCHEN, mirrored=mirrored), ["right hand", "cup"])
    assert data.heads["noun"] == ("left hand",)
    assert [one.id for one in data.splits["train"]] == ["b", "c"]
    assert sources_of(data).mirror({"noun": "left hand"}) is None
    with pytest.raises(UsageError, match="'fly'"):
        without_labels(data, ["fly"])


def test_a_group_that_is_left_out_validates() -> None:
    segments = [Segment(f"{k}", Media(Path(f"{k}.mp4")), labels={"verb": "take"}, group=str(k % 3)) for k in range(6)]
    data = without_group(dataset(segments), 2)
    assert [one.id for one in data.splits["train"]] == ["0", "1", "3", "4"]
    assert [one.id for one in data.splits["validation"]] == ["2", "5"]
    assert without_group(data, 0) is data
    with pytest.raises(UsageError, match="fold 7"):
        without_group(data, 7)
    assert without_group(data, 7, required=False) is data


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path]:
    """One recording with two actions, one more to validate with, and weights to start from."""
    folder = tmp_path_factory.mktemp("kitchen")
    for name in ("train.avi", "validation.avi"):
        writer = cv2.VideoWriter(str(folder / name), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
        for k in range(60):
            writer.write(np.full((48, 64, 3), 3 * k, np.uint8))
        writer.release()
    train_, validation = (
        [Segment(f"{name}{k}", Media(folder / name), start_s, start_s + 1.0, {"verb": verb, "noun": "cup"})
         for k, (start_s, verb) in enumerate([(1.0, "take"), (3.0, "put")])]
        for name in ("train.avi", "validation.avi"))
    torch.manual_seed(0)
    network = build("tsn-mobilenetv2", heads={"a": 2}, causal=True, input_size_hw=(72, 96))
    save_file(network.backbone.state_dict(), folder / "weights.safetensors")
    return Dataset("kitchen", HEADS, {"train": train_, "validation": validation}), folder / "weights.safetensors"


def test_verbs_and_nouns_are_learnt_from_streams_of_segments(kitchen: tuple[Dataset, Path], tmp_path: Path) -> None:
    data, weights = kitchen
    figures: list[dict[str, float]] = []
    recipe = Recipe(tmp_path / "model.safetensors", str(weights), architecture="gsm-mobilenetv2",
                    iterations=2, rows=2, chunk=4, readout_width=8, workers=0, validate_every=2, name="kitchen")
    train(recipe, data, lambda _: None, lambda _, seen: figures.append(seen))
    model = engines.load(recipe.out)
    assert model.contract.heads == {"verb": ("take", "put", BACKGROUND),
                                    "noun": ("cup", "left hand", "right hand", BACKGROUND)}
    assert model.contract.background == BACKGROUND
    assert set(model.contract.temperature) == {"verb", "noun"}
    assert {"verb now", "noun window", "loss"} <= set(figures[-1])
    rows = (recipe.out.with_suffix(".run") / "metrics.csv").read_text()
    assert "validation verb" in rows


def test_validation_needs_something_left_out(kitchen: tuple[Dataset, Path], tmp_path: Path) -> None:
    data, weights = kitchen
    recipe = Recipe(tmp_path / "model.safetensors", str(weights), iterations=2, validate_every=1)
    with pytest.raises(UsageError, match="left out"):
        train(recipe, Dataset("kitchen", HEADS, {"train": data.splits["train"]}), lambda _: None)


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(DatasetError, match="action is always 'wave'"):
        check_classes({"action": ("wave",)})
    check_classes({"action": ("wave", "background")})
