"""Training on endless streams, carrying state from chunk to chunk as live use does.

Every row of a batch is a stream; a chunk is its next T frames. At a chunk's start some rows begin anew from fresh
state (a trimmed clip), the others continue, so that the second hour is as well trained as the first second."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from engines.model.contract import Contract
from engines.networks.network import Network
from engines.networks.temporal import State
from engines.runtime.windowed import split
from engines.training.calibrate import ValidationClip, Wanted, score_clips
from engines.training.distributed import Ranks
from engines.training.loop import Autocast, LossTerm, Task, make_weight_average
from engines.training.loss import (
    KNOWABLE_AT,
    UNKNOWN,
    Truth,
    frame_loss,
    label_loss,
    label_window_loss,
    tip_loss,
    window_loss,
)
from engines.training.pixels import normalise
from engines.training.runfolder import Row
from engines.training.stream_loader import Batch, StreamLoader

FROZEN_AT_ONCE = 16  # frames whose early maps stay in a processor's caches
WINDOW_WEIGHT, TIP_WEIGHT, TIP_REST = 0.7, 2.0, 0.15  # the fingertip's part falls, and never to nothing


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """How weights are updated: by AdamW, each part of the network at a rate of its own."""

    iterations: int = 3600  # steps on streams
    backbone_lr: float = 1e-4
    module_lr: float = 1e-3  # of temporal modules
    head_lr: float = 1e-3  # of heads, read-out and fingertip
    weight_decay: float = 0.02
    frozen_layers: int = 7  # first of the backbone's `freezable_layers` that stay as they are
    average: float = 0.998  # decay of the running mean of the weights, which is saved


class FingertipAuxHead(nn.Module):
    """Finds the fingertip during training, and is no part of the model file: a heat map on a middle stage, and place
    and motion read from the features before the read-out."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        assert network.backbone.middle is not None
        layer, channels = network.backbone.middle
        self._kept: dict[str, Tensor] = {}
        self.heat = nn.Conv2d(channels, 1, 1)
        self.guess = nn.Linear(network.backbone.width, 4)
        watched = network.backbone.get_submodule(layer)
        watched.register_forward_hook(lambda _, __, out: self._kept.update(map=out))
        network.dropout.register_forward_pre_hook(lambda _, inputs: self._kept.update(features=inputs[0]))

    def forward(self, batch: int) -> tuple[Tensor, Tensor]:
        heat = self.heat(self._kept["map"].float())
        return heat.view(batch, -1, *heat.shape[-2:]), self.guess(self._kept["features"].float())


def subsample_depthwise(network: Network) -> None:
    """Computes stride-2 depthwise convolutions densely and keeps every second pixel: the same numbers, and their
    gradient is some ten times faster on the CPU."""
    for module in network.backbone.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and module.stride == (2, 2):
            module.stride = (1, 1)
            module.register_forward_hook(lambda _, __, out: out[..., ::2, ::2])


