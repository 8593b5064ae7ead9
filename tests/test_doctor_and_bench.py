"""The doctor finds what is wrong and never breaks; the bench reports what it says it reports."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_engines import LABELS, SIZE_HW, make_model

import engines.bench as bench_module
import engines.doctor as doctor_module
from engines import cache
from engines.bench import bench, lines
from engines.doctor import doctor
from engines.model import Model
from engines.windowed import WindowedEngine

LAWS = ["any split of a clip = the clip", "stream on openvino = clip", "stream on eager = clip"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("model"), memory=16)


def test_a_sound_machine_passes_every_check(model: Model) -> None:
    checks = {check.name: check for check in doctor(model)}
    assert all(check.ok for check in checks.values()), checks
    assert list(checks)[-3:] == LAWS
    assert "openvino" in checks["machine"].detail


def test_it_says_which_engine_is_picked_and_why(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def lines(able: set[str]) -> dict[str, str]:
        monkeypatch.setattr(doctor_module, "obstacle", lambda name: None if name in able else "no such thing")
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
    monkeypatch.setattr(WindowedEngine, "_renew", lambda *_: None)
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
    monkeypatch.setattr(doctor_module, "difference", lambda *_: 0.5)
    monkeypatch.setattr(doctor_module, "ENGINES", ("eager", "nonsense"))
    failed = {check.name: check.detail for check in doctor(model) if not check.ok}
    assert list(failed) == ["engine cache", LAWS[0], "stream on eager = clip", "stream on nonsense = clip"]
    assert "5.0e-01" in failed["stream on eager = clip"]
    assert "nonsense" in failed["stream on nonsense = clip"]


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
    assert any("56x40" in line for line in lines(first))
    share = first["stages_ms"]["fuse"]["p50"] / first["stages_ms"]["engine"]["p50"]
    assert f"fuse / engine step: {100 * share:.1f} %" in lines(first)
    monkeypatch.setattr(bench_module, "_start_up_s", lambda *_: 1.0)
    monkeypatch.setattr(bench_module, "_against_bare", lambda *_: against)
    second = bench(model, "openvino", "f32", steps=2)
    assert second["last"]["stages_ms"] == first["stages_ms"]
    assert any(line.startswith("last run") for line in lines(second))
    assert len(cache.entries()) == 1  # reports lie beside the entries and are none
