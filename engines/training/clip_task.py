"""Training on trimmed clips by SGD, as GSM and GSF do; and learning from a teacher's scores.

A clip is some frames spread over a segment; seed and epoch decide the order of clips.

Legend: B clips, T frames of a clip, H W the input's size, K labels of a head."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset as Items

from engines.datasets.base import Segment
from engines.datasets.decode import MAX_UNREADABLE
from engines.errors import DatasetError, GatestreamError
from engines.model.contract import Contract
from engines.networks.network import Network, clip_scores
from engines.networks.temporal import State
from engines.training.calibrate import read_each
from engines.training.distributed import Ranks
from engines.training.loop import Autocast, LossTerm, Task, make_weight_average
from engines.training.loss import UNKNOWN
from engines.training.pixels import normalise
from engines.training.process import load
from engines.training.runfolder import Row

log = logging.getLogger("gatestream.training")
LEAST_RATE = 1e-7  # of the learning rate, at the end
Images = NDArray[np.uint8]
# Segment, generator of its own -> frames at the input's size, uint8 [T, H, W, 3] BGR, and whether they are mirrored.
ReadClip = Callable[[Segment, np.random.Generator], tuple[Images, bool]]


@dataclass(frozen=True)
class ClipBatch:
    """Some clips, of the same size each."""

    pixels: Tensor  # uint8 [B, T, H, W, 3]
    labels: Tensor  # [B, heads], UNKNOWN where a head has none
    names: tuple[str, ...]  # of the segments


@dataclass(frozen=True)
class ClipOrder:
    """Which clips each batch holds: every epoch is a permutation of all, whose rest that fills no batch is left out."""

    seed: int
    clips: int  # how many there are
    rows: int  # clips of a batch

    @property
    def batches_per_epoch(self) -> int:
        return max(1, self.clips // self.rows)

    def batches(self, first: int, end: int, rows: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
        """(epoch, clip) of these rows of each batch; batches are counted through all epochs, from `first` to `end`."""
        for epoch in range(first // self.batches_per_epoch, -(-end // self.batches_per_epoch)):
            shuffled = np.random.default_rng((self.seed, epoch)).permutation(self.clips)
            begin = epoch * self.batches_per_epoch
            for place in range(max(first - begin, 0), min(end - begin, self.batches_per_epoch)):
                yield [(epoch, int(shuffled[(place * self.rows + row) % self.clips])) for row in rows]


class Clip(NamedTuple):
    """What training sees of a segment."""

    pixels: Images  # uint8 [T, H, W, 3]
    labels: list[int]  # of each head, UNKNOWN where it has none
    name: str


class ClipDataset(Items["ClipBatch | GatestreamError"]):
    """Batches of clips by (epoch, number). In place of one that cannot be read the next is taken; a warning names it.
    strict: do not take another."""

    def __init__(self, segments: Sequence[Segment], heads: Mapping[str, tuple[str, ...]], read_clip: ReadClip,
                 seed: int, mirrored: Mapping[str, Mapping[str, str]], strict: bool = False) -> None:
        self._segments, self._heads, self._read_clip, self._seed = segments, heads, read_clip, seed
        self._mirrored, self._give_up = mirrored, 1 if strict else MAX_UNREADABLE

    def __getitem__(self, keys: Sequence[tuple[int, int]]) -> ClipBatch | GatestreamError:
        try:
            pixels, labels, names = zip(*(self.clip(*key) for key in keys), strict=True)
        except GatestreamError as error:
            return error
        return ClipBatch(torch.from_numpy(np.stack(pixels)), torch.tensor(labels), names)

    def clip(self, epoch: int, number: int) -> Clip:
        """Raises what reading the segment raised."""
        rng = np.random.default_rng((self._seed, epoch, number))
        for step in range(self._give_up):
            segment = self._segments[(number + step) % len(self._segments)]
            try:
                images, mirror = self._read_clip(segment, rng)
                return Clip(images, self.indices(segment, mirror), segment.id)
            except DatasetError as error:
                log.warning("skipped: %s", error)
                last = error
        raise last

    def indices(self, segment: Segment, mirror: bool = False) -> list[int]:
        """The label of each head, as it is in a mirror if asked."""
        found = []
        for head, labels in self._heads.items():
            own = segment.labels.get(head, "")
            label = self._mirrored.get(head, {}).get(own, own) if mirror else own
            found.append(labels.index(label) if label in labels else UNKNOWN)
        return found

    def batches(self, keys: Iterable[list[tuple[int, int]]], workers: int) -> Iterator[ClipBatch]:
        """A batch for each list of keys, made by so many loader workers. Raises what reading a clip raised."""
        return load(self, workers, prefetch=2, order=keys)


def can_mirror(segment: Segment, mirrored: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether all of a segment's labels have a name in a mirror."""
    return all(mirrored.get(head, {}).get(label, label) for head, label in segment.labels.items())


