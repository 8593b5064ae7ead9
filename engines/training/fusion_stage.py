"""Stage two of training: a finished network looks at training streams, the windows that it would hold there are cached
as clip descriptors, and clip fusion is fitted on them by cross-entropy through the network's own heads.

    table = train(FusionRecipe(out, init="gesture.safetensors"), open_dataset("egogestar"))     # {"+ gate": 0.9, ...}

A window is named by the one action that was seen in it to three quarters at least, or by background when it holds
none; other windows are passed over. Like live ones, they end in a clip that is still growing. A model without a label
for background is used where action follows action: its windows end in an action that is seen to three quarters, hold as
many frames of what was before at most, and have fewer clips where that is not enough.

Legend: N windows, C clips, oldest first, D features of a clip, T frames, K labels of a head."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from engines.datasets.base import Dataset
from engines.datasets.frame_cache import read_frames
from engines.datasets.selection import select, with_background
from engines.errors import DatasetError, ModelError, UsageError
from engines.model.clip_fusion import GatedFusion
from engines.model.contract import Contract
from engines.model.file import Model, load, save
from engines.networks.clip_fusion import GatedClipFusion
from engines.networks.config import PREFIX, FusionRule
from engines.networks.network import Network
from engines.training.loss import KNOWABLE_AT, UNKNOWN
from engines.training.pixels import normalise
from engines.training.process import seeded
from engines.training.sections import LabelledFrame
from engines.training.sources import ReadFrames, TrainingSources
from engines.training.stream_loader import SectionShares, TrainingStream
from engines.training.temperature import temperature

Floats = NDArray[np.float32]
Head = tuple[Floats, Floats]  # weight [K, D], bias [K]

STREAMS = 8  # side by side, so that windows of a batch show different places
CHUNK = 64  # frames the network sees at once
BATCH, WEIGHT_DECAY = 64, 0.01
APART = 3  # frames from one window to the next, at least
_Window = tuple[Floats, list[int], int]  # descriptors of the clips [C, D], oldest first; frames of each; its label
BACKGROUND_SHARE = 0.2  # of windows without a gesture, at most
FORMS = {"dense average": FusionRule(relate="none", gate=False), "+ fusion": FusionRule(gate=False),
         "+ gate": FusionRule(relate="none"), "+ both": FusionRule()}  # as the paper takes its method apart


@dataclass(frozen=True)
class FusionRecipe:
    """Everything a run depends on, but the dataset. What the model's own training left out is left out here, too, and
    compared on."""

    out: Path
    init: str  # the finished model
    idle: tuple[Path, ...] = ()  # folders of videos in which nothing labelled is done
    window_clips: int = 10  # clips in the window from now on
    windows: int = 3000  # how many are cached
    name: str | None = None  # None: the model's
    seed: int = 0
    strict: bool = False  # stop at a segment that cannot be read


class Windows(NamedTuple):
    """Windows of a stream, as a finished network sees them."""

    clips_NCD: Floats  # descriptors
    counts_NC: NDArray[np.int64]  # frames of each clip; what has none teaches nothing
    labels_N: NDArray[np.int64]  # index of the label


def train(recipe: FusionRecipe, data: Dataset, report: Callable[[str], None] = print,
          read_frames: ReadFrames = read_frames) -> dict[str, float]:
    """Fits clip fusion, writes the model file; returns `compare`'s table, {} where nothing was left out.
    data: what to learn from, its validation split to compare on; read_frames: decodes a segment. Raises UsageError for
    a model that is not causal, is multi-label or has clip fusion already, and for data with other labels; DatasetError
    for data in which something is always done, if the model has a label for background."""
    model = load(recipe.init)
    contract = model.contract
    if state := "has it" if contract.fusion is not None else "is bidirectional" if not contract.network.causal else \
            "is multi-label" if contract.multi_label else "":
        raise UsageError(f"clip fusion for {contract.name}, which {state}", "a causal model of single labels without",
                         "train a model first, then its fusion")
    head = next(iter(contract.heads))
    head_weights = model.tensors[f"heads.{head}.weight"].astype(np.float32), \
        model.tensors[f"heads.{head}.bias"].astype(np.float32)
    own = contract.provenance.get("recipe", {})
    if any(contract.background in labels for labels in data.heads.values()):
        data = with_background(data, contract.background)
    data = select(data, own.get("without_fold", 0), own.get("without_labels", ()), recipe.idle,
                  own.get("idle_without", ()), required=False)
    report(f"looking for {recipe.windows} windows of {recipe.window_clips} clips")
    streams = _open_streams(recipe, contract, data, read_frames)
    windows = cache_windows(model, streams, recipe.windows, recipe.window_clips)
    tensors = fit(windows, head_weights, FusionRule(), recipe.seed)
    table: dict[str, float] = {}
    update: dict[str, object] = {"fusion": FusionRule(), "window_clips": recipe.window_clips}
    left_out = [one.labels for one in data.splits.get("validation", ()) if one.labels]
    if any(contract.background not in labels.values() for labels in left_out) and \
            (streams := _open_streams(recipe, contract, data, read_frames, unseen=True)):
        report("comparing on what was left out")
        held_out = cache_windows(model, streams, recipe.windows // 3, recipe.window_clips)
        table = compare(windows, held_out, head_weights, recipe.seed)
        logits_NK = logits_of(held_out, head_weights, FusionRule(), tensors)
        scored = list(zip(logits_NK, held_out.labels_N.tolist(), strict=True))
        update["window_temperature"] = {**contract.window_temperature, head: temperature(scored)}
    update["name"] = recipe.name or contract.name
    update["provenance"] = {**contract.provenance, "fusion": {
        "windows": recipe.windows, "seed": recipe.seed, "held_out": {name: round(v, 4) for name, v in table.items()}}}
    save(recipe.out, contract.model_copy(update=update), model.tensors | tensors, half=model.half,
         graph=model.graph)
    return table


def _open_streams(recipe: FusionRecipe, contract: Contract, data: Dataset, read_frames: ReadFrames,
                  unseen: bool = False) -> list[Iterator[LabelledFrame]]:
    """Streams of single actions, labelled for the model's first head. unseen: of what was left out, shown as it was
    recorded, without rendered hands; none where something is always done there."""
    sources = TrainingSources(data, "validation" if unseen else "train", frame_rate=contract.frame_rate,
                              read_frames=read_frames, rendered=not unseen,
                              names_background=contract.background is not None)
    if sources.heads != contract.heads:
        raise UsageError(f"{data.name}, whose labels are not those of {contract.name}",
                         "the dataset it was trained on", "choose another one, or another model")
    if unseen and contract.background is not None and not sources.idle:
        return []
    streams = [TrainingStream(sources, contract.input_size_hw, contract.frame_rate,
                              np.random.default_rng((recipe.seed + unseen, i)), SectionShares(),
                              strength=float(not unseen), strict=recipe.strict) for i in range(STREAMS)]
    truths = sources.truths
    return [(frame._replace(label=truths[frame.label][0]) for frame in
             (stream.frames() if contract.background is None else stream.sparse())) for stream in streams]


def cache_windows(model: Model, streams: Sequence[Iterator[LabelledFrame]], count: int, window_clips: int) -> Windows:
    """Windows of `window_clips` clips from streams in turn, `count` in all.
    The streams' labels are indices into the model's first head. Raises DatasetError when the streams end too early."""
    contract = model.contract
    labels = next(iter(contract.heads.values()))
    background = labels.index(contract.background) if contract.background in labels else None
    examples: list[_Window] = []
    empty = 0
    watched = [_windows(model.network, contract, stream, window_clips, background) for stream in streams]
    for window in chain.from_iterable(zip_longest(*watched)):  # None of a stream that has ended
        if window is not None and (window[2] != background or empty < BACKGROUND_SHARE * count):
            empty += window[2] == background
            examples.append(window)
            if len(examples) == count:
                break
    else:
        raise DatasetError(f"streams with {len(examples)} windows", f"{count} windows", "give more recordings")
    clips, counts, labels = zip(*examples, strict=True)
    return Windows(np.stack(clips), np.array(counts, np.int64), np.array(labels, np.int64))


def _windows(network: Network, contract: Contract, stream: Iterator[LabelledFrame], window_clips: int,
             background: int | None) -> Iterator[_Window]:
    if background is None:
        yield from _windows_of_actions(network, contract, stream, window_clips)
        return
    longest = contract.clip_frames * window_clips
    seen: deque[tuple[LabelledFrame, Floats]] = deque(maxlen=longest)
    last = 0
    for k, (frame, features_D) in enumerate(_features(network, contract, stream), 1):
        seen.append((frame, features_D))
        growing = k % contract.clip_frames or contract.clip_frames
        held = list(seen)[-(longest - contract.clip_frames + growing):]
        label = _name([one for one, _ in held], background)
        if k < longest or k - last < APART or label is None:
            continue
        last = k
        yield *_clips([features_D for _, features_D in held], contract.clip_frames, window_clips), label


def _windows_of_actions(network: Network, contract: Contract, stream: Iterator[LabelledFrame], window_clips: int
                        ) -> Iterator[_Window]:
    """Those of a model without a label for background."""
    longest = contract.clip_frames * window_clips
    seen: deque[tuple[int, Floats]] = deque(maxlen=longest)  # number of the action
    last = turn = 0
    for k, (frame, features_D) in enumerate(_features(network, contract, stream), 1):
        seen.append((frame.gesture, features_D))
        if k - last < APART or frame.gesture < 0 or frame.label == UNKNOWN or frame.progress < KNOWABLE_AT:
            continue
        own = sum(gesture == frame.gesture for gesture, _ in seen)
        shown = list(seen)[-(own + own * (turn % 3) // 2):]  # with nothing, half as much, and as much before it
        last, turn = k, turn + 1
        yield *_clips([features_D for _, features_D in shown], contract.clip_frames, window_clips), frame.label


def _clips(rows: Sequence[Floats], clip_frames: int, window_clips: int) -> tuple[Floats, list[int]]:
    """Descriptors of a window's clips [C, D] and the frames of each: 0 of what is missing at its beginning."""
    clips = np.split(np.stack(rows), range(clip_frames, len(rows), clip_frames))
    missing = window_clips - len(clips)
    descriptors_CD = np.stack([clip.mean(axis=0) for clip in clips])
    return np.pad(descriptors_CD, ((missing, 0), (0, 0))), [0] * missing + [len(clip) for clip in clips]


