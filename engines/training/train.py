"""Trains a causal recogniser on endless streams, carrying state from chunk to chunk as live use does.

    train(Recipe(dataset=Path("egogestar"), out=Path("gesture.safetensors"), init="mobilenet.safetensors"))

Every row of a batch is a stream; a chunk is its next T frames. At a chunk's start some rows begin anew from fresh
state (a trimmed clip), the others continue, so that the second hour is as well trained as the first second.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from engines.contract import Contract, EventRule
from engines.errors import ModelError
from engines.model import save, write_atomically
from engines.networks.network import Network, build
from engines.networks.temporal import State
from engines.preprocess import normalise
from engines.synthetic import BACKGROUND, LABELS, Pose, Scene
from engines.training import egogestar
from engines.training.calibrate import calibrated
from engines.training.loss import Truth, frame_loss, tip_loss, window_loss
from engines.training.pretrained import start_from
from engines.training.streams import Labelled, Material, Stream, idle_of

# What a recipe holds beside the recipe: places on this machine, and how it was run.
NOT_RECORDED = {"provenance", "out", "dataset", "init", "idle", "workers", "checkpoint_every"}
# Chosen on the cross-validation folds: event F1 against false events in household footage and rendered idle time.
# Never split: a square begins as a swipe to the right.
EVENTS = EventRule(open_above=0.99, close_below=0.75, close_after_s=0.35, min_duration_s=0.55, min_score=0.65,
                   split_after_s=60.0)
MARGIN_HW = (96, 128)  # footage is kept at this size: the input's, with room for augmentation


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on. without_fold: leave this fold's clips out, 0 for none; without_labels: gestures the
    model never sees, recorded or rendered, and has no label for; idle: folders of videos without gestures;
    idle_without: names of videos in them to leave out; temperature, window_temperature: calibration to write down.
    What is left out (clips or videos) calibrates the model instead."""

    dataset: Path
    out: Path
    init: str
    idle: tuple[Path, ...] = ()
    idle_without: tuple[str, ...] = ()
    without_fold: int = 0
    without_labels: tuple[str, ...] = ()
    architecture: str = "gsf-mobilenetv2"
    causal: bool = True
    memory: int = 128
    input_size_hw: tuple[int, int] = (72, 96)
    frame_rate: float = 7.5
    iterations: int = 2400
    rows: int = 8
    chunk: int = 32
    seed: int = 0
    backbone_lr: float = 1e-4
    module_lr: float = 1e-3
    head_lr: float = 1e-3
    weight_decay: float = 0.02
    frozen_layers: int = 4
    rendered_first: float = 0.3
    rendered_share: float = 0.45
    fresh_share: float = 0.35
    workers: int = 1
    checkpoint_every: int = 250
    name: str = "gesture"
    temperature: float = 1.0
    window_temperature: float = 1.0
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the head, background last."""
        return (*(label for label in LABELS if label not in self.without_labels), BACKGROUND)


@dataclass(frozen=True)
class Batch:
    """One chunk of every row: pixels uint8 [B, T, H, W, 3], whose rows are fresh [B], and the truth."""

    pixels: Tensor
    fresh: Tensor
    truth: Truth


def contract_of(recipe: Recipe, network: Network) -> Contract:
    """The contract a trained network goes out with."""
    places = list(network.temporal)
    return Contract(
        name=recipe.name, architecture=recipe.architecture,
        options={"causal": recipe.causal, "memory": recipe.memory, "places": places,
                 "percent": network.backbone.percent},
        heads={"gesture": recipe.labels}, frame_rate=recipe.frame_rate, input_size_hw=recipe.input_size_hw,
        cover_hw=recipe.input_size_hw, receptive_frames=1 + network.reach, warmup_frames=4, clip_frames=6,
        window_clips=4, max_gap_s=1.0, temperature={"gesture": recipe.temperature},
        window_temperature={"gesture": recipe.window_temperature}, background=BACKGROUND, events=EVENTS,
        provenance={"recipe": {key: value for key, value in asdict(recipe).items() if key not in NOT_RECORDED},
                    **recipe.provenance})


def gather(recipe: Recipe, report: Callable[[str], None]) -> Material:
    """Decodes the training data, without the fold left out."""
    clips = [clip for clip in egogestar.clips(recipe.dataset)
             if clip.fold != recipe.without_fold and clip.label not in recipe.without_labels]
    report(f"decoding {len(clips)} clips")
    footage = egogestar.decode_all(clips, MARGIN_HW)
    idle = idle_of(footage)
    backgrounds = [one.median for one in footage]
    if recipe.idle:
        work = [egogestar.decode(path, BACKGROUND, MARGIN_HW) for path in egogestar.videos(recipe.idle)
                if path.stem not in recipe.idle_without]
        backgrounds += [one.images[i] for one in work for i in range(0, len(one.images), 50)]
        idle = work * max(1, len(idle) // len(work)) + idle
    rng = np.random.default_rng(recipe.seed + 1)
    backgrounds += [Scene(rng, MARGIN_HW).draw(Pose(None), 0.0) for _ in range(60)]
    gestures = [one for one in footage if one.label in LABELS]
    return Material(gestures, idle, egogestar.human_strokes(recipe.dataset), backgrounds)


def left_out(recipe: Recipe) -> list[egogestar.Footage]:
    """Decodes what `gather` leaves out."""
    clips = [clip for clip in egogestar.clips(recipe.dataset) if clip.fold == recipe.without_fold]
    idle = [path for path in egogestar.videos(recipe.idle) if path.stem in recipe.idle_without]
    return (egogestar.decode_all(clips, recipe.input_size_hw)
            + [egogestar.decode(path, BACKGROUND, recipe.input_size_hw) for path in idle])


class Chunks(IterableDataset[Batch]):
    """Endless batches. Each worker serves its share of the iterations; a resumed run draws new streams."""

    def __init__(self, recipe: Recipe, material: Material, first: int) -> None:
        self._recipe, self._material, self._first = recipe, material, first

    def __iter__(self) -> Iterator[Batch]:
        recipe = self._recipe
        rng = np.random.default_rng((recipe.seed, self._first))
        rows: list[Iterator[Labelled] | None] = [None] * recipe.rows
        for iteration in range(self._first, recipe.iterations):
            only_rendered = iteration < recipe.rendered_first * recipe.iterations
            share = 0.97 if only_rendered else recipe.rendered_share
            fresh, chunks = [], []
            for i in range(recipe.rows):
                row = rows[i]
                fresh.append(row is None or rng.random() < recipe.fresh_share)
                if row is None or fresh[-1]:
                    stream = Stream(self._material, recipe.labels, recipe.input_size_hw, recipe.frame_rate,
                                    np.random.default_rng(rng.integers(2**63)), share)
                    row = rows[i] = stream.frames()
                chunks.append(list(islice(row, recipe.chunk)))
            yield _batch(chunks, fresh)


def _batch(chunks: list[list[Labelled]], fresh: list[bool]) -> Batch:
    def column(of: Callable[[Labelled], Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor([[of(frame) for frame in chunk] for chunk in chunks], dtype=dtype)

    pixels = torch.from_numpy(np.stack([np.stack([frame.image_bgr for frame in chunk]) for chunk in chunks]))
    nowhere = (float("nan"), float("nan"))
    truth = Truth(column(lambda f: f.label, torch.long), column(lambda f: f.progress, torch.float32),
                  column(lambda f: f.weight, torch.float32), column(lambda f: f.gesture, torch.long),
                  column(lambda f: f.tip_xy or nowhere, torch.float32))
    return Batch(pixels, torch.tensor(fresh), truth)


class Helper(nn.Module):
    """Finds the fingertip during training and is thrown away afterwards: a heat map on a middle stage, and place
    and motion read from the features before the memory."""

    def __init__(self, network: Network, layer: int = 13) -> None:
        super().__init__()
        self._kept: dict[str, Tensor] = {}
        self.heat = nn.Conv2d(96, 1, 1)
        self.guess = nn.Linear(network.backbone.width, 4)
        watched = network.backbone.get_submodule(f"features.{layer}")
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


def train(recipe: Recipe, report: Callable[[str], None] = print,
          progress: Callable[[int, dict[str, float]], None] = lambda _, __: None) -> Network:
    """Trains, checkpoints beside `recipe.out`, resumes from there, writes the model file; returns the network."""
    torch.manual_seed(recipe.seed)
    cv2.setNumThreads(1)  # OpenCV's thread pool does not survive the fork of the loader's worker: it would hang
    network = build(recipe.architecture, heads={"gesture": len(recipe.labels)}, causal=recipe.causal,
                    input_size_hw=recipe.input_size_hw, memory=recipe.memory)
    contract = contract_of(recipe, network)
    start_from(network, recipe.init)
    network.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    subsample_depthwise(network)
    helper = Helper(network)
    for layer in range(recipe.frozen_layers):
        network.backbone.get_submodule(f"features.{layer}").requires_grad_(False)
    groups = [([p for p in network.backbone.parameters() if p.requires_grad], recipe.backbone_lr),
              (list(network.temporal.parameters()), recipe.module_lr),
              ([*network.heads.parameters(), *helper.parameters(),
                *(network.memory.parameters() if network.memory else ())], recipe.head_lr)]
    optimiser = torch.optim.AdamW([{"params": p, "lr": lr} for p, lr in groups], weight_decay=recipe.weight_decay)
    warmup = max(1, min(200, recipe.iterations // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: float(
        min(1.0, (i + 1) / warmup) * (0.02 + 0.98 * (1 + np.cos(np.pi * min(1.0, i / recipe.iterations))) / 2)))
    checkpoint = recipe.out.with_suffix(".checkpoint.pt")
    parts: dict[str, Any] = {"network": network, "helper": helper, "optimiser": optimiser, "schedule": schedule}
    first = _resume(checkpoint, parts, report)
    material = gather(recipe, report)
    loader = DataLoader(Chunks(recipe, material, first), batch_size=None, num_workers=recipe.workers,
                        prefetch_factor=4 if recipe.workers else None)
    background = recipe.labels.index(BACKGROUND)
    state: State = network.fresh_state(recipe.rows)
    network.train()
    for iteration, batch in enumerate(loader, start=first):
        keep = (~batch.fresh).float()
        state = tuple(leaf * keep.view(-1, *[1] * (leaf.ndim - 1)) for leaf in state)
        frames = torch.from_numpy(normalise(batch.pixels.flatten(0, 1).numpy(), contract))
        frames = frames.view(recipe.rows, recipe.chunk, *frames.shape[1:])
        with torch.autocast("cpu", torch.bfloat16):
            features, state = network(frames, state)
        logits = network.scores(features.float())["gesture"]
        state = tuple(leaf.detach().float() for leaf in state)
        heat, guess = helper(recipe.rows)
        now = frame_loss(logits, batch.truth, background)
        window = window_loss(logits, batch.truth, background)
        tip = tip_loss(heat, guess, batch.truth)
        fade = max(0.0, 1 - iteration / (0.8 * recipe.iterations))
        loss = now + 0.7 * window + 2.0 * (0.15 + fade) * tip
        if not torch.isfinite(loss):
            raise ModelError(f"a loss of {float(loss.detach())} at iteration {iteration}", "a finite loss",
                             f"lower the learning rates; the last good checkpoint is {checkpoint.name}")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            right = (logits.argmax(-1) == batch.truth.label) & (batch.truth.progress > 0.75)
            late = (batch.truth.progress > 0.75).sum().clamp(min=1)
        progress(iteration + 1, {"now": float(now.detach()), "window": float(window.detach()),
                                 "tip": float(tip.detach()), "late accuracy": float(right.sum() / late)})
        if (iteration + 1) % recipe.checkpoint_every == 0 and iteration + 1 < recipe.iterations:
            _checkpoint(checkpoint, parts, iteration + 1)
    network.eval()
    held_out = left_out(recipe)
    if held_out:
        report(f"calibrating on {len(held_out)} recordings that were left out")
        contract = calibrated(contract, network, "gesture", held_out)
    save(recipe.out, contract, {name: value.detach().float().numpy() for name, value in network.state_dict().items()})
    checkpoint.unlink(missing_ok=True)
    return network


def _checkpoint(path: Path, parts: dict[str, Any], iteration: int) -> None:
    buffer = io.BytesIO()
    torch.save({"iteration": iteration, **{name: part.state_dict() for name, part in parts.items()}}, buffer)
    write_atomically(path, buffer.getvalue())


def _resume(path: Path, parts: dict[str, Any], report: Callable[[str], None]) -> int:
    """Loads a checkpoint if there is one; returns the iteration to go on with."""
    if not os.path.exists(path):
        return 0
    try:
        kept = torch.load(path, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(kept[name])
        iteration = int(kept["iteration"])
    except Exception as error:  # torch raises many kinds for a foreign file
        raise ModelError(f"checkpoint {path} ({type(error).__name__})", "a checkpoint of this very recipe",
                         "remove it to start anew") from error
    report(f"resuming at iteration {iteration} from {path.name}")
    return iteration
