"""The hidden layer of pooled heads: what it tells apart that a linear head cannot, and how sure a lesson may be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import contract
from small_lessons import RNG, D, T, lessons, model

from engines.model.contract import Contract, PoolingRule
from engines.model.pooling import PooledHead, statistics_width, tensor_shapes
from engines.networks.config import NetworkConfig
from engines.training.few_shot import HeldOut, temperatures_of
from engines.training.hidden_layer import fit_hidden
from engines.training.pooled_few_shot import teach_pooled
from engines.training.support_clips import SupportClip
from engines.training.temperature import GRID, temperature

NETWORK = NetworkConfig.of("gsf-mobilenetv2", causal=True, input_size_hw=(144, 192), motion=True)
MOTION = NETWORK.motion_features


def corners(count: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Points round four corners, of two labels: opposite corners have the same one, which no line tells apart."""
    rng = RNG(seed)
    signs_N2 = rng.choice([-1, 1], (count, 2))
    return 2 * signs_N2 + 0.5 * rng.standard_normal((count, 2)), (signs_N2.prod(axis=1) > 0).astype(int)


@pytest.mark.parametrize("seed", range(3))
def test_it_tells_apart_what_no_line_does(seed: int) -> None:
    points_N2, label_N = corners(200, seed)
    head = fit_hidden(points_N2, label_N, np.ones(200), 2, seed)
    others_N2, wanted_N = corners(200, 90 + seed)
    assert (head.logits(others_N2).argmax(axis=1) == wanted_N).mean() > 0.98
    again = fit_hidden(points_N2, label_N, np.ones(200), 2, seed)
    np.testing.assert_array_equal(again.weight_HC, head.weight_HC)
    np.testing.assert_allclose(head.scale(0.25).logits(others_N2), head.logits(others_N2) / 4, rtol=1e-5, atol=1e-6)


def test_examples_count_by_their_weight() -> None:
    points_N2, label_N = corners(200, 0)
    wrong_N = np.arange(200) % 2 == 0
    seen_N = np.where(wrong_N, 1 - label_N, label_N)
    head = fit_hidden(points_N2, seen_N, np.where(wrong_N, 0.01, 1.0), 2)
    assert (head.logits(points_N2).argmax(axis=1) == label_N).mean() > 0.98


@pytest.mark.parametrize("recordings", [1, 4, 20, 500])
def test_a_lesson_is_no_surer_than_its_recordings_can_make_it(recordings: int) -> None:
    row_K = np.array([1.0, 0.0, 0.0])
    found = [HeldOut(SupportClip(str(i), "a", np.zeros((0, 1)), np.zeros((0, 0)), 0, 2), np.tile(row_K, (2, 1)),
                     np.tile(row_K, (2, 1))) for i in range(recordings)]
    for value in temperatures_of(found, ("a", "b", "c")):
        surest = np.exp(row_K / value)[0] / np.exp(row_K / value).sum()
        next_is_right = 1 - 0.5 / (recordings + 1) * 2 / 3  # its doubt is shared by all three labels
        assert surest == pytest.approx(min(next_is_right, np.exp(5) / (np.exp(5) + 2)), abs=0.01)
    assert temperature([(row_K.astype(np.float32), 0)] * recordings) == pytest.approx(GRID[0], abs=1e-3)


def branched(kind: str) -> list[SupportClip]:
    """Recordings with features of a motion branch, all noise but for the signs of two parts, which tell labels
    apart as corners do, if `kind` is "corners"."""
    clips = []
    for k, clip in enumerate(lessons("mean", labels=2, each=12)):
        rng = RNG(k)
        moved_TM = 3 + 0.1 * rng.standard_normal((T, MOTION))
        if kind == "corners":
            sign = rng.choice([-1, 1])
            moved_TM[:, :20] += sign
            moved_TM[:, 20:40] += sign if clip.label == "label0" else -sign
        still_TD = 3 + 0.3 * rng.standard_normal((T, D)) if kind == "corners" else clip.features_TD
        clips.append(replace(clip, features_TD=np.concatenate([still_TD, moved_TM], axis=1).astype(np.float32)))
    return clips


def idle(count: int) -> list[SupportClip]:
    """Footage in which the same two move apart from any corner."""
    return [SupportClip(f"idle/{i}", "background", (3 + 0.1 * RNG(800 + i).standard_normal((60, D + MOTION))).astype(
        np.float32), np.zeros((0, 0), np.float32), 0, 0) for i in range(count)]


@pytest.mark.parametrize(("kind", "footage", "share"), [("corners", 5, 0.7), ("noise", 5, 0.0), ("corners", 0, None)])
def test_a_lesson_with_idle_footage_has_it_where_there_is_a_motion_branch(kind: str, footage: int, share: float | None
                                                                          ) -> None:
    blank = model()
    rule: Contract = contract(network=NETWORK, cover_hw=(144, 192), heads=blank.contract.heads, background="background",
                              frame_rate=8.0, pooling=PoolingRule())
    taught = teach_pooled(replace(blank, contract=rule, tensors={"heads.action.weight": np.zeros(
        (2, D + MOTION), np.float32)}), [*branched(kind), *idle(footage)], "action", "background")
    labels = len(taught.contract.heads["action"])
    assert taught.contract.provenance["taught"][0]["views"]["window"].get("motion, hidden layer") == share
    shapes = tensor_shapes(taught.contract, "action", labels, D + MOTION)
    assert ("pooled.action.window.hidden.out" in shapes) == bool(footage)
    assert {name: taught.tensors[name].shape for name in shapes} == shapes
    statistics_X = RNG(1).uniform(0, 6, statistics_width(D + MOTION)).astype(np.float32)
    head = PooledHead(taught.contract, taught.tensors, "action", "window")
    weight_KX, bias_K = (taught.tensors[f"pooled.action.window.{part}"] for part in ("weight", "bias"))
    linear_K = weight_KX @ statistics_X + bias_K
    assert np.allclose(head.logits(statistics_X), linear_K, atol=1e-4) == (not share)
