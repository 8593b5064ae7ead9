"""Evaluation: what is measured is what the live path did; reports hold it; thresholds keep to their limit."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import exp
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from fakes import LABELS, FakeEngine, FakeModel

import engines
from engines.datasets import Dataset, Media, Segment, open_dataset
from engines.datasets.render import render
from engines.errors import DatasetError, GatestreamError, SinkError, UsageError
from engines.model.contract import EventRule
from engines.model.file import bundled, load, save
from engines.runtime.engine import StepResult
from stream.commands.cli import main
from stream.evaluation.clips import evaluate_clips
from stream.evaluation.data import held_out_groups, max_overlap, select
from stream.evaluation.evaluate import EvaluationReport, measure
from stream.evaluation.metrics import Truth, match
from stream.evaluation.play import concatenate_videos, idle_room, join_clips, read_images, render_idle
from stream.evaluation.record import find_events
from stream.evaluation.report import write_report
from stream.evaluation.streams import IOU, StreamMeter, evaluate_stream
from stream.evaluation.thresholds import search_rules, write_rule
from stream.frame import Event
from stream.recognizer import Recognizer

RATE = 10.0
COLOURS = {"left": (255, 0, 0), "right": (0, 0, 255), "none": (0, 0, 0)}


def event(label: str, started_at: float, ended_at: float) -> Event:
    return Event("0", "gesture", label, started_at, ended_at, 0.9, open=False)


@pytest.mark.parametrize(("truths", "events", "pairs"), [
    ([("a", 0, 10)], [("a", 0, 10)], [(0, 0)]),
    ([("a", 0, 10)], [("b", 0, 10)], []),
    ([("a", 0, 10)], [("a", 8, 18)], []),                                  # IoU 2/18
    ([("a", 0, 10)], [("a", 0, 3)], [(0, 0)]),                             # IoU 0.3 exactly
    ([("a", 0, 10)], [("a", 0, 2.9)], []),
    ([("a", 0, 10)], [("a", 0, 5), ("a", 5, 10)], [(0, 1)]),               # one truth, one event
    ([("a", 0, 10), ("a", 10, 20)], [("a", 1, 19)], [(1, 0)]),             # one event, one truth
    ([("a", 0, 10), ("b", 10, 20)], [("b", 11, 20), ("a", 1, 9)], [(0, 1), (1, 0)]),
    ([], [("a", 0, 1)], []),
    ([("a", 5, 5)], [("a", 5, 5)], []),                                    # no length, no overlap
])
def test_matching(truths: list[tuple[str, float, float]], events: list[tuple[str, float, float]],
                  pairs: list[tuple[int, int]]) -> None:
    stretches, found = [Truth(*one) for one in truths], [event(*one) for one in events]
    assert sorted(match(stretches, found, IOU)) == pairs


def film(path: Path, *parts: tuple[str, float]) -> Path:
    """A video of coloured stretches (label, seconds): blue is "left", red "right", black "none" to the fake model."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (32, 24))
    for label, seconds in parts:
        for _ in range(round(seconds * RATE)):
            writer.write(np.full((24, 32, 3), COLOURS[label], np.uint8))
    writer.release()
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    parts = {"left": [("left", 2)], "right": [("right", 2)], "none": [("none", 2)],
             "flash": [("none", 2), ("left", 0.6), ("none", 2)], "stuck": [("none", 1), ("left", 8), ("none", 1)],
             "long": [("none", 1), ("left", 2), ("right", 2), ("none", 1)]}
    return {name: film(folder / f"{name}.avi", *these) for name, these in parts.items()}


def recogniser(**changes: object) -> Recognizer:
    model = FakeModel(**changes)
    return Recognizer(model, FakeEngine(model))


@pytest.fixture
def recognizer() -> Recognizer:
    return recogniser()


def clip(path: Path, label: str, kind: str = "", **more: object) -> Segment:
    return Segment(f"{label}-{path.stem}-{kind}", Media(path), labels={"gesture": label}, kind=kind, **more)


def dataset(*segments: Segment, heads: tuple[str, ...] = ("gesture",)) -> Dataset:
    return Dataset("lamps", dict.fromkeys(heads, ("left", "right", "unclassified")), {"all": segments},
                   background="unclassified")


