"""What all engines share: adding one is a file and a line; what is built is found again as long as its sources stay."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import engines.runtime.openvino as openvino_engine
from engines.model.file import Model
from engines.runtime.backend import Spec, one_torch_thread, source_hash

TOY = '''
from pathlib import Path

from engines.runtime.backend import Backend, Facts, Spec


def build(spec: Spec, precision: str, folder: Path) -> Facts:
    (folder / "toy.bin").write_bytes(b"toy")
    return {"answer": 42}


def open_engine(spec: Spec, precision: str, folder: Path, facts: Facts):
    from engines.runtime.eager import EagerEngine

    class ToyEngine(EagerEngine):
        name = "toy"

    assert ((folder / "toy.bin").read_bytes(), facts["answer"]) == (b"toy", 42)
    return ToyEngine(spec.model.network, spec.model.contract, spec.slots)


BACKEND = Backend("toy", "Toy", precisions=lambda: ("f32",), build=build, open=open_engine)
'''
PROGRAM = '''
import sys
import torch  # or the engine would be built in another process, which does not know of the file
import engines.runtime
from engines.runtime import registry

engines.runtime.__path__.append(sys.argv[1])    # the file
registry.ENGINES = ("toy", *registry.ENGINES)   # the line

import engines
from engines.bench.doctor import doctor
from engines.bench.overhead import measure_overhead
from engines.errors import UsageError
from engines.runtime import cache
from stream.commands.cli import main

model = engines.load(sys.argv[2])
for name in ("toy", "auto"):
    assert engines.compile(model, name, slots=2).name == "toy"
(entry,) = cache.entries()
assert (entry.key["engine"], entry.facts["precision"], entry.facts["answer"]) == ("toy", "f32", 42)
try:
    engines.compile(model, "nonsense")
except UsageError as error:
    assert "auto, toy, tensorrt" in error.wanted
checks = {check.name: check for check in doctor(model)}
assert checks["engine toy"].detail == "picked: the best that can run here", checks
assert checks["stream on toy = clip"].ok, checks
assert measure_overhead(model, steps=1).engine == "toy"
main(["run", "--help"])
'''


def test_adding_an_engine_is_one_file_and_one_line(model: Model, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATESTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "toy.py").write_text(TOY)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path), str(model.path)], capture_output=True,
                          text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert "auto, toy, tensorrt" in done.stdout


@pytest.mark.parametrize("source", ["networks/gsf.py", "networks/mobilenetv2.py", "runtime/lowering.py",
                                    "runtime/openvino.py"])
def test_what_was_built_is_not_found_after_its_sources_changed(model: Model, source: str,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    before = openvino_engine.BACKEND.cache_key(Spec(model))
    assert openvino_engine.BACKEND.cache_key(Spec(model)) == before
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"# x" * path.as_posix().endswith(source))
    source_hash.cache_clear()
    try:
        after = openvino_engine.BACKEND.cache_key(Spec(model))
    finally:
        source_hash.cache_clear()
    assert {part for part in before if before[part] != after[part]} == {"code"}


def test_two_builds_at_once_leave_torch_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = [3]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()

    def build(inside: threading.Event, until: threading.Event, outside: threading.Event) -> None:
        with one_torch_thread():
            inside.set()
            until.wait(timeout=0.2)  # the second comes in before the first leaves, if it may
        outside.set()

    builders = [threading.Thread(target=build, args=events) for events in (
        (first_in, second_in, first_out), (second_in, first_out, threading.Event()))]
    builders[0].start()
    assert first_in.wait(timeout=30)
    builders[1].start()
    for builder in builders:
        builder.join(timeout=30)
    assert threads == [3, 1, 3, 1, 3]
