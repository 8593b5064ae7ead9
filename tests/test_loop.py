"""The training loop: a killed run ends like an unbroken one, batches are pure, averages and stops are what they say."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_training
import torch
from tiny_training import frames, tiny_network, train

from engines.errors import ModelError, UsageError
from engines.training import loop
from engines.training.distributed import Ranks
from engines.training.loop import make_weight_average
from engines.training.runfolder import RunFolder
from engines.training.stream_loader import Batch, StreamLoader, StreamSchedule

ROOT = Path(tiny_training.__file__).resolve().parents[1]
ALONE = Ranks()


def run_in_a_process(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs the tiny training in a process of its own."""
    return subprocess.run([sys.executable, "tests/tiny_training.py", str(out), "dropout=0.3", "workers=1", *options],
                          cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                          timeout=120, check=False, start_new_session=True)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    """Model file and metrics of a run that nobody killed."""
    out = tmp_path_factory.mktemp("unbroken") / "model.safetensors"
    done = run_in_a_process(out)
    assert done.returncode == 0, done.stderr
    return out.read_bytes(), (out.with_suffix(".run") / "metrics.csv").read_text()


@pytest.mark.parametrize("kills", [["kill=5"], ["kill_in_write=1", "kill_in_write=2"]])
def test_a_run_killed_at_any_moment_ends_like_an_unbroken_one(kills: list[str], unbroken: tuple[bytes, str],
                                                               tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    for kill in kills:
        assert run_in_a_process(out, kill).returncode == -signal.SIGKILL
        assert not out.exists()
    done = run_in_a_process(out)
    assert done.returncode == 0, done.stderr
    resumed_after = int(done.stdout.split()[0]) - 1
    assert resumed_after == 3
    assert (out.read_bytes(), (out.with_suffix(".run") / "metrics.csv").read_text()) == unbroken
    assert {path.name for path in out.with_suffix(".run").iterdir()} == {"config.json", "metrics.csv", "curves.png"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_its_last_step_and_ends_like_an_unbroken_one(
        number: int, unbroken: tuple[bytes, str], tmp_path: Path) -> None:
    """Ctrl-C in a terminal, and `timeout`, send the signal to loader workers, too."""
    out = tmp_path / "model.safetensors"
    stopped = run_in_a_process(out, f"signal={int(number)}")
    assert stopped.returncode == 130
    assert (stopped.stdout.split()[-2], stopped.stderr) == ("5", "")
    done = run_in_a_process(out)
    assert done.stdout.split()[0] == "6"
    assert (out.read_bytes(), (out.with_suffix(".run") / "metrics.csv").read_text()) == unbroken


def same(one: Batch, other: Batch) -> bool:
    tensors = [torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
               for a, b in zip((one.pixels, one.fresh, *one.truth), (other.pixels, other.fresh, *other.truth),
                               strict=True)]
    return all(tensors) and one.names == other.names


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_batches_depend_on_seed_and_iteration_only() -> None:
    def chunks(rows: range, first: int, workers: int = 0) -> list[Batch]:
        return list(StreamLoader(frames, StreamSchedule(3, 0.4), rows, 4, workers).batches(first, 8))

    expected = chunks(range(5), 0)
    assert len(expected) == 8
    for workers in (1, 2):
        assert all(map(same, chunks(range(5), 0, workers), expected))
    for first in (1, 4, 7):
        resumed = chunks(range(5), first)
        assert len(resumed) == 8 - first
        assert all(map(same, resumed, expected[first:]))
    shared = chunks(range(1, 5, 2), 0)
    for whole, part in zip(expected, shared, strict=True):
        assert torch.equal(whole.pixels[1::2], part.pixels)
        assert whole.names[1::2] == part.names
    began = torch.stack([batch.fresh for batch in expected])
    assert began[0].all()
    assert 0 < began[1:].sum() < began[1:].numel()


def test_a_row_goes_on_where_it_was() -> None:
    schedule = StreamSchedule(1, 0.0)
    first, second = StreamLoader(frames, schedule, [0], 4).batches(0, 2)
    whole = [frame.image_bgr for frame in islice(frames(0, 0, schedule.generator(0, 0)), 8)]
    assert np.array_equal(torch.cat([first.pixels[0], second.pixels[0]]).numpy(), np.stack(whole))


def test_a_batch_that_breaks_the_loss_is_named_and_the_checkpoint_before_it_kept(tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    bad = next(i for i in range(4, 10) if any(StreamSchedule(5, 0.4).begins(row, i) for row in range(4)))
    with pytest.raises(ModelError, match=f"at iteration {bad} .*stream of iteration {bad}: .*left") as caught:
        train(out, ALONE, bad_at=bad)
    assert "last good checkpoint" in caught.value.do
    kept = torch.load(out.with_suffix(".run") / "checkpoint.pt", weights_only=True)
    assert kept["iteration"] <= bad
    assert all(torch.isfinite(value).all() for value in kept["network"].values())
    assert not out.exists()


def test_the_average_of_weights_is_saved_and_leaves_integers_alone() -> None:
    network = tiny_network()
    mean = make_weight_average(network, 0.8)
    start = {name: value.clone() for name, value in mean.module.state_dict().items()}
    mean.update_parameters(network)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1.0)
    mean.update_parameters(network)
    for name, p in mean.module.named_parameters():  # young averages are fast: 2/11 is kept of the first
        assert torch.allclose(p, start[name] + 9 / 11, atol=1e-5), name
    for _ in range(40):
        mean.update_parameters(network)
    order = mean.module.temporal["only"].order
    assert torch.equal(order, network.temporal["only"].order)
    assert sorted(order.tolist()) == list(range(8))


def test_without_averaging_the_last_weights_are_saved(tmp_path: Path) -> None:
    kept = {average: train(tmp_path / f"{average}.safetensors", ALONE, iterations=3, average=average)
            for average in (0.0, 0.9)}
    ours = dict(kept[0.0].named_parameters())
    assert any(not torch.equal(p, ours[name]) for name, p in kept[0.9].named_parameters())


def test_the_best_weights_are_saved_and_patience_ends_a_run(tmp_path: Path) -> None:
    seen: list[int] = []
    out = tmp_path / "model.safetensors"
    network = train(out, ALONE, iterations=60, validate_every=2, patience=3, average=0.0,
                    progress=lambda i, _: seen.append(i))
    rows = RunFolder(out, {})._metrics(60)
    accuracy = [row["validation accuracy"] for row in rows]
    best = int(np.argmax(accuracy))
    assert seen[-1] == 2 * len(accuracy) == 2 * (best + 4) < 60
    again = tmp_path / "again.safetensors"
    until_best = train(again, ALONE, iterations=60, validate_every=2, patience=best + 4, average=0.0)
    for name, value in until_best.state_dict().items():
        assert torch.equal(value, network.state_dict()[name])


def test_training_learns(tmp_path: Path) -> None:
    losses: list[float] = []
    train(tmp_path / "model.safetensors", ALONE, iterations=120, progress=lambda _, f: losses.append(f["loss"]))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(iteration: int, _: dict[str, float]) -> None:
        if iteration == 4:
            raise StopError

    out = tmp_path / "model.safetensors"
    with pytest.raises(StopError):
        train(out, ALONE, progress=stop)
    assert json.loads((out.with_suffix(".run") / "config.json").read_text()) == {"iterations": 10}
    with pytest.raises(ModelError, match="iterations 10 instead of 12"):
        train(out, ALONE, iterations=12)


def test_a_checkpoint_that_holds_code_is_not_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "harm"),)

    folder = RunFolder(tmp_path / "model.safetensors", {})
    folder.path.mkdir()
    torch.save({"iteration": 1, "config": "{}", "network": Evil()}, folder.checkpoint)
    with pytest.raises(ModelError, match="remove it"):
        folder.open()
    assert not (tmp_path / "harm").exists()


