"""What a recipe gives the training loop: what is trained on what (`Task`), and how (`LoopConfig`)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from engines.networks.network import Network
from engines.networks.temporal import State
from engines.training.runfolder import Row

Batch = TypeVar("Batch", bound="NamedBatch")
Precision = Literal["auto", "f32", "bf16", "f16"]
Autocast = Callable[[], AbstractContextManager[Any]]
Progress = Callable[[int, dict[str, float]], None]  # updates done, figures of the last one


class NamedBatch(Protocol):
    """What is trained on at once."""

    @property
    def names(self) -> tuple[str, ...]: ...  # of its rows, for a message


class LossTerm(NamedTuple):
    """A mean over the rows of all processes, which add up totals and divisors before they divide."""

    total: Tensor  # a sum over this process's rows
    divisor: Tensor  # how many they are
    weight: float = 1.0  # part in the loss; 0 for a mere figure

    @property
    def mean(self) -> Tensor:
        return self.total / self.divisor.clamp(min=1)


@dataclass(frozen=True)
class LoopConfig:
    """How long and how carefully. An iteration is one update of the weights."""

    iterations: int
    seed: int = 0
    accumulation: int = 1  # batches summed up for one update
    clip_norm: float = 5.0  # longest gradient
    clip_partial: bool = False  # sums of some of an update's batches are clipped before the rest is added
    precision: Precision = "auto"
    checkpoint_every: int = 250  # iterations
    log_every: int = 50  # iterations
    validate_every: int = 0  # iterations; 0: never
    patience: int = 0  # validations without a new best that end the run; 0: it goes on to the last iteration


class Task(ABC, Generic[Batch]):
    """What is trained, and on what. One for each recipe."""

    network: Network  # on its device
    aux_head: nn.Module | None = None  # trained beside the network and thrown away
    average: AveragedModel  # of the network's weights, see `make_weight_average`
    optimiser: torch.optim.Optimizer  # its learning rates are multiplied by `rate`

    @abstractmethod
    def rate(self, iteration: int) -> float:
        """Factor of the learning rates at an iteration."""

    @abstractmethod
    def batches(self, first: int) -> Iterator[Batch]:
        """This process's rows of every batch from iteration `first` on; must depend on nothing else."""

    @abstractmethod
    def step(self, batch: Batch, state: State, iteration: int, autocast: Autocast) -> tuple[dict[str, LossTerm], State]:
        """The terms of a batch's loss, and the state to carry on. Lower precision may be used inside `autocast()`."""

    def fresh_state(self) -> State:
        """State to begin with, rows first; () for a recipe that carries none."""
        return ()

    def set_mode(self) -> None:
        """Called before each iteration: sets the network's mode."""
        self.network.train()

    def validate(self, network: Network) -> Row:
        """Figures of the network on data that it does not learn from, "validation accuracy" among them; the same on
        every process."""
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