@dataclass(frozen=True, kw_only=True)
class SGDConfig:
    """How weights are updated: by SGD, at a rate that rises for some epochs and falls to the end."""

    epochs: int = 60
    warmup: int = 10  # epochs
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    accumulation: int | None = None  # batches summed up for one update; None: the paper's, GSM 2, GSF 1
    # No batch norm is learnt but the first, and those of the backbone stand still; as GSM's code does, unless its
    # published commands switch it off.
    partial_norm: bool = False
    multipliers: bool = False  # biases learn twice as fast; neither they nor batch norms decay
    average: float = 0.0  # decay of the running mean of the weights, which is saved; 0, as published: the last weights
    distil_temperature: float = 2.0  # of both networks' scores, with a teacher
    distil_weight: float = 1.0  # of the teacher's scores in the loss
    label_weight: float = 1.0  # of the labels in the loss


def epoch_rate(epoch: float, epochs: int = 60, warmup: int = 10) -> float:
    """Factor of the learning rate in an epoch: a line up from a tenth, then half a cosine down to nearly nothing."""
    if epoch < warmup:
        return 0.1 + 0.9 * epoch / warmup
    passed = min(1.0, (epoch - warmup) / max(1, epochs - warmup))
    return float(LEAST_RATE + (1 - LEAST_RATE) * (1 + np.cos(np.pi * passed)) / 2)


