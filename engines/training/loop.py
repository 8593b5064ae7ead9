"""The one training loop. A recipe says what is trained on what (`Task`) and how long (`LoopConfig`); the loop
does the rest.

    with init_distributed() as ranks:
        network = run(task, config, folder, ranks)
        ...                                         # write the model file; then
        folder.finish()

Nothing depends on when a run was stopped: batches are functions of seed and iteration, random numbers start anew at
every iteration, and a checkpoint holds all the rest, so that a killed run goes on to the very same weights.

Several processes (`torchrun`) share out the rows of each batch. Every loss is a sum over rows with a count; sums and
counts are added up over all processes before they are divided, so that the number of processes changes nothing but
which random numbers dropout draws: each process has its own. Without dropout, weights agree within rounding."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from engines.errors import ModelError, UsageError
from engines.networks.network import Network
from engines.networks.temporal import State
from engines.training.distributed import Ranks
from engines.training.process import defer_interrupts, keep_freed_memory, seeded
from engines.training.runfolder import Row, RunFolder

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


def run(task: Task[Batch], config: LoopConfig, folder: RunFolder, ranks: Ranks, report: Callable[[str], None] = print,
        progress: Progress = lambda _, __: None) -> Network:
    """Trains to the end; returns the network to save, on the CPU in evaluation mode.
    Its weights are the average's, or the best of those that were validated. Goes on from the folder's checkpoint.
    Ctrl-C and SIGTERM end it after an update, with a checkpoint; a second one at once. Raises KeyboardInterrupt then;
    ModelError for a loss or gradient that is not finite, naming the batch: the checkpoint before it is kept."""
    with keep_freed_memory(), seeded(config.seed, ranks.device):
        run_ = _Run(task, config, folder, ranks, report)
        first = run_.resume()
        batches = task.batches(first)
        with defer_interrupts() as interrupted:
            for iteration in range(first, config.iterations):
                figures = run_.update(iteration, batches)
                if ranks.is_main:
                    progress(iteration + 1, figures)
                goes_on = run_.finish_iteration(iteration + 1, figures)
                if ranks.all_reduce(torch.tensor(float(interrupted()), device=ranks.device)):
                    run_.save_checkpoint(iteration + 1)
                    raise KeyboardInterrupt
                if not goes_on:
                    break
    trained = run_.averaged
    if run_.best > -math.inf:
        trained.load_state_dict(ranks.broadcast(folder.load_best() if ranks.is_main else trained.state_dict()))
    return trained.to("cpu").eval()


def check_validation(every: int | None, patience: int, held_out: bool, default: int = 5) -> int:
    """How often to validate: `every`, or where that is None `default` if anything was left out. Raises UsageError for
    a validation without anything left out, and for patience without validations."""
    if every and not held_out:
        raise UsageError("a validation without anything left out", "a fold, videos or a validation split",
                         "leave something out, or do not validate")
    every = (default if held_out else 0) if every is None else every
    if patience and not every:
        raise UsageError(f"a patience of {patience} validations without any", "validations on what is left out",
                         "use --validate-every N, or leave the patience out")
    return every


class _Run(Generic[Batch]):
    """What one run carries from update to update."""

    def __init__(self, task: Task[Batch], config: LoopConfig, folder: RunFolder, ranks: Ranks,
                 report: Callable[[str], None]) -> None:
        self.task, self.config, self.folder, self.ranks, self.report = task, config, folder, ranks, report
        self.precision = _precision(config.precision, ranks.device)
        if config.clip_partial and self.precision == torch.float16:
            raise UsageError("clipping of partial sums in f16", "one of the two: scaled gradients cannot be clipped "
                             "twice", "use bf16 or f32")
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=self.precision == torch.float16)
        self.autocast: Autocast = partial(torch.autocast, ranks.device.type, self.precision,
                                          enabled=self.precision != torch.float32)
        self.parameters = [p for group in task.optimiser.param_groups for p in group["params"]]
        for group in task.optimiser.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.state = task.fresh_state()
        self.sums: dict[str, float] = {}
        self.summed = 0
        self.best, self.without_best = -math.inf, 0
        averaged = task.average.module
        assert isinstance(averaged, Network)
        self.averaged = averaged
        ranks.sync_batch_norms(task.network)

    def update(self, iteration: int, batches: Iterator[Batch]) -> dict[str, float]:
        """One update of the weights; returns the figures of its batches."""
        task, config = self.task, self.config
        # Dropout's draws depend on the iteration only: no generator's state need be kept.
        torch.manual_seed((config.seed * 1_000_003 + iteration) * 4099 + self.ranks.rank)
        task.set_mode()
        for group in task.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * task.rate(iteration)
        task.optimiser.zero_grad(set_to_none=True)
        figures: dict[str, float] = {}
        for part in range(config.accumulation):
            last = part + 1 == config.accumulation
            batch = next(batches)
            terms, state = task.step(batch, self.state, iteration, self.autocast)
            loss, own = self._loss(terms, batch, iteration)
            figures = {name: figures.get(name, 0.0) + value / config.accumulation for name, value in own.items()}
            self.state = tuple(leaf.detach() for leaf in state)
            self.scaler.scale(loss / config.accumulation).backward()  # type: ignore[no-untyped-call]
            if last or config.clip_partial:
                self._clip(batch, iteration)
            if not last and config.clip_partial and not self.ranks.is_main:
                task.optimiser.zero_grad()  # the first process has the sum so far
        self.scaler.step(task.optimiser)
        self.scaler.update()
        task.average.update_parameters(task.network)
        return figures

    def _loss(self, terms: Mapping[str, LossTerm], batch: Batch, iteration: int) -> tuple[Tensor, dict[str, float]]:
        """This process's part of the loss of the whole batch, and the figures of the whole batch."""
        own = torch.stack([torch.stack([term.total.detach().double(), term.divisor.detach().double()])
                           for term in terms.values()])
        summed = self.ranks.all_reduce(own)
        counts = summed[:, 1].clamp(min=1)
        means = (summed[:, 0] / counts).tolist()
        figures = dict(zip(terms, means, strict=True))
        total = sum(term.weight * figures[name] for name, term in terms.items() if term.weight)
        if not math.isfinite(total):
            raise self._failure(f"a loss of {total}", batch, iteration)
        parts = [term.weight * term.total / count.to(term.total.dtype)
                 for term, count in zip(terms.values(), counts, strict=True) if term.weight]
        return torch.stack(parts).sum(), {"loss": total, **figures}

    def _clip(self, batch: Batch, iteration: int) -> None:
        self.ranks.sum_gradients(self.parameters)
        self.scaler.unscale_(self.task.optimiser)
        norm = float(nn.utils.clip_grad_norm_(self.task.network.parameters(), self.config.clip_norm))
        if not math.isfinite(norm) and not self.scaler.is_enabled():  # the scaler leaves such a step out
            raise self._failure(f"a gradient of length {norm}", batch, iteration)

    def _failure(self, got: str, batch: Batch, iteration: int) -> ModelError:
        saved = f"; the last good checkpoint is {self.folder.checkpoint}" if self.folder.checkpoint.exists() else ""
        rows = "; ".join(batch.names)
        return ModelError(f"{got} at iteration {iteration} ({rows})", "a finite one",
                          f"look at these recordings, or lower the learning rates{saved}")

    def finish_iteration(self, done: int, figures: Mapping[str, float]) -> bool:
        """Logs, validates and saves what is due after `done` iterations; whether to go on."""
        config, last = self.config, done == self.config.iterations
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in figures.items()}
        self.summed += 1
        validates = config.validate_every > 0 and (done % config.validate_every == 0 or last)
        if done % config.log_every == 0 or last or validates:
            row = {"iteration": float(done), "rate": self.task.rate(done - 1),
                   **{name: value / self.summed for name, value in self.sums.items()}}
            self.sums, self.summed = {}, 0
            if validates:
                row |= self._validate(done)
            self.folder.log(row)
        goes_on = not last and not 0 < config.patience <= self.without_best
        if goes_on and (done % config.checkpoint_every == 0 or validates):
            self.save_checkpoint(done)
        if validates and goes_on:
            self.folder.plot()
        return goes_on

    def _validate(self, done: int) -> Row:
        with torch.no_grad():
            row = self.task.validate(self.averaged.eval())
        figure = row.get("validation accuracy", -math.inf)
        if figure > self.best:
            self.best, self.without_best = figure, 0
            self.folder.save_best(self.averaged.state_dict())
        else:
            self.without_best += 1
        self.report(f"{done}: validation accuracy {figure:.4f} (best {self.best:.4f})")
        return row

    def _parts(self) -> dict[str, Any]:
        """Everything with a state_dict."""
        parts: dict[str, Any] = {"network": self.task.network, "average": self.task.average,
                                 "optimiser": self.task.optimiser, "scaler": self.scaler}
        return parts if self.task.aux_head is None else {**parts, "aux_head": self.task.aux_head}

    def save_checkpoint(self, done: int) -> None:
        """Writes all that a run needs to go on after `done` iterations."""
        state = [self.ranks.gather_rows(leaf) for leaf in self.state]
        self.folder.save_checkpoint({"iteration": done, "state": state, "sums": self.sums, "summed": self.summed,
                                     "best": self.best, "without_best": self.without_best,
                                     **{name: part.state_dict() for name, part in self._parts().items()}})

    def resume(self) -> int:
        """Takes everything from the folder's checkpoint; the iteration to go on with, 0 without one."""
        saved = self.folder.open()
        if saved is None:
            return 0
        try:
            for name, part in self._parts().items():
                part.load_state_dict(saved[name])
            rows = [self.ranks.own_rows(len(leaf)) for leaf in saved["state"]]
            self.state = tuple(leaf[list(own)].to(self.ranks.device)
                               for leaf, own in zip(saved["state"], rows, strict=True))
            self.sums, self.summed = saved["sums"], int(saved["summed"])
            self.best, self.without_best = float(saved["best"]), int(saved["without_best"])
        except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise ModelError(f"checkpoint {self.folder.checkpoint} ({error})", "a checkpoint of this very recipe",
                             "remove it to start anew") from error
        self.report(f"resuming at iteration {saved['iteration']} from {self.folder.checkpoint.name}")
        return int(saved["iteration"])


def _precision(wanted: Precision, device: torch.device) -> torch.dtype:
    if wanted == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        # Emulated, a step took more than ten times as long.
        able = torch.cpu.get_capabilities()
        fast = any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "sve_bf16"))
        return torch.bfloat16 if fast else torch.float32
    if wanted == "f16" and device.type != "cuda":
        raise UsageError("training in f16 without a GPU", "bf16 or f32 on a processor", "leave the precision out")
    return {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[wanted]
