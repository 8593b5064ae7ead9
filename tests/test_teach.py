"""Teaching: what the head learns, what it keeps, what the report says, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from fakes import contract

import engines
from engines.datasets import Media, Segment
from engines.datasets.base import Dataset
from engines.datasets.egogestar import MIRRORED, REVERSED
from engines.datasets.selection import without_labels
from engines.errors import DatasetError, GatestreamError, SourceError, UsageError
from engines.model.contract import EventRule
from engines.model.file import Model, load, save
from engines.model.preprocess import normalise
from engines.networks.network import build
from engines.runtime.parity import compare, probe_clip, run_clip
from engines.synthetic import LABELS, Simulation
from engines.training import exemplars
from engines.training.exemplars import MAX_OF_BACKGROUND, MAX_PER_LABEL
from engines.training.few_shot import MAX_BACKGROUND_FACTOR, BackgroundScores, FewShotResult, HeldOut, _balance, teach
from engines.training.loss import Truth
from engines.training.softmax_regression import Examples, LinearHead, fit
from engines.training.sources import TrainingSources
from engines.training.stream_loader import Batch, SectionShares, TrainingStream
from engines.training.support_clips import SupportClip, action_span, make_examples
from stream.commands.cli import main
from stream.evaluation.clips import evaluate_clips
from stream.recognizer import Recognizer
from stream.teaching.support_videos import find_videos
from stream.teaching.teach import event_rule, teach_folder

D = 6
PLACES = {"wave": 0, "knock": 1, "point": 2, "left": 3, "right": 4, "background": 5}  # where a label's features lie


def lesson(recording: str, label: str, place: str, seed: int, scatter: float = 0.3) -> SupportClip:
    """Ten ticks of background, ten of features around `place`, ten of background."""
    rng = np.random.default_rng(seed)
    centre_TD = np.repeat(np.eye(D)[[PLACES["background"], PLACES[place], PLACES["background"]]], 10, axis=0)
    features_TD = (centre_TD + scatter * rng.standard_normal((30, D))).astype(np.float32)
    windows_TD = np.array([features_TD[max(0, t - 9):t + 1].mean(axis=0) for t in range(30)])
    whole = SupportClip(recording, label, features_TD[:20], windows_TD[:20], 10, 20)
    return replace(whole, started=0, ended=0) if label == "background" else whole


def lessons(*labels: str, each: int = 4) -> list[SupportClip]:
    return [lesson(f"{label}/{i}", label, label, seed=100 * k + i) for k, label in enumerate(labels)
            for i in range(each)]


def base(labels: Sequence[str] = ("left", "right", "background")) -> Model:
    """A model whose head knows where its labels' features lie."""
    weight_KD = 12 * np.eye(D, dtype=np.float32)[[PLACES[label] for label in labels]]
    background = "background" if "background" in labels else None
    return Model(contract(heads={"gesture": tuple(labels)}, background=background),
                 {"heads.gesture.weight": weight_KD, "heads.gesture.bias": np.zeros(len(labels), np.float32)}, "0")


def answers(taught: FewShotResult, places: Iterable[str]) -> list[str]:
    """What a taught head calls features that lie right at these places."""
    weight_KD, bias_K = (taught.tensors[f"heads.gesture.{part}"] for part in ("weight", "bias"))
    labels = taught.contract.heads["gesture"]
    return [labels[int((weight_KD @ np.eye(D)[PLACES[place]] + bias_K).argmax())] for place in places]


def model_of(taught: FewShotResult) -> Model:
    return Model(taught.contract, taught.tensors, "1")


