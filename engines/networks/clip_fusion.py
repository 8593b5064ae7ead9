"""GCF, gated clip fusion: Hsiao, Chen, Ho, "GCF-Net: Gated Clip Fusion Network for Video Action Recognition",
ECCV Workshops 2020 (arXiv 2102.01285). An interpretation: what is known and what is assumed stands below.

    fusion = GatedClipFusion(width=1280)
    descriptor_BD, gates_BC = fusion(clips_BCD, counts_BC)

Known from the abstract: clips pass the backbone apart; a bi-directional inter-clip fusion relates every clip to
earlier and later ones; a gated clip-wise attention gives each clip an importance, suppresses irrelevant clips, and
the relevant ones decide. No code is public. Assumed here, with knobs:

    relate   F' = F + Wz softmax(Q K^T / sqrt(d)) V, once over earlier and once over later clips (both with the clip
             itself), summed; d = D / 4; Wz starts at zero, so F' starts as F
    gate     a = sigmoid(W2 relu(W1 [F'_c, mean of F'])), the same scorer for every clip, so any number of them;
             W2 starts at zero, so the descriptor starts as the mean
    fuse     sum(a_c F'_c) / sum(a_c); at inference over the clips with the largest gates only, if asked

The newest clip of a live window is partial. A clip counts by its number of frames n_c: in attention (+ log n_c), in
the window's mean, and in the descriptor (weights a_c n_c). Open gates then give the mean over all frames exactly, a
clip that has just begun changes little, and a clip of no frames is a masked one and changes nothing.

Legend: B windows, C clips, oldest first, D features of a clip, d inner width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from engines.errors import UsageError, first_problem
from engines.networks.fusion_rule import EPSILON, FusionRule, directions


class GatedClipFusion(nn.Module):
    """See the file's top. `forward(clips_BCD, counts_BC) -> (descriptor_BD, gates_BC)`.

    counts: frames in each clip, 0 for one that is not there (a mask of booleans will do: one frame each).
    A window without any clip gives zeros. Gates of clips that are not there, or left out, are 0.
    """

    def __init__(self, width: int, relate: Literal["attention", "bigru", "none"] = "attention", gate: bool = True, *,
                 tied: bool = False, inner: int | None = None, keep: int | None = None,
                 keep_above: float | None = None, clips: int | None = None) -> None:
        """relate: what tells each clip of the others; gate: False leaves every gate open; tied: both directions
        share their weights (and attention its normalisation, so that the order of clips no longer matters);
        inner: d, by default D / 4 up to 64; keep, keep_above: outside training only that many clips with the largest
        gates decide (equal gates stay together), or those with such a gate, at least the best one;
        clips: a gate that squeezes and excites a window of just so many clips instead, for whole videos offline.

        Raises UsageError for an option that cannot be.
        """
        super().__init__()
        try:
            self.rule = FusionRule(relate=relate, gate=gate, tied=tied, inner=inner, keep=keep, keep_above=keep_above)
        except ValidationError as error:
            raise UsageError(*first_problem(error), "see engines.networks.fusion_rule.FusionRule") from error
        inner_width = self.rule.inner_width(width)
        kind = Attention if relate == "attention" else Recurrence
        self.relate = nn.ModuleDict({name: kind(width, inner_width) for name in directions(self.rule)})
        self.gate = None if not gate else WindowGate(clips) if clips is not None else ClipGate(width, inner_width)

    def forward(self, clips_BCD: Tensor, counts_BC: Tensor) -> tuple[Tensor, Tensor]:
        counts_BC = counts_BC.to(clips_BCD.dtype)
        there_BC = counts_BC > 0
        related_BCD = clips_BCD = clips_BCD.masked_fill(~there_BC[..., None], 0)
        for direction, look in self.relate.items():
            related_BCD = related_BCD + look(clips_BCD, counts_BC, direction)
        if self.gate is None:
            gates_BC = there_BC.to(clips_BCD.dtype)
        else:
            gates_BC = self._chosen(self.gate(related_BCD, counts_BC), there_BC)
        weights_BC = counts_BC * gates_BC
        descriptor_BD = torch.einsum("bc,bcd->bd", weights_BC, related_BCD)
        return descriptor_BD / weights_BC.sum(1, keepdim=True).clamp(min=EPSILON), gates_BC

    def _chosen(self, gates_BC: Tensor, there_BC: Tensor) -> Tensor:
        """The gates, with those of clips that are not to decide shut."""
        if self.training or (self.rule.keep is None and self.rule.keep_above is None):
            return gates_BC * there_BC
        ranked_BC = gates_BC.masked_fill(~there_BC, -1)
        kept_BC = there_BC
        if self.rule.keep is not None:
            last = min(self.rule.keep, ranked_BC.shape[1]) - 1
            kept_BC = kept_BC & (ranked_BC >= ranked_BC.sort(1, descending=True).values[:, last, None])
        if self.rule.keep_above is not None:
            best_B1 = ranked_BC.amax(1, keepdim=True)
            kept_BC = kept_BC & ((ranked_BC >= self.rule.keep_above) | (ranked_BC == best_B1))
        return gates_BC * kept_BC


class Attention(nn.Module):
    """What each clip sees in itself and the clips before it ("past"), after it ("future"), or all ("both")."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        # No biases: that of the keys would cancel in the softmax.
        self.query, self.key, self.value = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.out = _zero(nn.Linear(inner, width, bias=False))

    def forward(self, clips_BCD: Tensor, counts_BC: Tensor, direction: str) -> Tensor:
        query, key, value = self.query(clips_BCD), self.key(clips_BCD), self.value(clips_BCD)
        logits_BCC = query @ key.mT / query.shape[-1] ** 0.5 + counts_BC.clamp(min=EPSILON).log()[:, None]
        all_CC = torch.ones(logits_BCC.shape[1:], dtype=torch.bool, device=logits_BCC.device)
        seen_CC = {"past": all_CC.tril(), "future": all_CC.triu(), "both": all_CC}[direction]
        hidden_BCC = ~(seen_CC & (counts_BC > 0)[:, None])
        shares_BCC = logits_BCC.masked_fill(hidden_BCC, torch.finfo(logits_BCC.dtype).min).softmax(-1)
        seen: Tensor = self.out(shares_BCC @ value)
        return seen


