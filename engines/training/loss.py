"""What a causal recogniser should say at each frame, and what that costs when it does not.

Early in a gesture nobody can tell which one it is: there the loss asks only for "not background"; as the gesture
proceeds it asks for its label. At its end the mean over its frames (what the window sees) must name it as well.

Legend: B rows, T frames, K labels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

KNOWABLE_FROM, KNOWABLE_AT = 0.25, 0.75  # share of a gesture seen: label wanted not at all, fully


class Truth(NamedTuple):
    """Per frame [B, T]: label index, progress 0..1, weight, gesture number, -1 outside; tip_xy [B, T, 2], NaN
    where unknown."""

    label: Tensor
    progress: Tensor
    weight: Tensor
    gesture: Tensor
    tip_xy: Tensor


def frame_loss(logits_BTK: Tensor, truth: Truth, background: int, smoothing: float = 0.05) -> Tensor:
    """Mean loss of the `now` scores."""
    logp = F.log_softmax(logits_BTK, dim=-1)
    named = F.cross_entropy(logits_BTK.flatten(0, 1), truth.label.flatten(), reduction="none",
                            label_smoothing=smoothing).view_as(truth.progress)
    active = torch.log1p(-logp[..., background].exp().clamp(max=1 - 1e-6)).neg()
    knowable = ((truth.progress - KNOWABLE_FROM) / (KNOWABLE_AT - KNOWABLE_FROM)).clamp(0, 1)
    inside = truth.label != background
    loss = torch.where(inside, knowable * named + (1 - knowable) * active, named)
    return (loss * truth.weight).sum() / truth.weight.sum().clamp(min=1)


def window_loss(logits_BTK: Tensor, truth: Truth, background: int) -> Tensor:
    """Loss of the mean logits over each gesture's frames so far, where at least three quarters have been seen."""
    losses = []
    for row, gestures in enumerate(truth.gesture):
        for gesture in torch.unique(gestures[gestures >= 0]):
            of_it = gestures == gesture
            if truth.progress[row, of_it].max() < KNOWABLE_AT:
                continue
            mean = logits_BTK[row, of_it].mean(dim=0)
            losses.append(F.cross_entropy(mean, truth.label[row, of_it][0], label_smoothing=0.05))
    return torch.stack(losses).mean() if losses else logits_BTK.sum() * 0


def tip_loss(heat_BTHW: Tensor, guess_BTV: Tensor, truth: Truth) -> Tensor:
    """Helper for rendered frames: soft-argmax of a heat map finds the fingertip; features tell place and motion."""
    known = ~truth.tip_xy[..., 0].isnan()
    if not known.any():
        return heat_BTHW.sum() * 0 + guess_BTV.sum() * 0
    height, width = heat_BTHW.shape[-2:]
    share = heat_BTHW[known].flatten(1).softmax(dim=-1).view(-1, height, width)
    centres_x = (torch.arange(width) + 0.5) / width
    centres_y = (torch.arange(height) + 0.5) / height
    found = torch.stack([(share.sum(1) * centres_x).sum(-1), (share.sum(2) * centres_y).sum(-1)], dim=-1)
    place = F.smooth_l1_loss(found, truth.tip_xy[known], beta=0.05)
    direct = F.smooth_l1_loss(guess_BTV[known][:, :2], truth.tip_xy[known], beta=0.05)
    both = known[:, 1:] & known[:, :-1]
    step = (truth.tip_xy[:, 1:] - truth.tip_xy[:, :-1])[both]
    motion = F.smooth_l1_loss(guess_BTV[:, 1:][both][:, 2:], 4 * step, beta=0.05) if both.any() else place * 0
    return place + direct + motion