def test_clips_are_right_when_the_last_window_names_them(videos: dict[str, Path], recognizer: Recognizer) -> None:
    clips = [clip(videos["left"], "left", "head"), clip(videos["right"], "right", "head"),
             clip(videos["right"], "left", "history")]
    report = evaluate_clips(recognizer, clips, "none")
    assert report.accuracy("head") == 1.0
    assert report.accuracy("history") == 0.0
    assert report.accuracy() == pytest.approx(2 / 3)
    found = report.as_json()
    assert found["wrong"] == ["left as right"]
    assert found["by_kind"] == {"head": 1.0, "history": 0.0}
    assert found["heads"]["gesture"]["per_class"] == {"left": {"clips": 2, "accuracy": 0.5},
                                                      "right": {"clips": 1, "accuracy": 1.0}}
    assert found["heads"]["gesture"]["confusion"] == {"labels": list(LABELS), "counts": [[1, 1, 0], [0, 1, 0],
                                                                                        [0, 0, 0]]}


def test_a_joined_stream_is_recognised_and_timed(videos: dict[str, Path], recognizer: Recognizer) -> None:
    clips = [clip(videos[label], label, str(k)) for k, label in enumerate(("left", "right", "left"))]
    frames, truths = join_clips(clips, [videos["none"]], seed=1, idle_s=(1.0, 1.5))
    found = evaluate_stream(recognizer, frames, truths=truths)
    report = found.first
    assert [truth.label for truth in report.truths] == [seen.label for seen in report.events]
    assert len(report.truths) == 3
    assert all(truth.ended_at - truth.started_at == pytest.approx(2.0) for truth in report.truths)
    assert all(0 < delay < 1.0 for delay in report.start_delays_s)
    assert report.false_events_per_hour == 0
    assert set(report.precision) == {"left", "right"}
    assert min(report.precision.values()) > 0.9
    figures = found.as_json()
    assert figures["f1"] == 1.0
    assert 0 < figures["delay_s"] <= 0.6
    assert figures["f1_at"] == {"0.1": 1.0, "0.3": 1.0, "0.5": 1.0}
    assert figures["delay_s"] == figures["delay_after_end_s"]["median"]


def test_rounds_tell_how_accuracy_changes_with_time(videos: dict[str, Path], recognizer: Recognizer) -> None:
    clips = [clip(videos[label], label, str(k)) for k, label in enumerate(("left", "right"))]
    frames, truths = join_clips(clips, [videos["none"]], seed=1, idle_s=(1.0, 1.5), rounds=3)
    with StreamMeter(recognizer) as meter:
        for image, at in frames:
            meter.push(image, at)
        wrong = [*truths["gesture"][:5], Truth("left" if truths["gesture"][5].label == "right" else "right",
                                               truths["gesture"][5].started_at, truths["gesture"][5].ended_at)]
        meter.end({"gesture": wrong})
        meter.rounds = 3
        rounds = meter.report().first.over_time()
    assert [(one["named_right"], one["matched"]) for one in rounds] == [(1.0, 1.0), (1.0, 1.0), (0.5, 0.5)]
    lasted = [one["to_minute"] - one["from_minute"] for one in rounds]
    assert lasted == pytest.approx([lasted[0]] * 3, abs=0.01)
    assert rounds[1]["from_minute"] > rounds[0]["to_minute"]


def test_joining_is_decided_by_the_seed(videos: dict[str, Path]) -> None:
    clips = [clip(videos[label], label) for label in ("left", "right")]
    runs = []
    for seed in (4, 4, 5):
        frames, truths = join_clips(clips, [videos["none"]], seed)
        times = [at for _, at in frames]
        assert times == sorted(times)
        runs.append((times, truths))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_every_event_of_idle_footage_is_counted(videos: dict[str, Path], recognizer: Recognizer) -> None:
    quiet = evaluate_stream(recognizer, concatenate_videos([videos["none"]] * 2)).first
    assert quiet.events == []
    assert quiet.seconds == pytest.approx(3.9)
    loud = evaluate_stream(recognizer, concatenate_videos([videos["none"], videos["left"], videos["none"]])).first
    assert loud.as_json()["events_per_minute"] == pytest.approx(60 / loud.seconds)
    assert loud.false_events_per_hour == pytest.approx(3600 / loud.seconds)