class Recurrence(nn.Module):
    """What a recurrent unit knows at each clip, run from the first ("past"), the last ("future"), or both ways."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, inner)
        self.out = _zero(nn.Linear(inner, width, bias=False))

    def forward(self, clips_BCD: Tensor, counts_BC: Tensor, direction: str) -> Tensor:
        shares_BC = counts_BC / counts_BC.amax(1, keepdim=True).clamp(min=EPSILON)
        known_BCd = clips_BCD.new_zeros(*counts_BC.shape, self.cell.hidden_size)
        if direction in ("past", "both"):
            known_BCd = known_BCd + self._run(clips_BCD, shares_BC)
        if direction in ("future", "both"):
            known_BCd = known_BCd + self._run(clips_BCD.flip(1), shares_BC.flip(1)).flip(1)
        known: Tensor = self.out(known_BCd)
        return known

    def _run(self, clips_BCD: Tensor, shares_BC: Tensor) -> Tensor:
        known_Bd = clips_BCD.new_zeros(len(clips_BCD), self.cell.hidden_size)
        rows = []
        for clip_BD, share_B in zip(clips_BCD.unbind(1), shares_BC.unbind(1), strict=True):
            known_Bd = known_Bd + share_B[:, None] * (self.cell(clip_BD, known_Bd) - known_Bd)
            rows.append(known_Bd)
        return torch.stack(rows, dim=1)


class ClipGate(nn.Module):
    """Scores each clip beside the mean of the window."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(2 * width, inner)
        self.score = _zero(nn.Linear(inner, 1))

    def forward(self, clips_BCD: Tensor, counts_BC: Tensor) -> Tensor:
        shares_BC = counts_BC / counts_BC.sum(1, keepdim=True).clamp(min=EPSILON)
        mean_B1D = torch.einsum("bc,bcd->bd", shares_BC, clips_BCD)[:, None]
        hidden_BCd = F.relu(self.squeeze(torch.cat([clips_BCD, mean_B1D.expand_as(clips_BCD)], dim=-1)))
        return torch.sigmoid(self.score(hidden_BCd)[..., 0])


class WindowGate(nn.Module):
    """Squeeze-and-excitation (Hu et al., CVPR 2018) over the clips of a window, whose number is fixed."""

    def __init__(self, clips: int, reduction: int = 2) -> None:
        super().__init__()
        if clips < 1:
            raise UsageError(f"clips={clips}", "at least one clip", "leave it out for windows of any length")
        self.clips = clips
        self.squeeze = nn.Linear(clips, max(1, clips // reduction))
        self.score = _zero(nn.Linear(max(1, clips // reduction), clips))

    def forward(self, clips_BCD: Tensor, counts_BC: Tensor) -> Tensor:
        if counts_BC.shape[1] != self.clips:
            raise UsageError(f"a window of {counts_BC.shape[1]} clips", f"{self.clips} clips, as the gate was built",
                             "mask the clips that are missing, or build without `clips`")
        present_BC = clips_BCD.mean(-1) * (counts_BC > 0)
        return torch.sigmoid(self.score(F.relu(self.squeeze(present_BC))))


def _zero(layer: nn.Linear) -> nn.Linear:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def fusion_of(rule: FusionRule, width: int) -> GatedClipFusion:
    """The module that a contract's fusion rule asks for, with fresh weights."""
    options: dict[str, Any] = rule.model_dump()
    return GatedClipFusion(width, **options)