def _name(frames: Sequence[LabelledFrame], background: int) -> int | None:
    """The label of a window; None where it shows several gestures, too little of one, or one without a label."""
    gestures = {frame.gesture: frame.label for frame in frames if frame.label != background}
    if not gestures:
        return background
    seen = max(frame.progress for frame in frames if frame.label != background)
    (label, *others) = gestures.values()
    return None if others or label == UNKNOWN or seen < KNOWABLE_AT else label


@torch.no_grad()
def _features(network: Network, contract: Contract, stream: Iterator[LabelledFrame]
              ) -> Iterator[tuple[LabelledFrame, Floats]]:
    """Each frame with its features, state carried on."""
    state = network.eval().fresh_state(1)
    while frames := list(islice(stream, CHUNK)):
        pixels = np.stack([frame.image_bgr for frame in frames])
        features_1TD, state = network(normalise(torch.from_numpy(pixels), contract)[None], state)
        yield from zip(frames, features_1TD[0].float().numpy(), strict=True)


def fit(windows: Windows, head: Head, rule: FusionRule, seed: int = 0) -> dict[str, Floats]:
    """The tensors of a clip fusion for windows labelled for one head."""
    return fit_fusion(windows.clips_NCD, windows.counts_NC, {"": windows.labels_N}, {"": head}, rule, seed=seed)


