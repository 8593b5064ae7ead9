"""Laws of a bidirectional model on a stream: its scores are the clip's, on schedule, and the run command shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from small_models import SIZE_HW, make_model
from test_cli import one_line

import engines
import engines.bench.doctor as doctor_module
from engines.errors import EngineError, UsageError
from engines.model.file import Model, save
from engines.model.preprocess import normalise, prepare
from engines.model.scores import probabilities
from engines.runtime.parity import probe_clip, run_clip
from engines.runtime.windowed import WindowedEngine, split
from stream.commands.cli import main
from stream.frame import Prediction
from stream.recognizer import Recognizer


def scored(count: int, segments: int, hop: int) -> int:
    """How many frames the stream had when the scores after `count` frames were computed."""
    while count > 1 and (count - segments) % hop:
        count -= 1
    return count


@pytest.mark.parametrize(("architecture", "sites", "segments", "hop"), [
    ("gsf-mobilenetv2", None, 6, 1), ("gsf-mobilenetv2", ["features_3", "features_16"], 5, 2),
    ("gsm-mobilenetv2", None, 8, 3), ("tsm-mobilenetv2", None, 4, 4), ("stsm-mobilenetv2", None, 4, 2),
    ("tsn-mobilenetv2", None, 4, 1), ("gsm-resnet18", None, 4, 2), ("tsm-resnet18", ["layer1_1_input"], 4, 2),
    ("gsm-bninception", ["conv1_7x7_s2"], 3, 2)])
def test_scores_are_the_clips_on_exactly_the_last_frames(tmp_path: Path, architecture: str, sites: list[str] | None,
                                                         segments: int, hop: int) -> None:
    model = make_model(tmp_path, architecture, causal=False, segments=segments, hop=hop,
                       size_hw=(64, 96) if "inception" in architecture else SIZE_HW,
                       **({"sites": sites} if sites else {}))
    frames = probe_clip(model.contract, 2 * segments + 3)
    network = model.network.double()
    engine = WindowedEngine(network, model.contract, slots=1)
    clip = torch.from_numpy(normalise(frames, model.contract)).double()
    for head, got in run_clip(engine, frames).scores.items():
        for t in range(len(frames)):
            end = scored(t + 1, segments, hop)
            with torch.no_grad():
                wanted = engines.clip_scores(network, clip[None, max(0, end - segments):end])[head][0].numpy()
            np.testing.assert_allclose(got[t], wanted, rtol=1e-6, atol=1e-6)  # float64, given out as float32


def test_in_single_precision_too(tmp_path: Path) -> None:
    model = make_model(tmp_path, causal=False, segments=4)
    frames = probe_clip(model.contract, 9)
    clip = torch.from_numpy(normalise(frames, model.contract))
    got = run_clip(engines.compile(model, "eager"), frames).scores["gesture"]
    with torch.no_grad():
        wanted = engines.clip_scores(model.network, clip[None, -4:])["gesture"][0].numpy()
    np.testing.assert_allclose(got[-1], wanted, atol=1e-3 * np.abs(wanted).max())
    assert np.abs(got[4:] - got[4]).max() > 1e-2 * np.abs(wanted).max()  # the window moves the scores


@pytest.mark.parametrize(("segments", "hop", "renewed"), [
    (4, None, list(range(1, 13))), (8, None, [1, 2, 4, 6, 8, 10, 12]), (8, 3, [1, 2, 5, 8, 11]),
    (5, 5, [1, 5, 10]), (1, None, list(range(1, 13)))])
def test_scores_are_renewed_on_schedule_and_repeated_in_between(tmp_path: Path, segments: int, hop: int | None,
                                                                renewed: list[int]) -> None:
    model = make_model(tmp_path, "tsm-mobilenetv2", causal=False, segments=segments)
    frames = np.random.default_rng(0).integers(0, 255, (12, *SIZE_HW, 3), dtype=np.uint8)
    scores = run_clip(engines.compile(model, hop=hop), frames).scores["gesture"]
    assert [1, *(t + 1 for t in range(1, 12) if not np.array_equal(scores[t], scores[t - 1]))] == renewed
    assert renewed == sorted({scored(t, segments, hop or max(1, segments // 4)) for t in range(1, 13)})


@pytest.mark.parametrize(("architecture", "options", "steps_before"), [
    ("gsf-mobilenetv2", {}, 9), ("tsm-mobilenetv2", {"sites": ["features_6_input"]}, 6), ("tsn-mobilenetv2", {}, 20),
    ("gsm-bninception", {}, 3), ("gsf-resnet18", {}, 1)])
def test_what_comes_before_the_first_module_runs_once_a_frame(architecture: str, options: dict[str, Any],
                                                              steps_before: int) -> None:
    network = engines.build(architecture, heads={"a": 2}, input_size_hw=(64, 64), **options)
    assert split(network)[0] == steps_before


def test_cost_falls_with_the_hop_and_state_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(tmp_path, causal=False, segments=8)
    made = {hop: engine for hop in (1, 2, 8) if isinstance(engine := engines.compile(model, hop=hop), WindowedEngine)}
    dear, half, cheap = (made[hop].cost for hop in (1, 2, 8))
    assert 8 > dear > half > cheap == pytest.approx(1)
    assert dear - 1 == pytest.approx((half - 1) * 7 / 3)  # once + again * 8 / hop, of once + again = 1
    with caplog.at_level("INFO", logger="gatestream.engines"):
        engines.compile(model)
    assert "the last 8 frames are scored every 2" in caplog.text
    assert f"{half:.1f} times what one pass a frame does (4.0 times" in caplog.text
    assert made[1].state_bytes == 4 * (8 * 64 * 3 * 4 + 1280)


def test_a_step_that_fails_moves_no_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(tmp_path, causal=False, segments=3, hop=1)
    frames, engine = probe_clip(model.contract, 6), WindowedEngine(model.network, model.contract, slots=2)
    wanted = run_clip(WindowedEngine(model.network, model.contract, slots=1), frames).scores["gesture"]
    mean_features, calls = engine._mean_features, []

    def fail_for_the_second(slot: int, count: int) -> torch.Tensor:
        calls.append(slot)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return mean_features(slot, count)

    for t in range(6):
        if t == 4:
            with monkeypatch.context() as patch:
                patch.setattr(engine, "_mean_features", fail_for_the_second)
                with pytest.raises(RuntimeError, match="out of memory"):
                    engine.step(frames[[t, t]], [0, 1])
        result = engine.step(frames[[t, t]], [0, 1])
        np.testing.assert_allclose(result.scores["gesture"], np.stack([wanted[t]] * 2), atol=1e-4)
        assert result.spans == (range(max(0, t - 2), t + 1),) * 2


@pytest.mark.parametrize(("causal", "hop", "error", "named"), [
    (False, 0, UsageError, "hop=0"), (False, 5, UsageError, "1 to 4"), (True, 2, UsageError, "causal")])
def test_an_impossible_hop_is_refused(tmp_path: Path, causal: bool, hop: int, error: type[Exception],
                                      named: str) -> None:
    model = make_model(tmp_path, causal=causal, segments=4)
    with pytest.raises(error, match=named):
        engines.compile(model, hop=hop)


def test_a_causal_network_needs_no_window(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    with pytest.raises(EngineError, match="causal"):
        WindowedEngine(model.network, model.contract, 1)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 15, (64, 48))
    rng = np.random.default_rng(0)
    for _ in range(12):
        writer.write(cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (64, 48)))
    writer.release()
    return path


def test_run_scores_a_clip_with_a_bidirectional_model(tmp_path: Path, video: Path,
                                                      capfd: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path, causal=False, segments=4)
    assert main(["run", str(video), "--model", str(model.path), "--json", "-", "--hop", "2"]) == 0
    out, err = capfd.readouterr()
    assert err.count("the last 4 frames are scored every 2, which computes") == 1
    seen = [line for line in map(json.loads, out.splitlines()) if line["type"] == "prediction"]
    assert len(seen) == 12
    assert [line["warm"] for line in seen] == [t >= model.contract.warmup_frames for t in range(1, 13)]
    now = [line["heads"]["gesture"]["now"] for line in seen]
    assert [t + 1 for t in range(12) if t == 0 or now[t] != now[t - 1]] == [1, 2, 4, 6, 8, 10, 12]


def clip_probabilities(model: Model, images: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What the network says of just these camera images."""
    clip = normalise(np.stack([prepare(image, model.contract) for image in images]), model.contract)
    with torch.no_grad():
        logits = engines.clip_scores(model.network, torch.from_numpy(clip)[None])
    return {head: probabilities(logits[head][0].numpy(), model.contract.temperature.get(head, 1.0))
            for head in model.contract.heads}


