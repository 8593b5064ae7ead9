"""What counts as agreeing with eager: also where no probability would show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from engines.model.contract import Contract
from engines.model.file import Model
from engines.model.scores import probabilities
from engines.runtime.engine import StepResult
from engines.runtime.parity import SPREAD_TOLERANCE, TOLERANCE, Parity, compare, probability_difference

LABELS = 174


@pytest.fixture
def contract(model: Model) -> Contract:
    """One with so many labels that each has little probability, whatever is computed."""
    return model.contract.model_copy(update={"heads": {"action": tuple(map(str, range(LABELS)))}, "temperature": {}})


def result(spread: float) -> StepResult:
    rng = np.random.default_rng(0)
    return StepResult(rng.normal(3, 1, (30, 64)).astype(np.float32),
                      {"action": rng.normal(0, spread, (30, LABELS)).astype(np.float32)})


def with_logits(found: StepResult, logits_TK: np.ndarray) -> StepResult:
    return replace(found, scores={"action": logits_TK.astype(np.float32)})


@pytest.mark.parametrize(("fault", "part"), [
    (lambda right: with_logits(right, 0 * right.scores["action"]), "logits"),
    (lambda right: with_logits(right, np.tile(right.scores["action"].mean(0), (30, 1))), "logits"),
    (lambda right: replace(right, features=0 * right.features), "features"),
    (lambda right: replace(right, features=np.full_like(right.features, np.nan)), "features"),
])
def test_what_flat_probabilities_hide_is_found_in_logits_and_features(
        contract: Contract, fault: Callable[[StepResult], StepResult], part: str) -> None:
    right = result(0.1)
    assert compare(contract, right, right) == Parity(0, 0, 0)
    parity = compare(contract, right, fault(right))
    assert parity.probabilities <= TOLERANCE
    assert getattr(parity, part) > SPREAD_TOLERANCE
    assert not parity.holds


def test_what_all_labels_share_changes_nothing(contract: Contract) -> None:
    right = result(1.0)
    shared = 100 * np.random.default_rng(1).random((30, 1))
    assert compare(contract, right, with_logits(right, right.scores["action"] + shared)).holds


def test_features_that_never_change_are_held_to_their_size(contract: Contract) -> None:
    one = result(1.0)
    still = StepResult(np.tile(one.features[:1], (30, 1)), {"action": np.tile(one.scores["action"][:1], (30, 1))})
    for factor, holds in ((1 + 1e-6, True), (1.01, False)):
        assert compare(contract, still, replace(still, features=still.features * np.float32(factor))).holds == holds


def test_probabilities_sum_to_one_and_a_difference_sees_nan(model: Model) -> None:
    logits = np.float32([[1000.0, 0, -1000, 3], [0, 0, 0, 0]])
    assert np.allclose(probabilities(logits, 2.0).sum(axis=1), 1)
    hand = np.zeros((2, 2), np.float32)
    broken = logits.copy()
    broken[0, 0] = np.nan
    assert probability_difference(model.contract, {"gesture": logits, "hand": hand},
                                  {"gesture": broken, "hand": hand}) == np.inf
