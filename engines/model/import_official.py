"""Official checkpoint -> model file: the same weights, with a contract that prepares images as the authors did.
A checkpoint knows neither its labels nor how fast its frames came. Its clips are frames spread evenly over a whole
video, so the frame rate follows from how long such a video is (`clip_s`)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engines.errors import UsageError, first_problem
from engines.model.contract import NO_BACKGROUND_EVENTS, Contract, EventRule, check_background
from engines.model.file import save
from engines.model.official import HEAD, load
from engines.networks.network import Network


def import_official(file: Path, out: Path, *, arch: str | None = None, labels: Sequence[str] | None = None,
                    segments: int | None = None, clip_s: float = 4.0, name: str | None = None,
                    background: str | None = None) -> Contract:
    """Writes the model file `out` and returns its contract.
    arch, segments: None for what keys and file name say; labels: in class order, None for numbers; clip_s: seconds
    that a clip's frames are spread over; background: the label that means "nothing", if there is one. Raises UsageError
    for labels that do not fit; else as `official.load`."""
    named = re.search(r"segments?_?(\d+)", file.name, re.IGNORECASE)
    network = load(file, arch, segments or int(named[1] if named else 0) or 8)
    classes = len(network.heads[HEAD].get_parameter("bias"))
    labels = [str(k) for k in range(classes)] if labels is None else labels
    if len(labels) != classes or len(set(labels)) != classes:
        raise UsageError(f"{len(labels)} labels, {len(set(labels))} of them different, for {file} of {classes} classes",
                         "one name for each class", "choose the label file of the dataset it was trained on")
    if background is not None:
        check_background(background, labels, file.name)
    contract = contract_of(network, labels, clip_s, name or re.sub(r"[^A-Za-z0-9._-]", "-", out.stem)[:64],
                           {"checkpoint": file.name}, background)
    save(out, contract, {key: value.numpy() for key, value in network.state_dict().items()}, half=False)
    return contract


def contract_of(network: Network, labels: Sequence[str], clip_s: float, name: str,
                provenance: dict[str, Any], background: str | None = None) -> Contract:
    """The contract of an official network: a clip of its own length is what one score comes from."""
    frame_rate = network.segments / clip_s
    try:
        return Contract(name=name, network=network.config, heads={HEAD: tuple(labels)}, frame_rate=frame_rate,
                        cover_hw=network.backbone.cover_hw, resize_filter="pillow-bilinear",
                        receptive_frames=network.segments, warmup_frames=network.segments,
                        clip_frames=network.segments, window_clips=1, max_gap_s=max(1.0, 2 / frame_rate),
                        provenance=provenance, background=background, **network.backbone.pixels._asdict(),
                        events=NO_BACKGROUND_EVENTS if background is None else EventRule())
    except ValidationError as error:
        raise UsageError(*first_problem(error), "choose another name, label file or clip length") from error
