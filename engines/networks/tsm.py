"""TSM, the temporal shift module: Lin, Gan, Han, "TSM: Temporal Shift Module for Efficient Video Understanding",
ICCV 2019 (arXiv 1811.08383). Some channels come from a neighbouring frame; the next convolution mixes them in.
It sits on the input of a residual branch, so that the skip still carries the unshifted map (section 4.2)."""

from engines.networks.temporal import Move, TemporalModule


class TemporalShift(TemporalModule):
    """As published, offline: the first C // division channels come from frame t+1, the next as many from t-1.
    As published, online (causal): the first C // division channels come from t-1, and the rest stays. With
    `past_shift`, the causal form keeps the offline layout instead: the first channels come from so many frames back (0:
    they stay), the next from t-1. Zeros come in at the ends of a clip."""

    on_input = True

    def __init__(self, channels: int, causal: bool, division: int = 8, past_shift: int | None = None) -> None:
        fold = channels // division
        super().__init__(channels, causal, ((fold, (-1, 0, 0)), (fold, (1, 0, 0))), past_shift)

    @property
    def moves(self) -> tuple[Move, ...]:
        return ((self.published[0][0], (1, 0, 0)),) if self.causal and self.past_shift is None else super().moves