class TestHead:
    def test_new_labels_are_learnt_and_old_ones_kept(self) -> None:
        taught = teach(base(), lessons("wave", "knock"), "gesture")
        assert taught.contract.heads["gesture"] == ("left", "right", "background", "wave", "knock")
        assert answers(taught, PLACES.keys() - {"point"}) == [*(PLACES.keys() - {"point"})]
        for part in ("weight", "bias"):
            name = f"heads.gesture.{part}"
            np.testing.assert_array_equal(taught.tensors[name][:3], base().tensors[name])
        assert taught.report.pseudo_labels == ("left", "right")
        assert taught.report.accuracy == 1

    def test_what_was_taught_is_remembered_in_the_next_lesson(self, tmp_path: Path) -> None:
        first = teach(base(), lessons("wave", "knock"), "gesture")
        save(tmp_path / "first.safetensors", first.contract, first.tensors)
        second = teach(load(tmp_path / "first.safetensors"), lessons("point"), "gesture")
        assert answers(second, PLACES) == list(PLACES)
        assert second.report.pseudo_labels == ("left", "right")
        third = teach(model_of(second), lessons("left", "right"), "gesture")
        assert third.report.pseudo_labels == ()
        assert third.contract.heads == second.contract.heads
        assert len(third.contract.provenance["taught"]) == 3

    def test_a_label_that_is_there_is_taught_further(self) -> None:
        moved = [replace(one, label="left") for one in lessons("wave")]  # "left", done another way
        taught = teach(base(), [*moved, *lessons("left")], "gesture")
        assert taught.contract.heads == base().contract.heads
        assert answers(taught, ["wave", "left", "right"]) == ["left", "left", "right"]

    def test_fresh_knows_the_lessons_alone(self) -> None:
        taught = teach(base(), lessons("wave", "right"), "gesture", fresh=True)
        assert taught.contract.heads["gesture"] == ("wave", "right", "background")
        assert answers(taught, ["wave", "right", "background"]) == ["wave", "right", "background"]
        assert 0.2 <= taught.contract.window_temperature["gesture"] <= 5

    def test_a_head_without_background_gets_one(self) -> None:
        taught = teach(base(("left", "right")), lessons("wave", "background"), "gesture")
        assert taught.contract.heads["gesture"] == ("left", "right", "wave", "background")
        assert taught.contract.background == "background"

    def test_the_same_seed_teaches_the_same(self) -> None:
        first, again = (teach(base(), lessons("wave", "knock"), "gesture", seed=3) for _ in range(2))
        assert first.contract == again.contract
        for name, value in first.tensors.items():
            np.testing.assert_array_equal(value, again.tensors[name])

    def test_held_rows_stay_and_a_strong_pull_holds_the_others(self) -> None:
        labels = ("left", "right", "background")
        examples = make_examples(lessons("left", "right"), labels, "background", 0, (1.0, 1.0))
        start = LinearHead(np.ones((3, D)), np.arange(3.0))
        held = np.array([True, False, False])
        learnt, bound = fit(examples, start, held, 0.01), fit(examples, start, held, 1e9)
        np.testing.assert_array_equal(learnt.weight_KD[0], start.weight_KD[0])
        assert np.abs(learnt.weight_KD[1:] - 1).max() > 0.1
        np.testing.assert_allclose(bound.weight_KD, start.weight_KD, atol=1e-6)

    def test_the_size_of_features_does_not_matter(self) -> None:
        examples = make_examples(lessons("left", "right"), ("left", "right", "background"), "background", 0, (1.0, 1.0))
        larger = Examples(1000 * examples.features_ND, *list(vars(examples).values())[1:])
        nothing, free = LinearHead(np.zeros((3, D)), np.zeros(3)), np.zeros(3, bool)
        small, large = (fit(one, nothing, free, 0.01).logits(one.features_ND) for one in (examples, larger))
        np.testing.assert_allclose(small, large, atol=0.05)


class TestReport:
    def test_a_recording_under_the_wrong_label_is_named(self) -> None:
        wrong = lesson("wave/mistake", "wave", "knock", seed=77)
        report = teach(base(), [*lessons("wave", "knock", each=5), wrong], "gesture").report
        (mistake,) = report.mistakes
        assert (mistake.recording, mistake.answer) == ("wave/mistake", "knock")
        assert mistake.gain is not None
        assert mistake.gain > 0
        assert report.alike == []

    def test_labels_with_the_same_content_are_too_alike(self) -> None:
        twins = [*lessons("wave", "knock"),
                 *(lesson(f"hello/{i}", "hello", "wave", seed=500 + i) for i in range(4))]
        report = teach(base(), twins, "gesture").report
        assert [(a, b) for a, b, _ in report.alike] == [("wave", "hello")]
        assert report.as_json() == json.loads(json.dumps(report.as_json()))

    def test_a_single_recording_is_learnt_but_not_tested(self) -> None:
        taught = teach(base(), [*lessons("wave"), *lessons("knock", each=1)], "gesture")
        assert answers(taught, ["wave", "knock"]) == ["wave", "knock"]
        assert {label for label, _ in taught.report.confusion} == {"wave"}


