"""Metrics: tables computed by hand, properties, and nothing to count gives NaN."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from math import isnan, log
from pathlib import Path

import numpy as np
import pytest
from fakes import contract
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import SinkError, UsageError
from stream.evaluation import epic_submission, metrics
from stream.scoring import ranks, top_labels, top_pairs


@dataclass(frozen=True)
class Stretch:
    label: str
    started_at: float
    ended_at: float


SCORES_NK = np.array([[0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.4, 0.4, 0.2], [0.0, 0.3, 0.7]])


@pytest.mark.parametrize(("truth", "top1", "top2"), [
    ([0, 1, 0, 2], 1.0, 1.0),
    ([1, 2, 1, 1], 0.0, 1.0),        # of equal scores the first label is the answer
    ([2, 0, 2, 0], 0.0, 0.0),
    ([0, -1, 0, 3], 0.5, 0.5),       # labels that the model does not have
])
def test_top_k(truth: list[int], top1: float, top2: float) -> None:
    assert metrics.top_k(SCORES_NK, np.array(truth), 1) == top1
    assert metrics.top_k(SCORES_NK, np.array(truth), 2) == top2


def test_confusion_and_class_accuracy_of_a_class_never_seen() -> None:
    table = metrics.confusion(np.array([0, 0, 1, 1, 1, 3]), np.array([0, 1, 1, 1, 2, 3]), 4)
    assert table.tolist() == [[1, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    found = metrics.per_class(table)
    assert found[[0, 1, 3]] == pytest.approx([1 / 2, 2 / 3, 1])
    assert isnan(found[2])
    assert metrics.mean_of_known(found) == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 9), st.integers(0, 2 ** 32 - 1))
def test_best_pairs_are_those_of_the_whole_table(verbs: int, nouns: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    verb_NK, noun_NK = rng.dirichlet(np.ones(verbs), 5), rng.dirichlet(np.ones(nouns), 5)
    products = (verb_NK[:, :, None] * noun_NK[:, None, :]).reshape(5, -1)
    wanted = ranks(products, k)
    found = top_pairs(verb_NK, noun_NK, k)
    assert (found[..., 0] * nouns + found[..., 1]).tolist() == wanted.tolist()
    best = found[:, 0]
    assert metrics.top_k_pairs(verb_NK, noun_NK, best[:, 0], best[:, 1], 1) == 1.0


@pytest.mark.parametrize(("truths", "events", "iou", "f1"), [
    ([("a", 0, 10)], [("a", 0, 10)], 0.5, 1.0),
    ([("a", 0, 10)], [("a", 0, 10), ("a", 20, 30)], 0.5, 2 / 3),
    ([("a", 0, 10), ("b", 0, 10)], [("b", 1, 10)], 0.5, 2 / 3),           # overlapping truths
    ([("a", 0, 10)], [("a", 0, 2)], 0.1, 1.0),
    ([("a", 0, 10)], [("a", 0, 2)], 0.3, 0.0),
    ([], [("a", 0, 2)], 0.3, 0.0),
])
def test_event_f1(truths: list[tuple[str, float, float]], events: list[tuple[str, float, float]], iou: float,
                  f1: float) -> None:
    found = metrics.event_f1([Stretch(*one) for one in truths], [Stretch(*one) for one in events], iou)
    assert found == pytest.approx(f1)


STRETCHES = st.lists(st.builds(lambda label, start, length: Stretch(label, start, start + length),
                               st.sampled_from("ab"), st.floats(0, 50), st.floats(0.1, 20)), max_size=8)


@settings(max_examples=60, deadline=None)
@given(STRETCHES, STRETCHES)
def test_matching_laws(truths: list[Stretch], events: list[Stretch]) -> None:
    previous = len(truths) + len(events)
    for iou in (0.1, 0.3, 0.5, 0.9):
        pairs = metrics.match(truths, events, iou)
        assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs) <= previous
        assert all(truths[i].label == events[j].label and metrics.overlap(truths[i], events[j]) >= iou
                   for i, j in pairs)
        previous = len(pairs)
    if truths:
        assert metrics.event_f1(truths, truths, 0.5) == 1.0
    assert metrics.covered_s(truths) <= sum(one.ended_at - one.started_at for one in truths) + 1e-9


def test_covered_time_counts_overlaps_once() -> None:
    assert metrics.covered_s([Stretch("a", 5, 8), Stretch("a", 0, 2), Stretch("b", 1, 3), Stretch("a", 6, 7)]) == 6.0
    assert metrics.covered_s([]) == 0.0


@settings(max_examples=80, deadline=None)
@given(STRETCHES, STRETCHES)
def test_events_outside_share_no_time_with_any_truth(truths: list[Stretch], events: list[Stretch]) -> None:
    wanted = [j for j, event in enumerate(events) if not any(metrics.overlap(truth, event) > 0 for truth in truths)]
    assert metrics.outside(truths, events) == wanted


def test_frame_targets_are_sets() -> None:
    times = np.arange(6) * 1.0
    truths = [Stretch("a", 1, 4), Stretch("b", 3, 5), Stretch("unheard", 0, 6)]
    assert metrics.frame_targets(times, truths, ["a", "b", "c"]).astype(int).T.tolist() == [
        [0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]]


def test_average_precision() -> None:
    targets = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]], bool)
    scores = np.array([[0.9, 0.1, 0.5], [0.8, 0.9, 0.5], [0.7, 0.8, 0.5], [0.1, 0.2, 0.5]])
    found = metrics.average_precision(scores, targets)
    assert found[:2] == pytest.approx([(1 + 2 / 3) / 2, 1.0])
    assert isnan(found[2])


def test_average_precision_in_blocks_is_that_of_each_label() -> None:
    rng = np.random.default_rng(0)
    labels = 2 * metrics.COLUMNS + 3
    scores, targets = rng.random((40, labels)), rng.random((40, labels)) < 0.1
    whole = metrics.average_precision(scores, targets)
    each = [metrics.average_precision(scores[:, [k]], targets[:, [k]])[0] for k in range(labels)]
    np.testing.assert_array_equal(whole, each)


@pytest.mark.parametrize(("positive", "negative", "wanted"), [
    ([0.9, 0.8], [0.1], 1.0), ([0.1], [0.9], 0.0), ([0.5], [0.5], 0.5), ([0.9, 0.3], [0.5], 0.5)])
def test_auroc(positive: list[float], negative: list[float], wanted: float) -> None:
    assert metrics.auroc(positive, negative) == pytest.approx(wanted)


def test_reliability_and_ece_by_hand() -> None:
    probs = np.array([[0.9, 0.1], [0.92, 0.08], [0.6, 0.4], [0.4, 0.6]])
    curve = metrics.reliability(probs, np.array([0, 1, 0, 1]), bins=10)
    assert curve.counts.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 1, 1]       # 0.6 and 0.9 lie on edges: the bin below
    assert curve.accuracy[[5, 8, 9]].tolist() == [1.0, 1.0, 0.0]
    assert curve.ece == pytest.approx((2 * 0.4 + 0.1 + 0.92) / 4)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.integers(2, 6), st.integers(0, 2 ** 32 - 1), st.floats(0.3, 3.0))
def test_calibration_laws(rows: int, labels: int, seed: int, temperature: float) -> None:
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((rows, labels))
    soft = np.exp(logits / temperature)
    soft /= soft.sum(axis=1, keepdims=True)
    plain = np.exp(logits)
    plain /= plain.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(metrics.undo_temperature(soft, temperature), plain, atol=1e-9)
    curve = metrics.reliability(plain, rng.integers(0, labels, rows))
    assert curve.counts.sum() == rows
    assert 0 <= curve.ece <= 1


def test_a_perfect_model_has_perfect_scores() -> None:
    truth = np.array([0, 1, 2, 1])
    sure = np.eye(3)[truth]
    assert metrics.top_k(sure, truth, 1) == metrics.top_k_pairs(sure, sure, truth, truth, 1) == 1.0
    assert metrics.reliability(sure, truth).ece == 0.0
    assert np.nanmin(metrics.average_precision(sure, sure.astype(bool))) == 1.0
    assert metrics.per_class(metrics.confusion(truth, truth, 3)).tolist() == [1, 1, 1]


def test_nothing_to_count_is_nan() -> None:
    none_NK, none_N = np.zeros((0, 3)), np.zeros(0, np.int64)
    assert all(map(isnan, (
        metrics.top_k(none_NK, none_N, 1), metrics.top_k_pairs(none_NK, none_NK, none_N, none_N, 5),
        metrics.mean_of_known([]), metrics.event_f1([], [], 0.3), metrics.auroc([], [1.0]), metrics.auroc([1.0], []),
        metrics.reliability(none_NK, none_N).ece, *metrics.percentiles([]).values(),
        *metrics.average_precision(none_NK, none_NK.astype(bool)))))
    assert metrics.confusion(none_N, none_N, 2).tolist() == [[0, 0], [0, 0]]
    assert metrics.undo_temperature(none_NK, 2.0).shape == (0, 3)
    assert metrics.frame_targets(np.zeros(0), [Stretch("a", 0, 1)], ["a"]).shape == (0, 1)


def test_percentiles() -> None:
    assert metrics.percentiles([float(k) for k in range(11)]) == {"median": 5.0, "p90": 9.0}


def test_submission_holds_every_class_by_number(tmp_path: Path) -> None:
    verbs, nouns = ("take", "put", "wash"), ("tap", "cup")
    scores = {"P01_101_0": {"verb": epic_submission.by_class(np.array([0.25, 0.75]), ("put", "take"), verbs),
                            "noun": epic_submission.by_class(np.array([0.5, 0.5]), nouns, nouns)}}
    epic_submission.write_submission(tmp_path / "out.zip", scores, supervision=(1, 3, 4))
    with zipfile.ZipFile(tmp_path / "out.zip") as file:
        assert file.namelist() == ["test.json"]
        found = json.loads(file.read("test.json"))
    assert found == {"version": "0.2", "challenge": "action_recognition", "sls_pt": 1, "sls_tl": 3, "sls_td": 4,
                     "results": {"P01_101_0": {"verb": {"0": log(0.75), "1": log(0.25), "2": log(1e-30)},
                                               "noun": {"0": log(0.5), "1": log(0.5)}}}}


@pytest.mark.parametrize("background", [None, "b"])
def test_pairs_are_ranked_as_the_server_ranks_what_is_handed_in(background: str | None) -> None:
    rng = np.random.default_rng(0)
    own = {"verb": ("take", "put", "b", "wash"), "noun": ("cup", "b", "tap")}
    classes = {head: tuple(label for label in labels if label != background) for head, labels in own.items()}
    model = contract(heads=own, background=background)
    for _ in range(20):
        probs = {head: rng.dirichlet(np.full(len(labels), 0.3)) for head, labels in own.items()}
        handed_in = [epic_submission.by_class(probs[head], own[head], classes[head]) for head in ("verb", "noun")]
        server = np.multiply.outer(*(np.exp(scores) / np.exp(scores).sum() for scores in handed_in))
        best = np.unravel_index(np.argsort(-server, axis=None)[:4], server.shape)
        wanted = [f"{classes['verb'][v]} {classes['noun'][n]}" for v, n in zip(*best, strict=True)]
        ours = top_labels(model, "action", probs)
        assert [label for label, _ in ours if label != background][:4] == wanted
        assert sum(score for _, score in top_labels(model, "action", probs)) <= 1 + 1e-9
        pairs = dict(ours)
        assert all(pairs[f"{verb} {noun}"] == pytest.approx(probs["verb"][v] * probs["noun"][n])
                   for v, verb in enumerate(own["verb"]) for n, noun in enumerate(own["noun"]) if
                   f"{verb} {noun}" in pairs)


def test_lanes_hold_no_two_that_overlap() -> None:
    ones = [Stretch("a", 0, 4), Stretch("b", 1, 2), Stretch("c", 5, 6), Stretch("d", 2, 3), Stretch("e", 1.5, 9)]
    assert metrics.lanes(ones) == [0, 1, 0, 1, 2]
    assert metrics.lanes([]) == []


def test_every_label_of_a_multi_label_head_is_calibrated_for_itself() -> None:
    probs_NK = np.array([[0.9, 0.9], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    assert metrics.reliability_of_each(probs_NK, np.array([0, 0, 0, -1]), probs_NK > 0.5).counts.sum() == 5
    curve = metrics.reliability_of_each(probs_NK, np.array([0, 0, 0, -1]), np.ones((4, 2), bool))
    assert curve.counts.sum() == 8
    assert curve.accuracy[curve.counts > 0].tolist() == [0.0, 0.6]
    undone_NK = metrics.undo_temperature(np.array([[0.2, 0.9]]), 2.0, multi_label=True)
    assert undone_NK == pytest.approx(1 / (1 + np.array([[4.0, 1 / 9]]) ** 2))


def test_wrong_submissions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="supervision"):
        epic_submission.write_submission(tmp_path / "out.zip", {}, supervision=(1, 3, 6))
    with pytest.raises(UsageError, match="verb"):
        epic_submission.write_submission(tmp_path / "out.zip", {"a": {"verb": np.ones(2)}}, supervision=(1, 3, 4))
    with pytest.raises(SinkError):
        epic_submission.write_submission(tmp_path / "no" / "out.zip", {}, supervision=(1, 3, 4))
