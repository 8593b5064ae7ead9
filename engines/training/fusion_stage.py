"""Stage two on streams: a finished network looks at endless training streams, the windows it would hold there are
cached as clip descriptors, and clip fusion is fitted on them (`fusion.py`).

    table = train(FusionRecipe(dataset, out, init="gesture.safetensors"))      # {"central clip": 0.41, ...}

A window is named by the one gesture that was seen in it to three quarters at least, or by background when it holds
none; other windows are passed over. Like live ones, they end in a clip that is still growing.

Legend: N windows, C clips, oldest first, D features of a clip, T frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from engines.datasets import egogestar
from engines.datasets.base import Dataset
from engines.datasets.frames import frames_of as decoded
from engines.errors import DatasetError, UsageError
from engines.model.clip_fusion import GatedFusion
from engines.model.contract import Contract
from engines.model.file import Model, load, save
from engines.model.preprocess import normalise
from engines.networks.fusion_rule import FusionRule
from engines.networks.network import Network
from engines.synthetic import BACKGROUND
from engines.training.calibrate import temperature
from engines.training.fusion_fit import Floats, Head, fit_fusion
from engines.training.loss import KNOWABLE_AT, UNKNOWN
from engines.training.segments import FramesOf, Pool, SegmentStream, without_group
from engines.training.streams import Labelled, Material, Stream
from engines.training.train import MARGIN_HW, Recipe, gather, left_out

STREAMS = 8  # side by side, so that windows of a batch show different places
CHUNK = 64  # frames the network sees at once
APART = 3  # frames from one window to the next, at least
FORMS = {"dense average": None, "+ fusion": FusionRule(gate=False), "+ gate": FusionRule(relate="none"),
         "+ both": FusionRule()}  # as the paper takes its method apart


@dataclass(frozen=True)
class FusionRecipe:
    """dataset: an EgoGestAR folder, or the folder of what `train` is given besides; init: the finished model; idle:
    folders of videos without gestures. What that model's own training left out is left out here, too, and compared on.
    window_clips: clips in the window from now on; windows: how many are cached; strict: stop at a segment that cannot
    be read."""

    dataset: Path
    out: Path
    init: str
    idle: tuple[Path, ...] = ()
    rule: FusionRule = field(default_factory=FusionRule)
    window_clips: int = 10
    windows: int = 3000
    seed: int = 0
    strict: bool = False


@dataclass(frozen=True)
class Windows:
    """clips_NCD: descriptors, zeros where counts_NC, frames of each clip, is 0; labels_N: index of the label."""

    clips_NCD: Floats
    counts_NC: NDArray[np.int64]
    labels_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels_N)


def train(recipe: FusionRecipe, report: Callable[[str], None] = print, data: Dataset | None = None,
          frames_of: FramesOf = decoded) -> dict[str, float]:
    """Fits clip fusion, writes the model file; returns `compared`, {} where nothing was left out.

    data: what to learn from, its validation split to compare on; None for EgoGestAR in `recipe.dataset`; frames_of: how
    its segments are decoded. Raises UsageError for a model that is not causal, has clip fusion already or no label for
    background, and for data with other labels; DatasetError for data in which something is always done.
    """
    model = load(recipe.init)
    contract, heads = model.contract, heads_of(model)
    if not contract.network.causal or contract.fusion is not None:
        state = "has it" if contract.fusion is not None else "is bidirectional"
        raise UsageError(f"clip fusion for {contract.name}, which {state}", "a causal model without it",
                         "train a model first, then its fusion")
    head, labels = next(iter(contract.heads.items()))
    if contract.background not in labels:
        raise UsageError(f"clip fusion for {contract.name}, whose {head} has no label for time without any",
                         "a model with one", "train it on recordings that are longer than their actions")
    streams = _gestures(recipe, model, report) if data is None else _actions(recipe, model, data, frames_of)
    report(f"looking for {recipe.windows} windows of {recipe.window_clips} clips")
    windows = cached(model, streams.learnt, recipe.windows, recipe.window_clips)
    tensors = fitted(windows, heads, recipe.rule, recipe.seed)
    table: dict[str, float] = {}
    update: dict[str, object] = {"fusion": recipe.rule, "window_clips": recipe.window_clips}
    if streams.held_out:
        report("comparing on what was left out")
        held_out = cached(model, streams.held_out, recipe.windows // 3, recipe.window_clips)
        table = compared(windows, held_out, heads, recipe.seed)
        scored = zip(logits_of(held_out, heads[head], recipe.rule, tensors), held_out.labels_N.tolist(), strict=True)
        update["window_temperature"] = {**contract.window_temperature, head: temperature(list(scored))}
    update["provenance"] = {**contract.provenance, "fusion": {
        "windows": recipe.windows, "seed": recipe.seed, "held_out": {name: round(v, 4) for name, v in table.items()}}}
    save(recipe.out, contract.model_copy(update=update), model.tensors | tensors, half=model.half)
    return table


class _Streams(NamedTuple):
    """Streams whose labels are indices into the model's first head; held_out: of what its training left out."""

    learnt: Sequence[Iterator[Labelled]]
    held_out: Sequence[Iterator[Labelled]]