class StreamTask(Task[Batch]):
    """Trains a network on streams with AdamW, state carried from chunk to chunk.
    loader: of this process's rows; truths: labels of the streams' frames as [heads] indices, UNKNOWN where a head has
    none: a frame's label is the index of one of these; label_sets: of multi-label heads, all labels of each truth, as
    [heads] tuples of indices, () where `truths` has them all; finds_tips: whether frames know the fingertip, which a
    backbone with a middle stage then learns to find, too; held_out: called for what validation looks at; spread: so
    many frames evenly over each of these clips, 0: the model's frame rate."""

    def __init__(self, network: Network, contract: Contract, loader: StreamLoader, truths: Sequence[tuple[int, ...]],
                 config: AdamWConfig, ranks: Ranks, *, label_sets: Sequence[Sequence[Sequence[int]]] = (),
                 finds_tips: bool = False,
                 held_out: Callable[[], Sequence[ValidationClip]] = tuple, spread: int = 0) -> None:
        self.network, self.contract = network.to(ranks.device), contract
        network.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = make_weight_average(network, config.average)
        frozen = network.backbone.freezable_layers()[:config.frozen_layers]
        subsample_depthwise(network)
        finds_tips = finds_tips and network.backbone.middle is not None
        self.aux_head = self._finds_tips = FingertipAuxHead(network).to(ranks.device) if finds_tips else None
        self._frozen = min(len(frozen), split(network)[0])
        for layer in frozen:
            layer.requires_grad_(False)
        groups = [([p for p in network.backbone.parameters() if p.requires_grad], config.backbone_lr),
                  (list(network.temporal.parameters()), config.module_lr),
                  ([*network.heads.parameters(), *(self.aux_head.parameters() if self.aux_head else ()),
                    *(network.memory.parameters() if network.memory else ())], config.head_lr)]
        self.optimiser = torch.optim.AdamW([{"params": p, "lr": lr} for p, lr in groups if p],
                                           weight_decay=config.weight_decay)
        self._truths = torch.tensor(truths, device=ranks.device)
        self._true: dict[str, Tensor] = {}  # of multi-label heads, which labels each truth has [truths, K]
        for i, (head, labels) in enumerate(contract.heads.items()):
            if head in contract.multi_label:
                sets = [each[i] for each in label_sets] or [[one[i]] if one[i] != UNKNOWN else [] for one in truths]
                self._true[head] = torch.tensor([[float(k in own) for k in range(len(labels))] for own in sets],
                                                device=ranks.device)
        self._iterations, self._warmup = config.iterations, max(1, min(200, config.iterations // 10))
        self._loader, self._ranks, self._held_out, self._spread = loader, ranks, held_out, spread

    def rate(self, iteration: int) -> float:
        """Half a cosine after a short warm-up."""
        cosine = (1 + np.cos(np.pi * min(1.0, iteration / self._iterations))) / 2
        return float(min(1.0, (iteration + 1) / self._warmup) * (0.02 + 0.98 * cosine))

    def batches(self, first: int) -> Iterator[Batch]:
        return self._loader.batches(first, self._iterations)

    @torch.no_grad()
    def _early(self, frames: Tensor) -> Tensor:
        """What the frozen steps make of each frame."""
        if not self._frozen:
            return frames
        parts = frames.chunk(-(-len(frames) // FROZEN_AT_ONCE)) if frames.device.type == "cpu" else [frames]
        return torch.cat([self.network.backbone(part, lambda _, x: x, slice(self._frozen)) for part in parts])

    def fresh_state(self) -> State:
        return self.network.fresh_state(len(self._loader.rows))

    def validate(self, network: Network) -> Row:
        """How many of the clips that were left out the last window names, and its negative log-likelihood; means over
        heads."""
        heads = self.contract.heads
        sums = torch.zeros(len(heads), 3, dtype=torch.float64, device=self._ranks.device)
        own = self._held_out()[self._ranks.rank::self._ranks.world_size]
        for i, scored in enumerate(score_clips(self.contract, network, own, self._spread).values()):
            for logits_K, truth in scored.window:
                sums[i] += sums.new_tensor([*_judge(logits_K, truth), 1.0])
        sums = self._ranks.all_reduce(sums)
        shares, losses = (sums[:, :2] / sums[:, 2:].clamp(min=1)).T.tolist()
        named = {f"validation {head}": share for head, share in zip(heads, shares, strict=True)}
        return {"validation accuracy": float(np.mean(shares)), "validation loss": float(np.mean(losses)),
                **(named if len(heads) > 1 else {})}

    def step(self, batch: Batch, state: State, iteration: int, autocast: Autocast) -> tuple[dict[str, LossTerm], State]:
        device = self._ranks.device
        keep = (~batch.fresh).float().to(device)
        state = tuple(leaf * keep.view(-1, *[1] * (leaf.ndim - 1)) for leaf in state)
        frames = normalise(batch.pixels.to(device).flatten(0, 1), self.contract)
        with autocast():
            maps = self._early(frames)
            features, state = self.network(maps.view(*batch.pixels.shape[:2], *maps.shape[1:]), state,
                                           slice(self._frozen, None))
        state = tuple(leaf.detach().float() for leaf in state)
        truth = Truth(*(column.to(device) for column in batch.truth))
        terms: dict[str, LossTerm] = {}
        logits = self.network.scores(features.float())
        for i, (head, labels) in enumerate(self.contract.heads.items()):
            known = truth._replace(label=self._truths[truth.label][..., i])
            late = (known.progress > KNOWABLE_AT) & (known.label != UNKNOWN)
            right = (logits[head].argmax(-1) == known.label) & late
            if head in self._true:
                true = self._true[head][truth.label]
                right = (true.gather(-1, logits[head].argmax(-1, keepdim=True))[..., 0] > 0) & late
                now, window = label_loss(logits[head], known, true), label_window_loss(logits[head], known, true)
            else:
                background = labels.index(self.contract.background) if self.contract.background in labels else None
                now, window = frame_loss(logits[head], known, background), window_loss(logits[head], known)
            found = {"now": now, "window": window._replace(weight=WINDOW_WEIGHT),
                     "late accuracy": LossTerm(right.sum().float(), late.sum().float(), 0.0)}
            terms |= {name if len(logits) == 1 else f"{head} {name}": term for name, term in found.items()}
        if self._finds_tips is not None:
            fade = max(0.0, 1 - iteration / (0.8 * self._iterations))
            heat, guess = self._finds_tips(len(batch.pixels))
            terms |= {name: term._replace(weight=TIP_WEIGHT * (TIP_REST + fade))
                      for name, term in tip_loss(heat, guess, truth).items()}
        return terms, state


def _judge(logits_K: NDArray[np.float32], truth: Wanted) -> tuple[float, float]:
    """Whether the best label is true, and the negative log-likelihood."""
    logits = torch.from_numpy(logits_K).double()
    if isinstance(truth, int):
        logp_K = logits.log_softmax(0)
        return float(int(logp_K.argmax()) == truth), -float(logp_K[truth])
    known, true_K = ~np.isnan(truth), torch.from_numpy(truth)
    cost = F.binary_cross_entropy_with_logits(logits[known], true_K[known], reduction="sum")
    return float(true_K[int(logits.argmax())] == 1), float(cost)
