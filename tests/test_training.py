"""Training: a run ends in a model file, a killed run goes on, starting weights are mapped."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import engines
from engines.datasets import egogestar
from engines.datasets.base import Media, Segment
from engines.datasets.frame_cache import read_frames
from engines.datasets.selection import select
from engines.errors import DatasetError, ModelError, UsageError
from engines.model.file import bundled
from engines.model.preprocess import normalise
from engines.networks.mobilenetv2 import STAGES, MobileNetV2
from engines.networks.network import SQUASHED, Network, build
from engines.synthetic import BACKGROUND, LABELS, Simulation
from engines.training import stream_task
from engines.training.initialisation import load_pretrained
from engines.training.loop import Progress
from engines.training.loss import UNKNOWN, Truth, frame_loss, tip_loss, window_loss
from engines.training.official_recipe import middle_frames
from engines.training.sources import TrainingSources
from engines.training.stream_task import StreamTask, subsample_depthwise
from engines.training.temperature import temperature
from engines.training.train import Recipe, open_streams, resolve_defaults, train
from stream.commands.cli import main


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset of rendered clips in EgoGestAR's layout, with idle footage and starting weights beside it."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "clips").mkdir()
    (folder / "idle").mkdir()
    rows = []
    for i, label in enumerate([*LABELS, egogestar.UNCLASSIFIED]):
        name = f"clips/{label}_001.avi"
        _video(folder / name, seed=i)
        rows.append({"file": name, "label": label, "source": "head", "fold": 1 + i % 2})
    _video(folder / "idle" / "work.avi", seed=99)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    torch.manual_seed(0)
    network = build("tsn-mobilenetv2", heads={"gesture": 11}, causal=True, input_size_hw=(72, 96))
    save_file(network.backbone.state_dict(), folder / "weights.safetensors")
    return folder


def _video(path: Path, seed: int, frames: int = 16) -> None:
    simulation = Simulation(seed, size_hw=(96, 128))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (128, 96))
    assert writer.isOpened()
    for k in range(frames):
        writer.write(simulation.frame(k))
    writer.release()


def learn(how: Recipe, dataset: Path, progress: Progress = lambda _, __: None) -> Network:
    return train(how, egogestar.read(dataset), lambda _: None, progress)


def recipe(dataset: Path, out: Path, **changes: object) -> Recipe:
    arguments = {"out": out, "init": str(dataset / "weights.safetensors"),
                 "idle": (dataset / "idle",), "iterations": 4, "rows": 2, "chunk": 6, "readout_width": 8, "workers": 0,
                 "checkpoint_every": 2, "trimmed_first": 0} | changes
    return Recipe(**arguments)  # type: ignore[arg-type]


def test_a_run_ends_in_a_model_file_that_live_use_can_load(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "trained.safetensors"
    seen: list[int] = []
    network = learn(recipe(dataset, out, without_fold=2), dataset, lambda i, _: seen.append(i))
    assert seen == [1, 2, 3, 4]
    assert {path.name for path in out.with_suffix(".run").iterdir()} == {"config.json", "metrics.csv", "curves.png"}
    model = engines.load(out)
    assert model.contract.heads == {"gesture": (*LABELS, BACKGROUND)}
    assert model.contract.provenance["recipe"]["without_fold"] == 2
    assert 10 in model.tensors["examples.gesture.facts"][:, 0]  # of background at least, after so few streams
    frames = torch.zeros(1, 3, 3, 72, 96)
    with torch.no_grad():
        trained, _ = network(frames, network.fresh_state(1))
        loaded, _ = model.network(frames, model.network.fresh_state(1))
    assert (trained - loaded).abs().max() < 2e-2  # stored as float16


def test_the_same_seed_gives_the_same_weights(dataset: Path, tmp_path: Path) -> None:
    outs = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for out in outs:
        learn(recipe(dataset, out), dataset)
    assert engines.load(outs[0]).digest == engines.load(outs[1]).digest


class KilledError(Exception):
    """What ends a run in the middle."""


def die(iteration: int, _: dict[str, float]) -> None:
    if iteration == 3:
        raise KilledError


def test_a_killed_run_goes_on_from_its_checkpoint(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    with pytest.raises(KilledError):
        learn(recipe(dataset, out), dataset, die)
    assert not out.exists()
    seen: list[int] = []
    learn(recipe(dataset, out), dataset, lambda i, _: seen.append(i))
    assert seen == [3, 4]
    assert out.exists()


def test_streams_may_come_after_whole_gestures(dataset: Path, tmp_path: Path) -> None:
    how = recipe(dataset, tmp_path / "model.safetensors", trimmed_first=1, iterations=2, checkpoint_every=1)
    seen: list[int] = []
    learn(how, dataset, lambda i, _: seen.append(i))
    assert seen == [1, 2, 3]
    assert engines.load(how.out).contract.window_clips == 4
    assert engines.load(how.out).contract.network.readout_width == 8
    first = engines.load(how.out.with_suffix(".run") / "trimmed.safetensors").contract.provenance["recipe"]
    assert (first["trimmed"], first["iterations"], first["readout_width"]) == (Recipe.trimmed_first_frames, 1, 0)
    assert first["trimmed_idle"] == Recipe.trimmed_first_idle

    again = replace(how, out=tmp_path / "again.safetensors")
    with pytest.raises(KilledError):
        learn(again, dataset, die)
    seen.clear()
    learn(again, dataset, lambda i, _: seen.append(i))
    assert seen == [3]
    one, other = (engines.load(out).tensors for out in (how.out, again.out))
    assert all(np.array_equal(one[name], other[name]) for name in one)

    seen.clear()
    learn(replace(again, seed=1), dataset, lambda i, _: seen.append(i))
    assert seen == [1, 2, 3]  # what another recipe has learnt is not taken
    weights = tmp_path / "others.safetensors"
    weights.write_bytes(Path(how.init).read_bytes())
    seen.clear()
    learn(replace(again, seed=1, init=str(weights)), dataset, lambda i, _: seen.append(i))
    assert seen == [1, 2, 3]  # nor what was learnt from other weights


@pytest.mark.parametrize(("changes", "steps"), [
    ({}, 30), ({"iterations": 4}, 1), ({"trimmed_first": 7}, 7), ({"trimmed_first": 0}, 0), ({"trimmed": 4}, 0),
    ({"causal": False, "readout_width": 0}, 0), ({"init": str(bundled()["gesture"])}, 0)])
def test_streams_come_after_a_third_as_many_steps_on_whole_gestures(dataset: Path, tmp_path: Path,
                                                                    changes: dict[str, object], steps: int) -> None:
    how = recipe(dataset, tmp_path / "model.safetensors", **{"trimmed_first": None, "iterations": 90, **changes})
    assert resolve_defaults(how).trimmed_first == steps


@pytest.mark.parametrize(("changes", "after"), [({"trimmed": 4}, "whole actions"),
                                                ({"causal": False, "readout_width": 0}, "bidirectional clips")])
def test_whole_gestures_come_before_causal_streams_only(dataset: Path, tmp_path: Path, changes: dict[str, object],
                                                        after: str) -> None:
    with pytest.raises(UsageError, match=f"whole actions before {after}"):
        learn(recipe(dataset, tmp_path / "model.safetensors", trimmed_first=1, **changes), dataset)


@pytest.mark.parametrize(("width", "begins_with_answers"), [(24, True), (8, False)])
def test_a_readout_that_is_added_begins_as_a_running_mean_of_the_answers(width: int, begins_with_answers: bool) -> None:
    torch.manual_seed(0)
    network = build("tsn-mobilenetv2", heads={"verb": 6, "noun": 5}, causal=True, input_size_hw=(40, 56)).eval()
    with torch.no_grad():
        for head in network.heads.values():
            head.weight.normal_(0, 0.3)  # type: ignore[operator, union-attr]
        features = torch.rand(4, 1, network.width).repeat(1, 60, 1)  # what stays the same for long is its own mean
        before = network.scores(features[:, 0])
        network.add_readout(width)
        assert network.memory is not None
        after = network.scores(network.memory(features, (torch.zeros(4, width),))[0][:, -1])
    assert [leaf.name for leaf in network.state_spec()] == ["memory"]
    for name, logits in before.items():
        squashed = torch.tanh(SQUASHED * logits) / SQUASHED
        assert bool((after[name] - squashed).abs().max() < 0.2) == begins_with_answers


def test_a_foreign_checkpoint_is_refused(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "model.run").mkdir()
    (tmp_path / "model.run" / "checkpoint.pt").write_bytes(b"nothing of ours")
    with pytest.raises(ModelError, match="remove it"):
        learn(recipe(dataset, tmp_path / "model.safetensors"), dataset)


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"manifest\.csv"):
        egogestar.read(tmp_path)
    (tmp_path / "manifest.csv").write_text("file,label,source,fold\nclips/gone.mp4,left,head,1\n")
    with pytest.raises(DatasetError, match=r"gone\.mp4"):
        egogestar.read(tmp_path)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(DatasetError, match=r"broken\.mp4"):
        read_frames(Segment("broken", Media(tmp_path / "broken.mp4")), 5.0, (48, 64))


def test_strokes_stored_twice_in_a_row_are_drawn_once(tmp_path: Path) -> None:
    stroke = np.linspace(0, 100, 20, dtype=np.float32).reshape(10, 2)
    points = np.concatenate([stroke, stroke, stroke])
    np.savez(tmp_path / "strokes.npz", points_xy=points, offsets=np.array([0, 20, 30]),
             label=np.array(["left", "left"]), split=np.array(["train", "train"]))
    assert [len(one) for one in egogestar.read_strokes(tmp_path / "strokes.npz")["left"]] == [10, 10]


def test_strokes_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "strokes.npz"
    np.savez(path, points_xy=np.zeros((9, 2)), offsets=np.array([0]), label=np.array(["left"]), split=["train"])
    for content in (b"no numbers", path.read_bytes()[:100], path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=r"strokes\.npz"):
            egogestar.read_strokes(path)


def test_networks_are_compared_on_trimmed_gestures(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "trimmed.safetensors"
    how = recipe(dataset, out, trimmed=4, readout_width=0, causal=False, without_fold=2, validate_every=4,
                 precision="f32")
    network = learn(how, dataset)
    assert network.segments == 4
    with (out.with_suffix(".run") / "metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    kept = engines.load(out).contract
    right, losses = [], []
    for clip in egogestar.read(dataset).splits["train"]:
        label = clip.labels["gesture"]
        if clip.group == "2" and label in LABELS:
            images, _ = read_frames(clip, 10.0, how.input_size_hw)
            pixels = normalise(images[middle_frames(len(images), 4)], kept)
            with torch.no_grad():
                logits = engines.clip_scores(network, torch.from_numpy(pixels)[None])["gesture"][0]
            right.append(int(logits.argmax()) == LABELS.index(label))
            losses.append(-float(logits.log_softmax(0)[LABELS.index(label)]))
    assert float(row["validation accuracy"]) == pytest.approx(np.mean(right))
    assert float(row["validation loss"]) == pytest.approx(np.mean(losses), abs=1e-3)
    assert (kept.clip_frames, kept.window_clips, kept.provenance["recipe"]["trimmed"]) == (4, 1, 4)
    with pytest.raises(UsageError, match="a validation without anything left out"):
        learn(replace(how, out=tmp_path / "all.safetensors", without_fold=0), dataset)


def truth(label: list[int], progress: list[float], gesture: list[int]) -> Truth:
    tip = torch.full((1, len(label), 2), float("nan"))
    weight = torch.ones(1, len(label))
    return Truth(torch.tensor([label]), torch.tensor([progress]), weight, torch.tensor([gesture]), tip)


def test_early_in_a_gesture_any_gesture_will_do_and_late_only_its_own() -> None:
    right, other, idle = (10.0 * torch.nn.functional.one_hot(torch.tensor([[k]]), 3).float() for k in (0, 1, 2))
    early, late = truth([0], [0.1], [0]), truth([0], [1.0], [0])
    assert torch.isclose(frame_loss(right, early, 2, 0.0).mean, frame_loss(other, early, 2, 0.0).mean)
    assert frame_loss(idle, early, 2, 0.0).mean > 5
    assert frame_loss(other, late, 2, 0.0).mean > 5
    assert frame_loss(right, late, 2, 0.0).mean < 0.01


def test_a_label_that_is_not_known_costs_nothing_and_a_head_without_background_asks_for_labels_only() -> None:
    wrong = 10.0 * torch.nn.functional.one_hot(torch.tensor([[1, 1]]), 3).float()
    half = truth([UNKNOWN, 0], [1.0, 1.0], [0, 1])
    for background in (None, 2):
        assert torch.isclose(frame_loss(wrong, half, background, 0.0).mean, torch.tensor(10.0), atol=0.01)
    assert window_loss(wrong, half).divisor == 1
    assert frame_loss(wrong, truth([UNKNOWN] * 2, [1.0] * 2, [0] * 2), 2).mean == 0
    assert frame_loss(wrong[:, :1], truth([0], [0.1], [0]), None).mean == 0


def test_the_window_is_asked_only_once_most_of_a_gesture_is_seen() -> None:
    wrong = 10.0 * torch.nn.functional.one_hot(torch.tensor([[1, 1, 1, 1]]), 3).float()
    assert float(window_loss(wrong, truth([0] * 4, [0.1, 0.2, 0.3, 0.4], [0] * 4)).mean) == 0
    assert float(window_loss(wrong, truth([0] * 4, [0.4, 0.6, 0.8, 1.0], [0] * 4)).mean) > 5
    assert float(window_loss(wrong, truth([2] * 4, [0.0] * 4, [-1] * 4)).mean) == 0


def test_the_helper_is_right_where_the_heat_is() -> None:
    tip = torch.tensor([[[0.75, 0.25], [0.75, 0.25]]])
    heat = torch.full((1, 2, 2, 2), -20.0)
    heat[..., 0, 1] = 20.0
    guess = torch.tensor([[[0.75, 0.25, 0, 0], [0.75, 0.25, 0, 0]]])
    target = truth([0, 0], [1.0, 1.0], [0, 0])._replace(tip_xy=tip)
    assert max(float(term.mean) for term in tip_loss(heat, guess, target).values()) < 1e-6
    assert float(tip_loss(-heat, guess, target)["heat"].mean) > 0.1
    nowhere = target._replace(tip_xy=torch.full_like(tip, float("nan")))
    assert {float(term.mean) for term in tip_loss(heat, guess, nowhere).values()} == {0.0}


def test_dense_depthwise_convolutions_give_the_same_numbers() -> None:
    torch.manual_seed(0)
    network = build("tsn-mobilenetv2", heads={"a": 2}, causal=True, input_size_hw=(48, 64)).eval()
    frames = torch.randn(1, 1, 3, 48, 64)
    with torch.no_grad():
        before, _ = network(frames, ())
        subsample_depthwise(network)
        after, _ = network(frames, ())
    assert (before - after).abs().max() < 1e-5


def test_timm_weights_with_batch_norm_give_the_same_network_as_folded_ones(tmp_path: Path) -> None:
    """A file with timm's names, made here: its batch norms are drawn so that folding must matter."""
    torch.manual_seed(1)
    state: dict[str, torch.Tensor] = {}

    def add(conv: str, norm: str, *shape: int) -> None:
        state[f"{conv}.weight"] = torch.randn(*shape) * 0.1
        for leaf, value in (("weight", torch.rand(shape[0]) + 0.5), ("bias", torch.randn(shape[0]) * 0.1),
                            ("running_mean", torch.randn(shape[0]) * 0.1), ("running_var", torch.rand(shape[0]) + 0.5)):
            state[f"{norm}.{leaf}"] = value

    add("conv_stem", "bn1", 32, 3, 3, 3)
    inputs = 32
    for stage, (expansion, outputs, blocks, _) in enumerate(STAGES):
        for index in range(blocks):
            block, hidden = f"blocks.{stage}.{index}", inputs * expansion
            if expansion == 1:
                add(f"{block}.conv_dw", f"{block}.bn1", hidden, 1, 3, 3)
                add(f"{block}.conv_pw", f"{block}.bn2", outputs, hidden, 1, 1)
            else:
                add(f"{block}.conv_pw", f"{block}.bn1", hidden, inputs, 1, 1)
                add(f"{block}.conv_dw", f"{block}.bn2", hidden, 1, 3, 3)
                add(f"{block}.conv_pwl", f"{block}.bn3", outputs, hidden, 1, 1)
            inputs = outputs
    add("conv_head", "bn2", 1280, inputs, 1, 1)
    path = tmp_path / "timm.safetensors"
    save_file(state, path)
    network = build("tsn-mobilenetv2", heads={"a": 2}, causal=True, input_size_hw=(48, 64)).eval()
    load_pretrained(network, path)
    image = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        stem = torch.nn.functional.conv2d(image, state["conv_stem.weight"], stride=2, padding=1)
        stem = torch.nn.functional.batch_norm(stem, state["bn1.running_mean"], state["bn1.running_var"],
                                              state["bn1.weight"], state["bn1.bias"])
        ours = network.backbone.features[0][0](image)
    assert (stem - ours).abs().max() < 1e-4
    assert set(MobileNetV2.imagenet_state(state)) >= set(network.backbone.state_dict())


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 2.5])
def test_temperature_is_found_again(true_temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4000, 5))
    odds = np.exp(logits)
    answers = [int(rng.choice(5, p=row / row.sum())) for row in odds]
    scored = [(row.astype(np.float32), answer) for row, answer in zip(logits * true_temperature, answers, strict=True)]
    assert temperature(scored) == pytest.approx(true_temperature, rel=0.08)
    assert temperature([]) == 1.0