class ClipTask(Task[ClipBatch]):
    """Learns labels of clips, or a teacher's scores, or both.
    validation_clips: segments; read_centre: their frames at the input's size, uint8 [T, H, W, 3]; workers: that load
    data; teacher: sees the same pixels, and is not changed; strict: stop at a segment to validate with that cannot be
    read."""

    def __init__(self, network: Network, contract: Contract, config: SGDConfig, training: ClipDataset, order: ClipOrder,
                 validation_clips: Sequence[Segment], read_centre: Callable[[Segment], Images], ranks: Ranks, *,
                 workers: int = 0, teacher: Network | None = None, strict: bool = False) -> None:
        self.network, self.contract, self._config = network.to(ranks.device), contract, config
        self.average = make_weight_average(network, config.average)
        if config.partial_norm:  # as published, gates' norms keep their batch's statistics, but learn nothing
            for norm in [*_norms(network.backbone)[1:], *_norms(network.temporal)]:
                norm.requires_grad_(False)
        self.optimiser = torch.optim.SGD(_groups(network, config), lr=config.lr, momentum=config.momentum,
                                         weight_decay=config.weight_decay)
        self._training, self._order = training, order
        self._validation, self._read_centre = validation_clips, read_centre
        self._ranks, self._accumulation, self._workers, self._strict = ranks, config.accumulation or 1, workers, strict
        self._teacher = None if teacher is None else teacher.to(ranks.device).eval().requires_grad_(False)

    @property
    def updates_per_epoch(self) -> int:
        return max(1, self._order.batches_per_epoch // self._accumulation)

    def rate(self, iteration: int) -> float:
        return epoch_rate(iteration // self.updates_per_epoch, self._config.epochs, self._config.warmup)

    def batches(self, first: int) -> Iterator[ClipBatch]:
        end = self._config.epochs * self.updates_per_epoch * self._accumulation
        rows = self._ranks.own_rows(self._order.rows)
        chosen = self._order.batches(first * self._accumulation, end, rows)
        return self._training.batches(chosen, self._workers)

    def set_mode(self) -> None:
        self.network.train()
        if self._config.partial_norm:
            for norm in _norms(self.network.backbone)[1:]:
                norm.eval()

    def _frames(self, pixels_BTHWC: Tensor) -> Tensor:
        return normalise(pixels_BTHWC.to(self._ranks.device), self.contract)

    def step(self, batch: ClipBatch, state: State, iteration: int,
             autocast: Autocast) -> tuple[dict[str, LossTerm], State]:
        frames = self._frames(batch.pixels)
        with autocast():
            scores = {head: logits.float() for head, logits in clip_scores(self.network, frames).items()}
        terms: dict[str, LossTerm] = {}
        for (head, logits_BK), labels_B in zip(scores.items(), batch.labels.to(self._ranks.device).T, strict=True):
            known = labels_B != UNKNOWN
            cost = F.cross_entropy(logits_BK, labels_B, reduction="sum", ignore_index=UNKNOWN)
            right = ((logits_BK.argmax(-1) == labels_B) & known).sum()
            terms[f"{head} loss"] = LossTerm(cost, known.sum().float(), self._config.label_weight)
            terms[f"{head} accuracy"] = LossTerm(right.float(), known.sum().float(), 0.0)
        if self._teacher is not None:
            with torch.no_grad(), autocast():
                wanted = [logits.float() for logits in clip_scores(self._teacher, frames).values()]
            costs = [distillation_loss(ours, theirs, self._config.distil_temperature)
                     for ours, theirs in zip(scores.values(), wanted, strict=True)]
            terms["distillation"] = LossTerm(torch.stack(costs).sum(), frames.new_tensor(float(len(frames))),
                                             self._config.distil_weight)
        return terms, ()

    def validate(self, network: Network) -> Row:
        """Top-1 of centre crops of one clip each, the mean over heads; unreadable clips are named and left out."""
        heads = list(self.contract.heads)
        totals = torch.zeros(len(heads), 2, dtype=torch.float64, device=self._ranks.device)
        own = self._validation[self._ranks.rank::self._ranks.world_size]
        for segment, images in read_each(own, self._read_centre, self._strict):
            frames = self._frames(torch.from_numpy(images)[None])
            for i, (logits_BK, label) in enumerate(zip(clip_scores(network, frames).values(),
                                                       self._training.indices(segment), strict=True)):
                if label != UNKNOWN:
                    totals[i] += totals.new_tensor([float(int(logits_BK[0].argmax()) == label), 1.0])
        totals = self._ranks.all_reduce(totals)
        shares = (totals[:, 0] / totals[:, 1].clamp(min=1)).tolist()
        named = {f"validation {head}": share for head, share in zip(heads, shares, strict=True)}
        return {"validation accuracy": float(np.mean(shares)), **(named if len(heads) > 1 else {})}


def distillation_loss(ours_BK: Tensor, theirs_BK: Tensor, temperature: float) -> Tensor:
    """Sum over clips of the divergence of our scores from a teacher's, both softened (Hinton et al., "Distilling the
    Knowledge in a Neural Network", 2015); times temperature squared, so that gradients keep their size."""
    return temperature ** 2 * F.kl_div(F.log_softmax(ours_BK / temperature, -1),
                                       F.log_softmax(theirs_BK / temperature, -1), reduction="sum", log_target=True)


def _norms(part: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in part.modules() if isinstance(module, nn.BatchNorm2d)]


def _groups(network: Network, config: SGDConfig) -> list[dict[str, Any]]:
    if not config.multipliers:
        return [{"params": [p for p in network.parameters() if p.requires_grad]}]
    groups: dict[str, list[nn.Parameter]] = {"weights": [], "biases": [], "norms": []}
    for module in network.modules():
        for name, p in module.named_parameters(recurse=False):
            if p.requires_grad:
                kind = "norms" if isinstance(module, nn.BatchNorm2d) else "biases" if "bias" in name else "weights"
                groups[kind].append(p)
    return [{"params": groups["weights"]}, {"params": groups["biases"], "lr": 2 * config.lr, "weight_decay": 0.0},
            {"params": groups["norms"], "weight_decay": 0.0}]
