"""Which waits for the other on this machine: training, or the data it is given.

    print("\\n".join(format_lines(measure(engines.load("gesture"), open_dataset(Path("epic")), workers=2))))
"""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from itertools import cycle, islice, repeat
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from engines.datasets.base import Dataset, Segment
from engines.datasets.decode import decode_segment
from engines.errors import DatasetError
from engines.model.file import Model, build_network
from engines.training.distributed import Ranks
from engines.training.loop import run
from engines.training.runfolder import RunFolder
from engines.training.sections import LabelledFrame
from engines.training.sources import DECODED_PER_FRAME as FINER
from engines.training.sources import MARGIN
from engines.training.stream_loader import StreamLoader, StreamSchedule
from engines.training.stream_task import AdamWConfig, StreamTask
from engines.training.task import LoopConfig
from engines.training.train import Recipe


@dataclass(frozen=True, slots=True)
class DecodeRate:
    """What `measure_decode_rate` measured. frames: decoded at the rate asked for; unreadable: segments left out."""

    frames: int
    seconds: float
    workers: int
    unreadable: int

    @property
    def frames_per_s(self) -> float:
        return self.frames / self.seconds


@dataclass(frozen=True)
class DataThroughput:
    """trained_per_s: frames a second that our recipe learns from when it has to wait for none; decoded: at its size
    and at `FINER` times its frame rate, which leaves room for other speeds. Decoded is once, then cached."""

    trained_per_s: float
    decoded: DecodeRate

    @property
    def share(self) -> float:
        """Decoded frames for each that training takes in the same time; below `FINER`, the first pass waits."""
        return self.decoded.frames_per_s / self.trained_per_s

    def as_json(self) -> dict[str, Any]:
        return {"trained_frames_per_s": self.trained_per_s, "decoded_frames_per_s": self.decoded.frames_per_s,
                "wanted_frames_per_s": FINER * self.trained_per_s, "decoding": asdict(self.decoded)}


def format_lines(measured: DataThroughput) -> list[str]:
    """As text."""
    decoded, wanted = measured.decoded, FINER * measured.trained_per_s
    out = [f"training: {measured.trained_per_s:.0f} frames/s, for which {wanted:.0f} are decoded",
           f"decoding: {decoded.frames_per_s:.0f} frames/s with {decoded.workers} "
           f"process{'es' if decoded.workers > 1 else ''}, before they are cached"]
    if decoded.unreadable:
        out.append(f"{decoded.unreadable} segments could not be decoded: see gatestream data check")
    keeps_up = measured.share >= FINER
    return [*out, f"the first pass {'keeps up' if keeps_up else 'waits for decoding'}: {measured.share / FINER:.2f} of "
            "what it wants" + ("" if keeps_up else "; try more --workers, or let the cache fill")]


def measure(model: Model, data: Dataset, workers: int = 1, seconds: float = 5.0) -> DataThroughput:
    """Measures one after the other, about `seconds` each. Raises DatasetError where nothing decodes."""
    height, width = model.contract.input_size_hw
    size_hw = round(height * MARGIN), round(width * MARGIN)
    decoded = measure_decode_rate(data, FINER * model.contract.frame_rate, size_hw, workers, seconds)
    return DataThroughput(measure_training_rate(model, seconds), decoded)


class _EnoughError(Exception):
    """Ends a run that is only timed."""


def measure_training_rate(model: Model, seconds: float = 5.0) -> float:
    """Frames a second that our recipe learns from on this machine, for the network of a model; which stays as it is."""
    how = Recipe
    frame = LabelledFrame(np.random.default_rng(0).integers(0, 256, (*model.contract.input_size_hw, 3), np.uint8), 0)
    loader = StreamLoader(lambda *_: repeat(frame), StreamSchedule(0, how.fresh_share), range(how.rows), how.chunk)
    task = StreamTask(build_network(model), model.contract, loader, [(0,) * len(model.contract.heads)],
                      AdamWConfig(how.backbone_lr, how.module_lr, how.head_lr, how.weight_decay, how.frozen_layers),
                      iterations=how.iterations, average=how.average, ranks=Ranks())
    marks: list[float] = []

    def progress(_: int, __: dict[str, float]) -> None:
        marks.append(time.perf_counter())
        if len(marks) > 1 and marks[-1] - marks[0] >= seconds:
            raise _EnoughError

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_EnoughError):
        run_folder = RunFolder(Path(folder) / "timed.safetensors", {})
        run(task, LoopConfig(how.iterations), run_folder, Ranks(), progress=progress)
    return (len(marks) - 1) * how.rows * how.chunk / (marks[-1] - marks[0])


def measure_decode_rate(dataset: Dataset, rate: float, size_hw: tuple[int, int], workers: int = 1, seconds: float = 5.0,
                split: str = "train") -> DecodeRate:
    """Measures frames of `rate` and `size_hw` that `workers` processes decode in about `seconds`, without a cache.

    Segments are taken from all over the split (any split where it has none), again and again where there are few.
    Raises DatasetError where none of them can be decoded.
    """
    of = dataset.splits.get(split) or next(segments for segments in dataset.splits.values() if segments)
    spread = cycle(of[place] for place in np.random.default_rng(0).permutation(len(of)))
    decoded = unreadable = 0
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_idle, [0.2] * workers))  # every worker has started and imported what it needs
        started = time.perf_counter()
        waiting = {pool.submit(_count, segment, rate, size_hw) for segment in islice(spread, 2 * workers)}
        while (took := time.perf_counter() - started) < seconds or not decoded + unreadable:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for one in done:
                decoded += one.result()
                unreadable += one.result() == 0
            if unreadable >= len(of) and not decoded:
                raise DatasetError(f"{dataset.name}, of which nothing decodes", "recordings beside the annotations",
                                   "see gatestream data check")
            waiting |= {pool.submit(_count, segment, rate, size_hw) for segment in islice(spread, len(done))}
        pool.shutdown(wait=True, cancel_futures=True)
    return DecodeRate(decoded, took, workers, unreadable)


def _count(segment: Segment, rate: float, size_hw: tuple[int, int]) -> int:
    cv2.setNumThreads(1)
    try:
        return len(decode_segment(segment, rate, size_hw))
    except DatasetError:
        return 0


def _idle(seconds: float) -> None:
    time.sleep(seconds)