def logits_of(windows: Windows, head: Head, rule: FusionRule, tensors: Mapping[str, Floats]) -> Floats:
    """Logits [N, K] of windows."""
    fusion = GatedFusion(rule, tensors)
    descriptors = [fusion.fuse(clips_CD[counts_C > 0], counts_C[counts_C > 0])[0]
                   for clips_CD, counts_C, _ in zip(*windows, strict=True)]
    logits_NK: Floats = np.stack(descriptors) @ head[0].T + head[1]
    return logits_NK


def compare(windows: Windows, held_out: Windows, head: Head, seed: int = 0) -> dict[str, float]:
    """Share of held-out windows named right by the central clip alone, the mean, and each form of clip fusion."""
    rows_N, clips = np.arange(len(held_out.labels_N)), held_out.clips_NCD.shape[1]
    central_N = clips - (np.count_nonzero(held_out.counts_NC, axis=1) + 1) // 2
    logits = {"central clip": held_out.clips_NCD[rows_N, central_N] @ head[0].T + head[1]}
    for name, rule in FORMS.items():
        logits[name] = logits_of(held_out, head, rule, fit(windows, head, rule, seed))
    return {name: float((logits_NK.argmax(1) == held_out.labels_N).mean()) for name, logits_NK in logits.items()}


