"""A model file carries its graph: what only trains is not needed to run, and graph and weights agree."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_models import make_model

import engines
from engines.errors import EngineError, ModelError
from engines.model.file import Model, bundled, load, save
from engines.model.graph import StepGraph, deflate, weights_digest
from engines.runtime import cache, openvino, step_graph
from engines.runtime.backend import Spec
from engines.runtime.parity import compare, probe_clip, run_clip

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "sklearn", "scipy", "matplotlib", "PIL")  # what plain `pip install gatestream` does without
RENEW = "python -m stream export {0} --engine openvino --out engines/zoo/{0}.safetensors"  # in the checkout
# What Python runs first, in every process: packages are not found, as where they are not installed.
HIDE = """
import importlib.util, os, sys

HIDDEN, there = os.environ["HIDDEN_PACKAGES"].split(","), importlib.util.find_spec

class Hider:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hider())
importlib.util.find_spec = lambda name, package=None: None if name in HIDDEN else there(name, package)
"""


def run_without(packages: tuple[str, ...], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "first").mkdir()
    (folder / "first" / "sitecustomize.py").write_text(HIDE)
    where = {**os.environ, "GATESTREAM_CACHE": str(folder / "cache"), "HIDDEN_PACKAGES": ",".join(packages),
             "PYTHONPATH": os.pathsep.join([str(folder / "first"), *filter(None, sys.path)])}
    return subprocess.run([sys.executable, "-m", "stream", *arguments], capture_output=True, text=True, timeout=280,
                          check=False, cwd=folder, env=where)


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small model whose file carries its graph."""
    path = make_model(tmp_path_factory.mktemp("carried"), readout_width=16).path
    assert path is not None
    step_graph.carry(path)
    return load(path)


def test_it_runs_without_what_only_trains_and_builds_nothing(tmp_path: Path) -> None:
    done = run_without(HEAVY, tmp_path, "run", "sim://gestures?seconds=6&realtime=0", "--json", "-")
    assert done.returncode == 0, done.stderr
    events = [record for record in map(json.loads, done.stdout.splitlines()) if record["type"] == "event"]
    assert [event["label"] for event in events if not event["open"]] == ["left"]
    assert "building" not in done.stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("missing", "command", "extra"), [
    ("torch", "run --engine eager", "train"),
    ("torch", "run --engine inductor", "train"),
    ("torch", "run --model {model}", "train"),  # which carries no graph
    ("torch", "train . --out x.safetensors", "train"),
    ("torch", "bench gesture", "train"),
    ("torch", "import-official {model} --out x.safetensors", "train"),
    ("torch", "export gesture --engine openvino --out x.safetensors", "train"),
    ("sklearn", "evaluate gesture .", "train"),
    ("matplotlib", "evaluate gesture .", "train"),
    ("scipy", "teach base . --out x.safetensors", "teach"),
])
def test_what_a_command_lacks_is_said_in_one_line(missing: str, command: str, extra: str, tmp_path: Path) -> None:
    model = make_model(tmp_path).path
    done = run_without((missing,), tmp_path, *command.format(model=model).split())
    *notes, line = done.stderr.splitlines()
    assert done.returncode in (1, 2)
    assert line.startswith("gatestream: error: ")
    assert missing.replace("sklearn", "scikit-learn") in line
    assert f"pip install 'gatestream[{extra}]'" in line
    assert not any("Traceback" in note or "bug" in note for note in [*notes, line])


@pytest.mark.parametrize("name", ["gesture", "base"])
def test_graph_and_weights_of_a_bundled_model_agree(name: str) -> None:
    model = load(name)
    renew = f"the graph of {name} is not of these weights and networks: {RENEW.format(name)}"
    assert model.graph is not None, renew
    assert model.graph.record.weights == weights_digest(model.step_tensors), renew
    frames, wanted = step_graph.recorded(model)
    now = run_clip(engines.compile(model, "eager"), frames)  # what went with it is what the networks give today
    np.testing.assert_allclose(wanted.features, now.features, rtol=1e-3, atol=1e-4, err_msg=renew)
    compiled = openvino.open_carried(Spec(model), "f32")
    parity = compare(model.contract, now, run_clip(compiled, frames))
    assert max(parity.probabilities, parity.logits, parity.features) < 1e-3, renew


