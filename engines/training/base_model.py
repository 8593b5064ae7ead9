"""Builds `base`, the model that lessons start from: ImageNet's MobileNetV2 as it is, beside it a motion branch that
learns gestures here, and a pooled head that knows nothing yet.

    python -m engines.training.base_model WEIGHTS.safetensors EGOGESTAR HOUSEHOLD base.safetensors

The layers below the branch stay as they are: their maps of each clip are computed once, in half precision, and learnt
from many times. Legend: N clips, B of them at once, T frames, C channels, H W the map's size."""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from engines.datasets.base import Dataset
from engines.datasets.frame_cache import read_frames
from engines.datasets.readers import open_dataset
from engines.datasets.selection import select
from engines.model.contract import Contract, EventRule, PoolingRule
from engines.model.file import Model, save
from engines.networks.mobilenetv2 import MobileNetV2, MotionBranch
from engines.networks.network import Network, build
from engines.runtime.step_graph import carry
from engines.synthetic import BACKGROUND
from engines.training.initialisation import load_pretrained
from engines.training.loss import Truth, frame_loss, tip_loss, window_loss
from engines.training.pixels import normalise
from engines.training.pooled_few_shot import forget
from engines.training.process import keep_freed_memory, seeded
from engines.training.sources import TrainingSources
from engines.training.stream_loader import SectionShares, TrainingStream, collate

HEAD = "action"
SIZE_HW, RATE = (144, 192), 7.5
# While a span enters or leaves an action, scores favour no label as much as they do in its midst.
EVENTS = EventRule(open_above=0.96, close_below=0.5, min_score=0.3)
CLIP_NORM = 5.0
LOWER = slice(MobileNetV2.middle_steps)
WATCHED_BLOCK = 1  # of the branch, whose map finds rendered fingertips


@dataclass(frozen=True)
class MotionRecipe:
    """How the motion branch learns: from whole gestures, recorded and rendered, and moments without any."""

    clips: int = 6000
    frames: int = 16  # of each
    idle_share: float = 0.2  # share of the clips
    steps: int = 3600
    batch: int = 8  # clips
    rate: float = 4e-3  # of learning, at its highest
    weight_decay: float = 0.02
    dropout: float = 0.2
    seed: int = 0


def build_base(weights: Path, data: Dataset, out: Path, recipe: MotionRecipe = MotionRecipe(),
               report: Callable[[str], None] = print) -> None:
    """weights: MobileNetV2's on ImageNet, with torchvision's or timm's names; data: gestures, and idle footage without
    a label. Raises UsageError, ModelError, DatasetError."""
    with keep_freed_memory(), seeded(recipe.seed, torch.device("cpu")):
        network = build("gsf-mobilenetv2", heads={HEAD: 2}, causal=True, input_size_hw=SIZE_HW, middle_grid=3,
                        motion=True)
        load_pretrained(network, weights, transparent=False)
        contract = Contract(
            name="base", network=network.config, heads={HEAD: (BACKGROUND, "action")}, frame_rate=RATE,
            cover_hw=SIZE_HW, receptive_frames=network.receptive_field, warmup_frames=3, clip_frames=3, window_clips=25,
            pooling=PoolingRule(now_clips=8, foreground_s=10.0), events=EVENTS,
            provenance={"weights": weights.name, "data": data.name, "motion": asdict(recipe)})
        sources = TrainingSources(data, frame_rate=RATE, read_frames=read_frames)
        report(sources.summary())
        maps_NTCHW, truth = collect_maps(network, contract, sources, recipe, report)
        train_motion(network, maps_NTCHW, truth, len(sources.truths), sources.background, recipe, report)
    tensors = {name: value.numpy() for name, value in network.state_dict().items()}
    base = forget(Model(contract, tensors, ""), HEAD, hands=0)
    save(out, base.contract, base.tensors)


@torch.no_grad()
def collect_maps(network: Network, contract: Contract, sources: TrainingSources, recipe: MotionRecipe,
                 report: Callable[[str], None]) -> tuple[Tensor, Truth]:
    """Maps below the branch of clips, float16 [N, T, C, H, W], and what they show, [N, T]."""
    rng, backbone, began = np.random.default_rng(recipe.seed), network.backbone.eval(), time.monotonic()
    stream = TrainingStream(sources, SIZE_HW, RATE, rng, SectionShares())
    frames = stream.whole_actions(recipe.frames, recipe.idle_share)
    maps, truths = [], []
    for n in range(recipe.clips):
        clip = collate([[next(frames) for _ in range(recipe.frames)]], [True], [""])
        images = normalise(clip.pixels[0], contract).contiguous(memory_format=torch.channels_last)
        maps.append(backbone(images, lambda _, x: x, LOWER).half().contiguous())
        truths.append(clip.truth)
        if n % 500 == 499:
            report(f"{n + 1} of {recipe.clips} clips, {time.monotonic() - began:.0f} s")
    return torch.stack(maps), Truth(*(torch.cat(columns) for columns in zip(*truths, strict=True)))