def test_impossible_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="f16"):
        train(tmp_path / "model.safetensors", ALONE, precision="f16")


@pytest.mark.parametrize(("able", "expected"), [
    ({}, torch.float32), ({"avx2": True, "avx512_f": True}, torch.float32), ({"avx512_bf16": True}, torch.bfloat16),
    ({"amx_bf16": True}, torch.bfloat16), ({"bf16": True, "sve_bf16": False}, torch.float32)])
def test_precision_is_low_only_where_the_processor_has_instructions_for_it(
        able: dict[str, bool], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert loop._precision("auto", torch.device("cpu")) == expected
    assert loop._precision("bf16", torch.device("cpu")) == torch.bfloat16  # who asks for it gets it


def test_lower_precision_trains_the_same_weights_nearly(tmp_path: Path) -> None:
    first = [train(tmp_path / f"{precision}.safetensors", ALONE, iterations=2, precision=precision)
             for precision in ("f32", "bf16")]
    full, low = (torch.cat([p.flatten() for p in network.parameters()]) for network in first)
    assert 0 < (full - low).abs().max() < 0.1


def test_a_run_leaves_the_random_numbers_of_others_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    following = torch.rand(3)
    torch.manual_seed(1)
    train(tmp_path / "model.safetensors", ALONE, iterations=2)
    assert torch.equal(torch.rand(3), following)


MEMORY = """
import ctypes, sys
from pathlib import Path
from engines.training.distributed import Ranks
from tiny_training import train

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
train(Path(sys.argv[1]), Ranks(), iterations=2)
large = libc.malloc(100 << 20)
size_and_flags = ctypes.c_size_t.from_address(large - ctypes.sizeof(ctypes.c_size_t)).value  # of malloc.c's chunk
assert size_and_flags & 2, "comes from the heap, not from the system at once, to which it would go back"
"""


def test_a_run_gives_memory_back_afterwards(tmp_path: Path) -> None:
    """In a process of its own, whose heap has no room that something else gave back."""
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("needs the GNU C library")
    tests = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path / "model.safetensors")], capture_output=True,
                          text=True, check=False, timeout=300,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tests, tests.parent)))})
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_opencv_its_threads(workers: int) -> None:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        assert len(list(StreamLoader(frames, StreamSchedule(3, 0.4), range(2), 4, workers).batches(0, 2))) == 2
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(threads)
