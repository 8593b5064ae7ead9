"""Pooled heads: their statistics, what lessons find in them, live use, and lessons measured on many splits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_lessons import RNG, D, T, action, lessons, model
from small_models import make_base

import engines
from engines.errors import DatasetError, ModelError, UsageError
from engines.model import pooling
from engines.model.file import Model, load, save
from engines.model.pooling import Foreground, PooledHead, StatisticsWindow, statistic_columns
from engines.networks.network import build
from engines.training.pooled_few_shot import _assign_folds, forget, teach_pooled
from engines.training.support_clips import SupportClip
from stream.commands.cli import main
from stream.recognizer import Recognizer
from stream.scoring import Scores
from stream.sinks.video import write_video
from stream.sources import open_path
from stream.teaching.measure import _last_scores, _split, measure_lessons
from stream.teaching.support_videos import STRETCH_TICKS, FeatureExtractor, SupportVideo, _Stretches
from stream.teaching.teach import teach_folder


def play(features_TD: np.ndarray[Any, Any], clip_frames: int = 2, clips: int = 6) -> StatisticsWindow:
    window = StatisticsWindow(clip_frames, clips, features_TD.shape[1])
    for features_D in features_TD.astype(np.float32):
        window.push(features_D)
    return window


@pytest.mark.parametrize(("ticks", "clips"), [(1, 6), (2, 6), (5, 6), (12, 6), (31, 6), (32, 2), (33, 4)])
def test_statistics_are_those_of_the_newest_frames(ticks: int, clips: int) -> None:
    rows_TD = RNG(ticks).uniform(0, 6, (ticks, D))
    got = play(rows_TD).statistics(clips)
    had = -(-ticks // 2)  # clips so far; the newest may be growing
    first = 2 * max(had - clips, 0)
    seen_TD, change_TD = rows_TD[first:], np.abs(np.diff(rows_TD, axis=0, prepend=rows_TD[:1]))[first:]
    count = min(had, clips)
    parts = [seen_TD[2 * (p * count // 4):2 * max((p + 1) * count // 4, p * count // 4 + 1)].mean(axis=0)
             - seen_TD.mean(axis=0) for p in range(4)]
    wanted = np.concatenate([seen_TD.mean(axis=0), seen_TD.std(axis=0), change_TD.mean(axis=0), *parts])
    np.testing.assert_allclose(got, wanted, atol=2e-3)


def test_what_left_the_window_and_what_was_before_a_reset_is_forgotten() -> None:
    first_TD, rows_TD = RNG(0).uniform(0, 6, (40, D)), RNG(1).uniform(0, 6, (40, D))
    fresh, long = play(rows_TD), play(np.concatenate([first_TD, rows_TD]))
    np.testing.assert_allclose(long.statistics(5), fresh.statistics(5), rtol=1e-4, atol=1e-3)
    long.reset()
    for row_D in rows_TD.astype(np.float32):
        long.push(row_D)
    np.testing.assert_array_equal(long.statistics(6), fresh.statistics(6))


def test_the_foreground_is_what_was_not_there_before() -> None:
    cells, channels = 4, 6
    still_CP = RNG(0).uniform(0, 6, (channels, cells)).astype(np.float32)
    foreground = Foreground(cells, channels * cells, ticks=10)
    for _ in range(40):
        found_P = foreground.push(np.concatenate([RNG(1).uniform(0, 6, 3).astype(np.float32), still_CP.ravel()]))
    np.testing.assert_allclose(found_P, 0, atol=1e-5)
    moved_CP = still_CP.copy()
    moved_CP[:, 2] += 1.0
    found_P = foreground.push(np.concatenate([np.zeros(3, np.float32), moved_CP.ravel()]))
    np.testing.assert_allclose(found_P, [0, 0, 0.9, 0], atol=1e-5)
    for _ in range(100):  # what stays becomes the background
        found_P = foreground.push(np.concatenate([np.zeros(3, np.float32), moved_CP.ravel()]))
    np.testing.assert_allclose(found_P, 0, atol=1e-3)
    foreground.reset()
    np.testing.assert_array_equal(foreground.push(np.concatenate([np.zeros(3, np.float32), still_CP.ravel()])), 0)


def test_columns_name_every_statistic_once() -> None:
    columns = np.concatenate([statistic_columns(one, *span, D)
                              for one in pooling.STATISTICS for span in ((0, 5), (5, D))])
    assert sorted(columns) == list(range(pooling.statistics_width(D)))
    rows_TD = np.zeros((8, D))
    rows_TD[:, 3] = 2
    mean_X = play(rows_TD).statistics(4)
    assert set(np.flatnonzero(mean_X)) == set(statistic_columns("mean", 3, 4, D))


def answer(taught: Any, rows_TD: np.ndarray[Any, Any]) -> str:
    contract = taught.contract
    window = play(rows_TD, contract.clip_frames, contract.window_clips)
    logits_K = PooledHead(contract, taught.tensors, "action", "window").logits(window.statistics(contract.window_clips))
    return str(contract.heads["action"][int(logits_K.argmax())])


@pytest.mark.parametrize("kind", ["mean", "change", "order"])
@pytest.mark.parametrize("idle", [0, 3])
def test_a_lesson_finds_what_tells_labels_apart(kind: str, idle: int) -> None:
    taught = teach_pooled(model(), lessons(kind, idle=idle), "action", "background")
    right = [answer(taught, action(kind, label, 9000 + i + 50 * label)) == f"label{label}"
             for label in range(3) for i in range(10)]
    assert np.mean(right) > 0.9
    assert taught.report.accuracy > 0.8
    weights = taught.contract.provenance["taught"][0]["views"]["window"]
    [weight] = [weight for view, weight in weights.items() if view.endswith(kind)]
    if idle:  # which is told from actions by others, too
        assert weight > 1 / len(weights)
    else:
        assert weight == max(weights.values())
    assert sum(weights.values()) == pytest.approx(1, abs=0.01)
    assert ("background" in taught.contract.heads["action"]) == bool(idle)
    assert taught.contract.background == ("background" if idle else None)


@pytest.mark.parametrize("kind", ["informative", "noise"])
def test_hands_are_looked_at_only_where_they_help(kind: str) -> None:
    hands = 4
    clips = []
    for k, clip in enumerate(lessons("mean")):
        hands_TH = RNG(k).standard_normal((T, hands))
        hands_TH += 3 * np.eye(hands)[int(clip.label[-1])] * (kind != "noise")
        seen_TD = clip.features_TD if kind == "noise" else RNG(900 + k).standard_normal((T, D))
        clips.append(replace(clip, features_TD=np.concatenate([seen_TD, hands_TH], axis=1).astype(np.float32)))
    taught = teach_pooled(model(hands), clips, "action", "background")
    assert taught.contract.pooling is not None
    assert taught.contract.pooling.hands == (0 if kind == "noise" else hands)
    width = pooling.statistics_width(D + taught.contract.pooling.hands)
    assert taught.tensors["pooled.action.now.weight"].shape == (3, width)
    assert taught.report.accuracy > 0.9
    learnt = Model(taught.contract, taught.tensors, "")
    right = [taught.contract.heads["action"][int(_last_scores(learnt, "action", clip).argmax())] == clip.label
             for clip in clips]
    assert np.mean(right) > 0.9


def test_edges_that_look_like_the_action_teach_no_background() -> None:
    taught = teach_pooled(model(), lessons("mean", edges=5), "action", "background")
    assert taught.contract.heads["action"] == ("label0", "label1", "label2")


def test_the_same_seed_gives_the_same_head() -> None:
    first, again = (teach_pooled(model(), lessons("change"), "action", "background", seed=3) for _ in range(2))
    for name, value in first.tensors.items():
        np.testing.assert_array_equal(value, again.tensors[name], err_msg=name)


@pytest.mark.parametrize(("clips", "wanted"), [
    (lessons("mean", each=1), 0), (lessons("mean", each=2), 6), (lessons("mean", each=5)[:6], 5),
    ([*lessons("mean"), *lessons("mean", labels=1, idle=1)], 15)])
def test_few_recordings_are_enough_to_learn_and_held_out_where_they_can_be(clips: Sequence[SupportClip],
                                                                          wanted: int) -> None:
    taught = teach_pooled(model(), clips, "action", "background")
    assert len({one.clip.recording for one in taught.held_out}) == wanted
    assert all(np.isfinite(value).all() for value in taught.tensors.values())


def test_windows_are_as_long_as_the_actions() -> None:
    none_TD = np.zeros((0, 0), np.float32)
    seconds = {}
    for ticks in (6, 40, 400):
        clips = [SupportClip(f"{label}/{i}", str(label), action("mean", label, i, ticks), none_TD, 0, ticks)
                 for label in range(2) for i in range(2)]
        found = teach_pooled(model(), clips, "action", "background").contract
        assert found.pooling is not None
        seconds[ticks] = found.window_clips * found.clip_frames / found.frame_rate
        assert found.pooling.now_clips <= found.window_clips
    assert seconds[6] == pytest.approx(1.5, abs=0.1)
    assert seconds[40] == pytest.approx(5, abs=0.3)
    assert seconds[400] == pytest.approx(10, abs=0.5)


# -- the network, the file, live use --

@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "base.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares that stand still on dark, on light, and that move, four recordings each by two persons."""
    root = tmp_path_factory.mktemp("recordings")
    for k, label in enumerate(("dark", "light", "moving")):
        for i in range(4):
            pictures = []
            for t in range(20):
                image = np.full((48, 64, 3), (20, 200, 90)[k], np.uint8)
                left = 4 + 2 * i + (2 * (t % 12) if label == "moving" else 0)
                image[10 + i:26 + i, left:left + 14] = (40 * i, 255 - 30 * i, 128)
                pictures.append(image)
            (root / label).mkdir(exist_ok=True)
            write_video(root / label / f"person{i % 2}_{i}.mp4",
                        ((t / 10, image) for t, image in enumerate(pictures)))
    return root


