"""Two processes that share out a batch's rows train as one process does with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_training
import torch
from tiny_training import train

import engines.model.file
from engines.errors import UsageError
from engines.training.distributed import Ranks

ROOT = Path(tiny_training.__file__).resolve().parents[1]


def run_two_processes(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs the tiny training under `torchrun`."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "tests/tiny_training.py", str(out), *options],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_only_the_first_process_reads_the_best_weights_that_it_writes(tmp_path: Path) -> None:
    """The file of the others may not be there yet, or never be: here they have another disk."""
    run_two_processes(tmp_path / "model.safetensors", "iterations=3", "validate_every=3", "own_disk=1")
    first, second = ((tmp_path / path).read_bytes() for path in ("model.safetensors", "disk1/model.safetensors"))
    assert first == second


def test_two_processes_give_the_curve_and_weights_of_one(tmp_path: Path) -> None:
    losses: list[float] = []
    train(tmp_path / "one.safetensors", Ranks(), iterations=6, progress=lambda _, f: losses.append(f["loss"]))
    out = tmp_path / "two.safetensors"
    done = run_two_processes(out, "iterations=6")
    printed = [line.split() for line in done.stdout.splitlines() if line.split()[0].isdigit()]
    assert [int(i) for i, _ in printed] == [1, 2, 3, 4, 5, 6]  # of the first process only
    assert np.allclose([float(loss) for _, loss in printed], losses, rtol=0, atol=1e-5)
    one, two = (engines.model.file.parse((tmp_path / f"{name}.safetensors").read_bytes()) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:  # statistics of batch norms, too
        assert np.allclose(one[name], two[name], rtol=0, atol=1e-4), name
    metrics = [(path.with_suffix(".run") / "metrics.csv").read_text().splitlines() for path in
               (tmp_path / "one.safetensors", out)]
    assert [len(lines) for lines in metrics] == [4, 4]


def test_rows_that_cannot_be_shared_out_are_refused() -> None:
    assert [list(Ranks(rank, 2).own_rows(6)) for rank in range(2)] == [[0, 2, 4], [1, 3, 5]]
    with pytest.raises(UsageError, match="5 rows"):
        Ranks(0, 2, torch.device("cpu")).own_rows(5)
