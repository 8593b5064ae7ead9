"""GCF, gated clip fusion: Hsiao, Chen, Ho, "GCF-Net: Gated Clip Fusion Network for Video Action Recognition",
ECCV Workshops 2020 (arXiv 2102.01285). An interpretation.

Known from the abstract: clips pass the backbone apart; a bi-directional inter-clip fusion relates every clip to
earlier and later ones; a gated clip-wise attention suppresses irrelevant clips. No code is public. Assumed here:

    relate   F' = F + Wz softmax(Q K^T / sqrt(d)) V, once over earlier and once over later clips (both with the clip
             itself), summed; Wz starts at zero, so F' starts as F
    gate     a = sigmoid(W2 relu(W1 [F'_c, mean of F'])), the same for every clip, so any number of them;
             W2 starts at zero, so the descriptor starts as the mean
    fuse     sum(a_c F'_c) / sum(a_c)

A clip counts by its number of frames n_c, as the newest one of a live window is partial: in attention (+ log n_c), in
the window's mean, and in the descriptor (weights a_c n_c). Open gates then give the mean over all frames exactly, and
a clip of no frames is a masked one and changes nothing.
Legend: B windows, C clips, oldest first, D features of a clip, d inner width."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.networks.config import EPSILON, FusionRule, directions


class GatedClipFusion(nn.Module):
    """Fuses the clips of windows: `forward(clips_BCD, counts_BC) -> (descriptor_BD, gates_BC)`.
    counts: frames in each clip, 0 for one that is not there (a mask of booleans will do: one frame each). A window
    without any clip gives zeros. Gates of clips that are not there, or left out, are 0. `keep` and `keep_above` of the
    rule act outside training only: clips with equal gates stay together, and the best one always stays."""

    def __init__(self, width: int, rule: FusionRule | None = None) -> None:
        super().__init__()
        self.rule = rule = rule or FusionRule()
        inner_width = rule.inner_width(width)
        kind = Attention if rule.relate == "attention" else Recurrence
        self.relate = nn.ModuleDict({name: kind(width, inner_width) for name in directions(rule)})
        self.gate = ClipGate(width, inner_width) if rule.gate else None

    def forward(self, clips_BCD: Tensor, counts_BC: Tensor) -> tuple[Tensor, Tensor]:
        counts_BC = counts_BC.to(clips_BCD.dtype)
        present_BC = counts_BC > 0
        related_BCD = clips_BCD = clips_BCD.masked_fill(~present_BC[..., None], 0)
        for direction, relate in self.relate.items():
            related_BCD = related_BCD + relate(clips_BCD, counts_BC, direction)
        gates_BC = (present_BC.to(clips_BCD.dtype) if self.gate is None
                    else self._keep_best(self.gate(related_BCD, counts_BC), present_BC))
        weights_BC = counts_BC * gates_BC
        descriptor_BD = (weights_BC[..., None] * related_BCD).sum(1)
        return descriptor_BD / weights_BC.sum(1, keepdim=True).clamp(min=EPSILON), gates_BC

    def _keep_best(self, gates_BC: Tensor, present_BC: Tensor) -> Tensor:
        """The gates, with those of clips that are not to decide shut."""
        keep, keep_above = self.rule.keep, self.rule.keep_above
        ranked_BC = gates_BC.masked_fill(~present_BC, -1)
        if not self.training and keep is not None:
            least_B1 = ranked_BC.sort(1, descending=True).values[:, min(keep, ranked_BC.shape[1]) - 1, None]
            present_BC = present_BC & (ranked_BC >= least_B1)
        if not self.training and keep_above is not None:
            present_BC = present_BC & ((ranked_BC >= keep_above) | (ranked_BC == ranked_BC.amax(1, keepdim=True)))
        return gates_BC * present_BC


class Attention(nn.Module):
    """Attention of each clip to itself and the clips before it ("past"), after it ("future"), or all ("both")."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        # No biases: that of the keys would cancel in the softmax.
        self.query, self.key, self.value = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.out = _zero(nn.Linear(inner, width, bias=False))

    def forward(self, clips_BCD: Tensor, counts_BC: Tensor, direction: str) -> Tensor:
        query, key, value = self.query(clips_BCD), self.key(clips_BCD), self.value(clips_BCD)
        # Products written out, here and below: TensorRT for RTX multiplies no float32 matrices on Turing.
        alike_BCC = (query[:, :, None] * key[:, None]).sum(-1)
        logits_BCC = alike_BCC / query.shape[-1] ** 0.5 + counts_BC.clamp(min=EPSILON).log()[:, None]
        all_CC = torch.ones(logits_BCC.shape[1:], dtype=torch.bool, device=logits_BCC.device)
        visible_CC = {"past": all_CC.tril(), "future": all_CC.triu(), "both": all_CC}[direction]
        masked_BCC = ~(visible_CC & (counts_BC > 0)[:, None])
        shares_BCC = logits_BCC.masked_fill(masked_BCC, torch.finfo(logits_BCC.dtype).min).softmax(-1)
        related: Tensor = self.out((shares_BCC[..., None] * value[:, None]).sum(2))
        return related


class Recurrence(nn.Module):
    """A recurrent unit's state at each clip, run from the first ("past"), the last ("future"), or both ways."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, inner)
        self.out = _zero(nn.Linear(inner, width, bias=False))

    def forward(self, clips_BCD: Tensor, counts_BC: Tensor, direction: str) -> Tensor:
        shares_BC = counts_BC / counts_BC.amax(1, keepdim=True).clamp(min=EPSILON)
        hidden_BCd = clips_BCD.new_zeros(*counts_BC.shape, self.cell.hidden_size)
        if direction in ("past", "both"):
            hidden_BCd = hidden_BCd + self._run(clips_BCD, shares_BC)
        if direction in ("future", "both"):
            hidden_BCd = hidden_BCd + self._run(clips_BCD.flip(1), shares_BC.flip(1)).flip(1)
        related: Tensor = self.out(hidden_BCd)
        return related

    def _run(self, clips_BCD: Tensor, shares_BC: Tensor) -> Tensor:
        hidden_Bd = clips_BCD.new_zeros(len(clips_BCD), self.cell.hidden_size)
        rows = []
        for clip_BD, share_B in zip(clips_BCD.unbind(1), shares_BC.unbind(1), strict=True):
            hidden_Bd = hidden_Bd + share_B[:, None] * (self.cell(clip_BD, hidden_Bd) - hidden_Bd)
            rows.append(hidden_Bd)
        return torch.stack(rows, dim=1)


class ClipGate(nn.Module):
    """Scores each clip beside the mean of the window."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(2 * width, inner)
        self.score = _zero(nn.Linear(inner, 1))

    def forward(self, clips_BCD: Tensor, counts_BC: Tensor) -> Tensor:
        shares_BC = counts_BC / counts_BC.sum(1, keepdim=True).clamp(min=EPSILON)
        mean_B1D = (shares_BC[..., None] * clips_BCD).sum(1, keepdim=True)
        hidden_BCd = F.relu(self.squeeze(torch.cat([clips_BCD, mean_B1D.expand_as(clips_BCD)], dim=-1)))
        return torch.sigmoid(self.score(hidden_BCd)[..., 0])


def _zero(layer: nn.Linear) -> nn.Linear:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