def test_features_hold_the_grid_of_the_middle_layer() -> None:
    network = build("tsn-mobilenetv2", heads={"a": 2}, causal=True, input_size_hw=(48, 64), middle_grid=3).eval()
    plain = build("tsn-mobilenetv2", heads={"a": 2}, causal=True, input_size_hw=(48, 64)).eval()
    plain.backbone.load_state_dict(network.backbone.state_dict())
    image = torch.rand(1, 1, 3, 48, 64)
    maps: list[torch.Tensor] = []
    assert network.backbone.middle is not None
    network.backbone.get_submodule(network.backbone.middle[0]).register_forward_hook(lambda *call: maps.append(call[2]))
    features, _ = network(image, ())
    assert features.shape[-1] == network.width == 1280 + 9 * 96 == 1280 + network.config.middle_features
    torch.testing.assert_close(features[..., :1280], plain(image, ())[0])
    torch.testing.assert_close(features[0, 0, 1280:].view(96, 3, 3),
                               torch.nn.functional.adaptive_avg_pool2d(maps[0], 3)[0])


def test_a_motion_branch_adds_features_and_changes_no_others() -> None:
    both = build("gsf-mobilenetv2", heads={"a": 2}, causal=True, input_size_hw=(48, 64), middle_grid=3, motion=True)
    both.eval()
    plain = build("tsn-mobilenetv2", heads={"a": 2}, causal=True, input_size_hw=(48, 64), middle_grid=3).eval()
    weights = both.backbone.state_dict()
    plain.backbone.load_state_dict({name: weights[name] for name in plain.backbone.state_dict()})
    images = torch.rand(2, 5, 3, 48, 64)
    features, state = both(images, both.fresh_state(2))
    wanted, _ = plain(images, ())
    motion = slice(1280, 1280 + both.config.motion_features)
    assert features.shape[-1] == both.width == plain.width + both.config.motion_features
    torch.testing.assert_close(torch.cat([features[..., :1280], features[..., motion.stop:]], -1), wanted)
    assert [tuple(leaf.shape[1:]) for leaf in state] == [spec.shape for spec in both.state_spec()]
    still = images[:, :1].expand_as(images)
    alone, _ = both(still[:, :1], both.fresh_state(2))
    assert not torch.allclose(both(still, both.fresh_state(2))[0][:, 4:, motion], alone[..., motion])  # it remembers