def test_a_carried_graph_gives_bit_for_bit_what_is_converted_here(carried: Model) -> None:
    frames = probe_clip(carried.contract, 12)
    one, other = (run_clip(openvino.engine_of(graph, carried.contract, 1, "f32"), frames)
                  for graph in (openvino.read_carried(carried), openvino.convert(carried)))
    assert np.array_equal(one.features, other.features)
    assert np.array_equal(one.scores["gesture"], other.scores["gesture"])


def test_making_it_twice_gives_the_same(carried: Model) -> None:
    again = step_graph.make(carried)
    assert carried.graph is not None
    assert again.record == carried.graph.record
    assert all(np.array_equal(again.parts[part], value) for part, value in carried.graph.parts.items())


def test_weights_are_not_stored_twice(carried: Model) -> None:
    assert carried.graph is not None
    held = sum(carried.step_tensors[name].nbytes for _, name in carried.graph.record.tensors)
    assert held > 0.7 * carried.graph.record.constants_bytes


def test_several_cameras_share_it_and_it_is_kept_tuned(carried: Model, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATESTREAM_CACHE", str(tmp_path))
    monkeypatch.setattr(openvino, "convert", lambda *_: pytest.fail("converted anew"))
    frames = probe_clip(carried.contract, 3)
    alone = run_clip(engines.compile(carried, "openvino", precision="f32"), frames)
    assert cache.entries() == []
    several = engines.compile(carried, "openvino", slots=4, precision="f32")
    assert np.array_equal(run_clip(several, frames, slot=3).features, alone.features)
    assert [entry.facts["precision"] for entry in cache.entries()] == ["f32"]


def test_a_model_with_other_labels_keeps_it(carried: Model, tmp_path: Path) -> None:
    contract = carried.contract.model_copy(update={"heads": {"gesture": ("up", "down")}})
    width = carried.tensors["heads.gesture.weight"].shape[1]
    heads = {"heads.gesture.weight": np.eye(2, width, dtype=np.float32), "heads.gesture.bias": np.float32([3, 4])}
    save(tmp_path / "taught.safetensors", contract, carried.tensors | heads, half=carried.half, graph=carried.graph)
    taught = load(tmp_path / "taught.safetensors")
    result = run_clip(openvino.open_carried(Spec(taught), "f32"), probe_clip(contract, 3))
    np.testing.assert_allclose(result.scores["gesture"], result.features[:, :2] + np.float32([3, 4]), rtol=1e-5)


def test_one_of_other_weights_is_left_alone(carried: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = next(iter(carried.step_tensors))
    save(tmp_path / "edited.safetensors", carried.contract, carried.tensors | {name: carried.tensors[name] + 1},
         half=carried.half, graph=carried.graph)
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path / "edited.safetensors").graph is None
    assert "of other weights" in caplog.text


def _changed(graph: StepGraph, how: str) -> StepGraph:
    parts, record = dict(graph.parts), graph.record
    if how == "results":
        parts["features"] = parts["features"] + np.float32(10)
    elif how == "operators":
        parts["xml"] = deflate(graph.xml.replace(b'"Relu"', b'"Sigmoid"').replace(b'"Tanh"', b'"Sigmoid"'))
    elif how == "no graph":
        parts["xml"] = deflate(b"<net/>")
    elif how == "constants":
        parts["constants"] = deflate(b"")
    else:
        parts["frames"] = np.zeros(9, np.uint8)
    return StepGraph(record, parts)


@pytest.mark.parametrize(("how", "message"), [
    ("results", "off by"), ("operators", "off by"), ("no graph", "graph is damaged"),
    ("constants", "graph is damaged"), ("frames", "graph is damaged")])
def test_one_that_does_not_give_what_went_with_it_is_refused(how: str, message: str, carried: Model) -> None:
    assert carried.graph is not None
    with pytest.raises(EngineError, match=message):
        engines.compile(replace(carried, graph=_changed(carried.graph, how)), "openvino")


@pytest.mark.parametrize("part", ["xml", "constants", "frames", "features"])
def test_a_file_that_lacks_a_part_is_refused(part: str, carried: Model, tmp_path: Path) -> None:
    assert carried.graph is not None
    parts = {name: value for name, value in carried.graph.parts.items() if name != part}
    save(tmp_path / "cut.safetensors", carried.contract, carried.tensors, graph=StepGraph(carried.graph.record, parts))
    with pytest.raises(ModelError, match="whose graph cannot be read"):
        load(tmp_path / "cut.safetensors")


def test_every_bundled_model_carries_one() -> None:
    assert {name: load(path).graph is not None for name, path in bundled().items()} == dict.fromkeys(bundled(), True)
