"""Our recipe: trains a causal recogniser on endless streams (see `streaming.py`), of EgoGestAR with rendered material,
or of any dataset.

    train(Recipe(dataset=Path("egogestar"), out=Path("gesture.safetensors"), init="mobilenet.safetensors"))
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engines.datasets import egogestar
from engines.datasets.base import Dataset
from engines.datasets.footage import Footage, decode, videos
from engines.datasets.frames import frames_of as decoded
from engines.errors import DatasetError, UsageError
from engines.model.contract import Contract, EventRule
from engines.model.file import load, save
from engines.networks.causal import USUAL
from engines.networks.config import NetworkConfig
from engines.networks.network import Network
from engines.synthetic import BACKGROUND, LABELS, Pose, Scene
from engines.training import exemplars
from engines.training.calibrate import calibrated
from engines.training.distributed import Ranks, init_distributed
from engines.training.initialisation import initialise, whole_config
from engines.training.loop import run
from engines.training.runfolder import RunFolder
from engines.training.segments import FINER, FramesOf, Pool, SegmentStream, without_group
from engines.training.stream_loader import Chunks, OpenStream, Schedule
from engines.training.stream_task import AdamWConfig, Held, StreamTask
from engines.training.streams import Labelled, Material, Stream, idle_of
from engines.training.task import LoopConfig, Precision, Progress

log = logging.getLogger("gatestream.training")

# What a recipe holds beside the recipe: places on this machine, and how it was run.
NOT_RECORDED = {"provenance", "out", "dataset", "init", "idle", "workers", "checkpoint_every", "strict"}
# Chosen on the first three folds: event F1 against false events in household footage and rendered idle time.
# Never split: a square begins as a swipe to the right.
EVENTS = EventRule(open_above=0.999, close_below=0.65, close_after_s=0.25, min_duration_s=0.42, min_score=0.7,
                   split_after_s=60.0)
HELD_OUT_CLIPS = 200  # of a dataset's validation split are looked at, at most
REMEMBERED_CHUNKS = 100  # of each row's stream, from which examples of the labels are kept in the model file
# How much frames without a gesture count where no recording is learnt from. A model for which they counted fully took
# 15 of fold 3's 66 clips for no gesture; this lowers that answer's logit by 1.9.
QUIET_WEIGHT = 0.15
CLIP_S, WINDOW_CLIPS = 0.8, 4
TRIMMED_FRAMES = 12
IDLE_FIRST = 0.25
MARGIN_HW = (96, 128)  # footage is kept at this size: the input's, with room for augmentation


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on. without_fold: leave this fold's clips out, 0 for none; without_labels: gestures the
    model never sees, recorded or rendered, and has no label for; idle: folders of videos without gestures;
    idle_without: names of videos in them to leave out; temperature, window_temperature: calibration to write down.
    What is left out (clips or videos) calibrates the model instead. average: decay of the running mean
    of the weights that is saved; validate_every: iterations from one look at what is left out to the next, 0 for none:
    then the best weights are saved, and the run ends after `patience` looks without a better one, 0 for no such end;
    rule: how a bidirectional start becomes causal (see `engines.causal`); past_shift, transparent: how modules that the
    start lacks begin (see `initialise`); rendered_only: learn no label from recordings, background included, only what
    places look like from them; strokes that were drawn on a screen are no recordings; strict: stop at a segment of a
    dataset that cannot be read (an unreadable clip of EgoGestAR always ends a run). A network that is not causal is
    trained and used on clips of `chunk` frames. trimmed: learn from whole gestures, of which so many frames each are
    seen, evenly spread, instead of from streams; 0 for streams. Such a network is for comparing networks: live, nobody
    knows where a gesture begins and ends. trimmed_idle: share of them that are moments of idle time instead.
    trimmed_first: iterations on whole gestures (of TRIMMED_FRAMES each, IDLE_FIRST of them idle time) before those on
    streams, which start from the network that this makes: how hands move is learnt sooner where every frame shows it,
    and sooner without a read-out, which comes with the streams (see `Network.add_readout`). None: a third as many for a
    causal network from weights of a backbone, on EgoGestAR's streams, else 0 (see `completed`).

    A whole network to start from (`init`) brings its own architecture, read-out and input size."""

    dataset: Path
    out: Path
    init: str
    idle: tuple[Path, ...] = ()
    idle_without: tuple[str, ...] = ()
    without_fold: int = 0
    without_labels: tuple[str, ...] = ()
    architecture: str = "gsf-mobilenetv2"
    causal: bool = True
    readout_width: int = 128
    input_size_hw: tuple[int, int] = (72, 96)
    frame_rate: float = 5.0
    iterations: int = 3600
    rows: int = 4
    chunk: int = 32
    seed: int = 0
    backbone_lr: float = 1e-4
    module_lr: float = 1e-3
    head_lr: float = 1e-3
    weight_decay: float = 0.02
    frozen_layers: int = 7
    rendered_first: float = 0.3
    rendered_share: float = 0.45
    fresh_share: float = 0.35
    workers: int = 1
    checkpoint_every: int = 250
    precision: Precision = "auto"
    average: float = 0.998
    validate_every: int = 0
    patience: int = 0
    rule: str = USUAL
    past_shift: int | None = None
    transparent: bool = True
    rendered_only: bool = False
    trimmed: int = 0
    trimmed_idle: float = 0.0
    trimmed_first: int | None = None
    strict: bool = False
    name: str = "gesture"
    temperature: float = 1.0
    window_temperature: float = 1.0
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the head, background last."""
        return (*(label for label in LABELS if label not in self.without_labels), BACKGROUND)

    @property
    def frames(self) -> int:
        """Of a row in a batch."""
        return self.trimmed or self.chunk


def contract_of(recipe: Recipe, network: Network, heads: Mapping[str, tuple[str, ...]] | None = None,
                background: str | None = BACKGROUND) -> Contract:
    """The contract a trained network goes out with; heads of None are EgoGestAR's."""
    labels = {"gesture": recipe.labels} if heads is None else dict(heads)
    T = recipe.trimmed or network.segments
    clip_frames, window_clips = (T, 1)
    if network.causal and not recipe.trimmed:
        clip_frames, window_clips = max(1, round(CLIP_S * recipe.frame_rate)), WINDOW_CLIPS
    return Contract(
        name=recipe.name, network=network.config, heads=labels,
        frame_rate=recipe.frame_rate, cover_hw=network.input_size_hw,
        receptive_frames=network.receptive_field if network.causal else T, clip_frames=clip_frames,
        window_clips=window_clips, warmup_frames=4, max_gap_s=1.0,
        temperature=dict.fromkeys(labels, recipe.temperature),
        window_temperature=dict.fromkeys(labels, recipe.window_temperature), background=background,
        events=EVENTS if heads is None else EventRule(),
        provenance={"recipe": {key: value for key, value in asdict(recipe).items() if key not in NOT_RECORDED},
                    **recipe.provenance}, **network.backbone.pixels._asdict())