def fit_fusion(descriptors_NCD: Floats, counts_NC: NDArray[np.integer], labels_N: Mapping[str, NDArray[np.integer]],
               heads: Mapping[str, Head], rule: FusionRule | None = None, *, epochs: int = 30, lr: float = 3e-3,
               seed: int = 0) -> dict[str, Floats]:
    """Trains the clip fusion of `rule` and returns its tensors, named as a model file names them. To be used live,
    examples should look as they do live: windows of different fill, the newest clip partial in most.
    descriptors_NCD: means of frame features; counts_NC: frames in each clip, 0 for a clip that is not there;
    labels_N: index of the label of each example, for every head; heads: their weights, which stay as they are.
    The learning rate falls from `lr` to zero along half a cosine. The same arguments give the same tensors.
    Raises DatasetError for examples that do not fit each other or the heads, ModelError when the loss is not finite."""
    rule = rule or FusionRule()
    _check(descriptors_NCD, counts_NC, labels_N, heads)
    clips, counts = torch.from_numpy(descriptors_NCD.astype(np.float32)), torch.from_numpy(counts_NC.astype(np.int64))
    truth = {head: torch.from_numpy(labels.astype(np.int64)) for head, labels in labels_N.items()}
    weights = {head: [torch.from_numpy(part.astype(np.float32)) for part in parts] for head, parts in heads.items()}
    generator = torch.Generator().manual_seed(seed)
    with seeded(seed, clips.device):
        fusion = GatedClipFusion(clips.shape[2], rule).train()
    parameters = list(fusion.parameters())
    if not parameters:
        return {}
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(clips) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(clips), generator=generator), BATCH):
            descriptor_BD, _ = fusion(clips[rows], counts[rows])
            losses = [F.cross_entropy(F.linear(descriptor_BD, *weights[head]), truth[head][rows]) for head in weights]
            loss: Tensor = torch.stack(losses).mean()
            if not torch.isfinite(loss):
                raise ModelError(f"a loss of {float(loss.detach())} while training the clip fusion", "a finite loss",
                                 "lower the learning rate")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return {PREFIX + name: np.array(value.numpy()) for name, value in fusion.state_dict().items()}


def _check(descriptors_NCD: Floats, counts_NC: NDArray[np.integer], labels_N: Mapping[str, NDArray[np.integer]],
           heads: Mapping[str, Head]) -> None:
    if descriptors_NCD.ndim != 3 or not descriptors_NCD.size or counts_NC.shape != descriptors_NCD.shape[:2]:
        raise DatasetError(f"descriptors of shape {descriptors_NCD.shape} with counts of shape {counts_NC.shape}",
                           "[N, C, D] with [N, C]", "give one count for each clip")
    if (counts_NC < 0).any() or not counts_NC.any(axis=1).all():
        raise DatasetError("counts below zero, or a window without a frame", "at least one frame in every window",
                           "leave empty windows out")
    if not np.isfinite(descriptors_NCD[counts_NC > 0]).all():
        raise DatasetError("descriptors that are not finite", "finite numbers", "cache the descriptors again")
    if not heads or set(labels_N) != set(heads):
        raise DatasetError(f"labels for heads {sorted(labels_N)}", f"labels for {sorted(heads)}",
                           "give the labels of every head")
    for head, (weight_KD, bias_K) in heads.items():
        K, D = len(bias_K), descriptors_NCD.shape[2]
        if weight_KD.shape != (K, D):
            raise DatasetError(f"head {head!r} with weights of shape {weight_KD.shape}", f"({K}, {D})",
                               "use the heads of the network that made the descriptors")
        labels = labels_N[head]
        if labels.shape != (len(descriptors_NCD),) or not ((labels >= 0) & (labels < K)).all():
            raise DatasetError(f"labels of shape {labels.shape} for head {head!r}, or some that are none of its {K}",
                               f"{len(descriptors_NCD)} indices from 0 to {K - 1}", "check the labels")
