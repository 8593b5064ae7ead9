"""How easily events open, in steps that a page offers in words.

No bundled model holds a curve of false events against missed ones. One that `gatestream evaluate --max-false-events`
has written holds what was measured at the rule that it chose, which is then told with the model's own step.
"""

import math
from collections.abc import Mapping
from typing import Any

from engines.model.contract import Contract

STRICTER = (2.0, 1.0)  # above the model's own, in logits
LOOSER = (1, 2)  # thirds of the way from the model's own to a probability of one half
LEAST_STEP = 0.7  # of logits, where that is hardly a way
NEAR = 1e-5  # to 0 and 1, at most


def sensitivity(contract: Contract) -> dict[str, Any]:
    """{"thresholds": the scores above which events open, the strictest first, "own": the index of the model's own,
    "measured": {"false_events_per_hour": ..., "f1": ...} of that, or None}."""
    own = contract.events.open_above
    logit = _logit(own)
    step = max(logit / 3, LEAST_STEP)
    above = [max(own, _probability(logit + more)) for more in STRICTER]
    below = [min(own, _probability(logit - less * step)) for less in LOOSER]
    return {"thresholds": [*above, own, *below], "own": len(above), "measured": _measured(contract)}


def _measured(contract: Contract) -> dict[str, float] | None:
    found = contract.provenance.get("event_thresholds")
    chosen = found.get("chosen") if isinstance(found, Mapping) else None
    if not isinstance(chosen, Mapping) or chosen.get("events") != contract.events.model_dump():
        return None
    numbers = {name: chosen.get(name) for name in ("false_events_per_hour", "f1")}
    return {name: float(value) for name, value in numbers.items() if isinstance(value, int | float)} or None


def _logit(probability: float) -> float:
    clipped = min(max(probability, NEAR), 1 - NEAR)
    return math.log(clipped / (1 - clipped))


def _probability(logit: float) -> float:
    return min(max(1 / (1 + math.exp(-logit)), NEAR), 1 - NEAR)