def train_motion(network: Network, maps_NTCHW: Tensor, truth: Truth, classes: int, background: int | None,
                 recipe: MotionRecipe, report: Callable[[str], None]) -> None:
    """Teaches the branch to name what clips show, and to tell where a rendered fingertip is and how it moves; what
    reads that off its features is thrown away. Batch norms, without which little is learnt, are folded in at the end.
    """
    branch = network.backbone.get_submodule("motion")
    assert isinstance(branch, MotionBranch)
    _add_norms(branch)
    name, guess = nn.Linear(branch.width, classes), nn.Linear(branch.width, 4)
    heat, kept = nn.LazyConv2d(1, 1), dict[str, Tensor]()
    branch.blocks[WATCHED_BLOCK].register_forward_hook(lambda _, __, out: kept.update(map=out))
    learning = nn.ModuleList([branch, network.temporal, name, guess, heat]).train()
    rng, B, T, began = np.random.default_rng(recipe.seed), recipe.batch, recipe.frames, time.monotonic()
    optimiser: torch.optim.Optimizer | None = None
    figures: list[tuple[float, float]] = []
    for step in range(recipe.steps):
        chosen = torch.from_numpy(rng.choice(len(maps_NTCHW), B, replace=False))
        hook, _ = network.mixing(B, T, iter(network.fresh_state(B)))
        features_BTD = branch(maps_NTCHW[chosen].flatten(0, 1).float(), hook).view(B, T, -1)
        logits_BTK = name(F.dropout(features_BTD, recipe.dropout))
        own, map_BTCHW = Truth(*(column[chosen] for column in truth)), heat(kept["map"])
        terms = [frame_loss(logits_BTK, own, background), window_loss(logits_BTK, own),
                 *tip_loss(map_BTCHW.view(B, T, *map_BTCHW.shape[-2:]), guess(features_BTD), own).values()]
        loss = sum((term.mean for term in terms), torch.zeros(()))
        optimiser = optimiser or torch.optim.AdamW(learning.parameters(), weight_decay=recipe.weight_decay)
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * _schedule(step, recipe.steps)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learning.parameters(), CLIP_NORM)
        optimiser.step()
        named = logits_BTK.detach().mean(1).argmax(1) == own.label[:, -1]
        figures.append((loss.item(), named.float().mean().item()))
        if step % 250 == 249:
            mean_loss, right = np.mean(figures[-250:], axis=0)
            report(f"step {step + 1} of {recipe.steps}, {time.monotonic() - began:.0f} s: loss {mean_loss:.2f}, "
                   f"{right:.3f} named right")
    learning.eval()
    _fold_norms(branch)


def _schedule(step: int, steps: int) -> float:
    """Half a cosine after a short warm-up."""
    return min(1.0, (step + 1) / max(1, min(200, steps // 10))) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))


def _add_norms(branch: nn.Module) -> None:
    """Puts a batch norm behind each convolution, whose weights are drawn anew for it."""
    for part in list(branch.modules()):
        for name, layer in list(part.named_children()):
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                setattr(part, name, nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels)))


def _fold_norms(branch: nn.Module) -> None:
    for part in list(branch.modules()):
        for name, pair in list(part.named_children()):
            if isinstance(pair, nn.Sequential) and len(pair) == 2 and isinstance(pair[1], nn.BatchNorm2d):
                convolution = pair[0]
                assert isinstance(convolution, nn.Conv2d)
                setattr(part, name, fuse_conv_bn_eval(convolution, pair[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("gestures", type=Path, help="a dataset of gestures, such as EgoGestAR")
    parser.add_argument("idle", type=Path, help="a folder of videos in which none is made")
    parser.add_argument("out", type=Path)
    parser.add_argument("--without-fold", type=int, default=0, metavar="N")
    parser.add_argument("--without-label", action="append", default=[], metavar="NAME")
    for field in fields(MotionRecipe):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    given = parser.parse_args()
    data = select(open_dataset(given.gestures), given.without_fold, tuple(given.without_label), (given.idle,), ())
    recipe = MotionRecipe(**{field.name: getattr(given, field.name) for field in fields(MotionRecipe)})
    build_base(given.weights, data, given.out, recipe, partial(print, flush=True))
    carry(given.out)


if __name__ == "__main__":
    main()
