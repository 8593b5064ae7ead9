"""Stage two of training: clip fusion learns which clips matter, where the mean over the window cannot."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from engines.errors import DatasetError, ModelError
from engines.model.clip_fusion import GatedFusion
from engines.networks.config import FusionRule, tensor_shapes
from engines.training.fusion_stage import fit_fusion
from stream.window import AverageFusion, Fusion

CLIPS, WIDTH, LABELS, FRAMES = 6, 32, 6, 6
BOTH = FusionRule()
FORMS = {"fusion": FusionRule(gate=False), "gate": FusionRule(relate="none"), "both": BOTH,
         "tied": FusionRule(tied=True), "bigru": FusionRule(relate="bigru")}


class Windows(NamedTuple):
    descriptors_NCD: np.ndarray
    counts_NC: np.ndarray
    labels_N: np.ndarray


# Directions of descriptors: one for each label, which the head reads, then cues, which it is blind to.
BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, WIDTH)))[0].astype(np.float32)
HEAD = (3 * BASIS[:LABELS], np.zeros(LABELS, np.float32))
RELEVANT, BEGAN, ENDED = 2 * BASIS[LABELS:LABELS + 3]


def windows(kind: str, count: int, seed: int) -> Windows:
    """Windows in which most clips show some other label.

    one: a single clip shows the window's label, and bears a mark of its relevance;
    cued: the clips after one that says "began", or before one that says "ended", show it, and nothing marks them.
    """
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(LABELS, size=count)
    shown_NC = rng.integers(LABELS, size=(count, CLIPS))
    cues_NCD = np.zeros((count, CLIPS, WIDTH), np.float32)
    for n in range(count):
        at = rng.integers(CLIPS)
        if kind == "one":
            shown_NC[n, at], cues_NCD[n, at] = labels_N[n], RELEVANT
        elif rng.random() < 0.5:
            at = min(at, CLIPS - 2)
            shown_NC[n, at + 1:], cues_NCD[n, at] = labels_N[n], BEGAN
        else:
            at = max(at, 1)
            shown_NC[n, :at], cues_NCD[n, at] = labels_N[n], ENDED
    counts_NC = np.full((count, CLIPS), FRAMES)
    counts_NC[:, -1] = rng.integers(1, FRAMES + 1, size=count)
    descriptors_NCD = HEAD[0][shown_NC] + cues_NCD + rng.normal(size=(count, CLIPS, WIDTH), scale=0.5)
    return Windows(descriptors_NCD.astype(np.float32), counts_NC, labels_N)


def accuracy(fusion: Fusion, seen: Windows) -> float:
    right = [int(np.argmax(HEAD[0] @ fusion.fuse(clips_CD, counts_C)[0] + HEAD[1])) == label
             for clips_CD, counts_C, label in zip(*seen, strict=True)]
    return float(np.mean(right))


def fit(seen: Windows, rule: FusionRule | None = None, **changes: Any) -> dict[str, np.ndarray]:
    return fit_fusion(seen.descriptors_NCD, seen.counts_NC, {"g": seen.labels_N}, {"g": HEAD}, rule, **changes)


def table(kind: str, forms: list[str]) -> dict[str, float]:
    """Accuracy on windows never seen, of the mean and of each form trained on others."""
    train, test = windows(kind, 3000, seed=1), windows(kind, 600, seed=2)
    return {"average": accuracy(AverageFusion(), test)} | {
        form: accuracy(GatedFusion(FORMS[form], fit(train, FORMS[form], epochs=10, lr=0.01)), test) for form in forms}


def test_one_relevant_clip_is_found_among_distractors() -> None:
    """Measured: central clip 0.31, average 0.39, fusion 0.65, gate 0.99, both 0.99."""
    got = table("one", ["gate", "both"])
    assert got["average"] < 0.45, got
    assert min(got["gate"], got["both"]) > got["average"] + 0.5, got


def test_what_only_other_clips_tell_needs_fusion_in_both_directions() -> None:
    """Measured: central clip 0.51, average 0.71, fusion 0.76, gate 0.72, both 0.98; with tied directions 0.71."""
    got = table("cued", ["fusion", "gate", "both", "tied"])
    assert got["both"] > max(got[form] for form in got if form != "both") + 0.15, got


def test_the_same_arguments_give_the_same_tensors_and_nothing_else_is_touched() -> None:
    seen = windows("one", 100, seed=3)
    before = [part.copy() for part in (*seen, *HEAD)]
    state = torch.get_rng_state()
    first, again, other = (fit(seen, epochs=2, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(np.array_equal(a, b) for a, b in zip(before, (*seen, *HEAD), strict=True))
    assert {name: value.shape for name, value in first.items()} == tensor_shapes(BOTH, WIDTH)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not all(np.array_equal(first[name], other[name]) for name in first)


def test_clips_that_are_not_there_teach_nothing() -> None:
    seen = windows("one", 80, seed=6)
    seen.counts_NC[:40, :2] = 0
    rubbish = seen.descriptors_NCD.copy()
    rubbish[:40, :2] = np.nan
    first, again = fit(seen, epochs=2), fit(seen._replace(descriptors_NCD=rubbish), epochs=2)
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_several_heads_share_one_fusion_and_no_parameters_need_no_training() -> None:
    seen = windows("one", 60, seed=7)
    both = {"verb": HEAD, "noun": (HEAD[0][:4], HEAD[1][:4])}
    labels = {"verb": seen.labels_N, "noun": seen.labels_N % 4}
    tensors = fit_fusion(seen.descriptors_NCD, seen.counts_NC, labels, both, epochs=1)
    assert {name: value.shape for name, value in tensors.items()} == tensor_shapes(BOTH, WIDTH)
    assert any(not np.array_equal(tensors[name], value) for name, value in fit(seen, epochs=1).items())
    assert fit(seen, FusionRule(relate="none", gate=False)) == {}


GOOD = windows("one", 10, seed=8)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no window": ({"descriptors_NCD": GOOD.descriptors_NCD[:0], "counts_NC": GOOD.counts_NC[:0]}, r"\(0, 6, 32\)"),
    "clips without counts": ({"counts_NC": GOOD.counts_NC[:, 1:]}, r"counts of shape \(10, 5\)"),
    "an empty window": ({"counts_NC": GOOD.counts_NC * (np.arange(10) > 0)[:, None]}, "without a frame"),
    "counts below zero": ({"counts_NC": GOOD.counts_NC - 7}, "below zero"),
    "not finite": ({"descriptors_NCD": GOOD.descriptors_NCD * np.inf}, "not finite"),
    "labels too few": ({"labels_N": {"g": GOOD.labels_N[1:]}}, r"labels of shape \(9,\) for head 'g'"),
    "a label that is none": ({"labels_N": {"g": GOOD.labels_N + LABELS}}, "none of its 6"),
    "another head": ({"labels_N": {"verb": GOOD.labels_N}}, r"heads \['verb'\]; wanted labels for \['g'\]"),
    "another width": ({"heads": {"g": (HEAD[0][:, 1:], HEAD[1])}}, r"weights of shape \(6, 31\); wanted \(6, 32\)")}


@pytest.mark.parametrize("case", BAD)
def test_examples_that_do_not_fit_are_named(case: str) -> None:
    changes, named = BAD[case]
    arguments = {"descriptors_NCD": GOOD.descriptors_NCD, "counts_NC": GOOD.counts_NC,
                 "labels_N": {"g": GOOD.labels_N}, "heads": {"g": HEAD}} | changes
    with pytest.raises(DatasetError, match=named), np.errstate(invalid="ignore"):
        fit_fusion(**arguments)


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    far = GOOD._replace(descriptors_NCD=GOOD.descriptors_NCD * 1e38)
    with pytest.raises(ModelError, match="loss of"):
        fit(far, epochs=1)
