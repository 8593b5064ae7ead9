"""How the clips of a window are fused: the rule that a contract stores, and the tensors that belong to it. No torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

PREFIX = "fusion."  # begins the names of clip fusion's tensors in a model file
EPSILON = 1e-6  # the least sum of weights, in frames, that a window descriptor is divided by
INNER_MOST = 64  # wider would cost more than 3 % of a small network's step


class FusionRule(BaseModel):
    """How the clips of a window become one descriptor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    relate: Literal["attention", "bigru", "none"] = "attention"  # what relates each clip to the others
    gate: bool = True  # each clip has a gate, else all are open
    tied: bool = False  # both directions along the window share their weights
    inner: Annotated[int, Field(ge=1, le=4096)] | None = None  # width inside; None: D / 4, up to INNER_MOST
    keep: Annotated[int, Field(ge=1, le=4096)] | None = None  # only so many clips, those with the largest gates, decide
    keep_above: Annotated[float, Field(ge=0, le=1)] | None = None  # only clips with such a gate decide

    def inner_width(self, width: int) -> int:
        """The inner width for descriptors of `width` features."""
        return self.inner or max(1, min(width // 4, INNER_MOST))


def directions(rule: FusionRule) -> tuple[str, ...]:
    """The names of the parts that look along the window: at earlier clips, later clips, or both with one weight."""
    if rule.relate == "none":
        return ()
    return ("both",) if rule.tied else ("past", "future")


def tensor_shapes(rule: FusionRule, width: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a model file with this fusion holds, for descriptors of `width`."""
    inner = rule.inner_width(width)
    shapes: dict[str, tuple[int, ...]] = {}
    for direction in directions(rule):
        at = f"{PREFIX}relate.{direction}"
        if rule.relate == "attention":
            shapes |= {f"{at}.{part}.weight": (inner, width) for part in ("query", "key", "value")}
        else:
            shapes |= {f"{at}.cell.weight_ih": (3 * inner, width), f"{at}.cell.weight_hh": (3 * inner, inner),
                       f"{at}.cell.bias_ih": (3 * inner,), f"{at}.cell.bias_hh": (3 * inner,)}
        shapes[f"{at}.out.weight"] = (width, inner)
    if rule.gate:
        at = f"{PREFIX}gate"
        shapes |= {f"{at}.squeeze.weight": (inner, 2 * width), f"{at}.squeeze.bias": (inner,),
                   f"{at}.score.weight": (1, inner), f"{at}.score.bias": (1,)}
    return shapes