def with_a_hole(paths: list[Path]) -> Iterator[tuple[np.ndarray, float]]:
    """A stream with ticks to be held, and one hole that resets it in the middle of an event."""
    for k, (image, at) in enumerate(concatenate_videos(paths)):
        if k % 7 != 3:
            yield image, at + (5.0 if k > 25 else 0.0)


@pytest.mark.parametrize("rule", [
    EventRule(), EventRule(open_above=0.9, close_below=0.75, min_duration_s=0.55, min_score=0.8),
    EventRule(open_above=0.99, min_duration_s=1.6), EventRule(close_after_s=0.0, min_duration_s=0.0, split_after_s=0.3),
    EventRule(report_unknown=True, min_score=0.999)], ids=range(5))
@pytest.mark.parametrize("warmup", [0, 4])
def test_recorded_scores_give_the_events_of_the_live_path(videos: dict[str, Path], rule: EventRule,
                                                          warmup: int) -> None:
    paths = [videos[name] for name in ("none", "left", "right", "flash", "long")]
    plain = evaluate_stream(recogniser(warmup_frames=warmup), with_a_hole(paths), concatenate_videos(paths))
    live = evaluate_stream(recogniser(warmup_frames=warmup, events=rule), with_a_hole(paths), concatenate_videos(paths))
    contract = plain.record.contract
    for rule_tried, report in ((rule, live), (contract.events, plain)):
        told = sorted([*report.first.events, *report.first.taken_back], key=lambda event: event.ended_at)
        found = list(find_events(plain.record.sequences("gesture"), contract, "gesture", rule_tried))
        assert found == [replace(one, camera="0") for one in told] != []
    assert len(list(live.record.sequences("gesture"))) == 3


def test_a_full_disk_is_told(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: open("/dev/full", "wb", buffering=0))  # noqa: SIM115
    black = np.zeros((24, 32, 3), np.uint8)
    with pytest.raises(SinkError, match="temporary folder"), StreamMeter(recognizer) as meter:
        meter.push(black, 0.0)