def gather(recipe: Recipe, report: Callable[[str], None]) -> Material:
    """Decodes the training data, without the fold left out."""
    clips = [clip for clip in egogestar.clips(recipe.dataset)
             if clip.fold != recipe.without_fold and clip.label not in recipe.without_labels]
    report(f"decoding {len(clips)} clips")
    footage = [decode(clip.path, clip.label, MARGIN_HW) for clip in clips]
    idle = idle_of(footage)
    backgrounds = [one.median for one in footage]
    if recipe.idle:
        work = [decode(path, BACKGROUND, MARGIN_HW) for path in videos(recipe.idle)
                if path.stem not in recipe.idle_without]
        backgrounds += [one.images[i] for one in work for i in range(0, len(one.images), 50)]
        idle = work * max(1, len(idle) // len(work)) + idle
    rng = np.random.default_rng(recipe.seed + 1)
    backgrounds += [Scene(rng, MARGIN_HW).draw(Pose(None), 0.0) for _ in range(60)]
    if recipe.rendered_only:  # recorded hands that never draw would teach that recorded hands never do
        return Material([], [], egogestar.human_strokes(recipe.dataset), backgrounds)
    gestures = [one for one in footage if one.label in LABELS]
    return Material(gestures, idle, egogestar.human_strokes(recipe.dataset), backgrounds)


def left_out(recipe: Recipe, size_hw: tuple[int, int]) -> list[Held]:
    """Decodes what `gather` leaves out."""
    clips = [clip for clip in egogestar.clips(recipe.dataset) if clip.fold == recipe.without_fold]
    idle = [path for path in videos(recipe.idle) if path.stem in recipe.idle_without]
    if recipe.trimmed:
        clips, idle = [clip for clip in clips if clip.label in LABELS], []
    wanted = [(clip.path, clip.label) for clip in clips] + [(path, BACKGROUND) for path in idle]
    footage = [decode(path, label, size_hw) for path, label in wanted]
    return [Held(one, {"gesture": BACKGROUND if one.label == egogestar.UNCLASSIFIED else one.label})
            for one in footage]


def held_out_of(data: Dataset, size_hw: tuple[int, int], frame_rate: float, frames_of: FramesOf,
                strict: bool = False) -> list[Held]:
    """Decodes clips of a dataset's validation split, evenly spread over it; unreadable ones are named and left out,
    unless strict."""
    labelled = [one for one in data.splits.get("validation", ()) if one.labels]
    found = []
    for segment in labelled[::max(1, -(-len(labelled) // HELD_OUT_CLIPS))]:
        try:
            images, times_s = frames_of(segment, FINER * frame_rate, size_hw)
        except DatasetError as error:
            if strict:
                raise
            log.warning("left out of the validation: %s", error)
            continue
        found.append(Held(Footage("", images, times_s - times_s[0]), segment.labels))
    return found


def train(recipe: Recipe, report: Callable[[str], None] = print, progress: Progress = lambda _, __: None,
          data: Dataset | None = None, frames_of: FramesOf = decoded) -> Network:
    """Trains, goes on where a killed run was, writes the model file; returns its network in evaluation mode.

    data: what to train on, None for EgoGestAR in `recipe.dataset`; frames_of: how its segments are decoded. The run's
    own files are beside `recipe.out` (see `runfolder.py`). Under `torchrun` the processes share out the rows.
    """
    with init_distributed() as ranks:
        said = report if ranks.is_main else lambda _: None
        recipe, before = completed(recipe, data), 0
        material = cache(partial(gather, recipe, said))
        if recipe.trimmed_first:
            before = recipe.trimmed_first
            recipe = _after_whole_gestures(recipe, before, ranks, said, progress, material)
        return _train(recipe, ranks, said, lambda i, figures: progress(before + i, figures), data, frames_of, material)


def completed(recipe: Recipe, data: Dataset | None = None) -> Recipe:
    """The recipe with the number of its steps on whole gestures. Raises UsageError where there can be none."""
    after = ("whole gestures" if recipe.trimmed else data.name if data is not None
             else "" if recipe.causal else "bidirectional clips")
    if recipe.trimmed_first and after:
        raise UsageError(f"whole gestures before {after}", "EgoGestAR's streams after them, with a causal network",
                         "leave out one of the two")
    if recipe.trimmed_first is not None:
        return recipe
    new = not after and whole_config(recipe.init) is None
    return replace(recipe, trimmed_first=recipe.iterations // 3 if new else 0)


def _after_whole_gestures(recipe: Recipe, iterations: int, ranks: Ranks, report: Callable[[str], None],
                          progress: Progress, material: Callable[[], Material]) -> Recipe:
    """The recipe, which starts from a network that has learnt whole gestures: now, or before the run was killed.

    Whole gestures bear a higher rate than streams, in which what was new no longer is: tried on fold 3 (README)."""
    out = RunFolder(recipe.out, {}).path / "trimmed.safetensors"
    # The file outlives the run: a later one may differ in what recipes do not record.
    started_from = {name: str(getattr(recipe, name)) for name in ("dataset", "init", "idle", "idle_without")}
    first = replace(recipe, out=out, trimmed=TRIMMED_FRAMES, trimmed_first=0, iterations=iterations,
                    trimmed_idle=IDLE_FIRST, readout_width=0, backbone_lr=3 * recipe.backbone_lr, validate_every=0,
                    patience=0, provenance=started_from)
    learnt = json.loads(json.dumps({"recipe": recorded(first), **started_from}))
    there = out.exists() and load(out).contract.provenance == learnt
    if not ranks.all_reduce(torch.tensor([there and ranks.is_main], dtype=torch.float32, device=ranks.device)):
        _train(first, ranks, report, progress, None, decoded, material)
        ranks.all_reduce(torch.zeros(1, device=ranks.device))  # the others wait for the file
    return replace(recipe, init=str(out), module_lr=0.3 * recipe.module_lr, head_lr=0.5 * recipe.head_lr,
                   rendered_first=recipe.rendered_first / 3)


def _train(recipe: Recipe, ranks: Ranks, report: Callable[[str], None], progress: Progress, data: Dataset | None,
           frames_of: FramesOf, material: Callable[[], Material]) -> Network:
    torch.manual_seed(recipe.seed)
    data = None if data is None else without_group(data, recipe.without_fold)
    pool = None if data is None else Pool(data, "train")
    heads = {"gesture": recipe.labels} if pool is None else pool.heads
    wanted = NetworkConfig.of(
        recipe.architecture, causal=recipe.causal, readout_width=recipe.readout_width, segments=recipe.frames,
        past_shift=recipe.past_shift,
        input_size_hw=recipe.input_size_hw if whole_config(recipe.init) is None else None)
    network = initialise(wanted, recipe.init, {head: len(labels) for head, labels in heads.items()},
                         rule=recipe.rule, transparent=recipe.transparent)
    if recipe.trimmed_first and recipe.readout_width and network.memory is None:
        network.add_readout(recipe.readout_width)
    contract = contract_of(recipe, network)
    if pool is not None and data is not None:
        named = replace(recipe, provenance={"data": data.name, **recipe.provenance})
        contract = contract_of(named, network, heads, pool.background_label)
    held_out = cache(lambda: left_out(recipe, contract.input_size_hw) if data is None
                     else held_out_of(data, contract.input_size_hw, contract.frame_rate, frames_of, recipe.strict))
    folder = RunFolder(recipe.out, recorded(recipe), ranks.is_main)
    open_stream = (_gestures(recipe, contract, material()) if pool is None
                   else _segments(pool, contract, frames_of, recipe.strict))
    truths = [(k,) for k in range(len(recipe.labels))] if pool is None else pool.truths
    if recipe.validate_every and not held_out():
        raise UsageError("a validation without anything left out", "a fold, videos or a validation split to look at",
                         "leave something out, or do not validate")
    task = StreamTask(
        network, contract, open_stream, Schedule(recipe.seed, 1.0 if recipe.trimmed else recipe.fresh_share), truths,
        AdamWConfig(recipe.backbone_lr, recipe.module_lr, recipe.head_lr, recipe.weight_decay, recipe.frozen_layers),
        iterations=recipe.iterations, rows=recipe.rows, chunk=recipe.frames, average=recipe.average,
        workers=recipe.workers, ranks=ranks, helped=pool is None, held_out=held_out, spread=recipe.trimmed)
    config = LoopConfig(recipe.iterations, recipe.seed, precision=recipe.precision,
                        checkpoint_every=recipe.checkpoint_every, validate_every=recipe.validate_every,
                        patience=recipe.patience)
    weights = run(task, config, folder, ranks, report, progress)
    trained = task.average.module
    assert isinstance(trained, Network)
    trained.load_state_dict(weights)
    trained.to("cpu").eval()
    if ranks.is_main:
        chunks = Chunks(open_stream, Schedule(recipe.seed + 1, recipe.fresh_share), range(recipe.rows), recipe.chunk,
                        recipe.iterations, recipe.iterations + min(REMEMBERED_CHUNKS, recipe.iterations))
        live = trained.causal and not recipe.trimmed
        examples = exemplars.exemplars_from_streams(contract, trained, chunks.batches(0), truths) if live else {}
        write(recipe.out, contract, trained, held_out(), report, examples)
        folder.finish()
    return trained


def write(out: Path, contract: Contract, network: Network, held_out: Sequence[Held], report: Callable[[str], None],
          examples: Mapping[str, NDArray[np.float32]]) -> None:
    """Calibrates every head on what was held out, if anything was, and writes the model file, with examples for later
    lessons (see `exemplars.py`)."""
    if held_out:
        report(f"calibrating on {len(held_out)} recordings that were left out")
    for head in contract.heads:
        footage = [replace(held.footage, label=held.labels[head]) for held in held_out if head in held.labels]
        if footage:
            contract = calibrated(contract, network, head, footage)
    weights = {name: value.detach().float().numpy() for name, value in network.state_dict().items()}
    save(out, contract, {**weights, **examples})


def recorded(recipe: Recipe) -> dict[str, Any]:
    """What must agree for a killed run to go on."""
    return {key: value for key, value in asdict(recipe).items() if key not in NOT_RECORDED}


def _gestures(recipe: Recipe, contract: Contract, material: Material) -> OpenStream:
    def open_stream(_: int, began: int, rng: np.random.Generator) -> Iterator[Labelled]:
        only_rendered = began < recipe.rendered_first * recipe.iterations
        share = 0.97 if only_rendered else recipe.rendered_share
        stream = Stream(material, contract.heads["gesture"], contract.input_size_hw, contract.frame_rate, rng, share)
        frames = stream.trimmed(recipe.trimmed, recipe.trimmed_idle) if recipe.trimmed else stream.frames()
        return _quieter(frames, recipe.labels.index(BACKGROUND)) if recipe.rendered_only else frames
    return open_stream


def _quieter(frames: Iterator[Labelled], background: int) -> Iterator[Labelled]:
    """The same frames, of which those without a gesture count less."""
    for frame in frames:
        yield replace(frame, weight=QUIET_WEIGHT * frame.weight) if frame.label == background else frame


def _segments(pool: Pool, contract: Contract, frames_of: FramesOf, strict: bool) -> OpenStream:
    def open_stream(_: int, __: int, rng: np.random.Generator) -> Iterator[Labelled]:
        return SegmentStream(pool, contract.input_size_hw, contract.frame_rate, rng, frames_of, strict=strict).frames()
    return open_stream
