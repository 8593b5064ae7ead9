"""Whether training waits for its data on this machine: frames a second that are trained on, and decoded."""

import contextlib
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from engines.bench.decode_rate import DecodeRate, measure_decode_rate
from engines.datasets.base import Dataset
from engines.model.file import Model, build_network
from engines.training.distributed import Ranks
from engines.training.loop import LoopConfig, run
from engines.training.runfolder import RunFolder
from engines.training.sections import LabelledFrame
from engines.training.sources import DECODED_PER_FRAME as FINER
from engines.training.sources import MARGIN
from engines.training.stream_loader import StreamLoader, StreamSchedule
from engines.training.stream_task import AdamWConfig, StreamTask
from engines.training.train import Recipe


@dataclass(frozen=True)
class DataThroughput:
    """What was measured. Recordings are decoded once, then cached."""

    trained_per_s: float  # frames a second that our recipe learns from when it waits for none
    decoded: DecodeRate  # at its size and FINER times its frame rate, which leaves room for other speeds

    @property
    def share(self) -> float:
        """Of the frames that training asks for, which are decoded in the same time; below 1 the first epoch waits."""
        return self.decoded.frames_per_s / (FINER * self.trained_per_s)

    def as_json(self) -> dict[str, Any]:
        return {"trained_frames_per_s": self.trained_per_s, "decoded_frames_per_s": self.decoded.frames_per_s,
                "wanted_frames_per_s": FINER * self.trained_per_s, "decoding": asdict(self.decoded)}


def format_lines(measured: DataThroughput) -> list[str]:
    """The figures as lines of text."""
    decoded, wanted = measured.decoded, FINER * measured.trained_per_s
    processes = "1 process" if decoded.workers == 1 else f"{decoded.workers} processes"
    unreadable = f"{decoded.unreadable} segments could not be decoded: see gatestream data check"
    result, advice = ("keeps up", "") if measured.share >= 1 else (
        "waits for decoding", "; try more --workers, or let the cache fill")
    return [f"training: {measured.trained_per_s:.0f} frames/s, for which {wanted:.0f} are decoded",
            f"decoding: {decoded.frames_per_s:.0f} frames/s with {processes}, before they are cached",
            *([unreadable] if decoded.unreadable else []),
            f"the first pass {result}: {measured.share:.2f} of what it wants{advice}"]


def measure(model: Model, data: Dataset, workers: int = 1, seconds: float = 5.0) -> DataThroughput:
    """Measures decoding, then training, about `seconds` each. Raises DatasetError where nothing decodes."""
    height, width = model.contract.input_size_hw
    size_hw = round(height * MARGIN), round(width * MARGIN)
    decoded = measure_decode_rate(data, FINER * model.contract.frame_rate, size_hw, workers, seconds)
    return DataThroughput(measure_training_rate(model, seconds), decoded)


def measure_training_rate(model: Model, seconds: float = 5.0) -> float:
    """Frames a second that our recipe learns from on this machine, for the network of a model; which stays as it is."""
    how = Recipe
    frame = LabelledFrame(np.random.default_rng(0).integers(0, 256, (*model.contract.input_size_hw, 3), np.uint8), 0)
    loader = StreamLoader(lambda *_: repeat(frame), StreamSchedule(0, how.fresh_share), range(how.rows), how.chunk)
    task = StreamTask(build_network(model), model.contract, loader, [(0,) * len(model.contract.heads)], AdamWConfig(),
                      Ranks())
    marks: list[float] = []

    def progress(_: int, __: dict[str, float]) -> None:
        marks.append(time.perf_counter())
        if len(marks) > 1 and marks[-1] - marks[0] >= seconds:
            raise TimeoutError  # ends the run

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(TimeoutError):
        run_folder = RunFolder(Path(folder) / "timed.safetensors", {})
        run(task, LoopConfig(how.iterations), run_folder, Ranks(), progress=progress)
    return (len(marks) - 1) * how.rows * how.chunk / (marks[-1] - marks[0])