def test_overlapping_segments_of_a_long_recording_are_played_in_one_pass(
        videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def part(name: str, label: str, start_s: float, stop_s: float) -> Segment:
        return Segment(name, Media(videos["long"]), start_s, stop_s, {"gesture": label})

    parts = [part("b", "right", 3.0, 5.0), part("a", "left", 1.0, 3.0), part("ab", "left", 2.0, 4.5),
             part("late", "left", 60.0, 61.0)]
    assert max_overlap(parts) == 2
    opened = []
    from stream.evaluation import clips as module
    read_images = module.read_images
    monkeypatch.setattr(module, "read_images", lambda media: opened.append(media) or read_images(media))
    together = recogniser()
    with StreamMeter(together) as meter:
        report = evaluate_clips(together, parts, "none", meter=meter)
        stream = meter.report().first
    assert len(opened) == 1
    assert [what for what, _ in report.skipped] == ["late"]
    alone = {one.id: evaluate_clips(recogniser(), [one], "none").outcomes[0].window["gesture"] for one in parts[:3]}
    assert {one.segment.id: list(one.window["gesture"]) for one in report.outcomes} == {
        name: list(window) for name, window in alone.items()}
    assert report.accuracy() == pytest.approx(2 / 3)  # the label of "ab" is that of its first half
    assert [(one.label, one.started_at, one.ended_at) for one in stream.truths] == [
        ("right", 3.0, 5.0), ("left", 1.0, 3.0), ("left", 2.0, 4.5)]
    assert len(stream.pairs) == 2
    assert stream.seconds == pytest.approx(5.9)


def test_what_cannot_be_read_is_named_and_skipped(videos: dict[str, Path], recognizer: Recognizer,
                                                  tmp_path: Path) -> None:
    broken = tmp_path / "broken.avi"
    broken.write_bytes(b"no video")
    data = dataset(clip(videos["left"], "left"), clip(broken, "right"), clip(tmp_path / "gone.avi", "right"))
    chosen = select(data, recognizer.contract)
    report = measure(recognizer, chosen, idle=[videos["none"], broken])
    assert report.clips.accuracy() == 1.0
    assert [one["what"] for one in report.as_json()["skipped"]] == ["right-broken-", "right-gone-", str(broken)]
    assert report.stream is not None
    assert [truth.label for truth in report.stream.first.truths] == ["left"]
    with pytest.raises(GatestreamError, match=r"broken\.avi"):
        measure(recogniser(), chosen, strict=True)


def whole(videos: dict[str, Path], idle: str = "flash", **more: object) -> EvaluationReport:
    """A report of everything there can be: right and wrong clips, a label the model lacks, clips of nothing."""
    recognizer = recogniser()
    data = dataset(clip(videos["left"], "left"), clip(videos["right"], "right"), clip(videos["left"], "circle"),
                   clip(videos["none"], "unclassified"))
    return measure(recognizer, select(data, recognizer.contract), idle=[videos[idle]], **more)


def test_a_whole_report(videos: dict[str, Path], tmp_path: Path) -> None:
    report = whole(videos, rendered_idle_s=2.0)
    found = json.loads(json.dumps(report.as_json(), allow_nan=False))
    head = found["clips"]["heads"]["gesture"]
    assert found["clips"]["clips"] == 3                   # clips of nothing are no gestures
    assert head["top1"] == head["top5"] == pytest.approx(2 / 3)
    assert head["labels_unknown_to_the_model"] == ["circle"]
    assert sum(found["calibration"]["gesture"]["after"]["counts"]) == 3  # the two known clips, and the one of nothing
    assert found["rejection"]["gesture"]["clips"] == 1.0
    assert found["stream"]["gestures"] == 3
    assert found["idle"]["events"] == 1
    assert found["idle"]["false_events_per_hour"] == pytest.approx(3600 / found["idle"]["seconds"])
    assert found["idle"]["f1"] == 0.0
    assert found["idle"]["delay_s"] is None
    assert found["rendered_idle"]["seconds"] == pytest.approx(1.9)

    write_report(tmp_path / "report.html", report, found)
    page = (tmp_path / "report.html").read_text()
    assert "0.667" in page
    assert "circle as left" in page
    assert not re.search(r"https?://|<script|src=\"(?!data:)", page)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 6
    assert len(set(pictures)) == 6


def test_a_report_of_almost_nothing(videos: dict[str, Path], recognizer: Recognizer, tmp_path: Path) -> None:
    data = dataset(clip(videos["none"], "unclassified"))
    report = measure(recognizer, select(data, recognizer.contract), idle=[videos["none"]])
    found = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert found["clips"]["accuracy"] is None
    assert "stream" not in found
    write_report(tmp_path / "report.html", report, found)
    assert "<h2>Idle footage</h2>" in (tmp_path / "report.html").read_text()


def test_verb_and_noun_make_actions_and_a_submission(videos: dict[str, Path], tmp_path: Path) -> None:
    recognizer = recogniser(heads={"verb": LABELS, "noun": LABELS})

    def part(name: str, video: str, verb: str, noun: str) -> Segment:
        return Segment(name, Media(videos[video]), labels={"verb": verb, "noun": noun},
                       kind="unseen" if name.startswith("P18") else "")

    parts = [part("P01_1_0", "left", "left", "left"), part("P18_1_0", "right", "right", "left"),
             Segment("P02_1_0", Media(videos["none"]))]                              # a test clip without labels
    data = replace(dataset(*parts, heads=("noun", "verb")),
                   rare={"noun": frozenset({"left"}), "verb": frozenset({"right"})})
    report = measure(recognizer, select(data, recognizer.contract))
    found = report.as_json()
    assert found["clips"]["heads"]["verb"]["top1"] == 1.0
    assert found["clips"]["heads"]["noun"]["top1"] == 0.5
    assert found["clips"]["actions"] == {"clips": 2, "top1": 0.5, "top5": 1.0}
    assert found["breakdown"] == {"tail": {"clips": 2, "verb": 1.0, "noun": 0.5, "action": 0.5},
                                  "unseen": {"clips": 1, "verb": 1.0, "noun": 0.0, "action": 0.0}}
    report.submit(tmp_path / "test.zip", (1, 3, 3))
    with zipfile.ZipFile(tmp_path / "test.zip") as file:
        results = json.loads(file.read("test.json"))["results"]
    assert set(results) == {"P01_1_0", "P18_1_0", "P02_1_0"}
    assert max(results["P18_1_0"]["verb"], key=results["P18_1_0"]["verb"].get) == "1"
    assert set(results["P02_1_0"]["noun"]) == {"0", "1", "2"}


def test_a_missing_image_of_a_folder_leaves_a_hole(tmp_path: Path) -> None:
    for number in (3, 4, 5, 9, 10):
        cv2.imwrite(str(tmp_path / f"frame_{number:010d}.png"), np.zeros((24, 32, 3), np.uint8))
    for rate, first, times in ((10.0, 3, [0, 0.1, 0.2, 0.6, 0.7]), (5.0, None, [0, 0.2, 0.4, 0.6, 0.8])):
        assert [at for _, at in read_images(Media(tmp_path, rate=rate, first=first))] == pytest.approx(times)


class ManyLabels(FakeModel):
    """As many labels as its heads want, with fixed random weights."""

    def head_logits(self, features_D: np.ndarray) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        return {head: rng.standard_normal((len(labels), 3)).astype(np.float32) @ features_D
                for head, labels in self.contract.heads.items()}


class ManyLabelsEngine(FakeEngine):
    def _step(self, frames_u8_BHWC: np.ndarray, slots: Sequence[int]) -> StepResult:
        features_BD = super()._step(frames_u8_BHWC, slots).features
        return StepResult(features_BD, {head: logits_K[None] for head, logits_K in
                                        self.model.head_logits(features_BD[0]).items()})


def test_recordings_in_the_layout_of_epic_are_streams_with_submission(tmp_path: Path) -> None:
    render(tmp_path / "epic", clips=6, size_hw=(48, 64), rate=10.0, video_s=12.0)
    data = open_dataset(tmp_path / "epic")
    model = ManyLabels(heads={"noun": data.heads["noun"], "verb": data.heads["verb"]}, background=None)
    chosen = select(data, model.contract)
    wanted = data.splits["validation"]
    recognizer = Recognizer(model, ManyLabelsEngine(model, slots=max_overlap(chosen.segments) + 1))
    report = measure(recognizer, chosen)
    found = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert found["skipped"] == []
    assert found["clips"]["clips"] == found["clips"]["actions"]["clips"] == found["stream"]["gestures"] == len(wanted)
    assert found["stream"]["heads"]["verb"]["gestures"] == len(wanted)
    assert found["rejection"]["verb"] == {"clips": None}
    report.submit(tmp_path / "test.zip", (0, 3, 3))
    with zipfile.ZipFile(tmp_path / "test.zip") as file:
        results = json.loads(file.read("test.json"))["results"]
    assert set(results) == {segment.id for segment in wanted}
    first = results[wanted[0].id]
    assert list(first["verb"]) == [str(k) for k in range(len(data.heads["verb"]))]
    assert sum(map(exp, first["noun"].values())) == pytest.approx(1.0)
    assert found["stream"]["heads"]["action"]["gestures"] == len(wanted)
    write_report(tmp_path / "report.html", report, found)
    assert "<h2>Stream: verb</h2>" in (tmp_path / "report.html").read_text()


def test_choosing(videos: dict[str, Path], recognizer: Recognizer) -> None:
    one, other = (clip(videos["left"], "left", group=name) for name in "12")
    nothing = clip(videos["none"], "unclassified", group="2")
    data = dataset(one, other, nothing)
    assert [part.group for part in select(data, recognizer.contract).segments] == ["1", "2", "2"]
    chosen = select(data, recognizer.contract, groups=["2"])
    assert [part.labels["gesture"] for part in chosen.segments] == ["left", "none"]
    halves = Dataset("halves", data.heads, {"train": [one], "validation": [other]})
    assert select(halves, recognizer.contract).segments[0].group == "2"
    assert select(halves, recognizer.contract, "train").segments[0].group == "1"
    with pytest.raises(UsageError, match="train, validation"):
        select(halves, recognizer.contract, "test")
    with pytest.raises(DatasetError, match="groups among 1, 2"):
        select(data, recognizer.contract, groups=["3"])
    with pytest.raises(UsageError, match="verb, noun"):
        select(Dataset("e", {"verb": ("a",), "noun": ("b",)}, {"all": [one]}), recognizer.contract)


def test_rendered_rooms_differ_and_show_no_gesture() -> None:
    first, second = ([image for image, _ in room] for room in render_idle(4.0, 5.0, room_s=2.0))
    again = [image for image, _ in render_idle(4.0, 5.0, room_s=2.0)[0]]
    assert len(first) == len(second) == 10
    assert all((one == other).all() for one, other in zip(first, again, strict=True))
    assert (first[0] != second[0]).any()
    assert idle_room(300.0, 7.5, 1).spans(300.0) == []


@pytest.mark.parametrize("limit", [0.0, 1000.0])
def test_the_threshold_search_keeps_to_the_limit(videos: dict[str, Path], limit: float) -> None:
    report = whole(videos)
    found = search_rules(report.stream, report.idles.values(), limit)
    assert found.before.false_events_per_hour > 700
    assert found.best.false_events_per_hour <= limit
    assert found.best.f1 >= (found.before.f1 if limit else 0.5)
    live = recogniser(events=found.best.rule)
    again = evaluate_stream(live, concatenate_videos([videos["flash"]])).first
    assert again.false_events_per_hour == pytest.approx(found.best.false_events_per_hour)


def test_a_search_that_cannot_be_is_refused(videos: dict[str, Path]) -> None:
    report = whole(videos, "stuck")
    with pytest.raises(UsageError, match="false events per hour"):
        search_rules(report.stream, report.idles.values(), 0.0)
    with pytest.raises(UsageError, match="idle footage"):
        search_rules(report.stream, [], 6.0)
    with pytest.raises(UsageError, match="stream"):
        search_rules(None, report.idles.values(), 6.0)


@pytest.mark.parametrize("half", [True, False])
def test_thresholds_are_written_and_weights_stay(videos: dict[str, Path], tmp_path: Path, half: bool) -> None:
    bundled = load("gesture")
    path = tmp_path / "own.safetensors"
    weights = bundled.tensors if half else {name: tensor * np.float32(1.0001) for name, tensor in
                                            bundled.tensors.items()}
    save(path, bundled.contract, weights, half=half)
    before = load(path)
    report = whole(videos)
    found = search_rules(report.stream, report.idles.values(), 0.0)
    out, bytes_before = tmp_path / "calm.safetensors", path.read_bytes()
    write_rule(path, found, {"dataset": "lamps"}, out)
    assert path.read_bytes() == bytes_before
    after = load(out)
    assert after.contract.events == found.best.rule
    told = after.contract.provenance["event_thresholds"]
    assert told["data"] == {"dataset": "lamps"}
    assert told["chosen"]["false_events_per_hour"] == 0
    assert {**after.contract.provenance, "event_thresholds": None} == {**before.contract.provenance,
                                                                       "event_thresholds": None}
    assert all((after.tensors[name] == tensor).all() for name, tensor in before.tensors.items())


@pytest.mark.parametrize(("options", "told"), [
    (["--max-false-events", "few"], "6/h"),
    (["--max-false-events", "6/h"], "--out"),                      # a model is not written to unasked
    (["--max-false-events", "6/h", "--out", str(bundled()["gesture"])], "own"),  # nor a bundled one at all
    (["--max-false-events", "6/h", "--out", "calm.onnx"], ".safetensors"),
    (["--out", "calm.safetensors"], "--max-false-events"),
    (["--submission", "out.zip"], "--supervision"),
    (["--report", "no-such-folder/out.html"], "no-such-folder"),
])
def test_wrong_use_is_told_before_the_work(options: list[str], told: str, tmp_path: Path,
                                           capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "gesture", str(tmp_path), *options]) != 0
    assert told in capfd.readouterr().err


