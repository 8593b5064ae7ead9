"""What a recipe gives the training loop: what is trained on what (`Task`), and how long and how carefully
(`LoopConfig`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from engines.networks.network import Network
from engines.networks.temporal import State
from engines.training.runfolder import Row

Batch = TypeVar("Batch")
Precision = Literal["auto", "f32", "bf16", "f16"]
Autocast = Callable[[], AbstractContextManager[Any]]
Progress = Callable[[int, dict[str, float]], None]


class LossTerm(NamedTuple):
    """A mean to be: a sum over this process's rows, and over how many. weight: its part in the loss, 0 for a mere
    figure."""

    total: Tensor
    divisor: Tensor
    weight: float = 1.0

    @property
    def mean(self) -> Tensor:
        return self.total / self.divisor.clamp(min=1)


@dataclass(frozen=True)
class LoopConfig:
    """How long and how carefully. Numbers are in iterations, one update of the weights each.

    accumulation: batches summed up for one update; clip_norm: longest gradient; clip_partial: sums of some of these
    batches are clipped before the rest is added; validate_every: 0 for never; monitor: the figure of the validation
    that should be high; patience: validations without a new best before the run ends, 0 for no end before `iterations`.
    """

    iterations: int
    seed: int = 0
    accumulation: int = 1
    clip_norm: float = 5.0
    clip_partial: bool = False
    precision: Precision = "auto"
    checkpoint_every: int = 250
    log_every: int = 50
    validate_every: int = 0
    monitor: str = "validation accuracy"
    patience: int = 0


class Task(ABC, Generic[Batch]):
    """What is trained. network: on its device; aux_head: trained beside it and thrown away, or None; average: the
    mean of the network's weights (see `make_weight_average`); optimiser: its groups' learning rates are multiplied by
    `rate`."""

    network: Network
    aux_head: nn.Module | None = None
    average: AveragedModel
    optimiser: torch.optim.Optimizer

    @abstractmethod
    def rate(self, iteration: int) -> float:
        """Factor of the learning rates at an iteration."""

    @abstractmethod
    def batches(self, first: int) -> Iterator[Batch]:
        """This process's rows of every batch from iteration `first` on; must depend on nothing else."""

    @abstractmethod
    def step(self, batch: Batch, state: State, iteration: int, autocast: Autocast) -> tuple[dict[str, LossTerm], State]:
        """The terms of a batch's loss, and the state to carry on. `autocast()` is where lower precision may be used."""

    @abstractmethod
    def describe(self, batch: Batch) -> str:
        """What is in a batch, for a message."""

    def fresh_state(self) -> State:
        """State to begin with, rows first; () for a recipe that carries none."""
        return ()

    def set_mode(self) -> None:
        """Called before each iteration: sets the network's mode."""
        self.network.train()

    def validate(self, network: Network) -> Row:
        """Figures of the network on data that it does not learn from; the same on every process."""
        return {}


def make_weight_average(network: Network, decay: float) -> AveragedModel:
    """A running mean of the network's weights and statistics, to be made before hooks are put on the network."""
    def update(mean: Any, new: Any, seen: Any) -> None:
        if mean[0].is_floating_point():  # a mean that is too slow for its age would remember the first weights for long
            slow = min(decay, (1 + int(seen)) / (10 + int(seen)))
            get_ema_multi_avg_fn(slow)(mean, new, seen)  # type: ignore[no-untyped-call]
        else:  # torch would round means of integers down: a channel order would be no order any more
            for kept, value in zip(mean, new, strict=True):
                kept.copy_(value)

    mean: AveragedModel = AveragedModel(network, multi_avg_fn=update, use_buffers=True)
    return mean.eval()