def with_window(model: Model, clips: int) -> Model:
    """The same file, with a window of so many clips, and every score out of the clip's own temperature."""
    contract = model.contract.model_copy(update={"window_clips": clips,
                                                 "window_temperature": model.contract.temperature})
    assert model.path is not None
    save(model.path, contract, model.tensors, half=False)
    return engines.load(model.path)


@pytest.mark.parametrize(("segments", "hop", "frames"), [(6, None, 6), (6, 4, 6), (5, 2, 9), (4, 3, 7), (6, 2, 4)])
def test_a_clip_played_once_ends_with_its_own_scores(tmp_path: Path, segments: int, hop: int | None,
                                                     frames: int) -> None:
    model = with_window(make_model(tmp_path, causal=False, segments=segments), 1)
    rng, rate = np.random.default_rng(2), model.contract.frame_rate
    images = [cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (64, 48)) for _ in range(frames)]
    assert model.path is not None
    with Recognizer.open(model.path, hop=hop) as recognizer:
        items = [item for t, image in enumerate(images) for item in recognizer.push(image, t / rate)]
    last = [item for item in items if isinstance(item, Prediction)][-1]
    assert last.clips == (1.0,)
    for head, wanted in clip_probabilities(model, images[-segments:]).items():
        scores, labels = last.heads[head], model.contract.heads[head]
        for given in (scores.now, scores.window):
            np.testing.assert_allclose([dict(given)[label] for label in labels], wanted, atol=1e-4)


