"""The doctor finds what is wrong and never breaks; the bench reports what it says it reports."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_models import LABELS, SIZE_HW, make_model

import engines
import engines.bench.doctor as doctor_module
import engines.bench.overhead as overhead
import engines.bench.stages as bench_module
import engines.runtime.onnx as onnx_engine
from engines.bench import data_throughput
from engines.bench.decode_rate import DecodeRate
from engines.bench.doctor import Check, doctor
from engines.bench.stages import bench, format_lines
from engines.datasets.base import Dataset, Media, Segment
from engines.errors import EngineError, UsageError
from engines.model.file import Model
from engines.runtime import cache
from engines.runtime.engine import Engine
from engines.runtime.lowering import StepNetwork
from engines.runtime.parity import Parity
from engines.runtime.windowed import WindowedEngine

LAWS = ["any split of a clip = the clip", "stream on openvino = clip", "stream on eager = clip"]


def test_a_sound_machine_passes_every_check(model: Model) -> None:
    checks = {check.name: check for check in doctor(model)}
    assert all(check.ok for check in checks.values()), checks
    assert list(checks)[-3:] == LAWS
    assert "openvino" in checks["machine"].detail


def test_it_says_which_engine_is_picked_and_why(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def lines(able: set[str]) -> dict[str, str]:
        monkeypatch.setattr(doctor_module, "unavailable_reason", lambda name: None if name in able else "no such thing")
        return {name: doctor_module._engine(name, model)[1] for name in doctor_module.ENGINES}

    assert lines({"inductor", "eager"}) == {
        "tensorrt": "not picked: no such thing", "inductor": "picked: the best that can run here",
        "openvino": "not picked: no such thing", "eager": "can run here; inductor comes first"}
    assert lines({"tensorrt", "eager"})["tensorrt"].startswith("picked")
    assert {"engine tensorrt", "engine openvino"} <= {check.name for check in doctor(model)}


def test_a_bidirectional_model_is_held_to_its_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(tmp_path, causal=False, segments=5, hop=2)
    last = list(doctor(model))[-1]
    assert (last.name, last.ok) == ("window on eager = clip", True), last.detail
    assert "5 frames, scored every 2" in last.detail
    monkeypatch.setattr(WindowedEngine, "_mean_features", lambda *_: torch.zeros(1))
    assert not list(doctor(model))[-1].ok


def test_bench_of_a_bidirectional_model_goes_by_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATESTREAM_CACHE", str(tmp_path))
    monkeypatch.setattr(bench_module, "LARGE_HW", SIZE_HW)
    monkeypatch.setattr(bench_module, "_start_up_s", lambda *_: 1.0)
    report = bench(make_model(tmp_path, causal=False, segments=4, hop=2), steps=8)
    against = report["against_bare"]["56x40"]
    assert against["ratio"] == pytest.approx(against["step_ms"]["mean"] / against["bare_ms"]["mean"])
    assert report["fps"] == 1000 / report["stages_ms"]["total"]["mean"]


def test_what_is_wrong_is_found_and_named(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("GATESTREAM_CACHE", str(blocked / "cache"))
    monkeypatch.setattr(doctor_module, "compare", lambda *_: Parity(0.5, 0, 0))
    monkeypatch.setattr(doctor_module, "probability_difference", lambda *_: 0.5)
    monkeypatch.setattr(doctor_module, "ENGINES", ("eager", "nonsense"))
    monkeypatch.setattr(doctor_module, "unavailable_reason", lambda _: None)
    failed = {check.name: check.detail for check in doctor(model) if not check.ok}
    assert list(failed) == ["engine cache", LAWS[0], "stream on eager = clip", "stream on nonsense = clip"]
    assert "5.0e-01" in failed["stream on eager = clip"]
    assert "nonsense" in failed["stream on nonsense = clip"]


def test_other_events_than_eagers_are_found(model: Model) -> None:
    def found(shift_s: float, label: str = "left") -> dict[str, Check]:
        def find_events(_: Model, engine: Engine) -> list[tuple[str, str, float, float]]:
            compiled = engine.name == "openvino"
            return [("gesture", label if compiled else "left", 1.0, 2.0 + shift_s * compiled)]
        return {check.name: check for check in doctor(model, find_events=find_events)}

    same, late, other = found(1 / model.contract.frame_rate), found(0.2), found(0.0, "right")
    name = "stream on openvino = clip"
    assert same[name].ok
    assert "1 events, as eagerly" in same[name].detail
    for checks in (late, other):
        assert [check.name for check in checks.values() if not check.ok] == [name]
        assert "NOT as eagerly" in checks[name].detail


def test_a_bad_model_file_is_a_failed_check(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"no model")
    last = list(doctor(tmp_path / "bad.safetensors"))[-1]
    assert (last.name, last.ok) == ("model", False)
    assert "bad.safetensors" in last.detail


def test_bench_reports_stages_ratio_start_up_and_the_last_run(
        model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATESTREAM_CACHE", str(tmp_path))
    monkeypatch.setattr(bench_module, "LARGE_HW", SIZE_HW)
    fused: list[int] = []
    first = bench(model, "openvino", "f32", steps=8,
                  fuse=lambda result: fused.append(result.scores["gesture"].shape[1]))
    assert set(fused) == {len(LABELS)}
    assert list(first["stages_ms"]) == ["preprocess", "engine", "fuse", "total"]
    for figures in first["stages_ms"].values():
        assert 0 < figures["p50"] <= figures["p95"] <= figures["p99"]
    assert first["stages_ms"]["total"]["p50"] >= first["stages_ms"]["engine"]["p50"]
    against = first["against_bare"]["56x40"]
    assert against["ratio"] == against["step_ms"]["p50"] / against["bare_ms"]["p50"]
    assert first["state_bytes_per_camera"] > 0
    assert first["start_up_s"] > 0
    assert first["last"] is None
    assert any("56x40" in line for line in format_lines(first))
    share = first["stages_ms"]["fuse"]["p50"] / first["stages_ms"]["engine"]["p50"]
    assert f"fuse / engine step: {100 * share:.1f} %" in format_lines(first)
    monkeypatch.setattr(bench_module, "_start_up_s", lambda *_: 1.0)
    monkeypatch.setattr(bench_module, "measure_overhead", lambda *_: overhead.Overhead(**against))
    second = bench(model, "openvino", "f32", steps=2)
    assert second["last"]["stages_ms"] == first["stages_ms"]
    assert any(line.startswith("last run") for line in format_lines(second))
    assert len(cache.entries()) == 1  # reports lie beside the entries and are none


def test_several_models_make_a_table_in_one_engine(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [overhead.measure_overhead(row, "openvino", steps=1)
            for row in (model, overhead.random_model("gsm-mobilenetv2", (64, 64)))]
    lines = overhead.format_table(rows)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "---" not in line]
    assert {len(line) for line in cells} == {7}
    assert [line[:3] for line in cells[1:]] == [["test", "56x40", "openvino f32"],
                                                ["gsm-mobilenetv2", "64x64", "openvino f32"]]
    for row, line in zip(rows, cells[1:], strict=True):
        assert line[3] == f"{row.state_bytes / 1000:.0f} kB"
        assert line[6] == f"{row.ratio:.2f}"
        assert row.ratio > 0
    assert rows[1].state_bytes == sum(
        4 * int(np.prod(shape)) for shape in StepNetwork(overhead.random_model("gsm-mobilenetv2", (64, 64)).network)
        .state_shapes().values())


@pytest.mark.parametrize("architecture", ["tsn-resnet18", "gsf-mobilenetv2", "gsm-bninception"])
def test_a_sampled_model_is_always_the_same_and_its_signals_neither_vanish_nor_overflow(architecture: str) -> None:
    assert overhead.is_architecture(architecture)
    before = torch.random.get_rng_state()
    model, again = (overhead.random_model(architecture, (64, 64)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(np.array_equal(value, again.tensors[name]) for name, value in model.tensors.items())
    image = torch.randn(1, 1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features, _ = model.network(image, model.network.fresh_state(1))
    assert 1e-3 < features.abs().mean() < 1e3


@pytest.mark.parametrize("name", ["gesture", "gsf-vgg", "rnn-resnet50", "a-file.safetensors"])
def test_other_names_are_no_architectures(name: str) -> None:
    assert not overhead.is_architecture(name)


def test_bench_of_an_architecture_has_no_start_up_time_and_builds_no_cache_entry(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GATESTREAM_CACHE", str(tmp_path))
    monkeypatch.setattr(bench_module, "LARGE_HW", (64, 64))
    report = bench(overhead.random_model("gsf-mobilenetv2", (64, 64)), steps=2)
    assert (report["engine"], report["precision"], report["start_up_s"]) == ("openvino", "f32", None)
    assert list(report["against_bare"]) == ["64x64"]
    assert "start" not in " ".join(format_lines(report))
    assert not cache.entries()


def test_bench_of_an_engine_file_compares_in_the_files_own_engine(
        model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "LARGE_HW", SIZE_HW)
    started: list[tuple[str, str]] = []
    monkeypatch.setattr(bench_module, "_start_up_s", lambda _, *how: started.append(how) or 1.0)
    file = str(engines.export(model, "onnx", tmp_path / "step.onnx"))
    report = bench(model, file, steps=2)
    assert (report["engine"], report["no_bare"], list(report["against_bare"])) == ("onnx", None, ["56x40"])
    assert started == [(file, "f32")]

    def refuse(*_: object) -> None:
        raise EngineError("no usable ONNX (no onnxscript)", "the packages", "install them")
    monkeypatch.setattr(onnx_engine, "_convert", refuse)
    report = bench(model, file, steps=2)
    assert report["against_bare"] == {}
    assert any(line.startswith("no comparison with the bare backbone: no usable ONNX")
               for line in format_lines(report))


def test_clip_fusion_is_timed_beside_the_mean(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "LARGE_HW", SIZE_HW)
    monkeypatch.setattr(bench_module, "_start_up_s", lambda *_: 1.0)
    fused = overhead.with_fusion(model, "attention")
    assert fused.clip_fusion is not None
    assert model.clip_fusion is None
    calls: list[str] = []
    report = bench(fused, "openvino", "f32", steps=2, fuse=lambda _: calls.append("fuse"),
                   plain=lambda _: calls.append("plain"))
    assert calls == ["plain", "fuse", "fuse", "plain"] * ((bench_module.WARM_UP + 2 * 2) // 2)  # each is first in turn
    assert list(report["stages_ms"]) == ["preprocess", "engine", "fuse", bench_module.PLAIN, "total"]
    assert any(line.startswith("clip fusion more than the mean of clips / engine step")
               for line in format_lines(report))
    with pytest.raises(UsageError, match="'lstm'"):
        overhead.with_fusion(model, "lstm")


@pytest.mark.parametrize("engine", ["turbo", "somewhere.onnx"])
def test_several_models_need_an_engine_by_name(model: Model, engine: str) -> None:
    with pytest.raises(UsageError, match=engine):
        overhead.measure_overhead(model, engine)


def test_a_hop_is_the_models_own_option(tmp_path: Path, model: Model) -> None:
    both = make_model(tmp_path, causal=False, segments=4, hop=2)
    assert both.with_hop(3).network.hop == 3
    assert both.network.hop == 2
    with pytest.raises(UsageError, match="hop=2 on a causal network"):
        model.with_hop(2)


@pytest.mark.parametrize(("trained", "decoded", "verdict"), [(100.0, 300, "keeps up: 1.50"),
                                                             (400.0, 400, "waits for decoding: 0.50")])
def test_it_is_said_who_waits(trained: float, decoded: int, verdict: str) -> None:
    said = data_throughput.format_lines(data_throughput.DataThroughput(trained, DecodeRate(decoded, 1.0, 1, 2)))
    assert verdict in said[-1]
    assert any("2 segments could not be decoded" in line for line in said)


def test_training_and_decoding_are_paced(model: Model, tmp_path: Path) -> None:
    for k in range(8):
        cv2.imwrite(str(tmp_path / f"img_{k:05d}.png"), np.full((48, 64, 3), 20 * k, np.uint8))
    data = Dataset("a", {"action": ("x",)}, {"train": [Segment("one", Media(tmp_path, 5.0, first=0), 0.0, 1.0)]})
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    found = data_throughput.measure(model, data, seconds=0.01)
    assert found.trained_per_s > 0
    assert found.as_json()["wanted_frames_per_s"] == 2 * found.trained_per_s
    assert all(torch.equal(value, before[name]) for name, value in model.network.state_dict().items())
