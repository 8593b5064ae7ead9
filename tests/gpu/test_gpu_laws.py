"""Compiled engines on a GPU: equal to eager, and slots that do not know each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import make_model

import engines
from engines.model.file import Model
from engines.runtime.parity import compare, probe_clip, run_clip
from engines.runtime.slot_pool import CompiledPool


@pytest.mark.parametrize(("architecture", "size_hw", "options"), [
    ("tsn-mobilenetv2", (40, 56), {"readout_width": 16}),
    ("tsm-resnet18", (40, 56), {}),
    ("gsm-bninception", (64, 64), {}),
    ("gsf-mobilenetv2", (96, 96), {"past_shift": 0}),
    ("gsf-resnet50", (64, 96), {"gate_ratio": 100}),
    ("gsf-inceptionv3", (75, 107), {}),
    ("stsm-mobilenetv2", (40, 56), {"shift": "THW-diagonal"}),
])
def test_every_network_equals_eager(tmp_path: Path, name: str, architecture: str, size_hw: tuple[int, int],
                                    options: dict[str, Any]) -> None:
    model = make_model(tmp_path, architecture, size_hw=size_hw, **options)
    frames = probe_clip(model.contract, 16)
    wanted = run_clip(engines.compile(model, "eager"), frames)
    moved = wanted.scores["gesture"] - wanted.scores["gesture"][0]
    assert np.abs(moved).max() > 0.1  # the clip moves the scores
    got = run_clip(engines.compile(model, name, precision="f32"), frames)
    assert compare(model.contract, wanted, got).holds


def test_the_bundled_model_equals_eager_in_what_is_chosen_for_it(name: str) -> None:
    model = engines.load("gesture")
    frames = probe_clip(model.contract, 200)
    engine = engines.compile(model, name, slots=2)
    assert engine.precision in ("f16", "f32")
    wanted = run_clip(engines.compile(model, "eager"), frames)
    assert compare(model.contract, wanted, run_clip(engine, frames, slot=1)).holds


def test_a_stream_equals_the_clip_in_any_split(engine: CompiledPool, model: Model, frames: np.ndarray) -> None:
    wanted = run_clip(engines.compile(model, "eager"), frames)
    once = run_clip(engine, frames, slot=2)
    assert compare(model.contract, wanted, once).holds
    engine.reset([2])
    parts = []
    for piece in np.split(frames, [1, 3, 10]):
        parts += [engine.step(frame[None], [2]).scores["gesture"][0] for frame in piece]
        engine.step(frames[:1], [0])  # what others do between the pieces changes nothing
    assert np.array_equal(np.stack(parts), once.scores["gesture"])


def test_a_camera_is_the_same_in_any_order_and_company(engine: CompiledPool, frames: np.ndarray) -> None:
    clips = {0: frames[:8], 1: frames[8:16], 3: frames[16:]}
    alone = {slot: run_clip(engine, clip, slot).scores["gesture"] for slot, clip in clips.items()}
    engine.reset(range(engine.slots))
    seen = dict.fromkeys(clips, 0)
    for company in ([0, 1, 3], [3, 0], [1], [3, 1, 0], [], [0], [1, 3], [3, 0, 1], [1, 0], [0, 3], [3, 1]):
        company = [slot for slot in company if seen[slot] < 8]
        batch = (np.stack([clips[slot][seen[slot]] for slot in company]) if company
                 else np.zeros((0, *frames.shape[1:]), np.uint8))
        result = engine.step(batch, company)
        for row, slot in enumerate(company):
            assert np.array_equal(result.scores["gesture"][row], alone[slot][seen[slot]])
            seen[slot] += 1
    assert min(seen.values()) >= 6


def test_a_reset_camera_is_a_new_one_and_others_stay(engine: CompiledPool, frames: np.ndarray) -> None:
    first = run_clip(engine, frames[:5], slot=1).scores["gesture"]
    other = [engine.step(frame[None], [2]).scores["gesture"][0] for frame in frames[:3]]
    engine.reset([1])
    again = [engine.step(frame[None], [1]).scores["gesture"][0] for frame in frames[:5]]
    assert np.array_equal(first, np.stack(again))
    untouched = engine.step(frames[3:4], [2]).scores["gesture"][0]
    assert np.array_equal(np.stack([*other, untouched]), first[:4])
    assert not np.allclose(engine.step(frames[:1], [1]).scores["gesture"][0], first[0], atol=1e-3)


def test_state_stays_on_the_gpu_in_one_graph_with_a_scratch_slot(engine: CompiledPool, frames: np.ndarray) -> None:
    assert engine._graph is not None
    assert all(leaf.is_cuda and len(leaf) == engine.slots + 1 for leaf in engine._pool)
    memory = [leaf.data_ptr() for leaf in engine._pool]
    engine.step(frames[:1], [0])
    assert [leaf.data_ptr() for leaf in engine._pool] == memory
    moved = [bool(row.any()) for row in engine._pool[0]]
    assert moved == [True, *[False] * (engine.slots - 1), True]  # the camera's, and what filled up the batch


def test_outputs_are_the_callers_to_keep(engine: CompiledPool, frames: np.ndarray) -> None:
    result = engine.step(frames[:1], [0])
    kept = result.features.copy(), result.scores["gesture"].copy()
    engine.step(frames[9:10], [0])
    assert np.array_equal(result.features, kept[0])
    assert np.array_equal(result.scores["gesture"], kept[1])