@pytest.mark.parametrize(("fold", "groups"), [(0, ()), (2, ("2",)), (3, ())])
def test_the_group_that_training_left_out_is_known_in_any_dataset(fold: int, groups: tuple[str, ...]) -> None:
    segments = [Segment(name, Media(Path(name)), labels={"lamp": "left"}, group=name) for name in ("1", "2")]
    contract = FakeModel(provenance={"recipe": {"without_fold": fold}}).contract
    assert held_out_groups(Dataset("lamps", {"lamp": ("left",)}, {"train": segments}), contract) == groups


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of one's own, of a training that left out fold 2 and a video, that is recognised with as a fake."""
    bundled = load("gesture")
    path = tmp_path / "own.safetensors"
    left_out = {"recipe": {"without_fold": 2, "idle_without": ["kept"]}}
    save(path, bundled.contract.model_copy(update={"provenance": left_out}), bundled.tensors)
    fake = FakeModel(provenance=left_out)
    monkeypatch.setattr(engines, "compile", lambda model, engine, slots: FakeEngine(fake, slots))
    real_load = engines.load
    monkeypatch.setattr(engines, "load", lambda name: fake if str(name) == str(path) else real_load(name))
    monkeypatch.setattr("stream.evaluation.thresholds.engines", SimpleNamespace(load=real_load))
    return path