def _gestures(recipe: FusionRecipe, model: Model, report: Callable[[str], None]) -> _Streams:
    """Of EgoGestAR."""
    contract = model.contract
    labels = next(iter(contract.heads.values()))
    own = contract.provenance.get("recipe", {})
    source = Recipe(recipe.dataset, recipe.out, "", recipe.idle, tuple(own.get("idle_without", ())),
                    own.get("without_fold", 0), tuple(own.get("without_labels", ())), seed=recipe.seed)

    def streams(material: Material, rendered_share: float, seed: int, strength: float) -> list[Iterator[Labelled]]:
        return [Stream(material, labels, contract.input_size_hw, contract.frame_rate, np.random.default_rng((seed, i)),
                       rendered_share, strength).sparse() for i in range(STREAMS)]

    learnt = streams(gather(source, report), Recipe.rendered_share, recipe.seed, 1.0)
    held = [one.footage for one in left_out(source, MARGIN_HW)]
    gestures = [one for one in held if one.label in labels and one.label != BACKGROUND]
    idle = [one for one in held if one.label in (BACKGROUND, egogestar.UNCLASSIFIED)]
    unseen = Material(gestures, idle, {}, [])
    return _Streams(learnt, streams(unseen, 0.0, recipe.seed + 1, 0.0) if gestures and idle else [])


def _actions(recipe: FusionRecipe, model: Model, data: Dataset, frames_of: FramesOf) -> _Streams:
    """Of any dataset."""
    contract = model.contract
    data = without_group(data, contract.provenance.get("recipe", {}).get("without_fold", 0))

    def streams(split: str, seed: int, strength: float) -> list[Iterator[Labelled]]:
        pool = Pool(data, split)
        if pool.heads != contract.heads:
            raise UsageError(f"{data.name}, whose labels are not those of {contract.name}",
                             "the dataset it was trained on", "choose another one, or another model")
        return [_of_the_first_head(pool, SegmentStream(pool, contract.input_size_hw, contract.frame_rate,
                                                       np.random.default_rng((seed, i)), frames_of, strength,
                                                       recipe.strict).sparse())
                for i in range(STREAMS)]

    labelled = any(one.labels for one in data.splits.get("validation", ()))
    return _Streams(streams("train", recipe.seed, 1.0), streams("validation", recipe.seed + 1, 0.0) if labelled else [])


def _of_the_first_head(pool: Pool, frames: Iterator[Labelled]) -> Iterator[Labelled]:
    for frame in frames:
        yield replace(frame, label=pool.truths[frame.label][0])


def cached(model: Model, streams: Sequence[Iterator[Labelled]], count: int, window_clips: int,
           background_share: float = 0.2) -> Windows:
    """Windows of `window_clips` clips from streams in turn, `count` in all.

    The streams' labels are indices into the model's first head. background_share: of windows without a gesture, at
    most. Raises DatasetError when the streams end too early.
    """
    contract = model.contract
    background = next(iter(contract.heads.values())).index(contract.background or BACKGROUND)
    examples: list[tuple[list[Floats], list[int], int]] = []
    empty = 0
    watched = [_windows(model.network, contract, stream, window_clips, background) for stream in streams]
    while len(examples) < count:
        if not watched:
            raise DatasetError(f"streams with {len(examples)} windows", f"{count} windows", "give more recordings")
        for stream in list(watched):
            window = next(stream, None)
            if window is None:
                watched.remove(stream)
            elif window[2] != background or empty < background_share * count:
                empty += window[2] == background
                examples.append(window)
    examples = examples[:count]
    clips_NCD = np.zeros((count, window_clips, len(examples[0][0][0])), np.float32)
    counts_NC = np.zeros((count, window_clips), np.int64)
    for n, (clips, counts, _) in enumerate(examples):
        clips_NCD[n, :len(clips)], counts_NC[n, :len(counts)] = clips, counts
    return Windows(clips_NCD, counts_NC, np.array([label for _, _, label in examples], np.int64))


