"""STSM, the spatio-temporal shift module (arXiv 2112.02523; Mathematics 2022, 10(18), 3290).
An interpretation: this was built from the paper's abstract, which says that groups of channels shift along time,
height and width, that this is a convolution with a sparse kernel, and that it adds no parameters and no arithmetic.
How many channels move where is our choice, below; the paper's own results are not claimed."""

from collections.abc import Sequence
from contextlib import suppress
from itertools import product

from engines.errors import UsageError
from engines.networks.config import Group
from engines.networks.temporal import TemporalModule

_T: tuple[Group, ...] = ((1 / 8, (-1, 0, 0)), (1 / 8, (1, 0, 0)))
_H: tuple[Group, ...] = ((1 / 16, (0, -1, 0)), (1 / 16, (0, 1, 0)))
_W: tuple[Group, ...] = ((1 / 16, (0, 0, -1)), (1 / 16, (0, 0, 1)))
_DIAGONAL = tuple((1 / 16, (dt, dh, dw)) for dt, dh, dw in product((-1, 1), repeat=3))
PRESETS: dict[str, tuple[Group, ...]] = {
    "T": _T, "HW": _H + _W, "TH": _T + _H, "TW": _T + _W, "THW": _T + _H + _W, "THW-diagonal": _DIAGONAL}


class SpatioTemporalShift(TemporalModule):
    """Moves groups of channels in time and space. `shift`: a preset's name, or (share, (dt, dh, dw)) in the order of
    the channels; what they leave over stays. `T` is TSM's published form.
    The causal form gives the share of groups that look ahead to the past: they come from t-1, or from `past_shift`
    frames back (0: they move in space only), which makes its `T` a TSM with both folds from the past.
    Raises UsageError for an unknown preset, offsets other than -1, 0, 1, or shares that add up to more than 1."""

    on_input, options = True, ("shift",)

    def __init__(self, channels: int, causal: bool, shift: str | Sequence[Group] = "THW",
                 past_shift: int | None = None) -> None:
        # Shares are written as decimals: 0.29 of 100 channels is 29, whatever the binary fraction.
        moves = [(int(channels * share + 1e-9), offset) for share, offset in groups_of(shift)]
        super().__init__(channels, causal, moves, past_shift)


def groups_of(shift: str | Sequence[Group]) -> tuple[Group, ...]:
    """The groups of a preset, or these groups. Raises UsageError where they make no sense."""
    with suppress(TypeError, ValueError, KeyError):
        groups = tuple((float(share), (int(dt), int(dh), int(dw))) for share, (dt, dh, dw) in
                       (PRESETS[shift] if isinstance(shift, str) else shift))
        if sum(share for share, _ in groups) <= 1 + 1e-9 and all(
                share > 0 and set(offset) <= {-1, 0, 1} for share, offset in groups):
            return groups
    raise UsageError(f"shift {shift!r}", f"one of {', '.join(PRESETS)}, or (share, (dt, dh, dw)) with shares of 1 in "
                     "all at most and offsets of -1, 0 or 1", "correct it, or choose one of these")
