"""Our recipe: trains a causal recogniser on endless streams of any dataset, with idle footage and rendered hands.

    data = open_dataset("egogestar")
    train(Recipe(out=Path("gesture.safetensors"), init="mobilenet.safetensors", idle=(Path("household"),)), data)

The dataset, idle footage and rendered hands are the sources of sections; streams are chains of sections; a task learns
from streams in the loop; what was left out calibrates the network, which is written."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engines.datasets.base import Dataset
from engines.datasets.frame_cache import read_frames
from engines.datasets.selection import check_classes, select
from engines.errors import UsageError
from engines.model.contract import NO_BACKGROUND_EVENTS, Contract, EventRule
from engines.model.file import load, save
from engines.networks.causal import DEFAULT_RULE
from engines.networks.config import NetworkConfig
from engines.networks.network import Network
from engines.training import exemplars
from engines.training.calibrate import ValidationClip, calibrate, read_each
from engines.training.distributed import Ranks, init_distributed
from engines.training.initialisation import initialise, whole_config
from engines.training.loop import LoopConfig, Precision, Progress, check_validation, run
from engines.training.process import seeded
from engines.training.runfolder import RunFolder
from engines.training.sections import LabelledFrame
from engines.training.sources import ReadFrames, TrainingSources
from engines.training.stream_loader import OpenStream, SectionShares, StreamLoader, StreamSchedule, TrainingStream
from engines.training.stream_task import AdamWConfig, StreamTask

# What a model file records beside the recipe: places on this machine, how it was run, the event rule.
UNRECORDED_FIELDS = {"provenance", "out", "init", "idle", "workers", "checkpoint_every", "strict", "gesture_events"}
GESTURE_EVENTS = EventRule(open_above=0.998, close_below=0.5, close_after_s=0.25, min_duration_s=0.42, min_score=0.5,
                           split_after_s=60.0)  # never split: a square begins as a swipe to the right


@dataclass(frozen=True)
class Recipe(AdamWConfig):
    """Everything a run depends on, but the dataset; with what `AdamWConfig` says of the updates."""

    out: Path  # the model file to write
    init: str  # "imagenet", a backbone's weights, or a whole network, which brings its architecture and input size
    # What is learnt from; what is left out here calibrates the model instead.
    idle: tuple[Path, ...] = ()  # folders of videos in which nothing labelled is done
    idle_without: tuple[str, ...] = ()  # names of such videos to leave out
    without_fold: int = 0  # the group of the dataset's segments to leave out, 0 for none
    without_labels: tuple[str, ...] = ()  # labels that the model never sees and does not have
    multi_label: bool = False  # labels are true each for itself: several at a time, or none
    rendered: bool = True  # show rendered hands: gestures, for labels that they can draw, and none
    rendered_only: bool = False  # learn no label from recordings, background included, only what places look like
    background_loss_weight: float = 0.15  # of frames without an action, where all are rendered
    # The network.
    architecture: str = "gsf-mobilenetv2"
    causal: bool = True  # else trained and used on clips of `chunk` frames
    readout_width: int = 128  # width of the recurrent read-out, 0 for none
    input_size_hw: tuple[int, int] = (72, 96)
    rule: str = DEFAULT_RULE  # how a bidirectional start becomes causal, see `engines.causal`
    past_shift: int | None = None  # see `engines.build`
    transparent: bool = True  # modules that the start lacks change nothing at first
    # Streams, and how often they show what.
    frame_rate: float = 5.0  # frames a second that the network sees
    rows: int = 4  # streams in a batch, over all processes
    chunk: int = 32  # frames of a stream in a batch
    fresh_share: float = 0.35  # of the rows begin anew at a chunk
    idle_share: float = SectionShares.idle
    rendered_idle_share: float = SectionShares.rendered_idle
    rendered_share: float = SectionShares.rendered
    rendered_first: float = 0.3  # share of the steps at first in which actions are nearly all rendered
    # Whole actions instead of streams: to compare networks, or before streams, since they are learnt sooner.
    trimmed: int = 0  # learn from whole actions only, so many frames spread over each; 0: from streams
    trimmed_idle: float = 0.0  # share of them that are moments of idle time instead
    trimmed_first: int | None = None  # steps on whole actions before streams; None: see `resolve_defaults`
    trimmed_first_frames: int = 12  # of each action
    trimmed_first_idle: float = 0.25  # `trimmed_idle` of these steps
    # The loop.
    seed: int = 0
    precision: Precision = "auto"
    workers: int = 1  # processes that load data
    checkpoint_every: int = 250  # steps
    validate_every: int = 0  # steps from one look at what is left out to the next, 0 for none; the best is saved then
    validation_clips: int = 200  # of what is left out are looked at, at most
    patience: int = 0  # such looks without a better one that end the run, 0 for no end
    strict: bool = False  # stop at a recording that cannot be read
    # The model file.
    name: str = "gesture"
    clip_s: float = 0.8  # length of a clip, of which a window is made
    window_clips: int = 4
    gesture_events: EventRule = GESTURE_EVENTS  # where rendered gestures are learnt; EventRule's own elsewhere
    temperature: float = 1.0  # calibration to write down where nothing is left out
    window_temperature: float = 1.0
    remembered_chunks: int = 100  # of each row's stream, from which examples for later lessons are kept
    provenance: dict[str, Any] = field(default_factory=dict)


def train(recipe: Recipe, data: Dataset, report: Callable[[str], None] = print,
          progress: Progress = lambda _, __: None, read_frames: ReadFrames = read_frames) -> Network:
    """Trains, goes on where a killed run was, writes the model file; returns its network in evaluation mode.
    data: its split "train" is learnt from, "validation" calibrates; read_frames: decodes a segment. The run's own files
    are beside `recipe.out` (see `runfolder.py`). Under `torchrun` the processes share out the rows. Raises UsageError,
    DatasetError, ModelError."""
    with init_distributed() as ranks, seeded(recipe.seed, ranks.device):
        recipe = resolve_defaults(recipe)
        data = select(data, recipe.without_fold, recipe.without_labels, recipe.idle, recipe.idle_without)
        sources = TrainingSources(data, frame_rate=recipe.frame_rate, read_frames=read_frames,
                                  recorded=not recipe.rendered_only, rendered=recipe.rendered,
                                  multi_label=recipe.multi_label)
        check_classes(sources.heads)
        check_validation(recipe.validate_every, recipe.patience,
                         any(one.labels for one in data.splits.get("validation", ())))
        training = _Training(data, sources, read_frames, ranks, report if ranks.is_main else lambda _: None)
        training.report(sources.summary())
        if before := recipe.trimmed_first or 0:
            recipe = training.after_whole_actions(recipe, before, progress)
        return training.run(recipe, lambda i, figures: progress(before + i, figures))


def resolve_defaults(recipe: Recipe) -> Recipe:
    """The recipe with the number of its steps on whole actions: unless given, a third as many as on streams for a
    causal network from weights of a backbone, else 0. Raises UsageError where there can be none."""
    if recipe.rendered_only and not recipe.rendered:
        raise UsageError("rendered hands only, without rendered hands", "one of the two", "leave out the other")
    after = "whole actions" if recipe.trimmed else "" if recipe.causal else "bidirectional clips"
    if recipe.trimmed_first and after:
        raise UsageError(f"whole actions before {after}", "streams after them, with a causal network",
                         "leave out one of the two")
    if recipe.trimmed_first is not None:
        return recipe
    new = not after and whole_config(recipe.init) is None
    return replace(recipe, trimmed_first=recipe.iterations // 3 if new else 0)


def make_contract(recipe: Recipe, network: Network, sources: TrainingSources) -> Contract:
    """The contract that a trained network goes out with."""
    T = recipe.trimmed or network.segments
    live = network.causal and not recipe.trimmed
    return Contract(
        name=recipe.name, network=network.config, heads=sources.heads,
        multi_label=tuple(sources.heads) if sources.multi_label else (), frame_rate=recipe.frame_rate,
        cover_hw=network.input_size_hw, receptive_frames=network.receptive_field if network.causal else T,
        clip_frames=max(1, round(recipe.clip_s * recipe.frame_rate)) if live else T, warmup_frames=4, max_gap_s=1.0,
        window_clips=recipe.window_clips if live else 1, background=sources.background_label,
        temperature=dict.fromkeys(sources.heads, recipe.temperature),
        window_temperature=dict.fromkeys(sources.heads, recipe.window_temperature),
        events=EventRule() if sources.multi_label else NO_BACKGROUND_EVENTS if sources.background_label is None else
        recipe.gesture_events if sources.drawable else EventRule(), **network.backbone.pixels._asdict(),
        provenance={"data": sources.name, "recipe": recipe_record(recipe), **recipe.provenance})


def recipe_record(recipe: Recipe) -> dict[str, Any]:
    """What must agree for a killed run to go on."""
    return {key: value for key, value in asdict(recipe).items() if key not in UNRECORDED_FIELDS}


def open_streams(recipe: Recipe, sources: TrainingSources, size_hw: tuple[int, int]) -> OpenStream:
    """How a row's stream begins."""
    def open_stream(_: int, began: int, rng: np.random.Generator) -> Iterator[LabelledFrame]:
        nearly_all = began < recipe.rendered_first * recipe.iterations
        shares = SectionShares(recipe.idle_share, recipe.rendered_idle_share,
                               0.97 if nearly_all and recipe.rendered_share else recipe.rendered_share)
        stream = TrainingStream(sources, size_hw, recipe.frame_rate, rng, shares, strict=recipe.strict)
        frames = stream.whole_actions(recipe.trimmed, recipe.trimmed_idle) if recipe.trimmed else stream.frames()
        if not recipe.rendered_only:
            return frames
        less = recipe.background_loss_weight
        return (frame._replace(weight=less * frame.weight) if frame.label == sources.background else frame
                for frame in frames)
    return open_stream


