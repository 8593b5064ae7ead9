"""A very small training run with everything in it: gates with batch norms, carried state, dropout, averaging.

    python tests/tiny_training.py OUT.safetensors [key=value ...]

signal=N: this signal to the whole process group once iteration 5 is done;
kill=N: SIGKILL once iteration N is done; kill_in_write=N: SIGKILL in the middle of writing the N-th checkpoint;
own_disk=1: every process but the first has another folder for OUT, and writes its own weights there;
others are `train`'s arguments. Prints the loss of every iteration.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engines.model.contract import Contract
from engines.model.file import save
from engines.networks.backbone import Backbone, Hook, Step, mean_over_space
from engines.networks.config import NetworkConfig
from engines.networks.gsf import GateShiftFuse
from engines.networks.network import Network
from engines.training import loop, runfolder
from engines.training.calibrate import ValidationClip
from engines.training.distributed import Ranks, init_distributed
from engines.training.loop import LoopConfig, Precision, Progress
from engines.training.process import seeded
from engines.training.runfolder import RunFolder
from engines.training.sections import LabelledFrame
from engines.training.stream_loader import StreamLoader, StreamSchedule
from engines.training.stream_task import AdamWConfig, StreamTask

SIZE_HW = (16, 16)
LABELS = ("left", "right", "none")
NETWORK = NetworkConfig(module="gsf", backbone="tiny", input_size_hw=SIZE_HW, sites=("only",), segments=4)


class TinyBackbone(Backbone):
    width = 8

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8)

    def sites(self) -> dict[str, nn.Conv2d]:
        return {"only": self.conv}

    def input_sites(self) -> dict[str, int]:
        return {}

    def default_sites(self, module: str, causal: bool) -> tuple[str, ...]:
        return ("only",)

    def steps(self) -> list[Step]:
        return [self._only, mean_over_space]

    def _only(self, x: Tensor, hook: Hook) -> Tensor:
        return torch.relu(self.bn(hook("only", self.conv(x))))


def tiny_network(seed: int = 0, dropout: float = 0.0, causal: bool = True, heads: dict[str, int] | None = None,
                 readout_width: int = 4) -> Network:
    config = NETWORK.replace(causal=causal, readout_width=readout_width if causal else 0)
    with seeded(seed, torch.device("cpu")):
        return Network(config, TinyBackbone(), {"only": GateShiftFuse(8, causal)}, heads or {"gesture": len(LABELS)},
                       dropout)


def contract() -> Contract:
    return Contract(name="tiny", network=NETWORK, heads={"gesture": LABELS}, frame_rate=5.0, cover_hw=SIZE_HW,
                    receptive_frames=7, warmup_frames=0, clip_frames=3, window_clips=2,
                    background="none")


def frames(row: int, began: int, rng: np.random.Generator) -> Iterator[LabelledFrame]:
    """Noise that is brighter on one side for so many frames, then nothing."""
    gesture = 0
    while True:
        label = int(rng.integers(2))
        for k in range(int(rng.integers(2, 6))):
            yield LabelledFrame(picture(label, rng), label, (k + 1) / 5, gesture=gesture, source=LABELS[label])
        gesture += 1
        for _ in range(int(rng.integers(1, 4))):
            yield LabelledFrame(picture(2, rng), 2)


def picture(label: int, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.uint8]]:
    image = rng.integers(0, 120, (*SIZE_HW, 3))
    if label < 2:
        image[:, 8 * label:8 * label + 8] += 100
    return image.astype(np.uint8)


def validation_clip(label: int, seed: int) -> ValidationClip:
    rng = np.random.default_rng(seed)
    images = np.stack([picture(label, rng) for _ in range(6)])
    return ValidationClip(images, np.arange(6) / 5.0, {"gesture": LABELS[label]})


def train(out: Path, ranks: Ranks, *, iterations: int = 10, rows: int = 4, workers: int = 0, average: float = 0.9,
          checkpoint_every: int = 3, dropout: float = 0.0, validate_every: int = 0, patience: int = 0,
          bad_at: int = -1, held_out: tuple[ValidationClip, ...] = (), precision: Precision = "f32",
          progress: Progress = lambda _, __: None) -> Network:
    """Trains and writes `out`. bad_at: the iteration whose new streams break the loss."""
    def spoilt(row: int, began: int, rng: np.random.Generator) -> Iterator[LabelledFrame]:
        for frame in frames(row, began, rng):
            yield LabelledFrame(frame.image_bgr, frame.label, float("nan") if began == bad_at else frame.progress,
                           gesture=frame.gesture, source=frame.source)

    held_out = held_out or tuple(validation_clip(k % 2, k) for k in range(4 if validate_every else 0))
    loader = StreamLoader(spoilt, StreamSchedule(5, 0.4), ranks.own_rows(rows), 6, workers)
    task = StreamTask(tiny_network(dropout=dropout), contract(), loader, [(0,), (1,), (2,)],
                      AdamWConfig(backbone_lr=0.01, module_lr=0.01, head_lr=0.01, weight_decay=0.0, frozen_layers=0,
                                  iterations=iterations, average=average), ranks, held_out=lambda: held_out)
    config = LoopConfig(iterations, precision=precision, checkpoint_every=checkpoint_every, log_every=2,
                validate_every=validate_every, patience=patience)
    folder = RunFolder(out, {"iterations": iterations}, ranks.is_main)
    network = loop.run(task, config, folder, ranks, lambda _: None, progress)
    if ranks.is_main:
        save(out, contract(), {name: value.numpy() for name, value in network.state_dict().items()}, half=False)
        folder.finish()
    return network


def main(out: str, *options: str) -> None:
    arguments: dict[str, Any] = {key: float(value) if "." in value else int(value)
                                 for key, _, value in (option.partition("=") for option in options)}
    kill, kill_in_write = arguments.pop("kill", None), arguments.pop("kill_in_write", None)
    number = arguments.pop("signal", None)
    written = 0
    write = runfolder.write_atomically

    def cut_off(path: Path, raw: bytes) -> None:
        nonlocal written
        written += path.name == "checkpoint.pt"
        if path.name == "checkpoint.pt" and written == kill_in_write:
            raw = raw[:len(raw) // 2]
            os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        write(path, raw)

    runfolder.write_atomically = cut_off  # type: ignore[assignment]

    def progress(iteration: int, figures: dict[str, float]) -> None:
        print(iteration, repr(figures["loss"]), flush=True)
        if iteration == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if number is not None and iteration == 5:
            os.killpg(0, number)

    own_disk = arguments.pop("own_disk", 0)
    with init_distributed() as ranks:
        path = Path(out) if ranks.is_main or not own_disk else Path(out).parent / f"disk{ranks.rank}" / Path(out).name
        network = train(path, ranks, progress=progress, **arguments)
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in threads), f"the group's threads outlive it: {threads}"
    if own_disk and not ranks.is_main:
        path.parent.mkdir()
        save(path, contract(), {name: value.numpy() for name, value in network.state_dict().items()}, half=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
