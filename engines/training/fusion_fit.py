"""Stage two of training a fused recogniser: the network stands still, its clip descriptors are cached, and only the
clip fusion is trained, by cross-entropy through the network's own heads.

    tensors = fit_fusion(descriptors_NCD, counts_NC, {"gesture": labels_N}, heads, rule)
    save(path, contract.model_copy(update={"fusion": rule}), model.tensors | tensors)

To be used live, examples should look as they do live: windows of different fill, the newest clip partial in most.

Legend: N examples (windows), C clips, oldest first, D features of a clip, K labels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from engines.errors import DatasetError, ModelError
from engines.networks.clip_fusion import fusion_of
from engines.networks.fusion_rule import PREFIX, FusionRule

Floats = NDArray[np.float32]
Head = tuple[Floats, Floats]  # weight [K, D], bias [K]


def fit_fusion(descriptors_NCD: Floats, counts_NC: NDArray[np.integer], labels_N: Mapping[str, NDArray[np.integer]],
               heads: Mapping[str, Head], rule: FusionRule | None = None, *, epochs: int = 30, batch: int = 64,
               lr: float = 3e-3, weight_decay: float = 0.01, seed: int = 0) -> dict[str, Floats]:
    """Trains the clip fusion of `rule` and returns its tensors, named as a model file names them.

    descriptors_NCD: means of frame features; counts_NC: frames in each clip, 0 for a clip that is not there;
    labels_N: index of the label of each example, for every head; heads: their weights, which stay as they are.
    The learning rate falls from `lr` to zero along half a cosine. The same arguments give the same tensors.

    Raises DatasetError for examples that do not fit each other or the heads, ModelError when the loss is not finite.
    """
    rule = rule or FusionRule()
    _check(descriptors_NCD, counts_NC, labels_N, heads)
    clips, counts = torch.from_numpy(descriptors_NCD.astype(np.float32)), torch.from_numpy(counts_NC.astype(np.int64))
    truth = {head: torch.from_numpy(labels.astype(np.int64)) for head, labels in labels_N.items()}
    weights = {head: [torch.from_numpy(part.astype(np.float32)) for part in parts] for head, parts in heads.items()}
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fusion = fusion_of(rule, clips.shape[2]).train()
    parameters = list(fusion.parameters())
    if not parameters:
        return {}
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    steps = epochs * -(-len(clips) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(clips), generator=generator), batch):
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