@pytest.mark.parametrize(("motion", "span"), [
    ([1.0] * 20, (0, 20)),                                                  # nothing stands out
    ([0.0] * 20, (0, 20)),
    ([1.0, 2.0], (0, 2)),                                                   # too short to tell
    ([0.1] * 6 + [5.0] * 8 + [0.1] * 6, (4, 16)),                           # smoothing, and a tick of margin
    ([0.1] * 18 + [5.0] * 2, (8, 20)),                                      # an edge is 40 % at most
])
def test_where_an_action_is(motion: list[float], span: tuple[int, int]) -> None:
    assert action_span(np.array(motion)) == span


def test_the_event_rule_lets_short_actions_through_and_is_kept_when_it_is_best() -> None:
    now_TK = np.zeros((20, 2))
    now_TK[:, 1] = 8.0
    now_TK[10:14] = [8.0, 0.0]  # 0.4 s at 10 frames/s
    shown = lesson("wave/0", "wave", "wave", 0)
    held_out = [HeldOut(replace(shown, started=10, ended=14), now_TK, now_TK)]
    strict = EventRule(min_duration_s=0.9)
    trained = contract(heads={"gesture": ("wave", "background")}, background="background", events=strict)
    rule = event_rule(trained, "gesture", held_out)
    assert rule == strict.model_copy(update={"min_duration_s": 0.2})
    unsure = [HeldOut(held_out[0].clip, now_TK * 0.04, now_TK * 0.04)]
    assert event_rule(trained, "gesture", unsure).open_above < strict.open_above
    assert event_rule(trained, "gesture", []) == strict
    busy_TK = np.tile([0.7, 0.0], (20, 1))  # idle footage that looks a little like a wave, 0.67
    idle = HeldOut(replace(shown, label="background", started=0, ended=0), busy_TK, busy_TK)
    stricter = event_rule(trained, "gesture", [*held_out, idle])
    assert max(stricter.open_above, stricter.min_score) > 0.67


@pytest.mark.parametrize(("before", "after", "least"), [
    ([0.5] * 4, [0.5] * 4, 0.0),                      # nothing would open: the own rule stays
    ([0.5, 0.5, 0.5, 0.9], [0.5, 0.5, 0.5, 0.99], 0.0),  # as many as before would
    ([0.5] * 4, [0.5, 0.5, 0.5, 0.96], 0.96),
    ([0.5] * 4, [0.5, 0.5, 0.5, 1.0], 0.9995),        # whatever the rule: then the strictest
])
def test_remembered_background_opens_no_more_events_than_before(before: list[float], after: list[float],
                                                                least: float) -> None:
    now_TK = np.zeros((20, 2))
    now_TK[:, 1] = 20.0
    now_TK[10:14] = [20.0, 0.0]
    held_out = [HeldOut(replace(lesson("wave/0", "wave", "wave", 0), started=10, ended=14), now_TK, now_TK)]
    own = EventRule(open_above=0.8, min_duration_s=0.2)
    trained = contract(heads={"gesture": ("wave", "background")}, background="background", events=own)
    rule = event_rule(trained, "gesture", held_out, BackgroundScores(np.float32(before), np.float32(after)))
    assert rule.open_above >= least
    assert (rule == own) == (least == 0.0)


def video(path: Path, label: str, seed: int) -> None:
    """One rendered gesture, with half a second before and after it."""
    simulation = Simulation(seed, size_hw=(72, 96), rate=15.0, labels=(label,), idle_s=(0.4, 0.8))
    span = simulation.spans(10.0)[0]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 15.0, (96, 72))
    assert writer.isOpened()
    for k in range(int((span.started_at - 0.5) * 15), int((span.ended_at + 0.5) * 15)):
        writer.write(simulation.frame(k))
    writer.release()


