"""Official checkpoint -> model file: the same weights, with a contract that prepares images as the authors did.

    contract = import_official(Path("checkpoint.pth.tar"), Path("gsm.safetensors"), labels=read_labels(path))

A checkpoint knows neither its labels nor how fast its frames came. Its clips are frames spread evenly over a whole
video, so the frame rate follows from how long such a video is (`clip_s`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engines.errors import UsageError
from engines.model.contract import Contract
from engines.model.file import save
from engines.model.official import HEAD, architecture_of, load, read, share_gated
from engines.networks.gsf import GateShiftFuse
from engines.networks.network import Network

SEGMENTS = 8  # of a file whose name does not say
_CAFFE: dict[str, Any] = {"colour": "BGR", "value_scale": 1.0, "mean": (104.0, 117.0, 128.0), "std": (1.0, 1.0, 1.0)}
PREPROCESSING: dict[str, dict[str, Any]] = {
    "bninception": {**_CAFFE, "cover_hw": (256, 256)}, "inceptionv3": {**_CAFFE, "cover_hw": (261, 261)},
    "resnet50": {"cover_hw": (256, 256)}}  # the rest is the contract's default: ImageNet's, RGB


def import_official(file: Path, out: Path, *, arch: str | None = None, labels: Sequence[str] | None = None,
                    segments: int | None = None, clip_s: float = 4.0, name: str | None = None) -> Contract:
    """Writes the model file `out` and returns its contract.

    arch, segments: None for what keys and file name say; labels: in class order, None for numbers; clip_s: seconds
    that a clip's frames are spread over. Raises UsageError for labels that do not fit, and what `official.load` does.
    """
    weights = read(file)
    segments = segments or _segments(file.name)
    network = load(weights, arch or architecture_of(str(file), weights), segments)
    classes = network.heads[HEAD].out_features
    assert isinstance(classes, int)
    if labels is None:
        labels = [str(k) for k in range(classes)]
    if len(labels) != classes or len(set(labels)) != classes:
        raise UsageError(f"{len(labels)} labels, {len(set(labels))} of them different, for {file} of {classes} classes",
                         "one name for each class", "choose the label file of the dataset it was trained on")
    contract = contract_of(network, labels, clip_s, name or re.sub(r"[^A-Za-z0-9._-]", "-", out.stem)[:64],
                           {"checkpoint": file.name})
    save(out, contract, {key: value.numpy() for key, value in network.state_dict().items()}, half=False)
    return contract


def contract_of(network: Network, labels: Sequence[str], clip_s: float, name: str,
                provenance: dict[str, Any]) -> Contract:
    """The contract of an official network: a clip of its own length is what one score comes from."""
    channels = {site: conv.out_channels for site, conv in network.backbone.sites().items()}
    gated = [(module.channels, channels[site]) for site, module in network.temporal.items()
             if isinstance(module, GateShiftFuse)]
    options = {"causal": False, "segments": network.segments, "sites": list(network.temporal),
               **({"gate_ratio": share_gated(gated)} if gated else {})}
    frame_rate = network.segments / clip_s
    try:
        return Contract(name=name, architecture=network.architecture, options=options, heads={HEAD: tuple(labels)},
                        frame_rate=frame_rate, input_size_hw=network.input_size_hw, resize_filter="pillow-bilinear",
                        receptive_frames=network.segments, warmup_frames=network.segments,
                        clip_frames=network.segments, window_clips=1, max_gap_s=max(1.0, 2 / frame_rate),
                        provenance=provenance, **PREPROCESSING[network.architecture.partition("-")[2]])
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", "a contract that holds",
                         "choose another name, label file or clip length") from error


def read_labels(path: Path, sort: bool = False) -> list[str]:
    """Class names in class order, from lines or from JSON {name: number}; `sort` orders lines by name.

    Raises UsageError for a file that is neither.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        table = json.loads(text) if text.lstrip().startswith("{") else None
        numbers = None if table is None else {int(number): name for name, number in table.items()}
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"label file {path} ({error})", "one name a line, or JSON {name: number}",
                         "check the file") from error
    if numbers is None:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return sorted(lines) if sort else lines
    if sorted(numbers) != list(range(len(table or {}))):
        raise UsageError(f"label file {path} with numbers {sorted(numbers)[:3]}...", "each of 0, 1, 2, ... once",
                         "check the file")
    return [numbers[k] for k in range(len(numbers))]


def _segments(file_name: str) -> int:
    found = re.search(r"segments?_?(\d+)", file_name, re.IGNORECASE)
    return int(found[1] if found else 0) or SEGMENTS
