"""EPIC-KITCHENS-100 action recognition: the file that is handed in.

    {"version": "0.2", "challenge": "action_recognition", "sls_pt": 2, "sls_tl": 3, "sls_td": 3,
     "results": {"P01_101_0": {"verb": {"0": score, ...}, "noun": {"0": score, ...}}}}      test.json in a zip

Scores are logarithms of probabilities: the server makes probabilities of them by softmax, and ranks the pairs of the
100 best verbs and nouns by their product."""

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from engines.errors import UsageError
from engines.model.file import write_atomically
from stream.scoring import PARTS

LEAST = 1e-30  # probability of a class that the model does not have


def by_class(probs_K: NDArray[Any], labels: Sequence[str], classes: Sequence[str]) -> NDArray[np.float64]:
    """Logarithms of the labels' probabilities, in the order of the dataset's classes."""
    prob_of = dict(zip(labels, probs_K, strict=True))
    return np.log(np.maximum([float(prob_of.get(name, 0.0)) for name in classes], LEAST))


def write_submission(path: Path, results: Mapping[str, Mapping[str, NDArray[Any]]], *,
                     supervision: Sequence[int]) -> None:
    """Writes the zip. results: {narration id: {"verb": scores, "noun": scores}}, each in the order of the classes.
    supervision: levels 0 to 5 of pre-training, training labels and training data (sls_pt, sls_tl, sls_td). Raises
    UsageError for other levels or heads, SinkError where it cannot be written."""
    if len(supervision) != 3 or any(level not in range(6) for level in supervision):
        raise UsageError(f"supervision levels {supervision}", "three numbers from 0 to 5: pre-training, labels, data",
                         "see the challenge's page for what they mean")
    for name, scores in results.items():
        if set(scores) != set(PARTS):
            raise UsageError(f"heads {sorted(scores)} for {name}", "verb and noun", "use a model with both heads")
    table = {name: {head: {str(k): float(score) for k, score in enumerate(scores[head])} for head in PARTS}
             for name, scores in results.items()}
    levels = dict(zip(("sls_pt", "sls_tl", "sls_td"), supervision, strict=True))
    found = {"version": "0.2", "challenge": "action_recognition", **levels, "results": table}
    with ZipFile(raw := BytesIO(), "w") as file:
        file.writestr(ZipInfo("test.json"), json.dumps(found, allow_nan=False), compress_type=ZIP_DEFLATED)
    write_atomically(path, raw.getvalue())