@dataclass(frozen=True)
class _Training:
    """What both stages of a run share."""

    data: Dataset
    sources: TrainingSources
    read_frames: ReadFrames
    ranks: Ranks
    report: Callable[[str], None]

    def after_whole_actions(self, recipe: Recipe, iterations: int, progress: Progress) -> Recipe:
        """The recipe, which starts from a network that has learnt whole actions: now, or before the run was killed.
        It begins without a read-out, and bears a higher rate than on streams, where what was new no longer is."""
        out = RunFolder(recipe.out, {}).path / "trimmed.safetensors"
        # The file outlives the run: a later one may differ in what recipes do not record.
        segments = [(str(one.media.path), one.start_s, one.stop_s, sorted(one.labels.items()))
                    for one in self.data.splits.get("train", ())]
        came_from = {"init": recipe.init, "segments": hashlib.sha256(repr(segments).encode()).hexdigest()}
        first = replace(recipe, out=out, trimmed=recipe.trimmed_first_frames, trimmed_first=0, iterations=iterations,
                        trimmed_idle=recipe.trimmed_first_idle, readout_width=0, backbone_lr=3 * recipe.backbone_lr,
                        validate_every=0, patience=0, provenance={"from": came_from})
        learnt = json.loads(json.dumps({"recipe": recipe_record(first), "from": came_from}))
        there = out.exists() and {name: load(out).contract.provenance.get(name) for name in learnt} == learnt
        if not self.ranks.all_reduce(torch.tensor([float(there and self.ranks.is_main)], device=self.ranks.device)):
            self.run(first, progress)
            self.ranks.all_reduce(torch.zeros(1, device=self.ranks.device))  # the others wait for the file
        return replace(recipe, init=str(out), module_lr=0.3 * recipe.module_lr, head_lr=0.5 * recipe.head_lr,
                       rendered_first=recipe.rendered_first / 3)

    def run(self, recipe: Recipe, progress: Progress) -> Network:
        """Trains one network to the end and writes it."""
        sources, ranks, frames = self.sources, self.ranks, recipe.trimmed or recipe.chunk
        size_hw = recipe.input_size_hw if whole_config(recipe.init) is None else None
        wanted = NetworkConfig.of(recipe.architecture, causal=recipe.causal, readout_width=recipe.readout_width,
                                  segments=frames, past_shift=recipe.past_shift, input_size_hw=size_hw)
        torch.manual_seed(recipe.seed)
        network = initialise(wanted, recipe.init, {head: len(labels) for head, labels in sources.heads.items()},
                             rule=recipe.rule, transparent=recipe.transparent)
        if recipe.trimmed_first and recipe.readout_width and network.memory is None:
            network.add_readout(recipe.readout_width)
        contract = make_contract(recipe, network, sources)
        held_out = cache(lambda: self.validation_clips(recipe, contract))
        check_validation(recipe.validate_every, recipe.patience, not recipe.validate_every or bool(held_out()))
        folder = RunFolder(recipe.out, recipe_record(recipe), ranks.is_main)
        open_stream = open_streams(recipe, sources, contract.input_size_hw)
        schedule = StreamSchedule(recipe.seed, 1.0 if recipe.trimmed else recipe.fresh_share)
        loader = StreamLoader(open_stream, schedule, ranks.own_rows(recipe.rows), frames, recipe.workers)
        task = StreamTask(network, contract, loader, sources.truths, recipe, ranks, label_sets=sources.label_sets,
                          finds_tips=sources.renders, held_out=held_out, spread=recipe.trimmed)
        loop = LoopConfig(recipe.iterations, recipe.seed, precision=recipe.precision, patience=recipe.patience,
                          checkpoint_every=recipe.checkpoint_every, validate_every=recipe.validate_every)
        trained = run(task, loop, folder, ranks, self.report, progress)
        if ranks.is_main:
            if held_out():
                self.report(f"calibrating on {len(held_out())} recordings that were left out")
            examples = self.examples(recipe, contract, trained, open_stream)
            contract = calibrate(contract, trained, held_out())
            tensors = {name: value.detach().float().numpy() for name, value in trained.state_dict().items()}
            save(recipe.out, contract, {**tensors, **examples})
            folder.finish()
        return trained

    def validation_clips(self, recipe: Recipe, contract: Contract) -> list[ValidationClip]:
        """Clips that were left out, evenly spread over them; where whole actions are learnt, those only."""
        background = self.sources.background_label if recipe.trimmed else None
        labelled = [one for one in self.data.splits.get("validation", ())
                    if one.labels and (background is None or background not in one.labels.values())]
        some = labelled[::max(1, -(-len(labelled) // recipe.validation_clips))]
        found = read_each(some, lambda one: self.read_frames(one, self.sources.decode_rate, contract.input_size_hw),
                          recipe.strict)
        return [ValidationClip(images, times_s - times_s[0], one.labels,
                               [other.labels for other in labelled if other is not one and other.overlaps(one)])
                for one, (images, times_s) in found]

    def examples(self, recipe: Recipe, contract: Contract, network: Network, open_stream: OpenStream
                 ) -> Mapping[str, NDArray[np.float32]]:
        """What a live model remembers of its labels for later lessons (see `exemplars.py`)."""
        if not network.causal or recipe.trimmed or recipe.multi_label:
            return {}
        end = recipe.iterations + min(recipe.remembered_chunks, recipe.iterations)
        schedule = StreamSchedule(recipe.seed + 1, recipe.fresh_share)
        batches = StreamLoader(open_stream, schedule, range(recipe.rows), recipe.chunk).batches(recipe.iterations, end)
        return exemplars.exemplars_from_streams(contract, network, batches, self.sources.truths)