@pytest.mark.parametrize(("architecture", "options"), [
    ("tsn-resnet18", {"causal": True, "middle_grid": 3}), ("tsn-mobilenetv2", {"middle_grid": 3}),
    ("gsf-resnet18", {"causal": True, "motion": True}), ("gsf-mobilenetv2", {"motion": True})])
def test_features_of_a_middle_layer_are_refused_where_there_is_none(architecture: str, options: dict[str, Any]
                                                                    ) -> None:
    with pytest.raises(UsageError, match=r"middle_grid=.*motion="):
        build(architecture, heads={"a": 2}, **options)


@pytest.mark.parametrize("spoil", [
    lambda tensors: tensors.pop("pooled.action.now.weight"),
    lambda tensors: tensors.update({"pooled.action.now.weight": np.zeros((2, 5), np.float32)}),
    lambda tensors: tensors.update({"pooled.other.now.bias": np.zeros(2, np.float32)})])
def test_a_file_whose_pooled_heads_disagree_is_refused(base: Path, tmp_path: Path, spoil: Any) -> None:
    whole = load(base)
    tensors = dict(whole.tensors)
    spoil(tensors)
    save(tmp_path / "bad.safetensors", whole.contract, tensors)
    with pytest.raises(ModelError, match="pooled heads disagree"):
        load(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("engine", ["eager", "openvino"])
def test_live_scores_are_those_of_the_lesson(base: Path, folder: Path, tmp_path: Path, engine: str) -> None:
    result = teach_folder(str(base), folder, tmp_path / "m.safetensors", engine=engine)
    assert set(result.report.recordings) == {"dark", "light", "moving"}
    taught = load(tmp_path / "m.safetensors")
    contract = taught.contract
    assert contract.pooling is not None
    heard: list[Scores] = []
    with Recognizer.open(tmp_path / "m.safetensors", engine) as recognizer:
        recognizer.score_listeners["0"] = lambda at, steps, scores: heard.append(scores)
        with open_path(folder / "moving" / "person0_0.mp4") as source:
            for frame in source.frames():
                recognizer.push(frame.picture, frame.captured_at)
    compiled = engines.compile(taught, engine=engine, slots=1)
    clip, = FeatureExtractor(taught, compiled).extract(
        SupportVideo(folder / "moving" / "person0_0.mp4", "moving"), "x", "background")
    assert len(heard) == len(clip.features_TD) > 10
    window = StatisticsWindow(contract.clip_frames, contract.window_clips, clip.features_TD.shape[1])
    for features_D, scores in zip(clip.features_TD, heard, strict=True):
        window.push(features_D)
        for span, count, temperature, got in (
                ("now", contract.pooling.now_clips, contract.temperature, scores.now),
                ("window", contract.window_clips, contract.window_temperature, scores.window)):
            logits_K = taught.pooled_heads["action", span].logits(window.statistics(count)) / temperature["action"]
            wanted_K = np.exp(logits_K - logits_K.max())
            np.testing.assert_allclose(got["action"], wanted_K / wanted_K.sum(), atol=1e-4)
    compiled.close()


def test_what_was_taught_is_not_forgotten_unasked(base: Path, folder: Path, tmp_path: Path) -> None:
    teach_folder(str(base), folder, tmp_path / "m.safetensors", engine="eager")
    with pytest.raises(UsageError, match=r"knows .*dark.* but not their recordings"):
        teach_folder(str(tmp_path / "m.safetensors"), folder, tmp_path / "again.safetensors", engine="eager")
    assert not (tmp_path / "again.safetensors").exists()
    teach_folder(str(tmp_path / "m.safetensors"), folder, tmp_path / "again.safetensors", engine="eager", fresh=True)


@pytest.mark.parametrize("command", [["run", "sim://gestures?seconds=1", "--model"], ["evaluate"]])
def test_a_base_recognises_nothing_and_says_so(base: Path, folder: Path, command: list[str],
                                               capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, str(base), *([str(folder)] if command == ["evaluate"] else [])]) == 2
    assert "knows no action yet" in capsys.readouterr().err