def test_what_is_left_out_calibrates(dataset: Path, tmp_path: Path) -> None:
    told = recipe(dataset, tmp_path / "told.safetensors", iterations=1, temperature=1.7, window_temperature=0.6)
    learn(told, dataset)
    contract = engines.load(told.out).contract
    assert (contract.temperature, contract.window_temperature) == ({"gesture": 1.7}, {"gesture": 0.6})
    fitted = recipe(dataset, tmp_path / "fitted.safetensors", iterations=1, without_fold=1, temperature=1.7,
                    idle_without=("work",), idle=(dataset / "idle",))
    (dataset / "idle" / "more.avi").write_bytes((dataset / "idle" / "work.avi").read_bytes())
    learn(fitted, dataset)
    assert engines.load(fitted.out).contract.temperature["gesture"] != 1.7


def test_all_idle_videos_may_be_left_out(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "idle").mkdir()
    shutil.copy(dataset / "idle" / "work.avi", tmp_path / "idle" / "work.avi")
    how = recipe(dataset, tmp_path / "model.safetensors", iterations=1, idle=(tmp_path / "idle",),
                 idle_without=("work",))
    reports: list[str] = []
    train(how, egogestar.read(dataset), reports.append)
    assert "calibrating on 1 recordings that were left out" in reports
    assert engines.load(how.out).contract.temperature["gesture"] != 1.0