def _windows(network: Network, contract: Contract, stream: Iterator[Labelled], window_clips: int,
             background: int) -> Iterator[tuple[list[Floats], list[int], int]]:
    """Descriptors and frame counts of each clip of a window, oldest first, and the window's label."""
    longest = contract.clip_frames * window_clips
    seen: deque[tuple[Labelled, Floats]] = deque(maxlen=longest)
    last = 0
    for k, (frame, features_D) in enumerate(_features(network, contract, stream), 1):
        seen.append((frame, features_D))
        growing = k % contract.clip_frames or contract.clip_frames
        held = list(seen)[-(longest - contract.clip_frames + growing):]
        label = _name([one for one, _ in held], background)
        if k < longest or k - last < APART or label is None:
            continue
        last = k
        rows_TD = np.stack([features_D for _, features_D in held])
        starts = range(0, len(held), contract.clip_frames)
        clips = [rows_TD[start:start + contract.clip_frames] for start in starts]
        yield [clip.mean(axis=0) for clip in clips], [len(clip) for clip in clips], label


def _name(frames: Sequence[Labelled], background: int) -> int | None:
    """The label of a window; None where it shows several gestures, too little of one, or one without a label."""
    gestures = {frame.gesture: frame.label for frame in frames if frame.label != background}
    if not gestures:
        return background
    seen = max(frame.progress for frame in frames if frame.label != background)
    (label, *others) = gestures.values()
    return None if others or label == UNKNOWN or seen < KNOWABLE_AT else label


@torch.no_grad()
def _features(network: Network, contract: Contract, stream: Iterator[Labelled]) -> Iterator[tuple[Labelled, Floats]]:
    """Each frame with its features, state carried on."""
    state = network.eval().fresh_state(1)
    while frames := list(islice(stream, CHUNK)):
        pixels = np.stack([frame.image_bgr for frame in frames])
        features_1TD, state = network(torch.from_numpy(normalise(pixels, contract))[None], state)
        yield from zip(frames, features_1TD[0].float().numpy(), strict=True)


def heads_of(model: Model) -> dict[str, Head]:
    """Weight and bias of each head."""
    return {head: (model.tensors[f"heads.{head}.weight"].astype(np.float32),
                   model.tensors[f"heads.{head}.bias"].astype(np.float32)) for head in model.contract.heads}


def fitted(windows: Windows, heads: Mapping[str, Head], rule: FusionRule, seed: int = 0) -> dict[str, Floats]:
    """The tensors of a clip fusion for windows labelled for the first head."""
    head = next(iter(heads))
    return fit_fusion(windows.clips_NCD, windows.counts_NC, {head: windows.labels_N}, {head: heads[head]}, rule,
                      seed=seed)


def logits_of(windows: Windows, head: Head, rule: FusionRule | None, tensors: Mapping[str, Floats]) -> Floats:
    """Logits [N, K] of windows; rule None: of the mean of all frames."""
    fusion = GatedFusion(rule or FusionRule(relate="none", gate=False), tensors)
    descriptors = [fusion.fuse(clips_CD[counts_C > 0], counts_C[counts_C > 0])[0]
                   for clips_CD, counts_C in zip(windows.clips_NCD, windows.counts_NC, strict=True)]
    logits_NK: Floats = np.stack(descriptors) @ head[0].T + head[1]
    return logits_NK


def compared(windows: Windows, held_out: Windows, heads: Mapping[str, Head], seed: int = 0) -> dict[str, float]:
    """Share of held-out windows named right by the central clip alone, the mean, and each form of clip fusion."""
    head = next(iter(heads.values()))
    weight_KD, bias_K = head
    central_ND = held_out.clips_NCD[:, held_out.clips_NCD.shape[1] // 2]
    right = {"central clip": float(((central_ND @ weight_KD.T + bias_K).argmax(1) == held_out.labels_N).mean())}
    for name, rule in FORMS.items():
        tensors = fitted(windows, heads, rule, seed) if rule else {}
        right[name] = float((logits_of(held_out, head, rule, tensors).argmax(1) == held_out.labels_N).mean())
    return right