def six(path: Path) -> Path:
    """The bundled model without four of its labels, and without what it remembers of them."""
    model = load("gesture")
    labels = model.contract.heads["gesture"]
    kept = [i for i, label in enumerate(labels) if label not in ("star", "del", "carret", "circlecc")]
    tensors = model.tensors | {f"heads.gesture.{part}": model.tensors[f"heads.gesture.{part}"][kept]
                               for part in ("weight", "bias")}
    label_N = tensors["examples.gesture.facts"][:, 0].astype(int)
    for part in ("features", "facts"):
        tensors[f"examples.gesture.{part}"] = tensors[f"examples.gesture.{part}"][np.isin(label_N, kept)]
    tensors["examples.gesture.facts"][:, 0] = [kept.index(label) for label in label_N if label in kept]
    save(path, model.contract.model_copy(update={"heads": {"gesture": tuple(labels[i] for i in kept)}}), tensors)
    return path


@pytest.fixture(scope="module")
def classroom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base.safetensors, recordings to teach from in new/, clips of labels it knows in old/."""
    folder = tmp_path_factory.mktemp("classroom")
    six(folder / "base.safetensors")
    for part, labels in (("new", ("star", "circlecc")), ("old", ("left", "right", "up", "down", "square", "tick"))):
        for k, label in enumerate(labels):
            (folder / part / label).mkdir(parents=True)
            for i in range(3 if part == "new" else 1):
                video(folder / part / label / f"{i}.avi", label, seed=10 * k + i)
    return folder


@pytest.fixture(scope="module")
def taught(classroom: Path) -> Path:
    out = classroom / "taught.safetensors"
    teach_folder(str(classroom / "base.safetensors"), classroom / "new", out)
    return out


def clips(folder: Path) -> list[Segment]:
    return [Segment(path.stem, Media(path), labels={"gesture": path.parent.name})
            for path in sorted(folder.glob("*/*.avi"))]


def test_a_training_leaves_examples_of_late_moments_and_of_windows() -> None:
    torch.manual_seed(0)
    network = build("tsn-mobilenetv2", heads={"gesture": 2}, causal=True, input_size_hw=(32, 32)).eval()
    told = contract(heads={"gesture": ("wave", "nothing")}, background="nothing", input_size_hw=(32, 32),
                    cover_hw=(32, 32), clip_frames=2, window_clips=2)
    label = torch.tensor([[1] * 4 + [0] * 4 + [1] * 4])
    progress = torch.tensor([[0.0] * 4 + [0.25, 0.5, 0.75, 1.0] + [0.0] * 4])
    weight = torch.tensor([[1.0] * 8 + [0.0] * 2 + [1.0] * 2])
    pixels = torch.randint(0, 256, (1, 12, 32, 32, 3), dtype=torch.uint8)
    truth = Truth(label, progress, weight, label, torch.full((1, 12, 2), torch.nan))
    chunks = [Batch(pixels[:, at:at + 6], torch.tensor([at == 0]), Truth(*(c[:, at:at + 6] for c in truth)), ("",))
              for at in (0, 6)]
    tensors = exemplars.exemplars_from_streams(told, network, chunks, [(0,), (1,)])
    with torch.no_grad():
        frames = torch.from_numpy(normalise(pixels[0].numpy(), told))
        rows = network(frames[None], network.fresh_state(1))[0][0].numpy()
    now = {0: [6, 7], 1: [0, 1, 2, 3, 10, 11]}
    windows = {0: [(3, 6), (4, 7)], 1: [(0, 0), (0, 1), (0, 2), (0, 3), (8, 11)]}
    facts, features = tensors["examples.gesture.facts"], tensors["examples.gesture.features"]
    for kind, places in enumerate((now, windows)):
        for k in places:
            ends = [(t, t) if isinstance(t, int) else t for t in places[k]]
            expected = np.array([rows[first:last + 1].mean(axis=0) for first, last in ends])
            found = features[(facts[:, 0] == k) & (facts[:, 2] == kind)]
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_more_of_background_is_remembered_and_counts_more() -> None:
    label_N = np.repeat([0, 1, 2], [MAX_PER_LABEL, 3 * MAX_PER_LABEL, 2 * MAX_OF_BACKGROUND])
    ones_N, none_N = np.ones(len(label_N)), np.zeros(len(label_N), bool)
    examples = Examples(label_N[:, None].astype(float), np.eye(3)[label_N], ones_N, ones_N, -ones_N.astype(int), none_N)
    facts = exemplars.select_exemplars(examples, "gesture", background_index=2)["examples.gesture.facts"]
    assert np.bincount(facts[:, 0].astype(int)).tolist() == [MAX_PER_LABEL, MAX_PER_LABEL, MAX_OF_BACKGROUND]
    assert np.bincount(label_N).tolist() == pytest.approx(np.bincount(facts[:, 0].astype(int), facts[:, 1]))
    for share, wanted in ((1.0, MAX_BACKGROUND_FACTOR), (0.1, 0.1 * MAX_OF_BACKGROUND / MAX_PER_LABEL), (0.001, 1.0)):
        fewer = examples.select((label_N < 2) | (np.arange(len(label_N)) % round(1 / share) == 0))
        weight_K = np.bincount(fewer.target_NK.argmax(axis=1), _balance(fewer, 2).weight_N)
        assert weight_K == pytest.approx([2, 2, 2 * wanted], rel=0.01)


class TestFile:
    def test_it_recognises_what_it_was_shown_and_says_the_same_or_better_of_what_it_knew(self, classroom: Path,
                                                                               taught: Path) -> None:
        with Recognizer.open(taught, engine="eager", slots=1) as recognizer:
            assert evaluate_clips(recognizer, clips(classroom / "new")).accuracy() == 1
            after = evaluate_clips(recognizer, clips(classroom / "old"))
        with Recognizer.open(classroom / "base.safetensors", engine="eager", slots=1) as recognizer:
            before = evaluate_clips(recognizer, clips(classroom / "old"))
        now_N, then_N, truth_N = (np.array(part) for part in (
            after.first.answers_N, before.first.answers_N, after.first.truth_N))
        assert ((now_N == then_N) | (now_N == truth_N)).all()

    def test_weights_in_single_precision_stay_as_they_are(self, classroom: Path, tmp_path: Path) -> None:
        half = load(classroom / "base.safetensors")
        base, out = tmp_path / "base.safetensors", tmp_path / "taught.safetensors"
        save(base, half.contract, {name: value * np.float32(1.0001) for name, value in half.tensors.items()
                                   if not name.startswith("examples.")}, half=False)
        shutil.copytree(classroom / "new" / "star", tmp_path / "new" / "star")
        teach_folder(str(base), tmp_path / "new", out)
        before, after = load(base), load(out)
        assert not after.half
        assert all(np.array_equal(value, after.tensors[name]) for name, value in before.tensors.items()
                   if not name.startswith("heads."))
        for part in ("weight", "bias"):
            old, new = (model.tensors[f"heads.gesture.{part}"] for model in (before, after))
            assert np.array_equal(old, new[:len(old)])

    def test_every_engine_says_the_same(self, taught: Path) -> None:
        model = engines.load(taught)
        frames = probe_clip(model.contract)
        eager, other = (run_clip(engines.compile(model, engine=name), frames) for name in ("eager", "openvino"))
        assert compare(model.contract, eager, other).holds

    def test_the_command_writes_model_and_report(self, classroom: Path, tmp_path: Path,
                                                 capfd: pytest.CaptureFixture[str]) -> None:
        folder = tmp_path / "mine"
        shutil.copytree(classroom / "new" / "star", folder / "star")
        (folder / "star" / "broken.mp4").write_bytes(b"no video")
        (folder / "tap").mkdir()
        shutil.copy(classroom / "new" / "circlecc" / "0.avi", folder / "tap" / "one.avi")
        out, report = tmp_path / "my model.safetensors", tmp_path / "report.json"
        assert main(["teach", str(classroom / "base.safetensors"), str(folder), "--out", str(out), "--report",
                     str(report)]) == 0
        text = capfd.readouterr().out
        assert "broken.mp4" in text
        assert "'tap' has one recording" in text
        told = json.loads(report.read_text())
        assert told["recordings"] == {"star": 3, "tap": 1}
        assert [Path(path).name for path, _ in told["skipped"]] == ["broken.mp4"]
        assert load(out).contract.name == "my-model"
        assert load(out).contract.provenance["taught"][-1]["recordings"] == told["recordings"]


@pytest.mark.parametrize(("make", "error", "says"), [
    ({}, DatasetError, "no folder of a label"),
    ({"idle/a.avi": b"1"}, DatasetError, "no folder of a label"),
    ({"wave/note.txt": b"1"}, DatasetError, "wave, which has no recordings"),
    ({"wave/a.avi": b"1", "knock/b.avi": b"1"}, DatasetError, "b.avi"),
    ({"wave/a/1.png": b"1", "knock/b/1.png": b"1"}, DatasetError, "which are the same"),
])
def test_folders_that_teach_nothing(make: dict[str, bytes], error: type[GatestreamError], says: str,
                                    tmp_path: Path) -> None:
    for name, content in make.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error) as caught:
        find_videos(tmp_path, "background")
    assert says in str(caught.value)


def test_recordings_are_files_and_folders_of_images(tmp_path: Path) -> None:
    for name in ("wave/b.mp4", "wave/a/1.png", "wave/note.txt", "knock/1.jpg", "knock/2.jpg", "Idle/long.MKV"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "wave" / "copy.mp4").write_text("wave/b.mp4")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "desk.mp4").write_text("desk")
    shutil.move(tmp_path / "more", tmp_path / ".more")
    found = [(one.path.relative_to(tmp_path).as_posix(), one.label)
             for one in find_videos(tmp_path, "nothing", [tmp_path / ".more"])]
    assert found == [("Idle/long.MKV", "nothing"), ("knock", "knock"), ("wave/a", "wave"), ("wave/b.mp4", "wave"),
                     (".more/desk.mp4", "nothing")]


@pytest.mark.parametrize(("changes", "says"), [
    ({"folder": Path("nowhere")}, "nowhere: no such folder"),
    ({"idle": [Path("nowhere")]}, "nowhere: no such folder"),
    ({"head": "verb"}, "head 'verb'"),
    ({"model": "nobody"}, "model 'nobody'"),
])
def test_wrong_use(classroom: Path, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    arguments = {"model": str(classroom / "base.safetensors"), "folder": classroom / "new",
                 "out": tmp_path / "out.safetensors", "engine": "eager", **changes}
    with pytest.raises(UsageError) as caught:
        teach_folder(**arguments)
    assert says in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_label_without_a_readable_recording_is_refused(classroom: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "wave").mkdir(parents=True)
    (tmp_path / "mine" / "wave" / "a.mp4").write_bytes(b"no video")
    out = tmp_path / "out.safetensors"
    for strict, error, says in ((False, DatasetError, "'wave', of whose 1 recordings none"),
                                (True, SourceError, r"a\.mp4")):
        with pytest.raises(error, match=says):
            teach_folder(str(classroom / "base.safetensors"), tmp_path / "mine", out, engine="eager", strict=strict)
        assert not out.exists()


def test_an_output_that_cannot_be_written_is_told_at_once(classroom: Path, tmp_path: Path,
                                                          capfd: pytest.CaptureFixture[str]) -> None:
    for out in (tmp_path / "no" / "out.safetensors", tmp_path / "out.bin"):
        assert main(["teach", str(classroom / "base.safetensors"), str(classroom / "new"), "--out", str(out)]) in (1, 2)
        assert "error:" in capfd.readouterr().err


def test_training_can_leave_labels_out(classroom: Path) -> None:
    swipe = Segment("swipe", Media(classroom / "old" / "left" / "0.avi"), labels={"gesture": "left"})
    star = replace(swipe, id="star", labels={"gesture": "star"})
    gestures = Dataset("gestures", {"gesture": (*LABELS, "background")}, {"train": [swipe, star]},
                       mirrored={"gesture": MIRRORED}, reversed={"gesture": REVERSED}, background="background")
    labels = tuple(label for label in (*LABELS, "background") if label not in ("star", "tick"))
    assert without_labels(gestures, ("star", "tick")).heads == {"gesture": labels}
    data = without_labels(gestures, [label for label in LABELS if label not in ("left", "tick")])
    assert data.splits == {"train": [swipe]}
    sources = TrainingSources(data, frame_rate=7.5)
    stream = TrainingStream(sources, (72, 96), 7.5, np.random.default_rng(0), SectionShares(rendered=0.3))
    shown = {sources.truths[frame.label] for frame in islice(stream.frames(), 400)}
    assert shown == {(0,), (1,), (2,)}  # mirrored and reversed, the swipe would be "right"
    with pytest.raises(UsageError, match="wave"):
        without_labels(data, ["wave"])