def test_places_are_left_out_as_a_whole(base: Path, folder: Path, tmp_path: Path,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.safetensors"
    command = ["teach", str(base), str(folder), "--out", str(out), "--engine", "eager",
               "--report", str(tmp_path / "r.json")]
    assert main([*command, "--by", "person[0-9]"]) == 0
    said = capsys.readouterr().out
    assert "would help: idle footage" in said
    assert "another place" not in said
    for nobody in (command, [*command, "--by", "nobody[0-9]"]):
        assert main(nobody) == 0
        assert "would help: recordings at another place" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["advice"]
    for wrong, why in (("person[", "regular expression"), ("person", "leaves out each recording")):
        model = "gesture" if why.startswith("leaves") else str(base)
        assert main(["teach", model, str(folder), "--out", str(out), "--by", wrong, "--engine", "eager"]) != 0
        assert why in capsys.readouterr().err


def test_folds_keep_groups_together() -> None:
    clips = lessons("mean", labels=2, each=6)
    names = sorted(clip.recording for clip in clips)
    group_of = {name: name[-1] for name in names}
    fold_R = _assign_folds(clips, names, group_of, seed=1)
    assert all(len({int(f) for f, name in zip(fold_R, names, strict=True) if group_of[name] == group}) == 1
               for group in set(group_of.values()))
    alone_R = _assign_folds(clips, names, {}, seed=1)
    for label in "01":
        of_label = [int(f) for f, name in zip(alone_R, names, strict=True) if name.startswith(label)]
        assert len(set(of_label)) == 5


def test_hands_are_read_only_where_their_models_are(base: Path, monkeypatch: pytest.MonkeyPatch,
                                                    tmp_path: Path) -> None:
    whole = forget(load(base), "action", 94)
    save(tmp_path / "m.safetensors", whole.contract, whole.tensors)
    monkeypatch.setenv("GATESTREAM_HANDS", str(tmp_path))
    with pytest.raises(UsageError, match=r"palm_detection_lite\.tflite"):
        Recognizer.open(tmp_path / "m.safetensors", "eager")


def test_idle_footage_of_any_length_is_kept_in_evenly_spaced_stretches() -> None:
    kept = _Stretches(STRETCH_TICKS)
    for tick in range(100 * STRETCH_TICKS):
        kept.append((tick, None))  # type: ignore[arg-type]
    firsts = [ticks[0][0] for ticks in kept.kept]
    assert len(firsts) <= 8
    assert {len(ticks) for ticks in kept.kept} == {STRETCH_TICKS}
    assert len(set(np.diff(firsts))) == 1
    assert all(np.diff([at for at, _ in ticks]).max() == 1 for ticks in kept.kept)


# -- lessons measured --

def test_lessons_are_measured_on_what_they_were_not_shown(base: Path, folder: Path,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(base), str(folder), "--teach", "2", "--lessons", "2", "--by", "person[0-9]",
                 "--engine", "eager", "--no-hands"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["labels"] == ["dark", "light", "moving"]
    assert found["accuracy"]["mean"] > 0.6
    assert {name["clips"] for name in found["by_group"].values()} <= {6, 12}
    assert set(found["by_group"]) <= {"person0", "person1"}
    assert set(found["baselines"]) == {"mean, logistic regression", "thirds, logistic regression"}
    assert len(found["accuracy"]["each"]) == 2


def test_a_group_is_never_on_both_sides_of_a_split() -> None:
    label_of = {f"{label}/{person}_{i}": label for label in "ab" for person in range(5) for i in range(2)}
    group_of = {name: name.split("/")[1][0] for name in label_of}
    for seed in range(20):
        taught, tested = _split(label_of, group_of, ["a", "b"], 3, seed)
        assert not {group_of[name] for name in taught} & {group_of[name] for name in tested}
        assert [sum(label_of[name] == label for name in taught) for label in "ab"] == [3, 3]
        assert tested
    with pytest.raises(DatasetError, match="too few recordings"):
        _split(label_of, group_of, ["a", "b"], 11, 0)
    with pytest.raises(DatasetError, match="no recording left to test"):
        _split(label_of, group_of, ["a", "b"], 10, 0)


def test_measuring_wants_recordings_that_can_be_read(base: Path, tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.mp4").write_bytes(b"no video")
    with pytest.raises(DatasetError):
        measure_lessons(str(base), tmp_path, 2, 1, engine="eager")