@pytest.mark.parametrize(("folds", "options", "clips", "idle"), [
    (True, [], 1, ["kept"]),
    (True, ["--fold", "0"], 2, ["kept"]),
    (False, [], 2, ["kept"]),                                      # another dataset, which training has not seen
    (True, ["--idle", "elsewhere"], 1, ["kept", "seen"]),          # nor another folder's videos, whatever their names
])
def test_what_training_left_out_is_measured(folds: bool, options: list[str], clips: int, idle: list[str], own: Path,
                                            tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                            capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data/val/left/1", "data/val/right/2", "idle/kept", "idle/seen", "elsewhere/seen"):
        path = tmp_path / f"{name}.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        film(path, ("none" if "data" not in name else path.parent.name, 2), ("left", 0.6), ("none", 1))
    if folds:
        (tmp_path / "data" / "manifest.csv").write_text(
            "file,label,source,fold\nval/left/1.avi,left,head,1\nval/right/2.avi,right,head,2")
    assert main(["evaluate", str(own), "data", "--idle", "idle", "--max-false-events", "1000/h",
                 "--out", "calm.safetensors", *options]) == 0
    assert json.loads(capfd.readouterr().out)["clips"]["heads"]["gesture"]["clips"] == clips
    assert sorted(load("calm.safetensors").contract.provenance["event_thresholds"]["data"]["idle"]) == idle


def test_the_command_writes_all_it_is_asked_for(own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, idle = tmp_path / "data", tmp_path / "idle"
    data.mkdir()
    idle.mkdir()
    film(idle / "flash.avi", ("none", 2), ("left", 0.6), ("none", 2))
    lines = ["file,label,source,fold"]
    for name in ("left", "right"):
        film(data / f"{name}.avi", (name, 2))
        lines.append(f"{name}.avi,{name},head,2")
    (data / "manifest.csv").write_text("\n".join(lines))
    calm, before = tmp_path / "calm.safetensors", own.read_bytes()
    assert main(["evaluate", str(own), str(data), "--idle", str(idle), "--max-false-events", "0/h", "--out", str(calm),
                 "--report", str(tmp_path / "report.html"), "--json", str(tmp_path / "report.json")]) == 0
    assert capfd.readouterr().out == ""
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["clips"]["accuracy"] == 1.0
    assert found["thresholds"]["chosen"]["false_events_per_hour"] == 0
    assert own.read_bytes() == before
    assert load(calm).contract.events == EventRule(**found["thresholds"]["chosen"]["events"])
    assert load(calm).contract.provenance["event_thresholds"]["data"]["idle"] == ["flash"]
    assert "Thresholds for 0 false events an hour" in (tmp_path / "report.html").read_text()


def test_real_clips_by_fold(shared: Path) -> None:
    data = open_dataset(shared / "data" / "egogestar")
    contract = load("gesture").contract
    sizes = [len([part for part in select(data, contract, groups=[str(fold)]).segments
                  if part.labels["gesture"] != contract.background]) for fold in (1, 2, 3, 4)]
    assert sizes == [66, 58, 66, 68]
