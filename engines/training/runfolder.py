"""What a training run leaves beside its model file: `model.safetensors` has its run in `model.run/`.

    config.json         the recipe
    metrics.csv         a row every so many iterations: means since the row before
    curves.png          the same as plots
    checkpoint.pt       everything a killed run needs to go on; removed when the run is done
    best.safetensors    the best weights so far, of a run that validates
"""

import csv
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor

from engines.errors import ModelError, SinkError
from engines.model.file import write_atomically

Row = dict[str, float]


class RunFolder:
    """The folder of the run that writes `out`. All writes are atomic.
    config: what must agree for a killed run to go on; writes: False for all processes of a run but its main one."""

    def __init__(self, out: Path, config: Mapping[str, Any], writes: bool = True) -> None:
        self.path, self._writes = out.with_suffix(".run"), writes
        self._config = json.dumps(config, indent=2, default=str)
        self.rows: list[Row] = []
        self.checkpoint, self.best = self.path / "checkpoint.pt", self.path / "best.safetensors"

    def open(self) -> dict[str, Any] | None:
        """Makes the folder ready; returns the checkpoint to go on from, None without one.
        Raises ModelError for a checkpoint of another recipe or one that cannot be read, SinkError."""
        saved = self._read() if self.checkpoint.exists() else None
        if not self._writes:
            return saved
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for left in self.path.glob(".*.*"):  # of a write that was cut off
                shutil.rmtree(left)
            if saved is None:
                self.best.unlink(missing_ok=True)
        except OSError as error:
            raise SinkError(f"run folder {self.path} ({error.strerror})", "a folder that can be written",
                            "choose another --out") from error
        write_atomically(self.path / "config.json", self._config.encode())
        self.rows = self._metrics(0 if saved is None else int(saved["iteration"]))
        return saved

    def _read(self) -> dict[str, Any]:
        try:
            saved: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            config, _ = json.loads(saved["config"]), int(saved["iteration"])
        except Exception as error:  # torch raises many kinds for a foreign file
            raise ModelError(f"checkpoint {self.checkpoint} ({type(error).__name__})", "a checkpoint of this program",
                             "remove it to start anew") from error
        mine = json.loads(self._config)
        other = [f"{name} {config.get(name)!r} instead of {mine.get(name)!r}" for name in {**config, **mine}
                 if config.get(name) != mine.get(name)]
        if other:
            raise ModelError(f"checkpoint {self.checkpoint} of another recipe ({', '.join(other[:3])})",
                             "a checkpoint of this very recipe", "remove it to start anew, or choose another --out")
        return saved

    def save_checkpoint(self, parts: Mapping[str, Any]) -> None:
        """Writes the checkpoint."""
        if self._writes:
            buffer = io.BytesIO()
            torch.save({"config": self._config, **parts}, buffer)
            write_atomically(self.checkpoint, buffer.getvalue())

    def save_best(self, weights: Mapping[str, Tensor]) -> None:
        """Writes the best weights so far."""
        if self._writes:
            raw = serialise({name: value.detach().cpu().contiguous() for name, value in weights.items()})
            write_atomically(self.best, raw)

    def load_best(self) -> dict[str, Tensor]:
        """The best weights. Raises ModelError."""
        try:
            return parse(self.best.read_bytes())
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{self.best} ({error})", "the best weights of this run", "train again") from error

    def log(self, row: Row) -> None:
        """Adds a row to metrics.csv."""
        self.rows.append(row)
        if not self._writes:
            return
        columns = list(dict.fromkeys(name for one in self.rows for name in one))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in one.items()} for one in self.rows)
        write_atomically(self.path / "metrics.csv", text.getvalue().encode())

    def _metrics(self, until: int) -> list[Row]:
        """The rows that are there already, without those that a resumed run will write again."""
        try:
            with (self.path / "metrics.csv").open(newline="") as file:
                rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
            return [row for row in rows if row["iteration"] <= until] if until else []
        except (OSError, ValueError, KeyError, csv.Error):
            return []  # a run is not stopped for its log

    def plot(self) -> None:
        """Writes curves.png: a plot of each figure over the iterations."""
        names = [name for name in dict.fromkeys(name for row in self.rows for name in row) if name != "iteration"]
        if not (self._writes and names):
            return
        from matplotlib.figure import Figure

        across = min(3, len(names))
        down = -(-len(names) // across)
        figure = Figure(figsize=(4.2 * across, 2.6 * down), layout="constrained")
        for place, name in enumerate(names, 1):
            axes = figure.add_subplot(down, across, place)
            points = [(row["iteration"], row[name]) for row in self.rows if name in row]
            axes.plot([x for x, _ in points], [y for _, y in points], marker="." if len(points) < 30 else "")
            axes.set_title(name, fontsize=9)
            axes.grid(alpha=0.3)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        write_atomically(self.path / "curves.png", buffer.getvalue())

    def finish(self) -> None:
        """Plots for the last time and removes what only an unfinished run needs."""
        self.plot()
        if self._writes:
            self.checkpoint.unlink(missing_ok=True)
