"""What a causal recogniser should say at each frame, and what that costs when it does not.

Early in a gesture nobody can tell which one it is: there the loss asks only for "not background"; as the gesture
proceeds it asks for its label. At its end the mean over its frames (what the window sees) must name it as well.

Legend: B rows, T frames, K labels."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from engines.training.loop import LossTerm

UNKNOWN = -1  # a label that is not known: it is not asked for
KNOWABLE_FROM, KNOWABLE_AT = 0.25, 0.75  # share of a gesture seen: label wanted not at all, fully


class Truth(NamedTuple):
    """Per frame [B, T]: label index or UNKNOWN, progress 0..1, weight, gesture number, -1 outside; tip_xy [B, T, 2],
    NaN where unknown."""

    label: Tensor
    progress: Tensor
    weight: Tensor
    gesture: Tensor
    tip_xy: Tensor


def frame_loss(logits_BTK: Tensor, truth: Truth, background: int | None, smoothing: float = 0.05) -> LossTerm:
    """Loss of the `now` scores. background: its index, None for a head without it; labels of -1 are not asked for."""
    logp = F.log_softmax(logits_BTK, dim=-1)
    named = F.cross_entropy(logits_BTK.flatten(0, 1), truth.label.flatten(), reduction="none", ignore_index=UNKNOWN,
                            label_smoothing=smoothing).view_as(truth.progress)
    share = knowable(truth.progress)
    if background is None:
        loss = share * named
    else:
        active = torch.log1p(-logp[..., background].exp().clamp(max=1 - 1e-6)).neg()
        loss = torch.where(truth.label != background, share * named + (1 - share) * active, named)
    weight = truth.weight * (truth.label != UNKNOWN)
    return LossTerm((loss * weight).sum(), weight.sum())


def knowable(progress: Tensor) -> Tensor:
    """How much a label is asked for when so much of its action has been seen."""
    return ((progress - KNOWABLE_FROM) / (KNOWABLE_AT - KNOWABLE_FROM)).clamp(0, 1)


def label_loss(logits_BTK: Tensor, truth: Truth, true_BTK: Tensor) -> LossTerm:
    """Loss of the `now` scores of a multi-label head: binary cross-entropy, the sum over labels, each true one asked
    for as its action proceeds. A frame within an action none of whose labels this head has is not asked for."""
    costs = F.binary_cross_entropy_with_logits(logits_BTK, true_BTK, reduction="none")
    asked = torch.where(true_BTK > 0, knowable(truth.progress)[..., None], torch.ones_like(true_BTK))
    weight = truth.weight * ((truth.label != UNKNOWN) | (truth.gesture < 0))
    return LossTerm((costs * asked * weight[..., None]).sum(), weight.sum())


def label_window_loss(logits_BTK: Tensor, truth: Truth, true_BTK: Tensor) -> LossTerm:
    """As `window_loss`, of a multi-label head: labels that were true for a part of the gesture are not asked for."""
    losses = []
    for row, of_it in _knowable_gestures(truth):
        share_K = true_BTK[row, of_it].mean(dim=0)
        costs = F.binary_cross_entropy_with_logits(logits_BTK[row, of_it].mean(dim=0), share_K.round(),
                                                   reduction="none")
        losses.append(costs[(share_K == 0) | (share_K == 1)].sum())
    return _sum_of(losses, logits_BTK)


def window_loss(logits_BTK: Tensor, truth: Truth) -> LossTerm:
    """Loss of the mean logits over each gesture's frames so far, where at least three quarters have been seen."""
    losses = [F.cross_entropy(logits_BTK[row, of_it].mean(dim=0), truth.label[row, of_it][0], label_smoothing=0.05)
              for row, of_it in _knowable_gestures(truth)]
    return _sum_of(losses, logits_BTK)


def _knowable_gestures(truth: Truth) -> Iterator[tuple[int, Tensor]]:
    """Row and frames, bool [T], of each gesture that has a label and of which three quarters have been seen."""
    for row, gestures in enumerate(truth.gesture):
        for gesture in torch.unique(gestures[(gestures >= 0) & (truth.label[row] != UNKNOWN)]):
            of_it = gestures == gesture
            if truth.progress[row, of_it].max() >= KNOWABLE_AT:
                yield row, of_it


def _sum_of(losses: Sequence[Tensor], like: Tensor) -> LossTerm:
    total = torch.stack(list(losses)).sum() if losses else like.sum() * 0
    return LossTerm(total, torch.tensor(float(len(losses)), device=like.device))


def tip_loss(heat_BTHW: Tensor, guess_BTV: Tensor, truth: Truth) -> dict[str, LossTerm]:
    """Of rendered frames: soft-argmax of a heat map finds the fingertip; features tell its place and motion."""
    known = ~truth.tip_xy[..., 0].isnan()
    height, width = heat_BTHW.shape[-2:]
    share = heat_BTHW[known].flatten(1).softmax(dim=-1).view(-1, height, width)
    centres_x = (torch.arange(width, device=share.device) + 0.5) / width
    centres_y = (torch.arange(height, device=share.device) + 0.5) / height
    found = torch.stack([(share.sum(1) * centres_x).sum(-1), (share.sum(2) * centres_y).sum(-1)], dim=-1)
    both = known[:, 1:] & known[:, :-1]
    step = (truth.tip_xy[:, 1:] - truth.tip_xy[:, :-1])[both]
    pairs = {"heat": (found, truth.tip_xy[known]), "place": (guess_BTV[known][:, :2], truth.tip_xy[known]),
             "motion": (guess_BTV[:, 1:][both][:, 2:], 4 * step)}
    return {name: LossTerm(F.smooth_l1_loss(ours, wanted, beta=0.05, reduction="sum"),
                           torch.tensor(float(wanted.numel()), device=wanted.device))
            for name, (ours, wanted) in pairs.items()}
