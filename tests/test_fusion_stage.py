"""Stage two on streams: windows are those that live use would hold, named by what they show; the file runs live."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_training import dataset  # noqa: F401

import engines
from engines.datasets.base import Dataset, Media, Segment
from engines.errors import DatasetError, UsageError
from engines.model.clip_fusion import GatedFusion
from engines.model.contract import NO_BACKGROUND_EVENTS
from engines.model.file import Model, load, save
from engines.networks.config import FusionRule
from engines.networks.network import build
from engines.synthetic import BACKGROUND, LABELS, Simulation
from engines.training.fusion_stage import FusionRecipe, Windows, _name, cache_windows, compare, fit, train
from engines.training.loss import UNKNOWN
from engines.training.sections import LabelledFrame
from engines.training.sources import TrainingSources
from engines.training.stream_loader import SectionShares, TrainingStream
from engines.training.train import Recipe, make_contract
from stream.commands.cli import main
from stream.frame import Prediction
from stream.recognizer import Recognizer
from stream.window import Window

CLIPS = 3
NO_RECORDING = Segment("none", Media(Path("none")), labels={"gesture": "left"})
GESTURES = TrainingSources(
    Dataset("gestures", {"gesture": (*LABELS, BACKGROUND)}, {"train": [NO_RECORDING]}, background=BACKGROUND),
    frame_rate=7.5, recorded=False)  # rendered hands only


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.manual_seed(0)
    recipe = Recipe(Path(), "", readout_width=16, without_fold=2)
    network = build("gsf-mobilenetv2", heads={"gesture": 11}, causal=True, input_size_hw=(72, 96), readout_width=16)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    save(path, make_contract(recipe, network, GESTURES), weights)
    return load(path)


def rendered(seed: int) -> Iterator[LabelledFrame]:
    stream = TrainingStream(GESTURES, (72, 96), 7.5, np.random.default_rng(seed), SectionShares()).sparse()
    return (frame._replace(label=GESTURES.truths[frame.label][0]) for frame in stream)


def shows(label: int, progress: float, gesture: int) -> LabelledFrame:
    return LabelledFrame(np.zeros((2, 2, 3), np.uint8), label, progress, gesture=gesture)


NOTHING = shows(10, 0.0, -1)


@pytest.mark.parametrize(("frames", "name"), [
    ([NOTHING], 10),
    ([NOTHING, shows(3, 0.5, 0), shows(3, 0.8, 0), NOTHING], 3),
    ([shows(3, 0.2, 0), shows(3, 0.6, 0)], None),                       # not enough of it
    ([shows(3, 0.9, 0), NOTHING, shows(4, 0.1, 1)], None),              # the next one has begun
    ([shows(3, 1.0, 0), NOTHING, shows(3, 1.0, 1)], None),              # the same twice
    ([NOTHING, shows(UNKNOWN, 1.0, 0)], None),                          # it has no label
])
def test_a_window_is_named_by_the_one_gesture_in_it(frames: list[LabelledFrame], name: int | None) -> None:
    assert _name(frames, background=10) == name


def test_windows_are_those_of_live_use(model: Model) -> None:
    windows = cache_windows(model, [rendered(3)], 12, CLIPS)
    assert len(windows.labels_N) == 12
    assert windows.counts_NC[:, :-1].min() == model.contract.clip_frames
    assert set(windows.counts_NC[:, -1]) > {model.contract.clip_frames}  # some still grow

    held: list[np.ndarray] = []

    class Watched:
        def project(self, clips_CD: np.ndarray) -> np.ndarray:
            return np.zeros((len(clips_CD), 0), np.float32)

        def fuse(self, clips_CD: np.ndarray, counts_C: np.ndarray,
                 projected_CX: object = None) -> tuple[np.ndarray, np.ndarray]:
            if len(clips_CD) == CLIPS:
                held.append(clips_CD.copy())
            return clips_CD[0], np.ones(len(clips_CD), np.float32)

    window = Window(model.contract.clip_frames, CLIPS, windows.clips_NCD.shape[2], Watched())
    engine = engines.compile(model, "eager")
    for frame in islice(rendered(3), 400):
        window.push(engine.step(frame.image_bgr[None], [0]).features[0])
    for clips_CD in windows.clips_NCD:
        assert min(float(np.abs(clips_CD - other).max()) for other in held) < 1e-4


def test_streams_that_end_are_named(model: Model) -> None:
    with pytest.raises(DatasetError, match="wanted 500 windows"):
        cache_windows(model, [islice(rendered(3), 60)], 500, CLIPS)


def test_fusion_finds_the_clip_that_matters_where_the_mean_cannot() -> None:
    rng = np.random.default_rng(0)

    def windows(count: int) -> Windows:
        labels_N = rng.integers(4, size=count)
        clips_NCD = rng.normal(0, 0.3, (count, 6, 16)).astype(np.float32)
        clips_NCD[..., 4] += 2  # idle, to which the head is strongly drawn
        for n, label in enumerate(labels_N):
            at = rng.integers(6)
            clips_NCD[n, at] = 0
            clips_NCD[n, at, label] = 2
        return Windows(clips_NCD, np.full((count, 6), 5), labels_N)

    head = np.eye(5, 16, dtype=np.float32), np.zeros(5, np.float32)
    right = compare(windows(400), windows(200), head)
    assert list(right) == ["central clip", "dense average", "+ fusion", "+ gate", "+ both"]
    assert right["dense average"] < 0.3
    assert min(right["+ gate"], right["+ fusion"], right["+ both"]) > 0.9
    same = windows(100)
    first, again = (fit(same, head, FusionRule(), seed=1) for _ in range(2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert GatedFusion(FusionRule(), first)


def clock(segment: Segment, rate: float, size_hw: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Pictures that are bright on the side that their segment names."""
    times_s = np.arange(segment.start_s, segment.stop_s or 0.0, 1 / rate)
    images = np.full((len(times_s), *size_hw, 3), 60, np.uint8)
    for here, side in zip(images, np.asarray(times_s // 2).astype(int) % 4, strict=True):
        here[:, :size_hw[1] // 2] += np.uint8(120 * (side == 1))
        here[:, size_hw[1] // 2:] += np.uint8(120 * (side == 3))
    return images, times_s


def test_any_dataset_with_time_between_its_actions_teaches_fusion(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def recording(name: str) -> list[Segment]:
        return [Segment(f"{name}{k}", Media(Path(name)), 2.0 + 4 * k, 4.0 + 4 * k,
                        {"verb": ("left", "right")[k % 2], "noun": "lamp"}) for k in range(6)]

    data = Dataset("lamps", {"verb": ("left", "right"), "noun": ("lamp",)},
                   {"train": recording("a"), "validation": recording("b")})
    sources = TrainingSources(data, frame_rate=5.0)
    heads = sources.heads
    network = build("gsf-mobilenetv2", heads={name: len(labels) for name, labels in heads.items()}, causal=True,
                    input_size_hw=(72, 96), readout_width=16)
    contract = make_contract(Recipe(Path(), "", readout_width=16), network, sources)
    init, out = tmp_path / "lamps.safetensors", tmp_path / "fused.safetensors"
    save(init, contract, {name: value.numpy() for name, value in network.state_dict().items()}, half=False)
    recipe = FusionRecipe(out, str(init), window_clips=CLIPS, windows=30)
    table = train(recipe, data, lambda _: None, clock)
    assert list(table) == ["central clip", "dense average", "+ fusion", "+ gate", "+ both"]
    assert load(out).contract.fusion == FusionRule()
    tensors = load(init).tensors
    assert all(np.array_equal(value, load(out).tensors[name]) for name, value in tensors.items())
    elsewhere = {"provenance": {"recipe": {"without_fold": 3, "without_labels": ["door"]}}}  # in another dataset
    save(init, contract.model_copy(update=elsewhere), tensors)
    train(recipe, data, lambda _: None, clock)
    assert "lamps has no fold 3" in caplog.text
    for update in ({"heads": {**heads, "noun": ("door", "background")}}, {"background": None}):
        save(init, contract.model_copy(update=update), tensors)
        with pytest.raises(UsageError, match="labels are not those"):
            train(recipe, data, lambda _: None, clock)


@pytest.mark.parametrize("untrimmed", [False, True])
def test_a_model_without_background_has_its_fusion(tmp_path: Path, untrimmed: bool) -> None:
    def segment(name: str, k: int) -> Segment:
        start_s, media = (2.0 + 4 * k, Media(Path(name))) if untrimmed else (0.0, Media(Path(f"{name}{k}")))
        return Segment(f"{name}{k}", media, start_s, start_s + 2.0, {"action": ("left", "right")[k % 2]})

    data = Dataset("lamps", {"action": ("left", "right")},
                   {"train": [segment("a", k) for k in range(6)], "validation": [segment("b", k) for k in range(6)]})
    sources = TrainingSources(data, frame_rate=5.0, names_background=False)
    assert sources.heads == data.heads
    network = build("gsf-mobilenetv2", heads={"action": 2}, causal=True, input_size_hw=(72, 96))
    contract = make_contract(Recipe(Path(), "", readout_width=0), network, sources)
    assert (contract.background, contract.events) == (None, NO_BACKGROUND_EVENTS)
    init, out = tmp_path / "lamps.safetensors", tmp_path / "fused.safetensors"
    save(init, contract, {name: value.numpy() for name, value in network.state_dict().items()}, half=False)
    table = train(FusionRecipe(out, str(init), window_clips=CLIPS, windows=30), data, lambda _: None, clock)
    assert list(table) == ["central clip", "dense average", "+ fusion", "+ gate", "+ both"]
    assert load(out).contract.fusion == FusionRule()
    engine = engines.compile(load(out), "eager")
    assert np.isfinite(engine.step(np.zeros((1, 72, 96, 3), np.uint8), [0]).features).all()


def test_windows_without_background_end_in_an_action_that_fills_half_of_them(model: Model) -> None:
    shown = [LabelledFrame(np.full((72, 96, 3), 20 * k, np.uint8), k % 2, (n + 1) / 8, gesture=k)
             for k in range(12) for n in range(8)]
    bare = Model(model.contract.model_copy(update={"background": None, "clip_frames": 4}), model.tensors, "")
    windows = cache_windows(bare, [iter(shown)], 12, CLIPS)
    frames_N = windows.counts_NC.sum(axis=1)
    assert windows.labels_N.tolist() == [k % 2 for k in range(12)]
    assert set(frames_N.tolist()) <= {6, 7, 8, 9, 10, 11, 12}
    assert len(set(frames_N.tolist())) > 2
    assert (windows.clips_NCD[windows.counts_NC == 0] == 0).all()
    with pytest.raises(DatasetError, match="wanted 500 windows"):
        cache_windows(bare, [iter(shown)], 500, CLIPS)


def test_the_command_writes_a_model_that_runs_live(
        dataset: Path, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    out = tmp_path / "fused.safetensors"
    command = ["train", str(dataset), "--stage", "fusion", "--init", str(model.path), "--out", str(out),
               "--idle", str(dataset / "idle"), "--windows", "30", "--window-clips", str(CLIPS)]
    assert main(command) == 0
    assert "wrote" in capsys.readouterr().out
    fused = load(out)
    assert fused.contract.fusion == FusionRule()
    assert fused.contract.window_clips == CLIPS
    assert fused.contract.provenance["fusion"]["windows"] == 30
    assert all(np.array_equal(value, fused.tensors[name]) for name, value in model.tensors.items())
    camera = Simulation(0, size_hw=(96, 128), rate=7.5)
    with Recognizer.open(str(out), engine="eager") as recognizer:
        items = [item for k in range(30) for item in recognizer.push(camera.frame(k), k / 7.5)]
    last = [item for item in items if isinstance(item, Prediction)][-1]
    assert len(last.clips) == CLIPS
    command[5] = str(out)
    assert main(command) == 2
    assert "which has it" in capsys.readouterr().err
    assert main([*command[:4], *command[6:]]) == 2
    assert "imagenet" in capsys.readouterr().err