def test_a_folder_for_each_class_gets_the_recipe_of_the_bundled_model(
        dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label, recording in (("left", "left_001"), ("knock", "star_001")):
        for k in range(2):
            (tmp_path / "mine" / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(dataset / "clips" / f"{recording}.avi", tmp_path / "mine" / label / f"{label}{k}.avi")
    out = tmp_path / "mine.safetensors"
    options = {"out": out, "init": dataset / "weights.safetensors", "idle": dataset / "idle", "iterations": 1,
               "trimmed-first": 1, "batch": 2, "readout-width": 8, "workers": 0}
    assert main(["train", str(tmp_path / "mine"), *(f"--{name}={value}" for name, value in options.items())]) == 0
    assert "rendered hands draw left" in capsys.readouterr().out.replace("\n", " ")
    contract = engines.load(out).contract
    assert contract.heads == {"action": ("knock", "left", BACKGROUND)}
    assert (contract.background, contract.events, contract.name) == (BACKGROUND, Recipe.gesture_events, "mine")
    assert contract.temperature["action"] != 1.0  # of each class a recording was left out
    assert (out.with_suffix(".run") / "trimmed.safetensors").exists()


def test_a_bidirectional_network_is_trained_and_used_on_whole_chunks(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "trained.safetensors"
    learn(recipe(dataset, out, causal=False, readout_width=0, without_fold=2), dataset)
    contract = engines.load(out).contract
    assert (contract.network.causal, contract.network.segments) == (False, 6)
    assert (contract.receptive_frames, contract.clip_frames, contract.window_clips) == (6, 6, 1)
    assert engines.load(out).network.segments == 6


def test_modules_may_start_as_published_and_look_elsewhere(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "trained.safetensors"
    network = learn(recipe(dataset, out, iterations=1, past_shift=1, transparent=False), dataset)
    assert engines.load(out).contract.network.past_shift == 1
    gate = network.get_parameter("temporal.features_9.conv3D.weight")
    assert float(gate.detach().abs().mean()) > 0.005  # drawn at random, where a transparent one starts from nothing


def test_frozen_steps_are_computed_apart_to_the_same_end(dataset: Path, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(name: str, **changes: object) -> dict[str, torch.Tensor]:
        how = recipe(dataset, tmp_path / f"{name}.safetensors", iterations=2, precision="f32", **changes)
        return learn(how, dataset).state_dict()

    apart, loose = trained("apart"), trained("loose", frozen_layers=0)
    monkeypatch.setattr(StreamTask, "_early", lambda self, frames: frames)
    monkeypatch.setattr(stream_task, "split", lambda network: (0, frozen_first(network)))
    whole = trained("whole")
    for name, value in whole.items():
        torch.testing.assert_close(apart[name], value, rtol=1e-4, atol=1e-5)
    stem = next(name for name in whole if name.endswith("weight"))
    assert not torch.equal(loose[stem], whole[stem])


def frozen_first(network: Network) -> torch.Tensor:
    return torch.zeros(1, 3, *network.input_size_hw)


def test_rendered_only_takes_no_label_from_recordings(dataset: Path, tmp_path: Path) -> None:
    how = recipe(dataset, tmp_path / "trained.safetensors", rendered_only=True)
    data = select(egogestar.read(dataset), idle=how.idle)
    sources = TrainingSources(data, frame_rate=how.frame_rate, recorded=False)
    assert (len(sources.actions), len(sources.idle)) == (0, 0)
    without_idle = TrainingSources(egogestar.read(dataset), frame_rate=how.frame_rate, recorded=False)
    assert len(sources.places) > len(without_idle.places) > len(LABELS)
    for recipe_, quiet in ((how, Recipe.background_loss_weight), (replace(how, rendered_only=False), 1.0)):
        frames = islice(open_streams(recipe_, sources, (72, 96))(0, 0, np.random.default_rng(0)), 300)
        weights = {(frame.label == sources.background, frame.weight) for frame in frames}
        assert weights == {(False, 1.0), (True, 0.0), (True, quiet)}