def test_a_window_of_clips_is_their_mean_side_by_side(tmp_path: Path) -> None:
    model = with_window(make_model(tmp_path, causal=False, segments=4), 3)
    images = [np.random.default_rng(t).integers(0, 255, (48, 64, 3), dtype=np.uint8) for t in range(17)]
    assert model.path is not None
    with Recognizer.open(model.path, hop=1) as recognizer:
        items = [item for t, image in enumerate(images) for item in recognizer.push(image, t / 15)]
    last = [item for item in items if isinstance(item, Prediction)][-1]
    clip = normalise(np.stack([prepare(image, model.contract) for image in images]), model.contract)
    with torch.no_grad():
        clips = [engines.clip_scores(model.network, torch.from_numpy(clip[end - 4:end])[None]) for end in (9, 13, 17)]
    for head, labels in model.contract.heads.items():
        logits = np.mean([scores[head][0].numpy() for scores in clips], axis=0)
        wanted = probabilities(logits, model.contract.temperature.get(head, 1.0))
        np.testing.assert_allclose([dict(last.heads[head].window)[label] for label in labels], wanted, atol=1e-4)
        assert last.heads[head].now != last.heads[head].window


def test_run_ends_a_clip_with_its_own_scores(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, folder = with_window(make_model(tmp_path, causal=False, segments=4), 1), tmp_path / "frames"
    folder.mkdir()
    images = [np.random.default_rng(t).integers(0, 255, (48, 64, 3), dtype=np.uint8) for t in range(4)]
    for t, image in enumerate(images):
        cv2.imwrite(str(folder / f"{t}.png"), image)
    assert main(["run", str(folder), "--fps", "15", "--model", str(model.path), "--json", "-"]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    last = [line for line in lines if line["type"] == "prediction"][-1]
    for head, wanted in clip_probabilities(model, images).items():
        for given in last["heads"][head].values():
            np.testing.assert_allclose([dict(given)[label] for label in model.contract.heads[head]], wanted, atol=1e-3)


@pytest.mark.parametrize(("causal", "options", "code", "told"), [
    (False, ["--engine", "openvino"], 1, "a bidirectional model, for a compiled engine"),
    (False, ["--engine", "inductor"], 1, "a bidirectional model, for a compiled engine"),
    (False, ["--hop", "5"], 2, "wanted 1 to 4"), (False, ["--hop", "0"], 2, "--hop"),
    (True, ["--hop", "2"], 2, "a causal network")])
def test_what_a_model_cannot_do_costs_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str], causal: bool,
                                               options: list[str], code: int, told: str) -> None:
    model = make_model(tmp_path, causal=causal, **({} if causal else {"segments": 4}))
    source = ["run", "sim://gestures?realtime=0&seconds=1", "--json", "-"]
    assert main([*source, "--model", str(model.path), *options]) == code
    assert told in one_line(capfd)


def test_an_export_of_a_bidirectional_model_leads_to_a_causal_one(
        tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path, causal=False, segments=4)
    assert main(["export", str(model.path), "--out", str(tmp_path / "m.engine")]) == 1
    assert "gatestream train DATASET --init MODEL --causal" in one_line(capfd)


@pytest.mark.parametrize(("causal", "hop", "code", "told"), [
    (False, None, 0, "4 frames, scored every 1"), (False, "2", 0, "4 frames, scored every 2"),
    (False, "9", 1, "hop=9"), (True, "2", 1, "causal network")])
def test_doctor_holds_the_hop_that_is_asked_for_to_the_clip(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], causal: bool,
        hop: str | None, code: int, told: str) -> None:
    model = make_model(tmp_path, causal=causal, **({} if causal else {"segments": 4}))
    for check in ("_machine", "_video", "_torch", "_openvino", "_cache"):
        monkeypatch.setattr(doctor_module, check, lambda: (True, ""))
    assert main(["doctor", str(model.path), *(["--hop", hop] if hop else [])]) == code
    assert told in capfd.readouterr().out.splitlines()[-1]
