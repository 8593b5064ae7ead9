"""Every option of `gatestream train` changes what comes of it, or is refused in one line before anything is loaded: by
every recipe, as `HONOURED` declares. An option without an entry fails here."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_initialisation import Toy
from test_training import _video, dataset  # noqa: F401
from torch.utils.data import DataLoader
from typer.main import get_command

import engines
import engines.datasets
from engines.networks.network import BACKBONES
from engines.training import loop, process
from engines.training.runfolder import RunFolder
from stream.commands.cli import app, main
from stream.commands.train import HONOURED

Outcome = tuple[Any, ...]
GIVEN = {"dataset", "out", "recipe", "stage"}  # what to train, and by which recipe
OPTIONS = {parameter.name: parameter.opts[0] for parameter in get_command(app).commands["train"].params
           if parameter.name not in {*GIVEN, "help"}}
BASE = {
    "gatestream": "--recipe gatestream --init {weights} --arch gsf-toy --iterations 2 --trimmed-first 0 --batch 2 "
                  "--size 16x16 --workers 0",
    "official": "--recipe official --init {weights} --arch gsf-toy --epochs 2 --batch 4 --segments 2 --workers 0 "
                "--precision f32",
    "fusion": "--stage fusion --init {live} --idle {data}/idle --windows 30 --window-clips 2",
}
VALUES = {  # one that is not as without it
    "name": "other", "kind": "folders", "init": "{elsewhere}", "seed": 1, "strict": None, "arch": "gsm-toy",
    "causal": None, "rule": "moved-two", "without_fold": 1, "batch": 3, "size": "24x16", "lr": 0.03,
    "precision": "bf16", "validate_every": 1, "patience": 1, "workers": 1, "readout_width": 8, "past_shift": 1,
    "keep_interleave": None, "idle": "{data}/places", "idle_without": "work", "calibration_from": "{live}",
    "without_label": "star", "no_rendered": None, "rendered_only": None, "trimmed": 3, "trimmed_first": 1,
    "iterations": 3, "rate": 7, "freeze": 0, "teacher": "{clips}", "epochs": 1, "segments": 3, "windows": 31,
    "window_clips": 3, "fusion init": "{other}", "background": "left", "multi_label": None,
}
BESIDE = {  # what an option needs, or has to change
    "strict": "DATASET={broken}", "rule": "--init {clips} --causal", "idle_without": "--idle {data}/idle",
    "validate_every": "--without-fold 1", "gatestream causal": "--no-causal", "precision": "--precision f32",
    "gatestream patience": "--without-fold 1 --validate-every 1 --iterations 5",
    "official patience": "--without-fold 1 --validate-every 1 --epochs 5",
}


def words_of(option: str, recipe: str = "") -> str:
    """The option as it is given."""
    value = VALUES.get(f"{recipe} {option}", VALUES[option])
    return OPTIONS[option] if value is None else f"{OPTIONS[option]} {value}"


@pytest.fixture(scope="module")
def outcome(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Outcome]]:  # noqa: F811
    """What comes of the command with the base of a recipe and some options, each run once: exit code, the contract but
    for its provenance, weights, metrics, loader workers."""
    folder, known = tmp_path_factory.mktemp("options"), dict[str, Outcome]()
    places = {"data": dataset, "broken": folder / "broken", **{name: folder / f"{name}.safetensors" for name in
              ("weights", "elsewhere", "live", "other", "clips")}}
    for name, seed in (("weights", 0), ("elsewhere", 1)):
        torch.manual_seed(seed)
        save_file({name.replace("stem", "layer0").replace("conv", "layer1"): value
                   for name, value in Toy().state_dict().items()}, places[name])
    shutil.copytree(dataset, places["broken"])
    for path in places["broken"].glob("clips/[a-t]*.avi"):
        path.write_bytes(b"RIFF")
    (dataset / "places").mkdir()
    _video(dataset / "places" / "more.avi", seed=98)
    workers: list[int] = []

    def load(items: Any, *, num_workers: int, prefetch_factor: int | None, **others: Any) -> DataLoader[Any]:
        workers.append(num_workers)
        return DataLoader(items, **others)

    def run(options: str, out: Path | None = None) -> Outcome:
        words = [word.format(**places) for word in options.split()]
        data = next((word for word in words if word.startswith("DATASET=")), f"DATASET={dataset}")
        out = out or folder / f"{len(known)}" / "m.safetensors"
        out.parent.mkdir(exist_ok=True)
        workers.clear()
        if options not in known:
            code = main(["train", data[8:], "--out", str(out), *(word for word in words if word != data)])
            made: Outcome = ()
            if code == 0:
                model = engines.load(out)
                contract = model.contract.model_copy(update={"provenance": {}})
                weights = hashlib.sha256(b"".join(model.tensors[name].tobytes() for name in sorted(model.tensors)))
                metrics = out.with_suffix(".run") / "metrics.csv"
                made = contract, weights.hexdigest(), metrics.read_text() if metrics.exists() else ""
            known[options] = code, *made, *workers
        return known[options]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "toy", Toy)
        patch.setattr(process, "DataLoader", load)
        patch.setattr(RunFolder, "plot", lambda _: None)  # takes half of the time
        run(BASE["official"], places["clips"])
        run(f"{BASE['gatestream']} --without-fold 1 --idle {{data}}/idle", places["live"])
        run(f"{BASE['gatestream']} --seed 1 --idle {{data}}/idle", places["other"])
        yield run


@pytest.mark.parametrize(("recipe", "option"), [(recipe, option) for recipe, names in HONOURED.items()
                                                for option in names.split() if option not in GIVEN])
def test_an_option_that_a_recipe_honours_changes_what_comes_of_it(
        recipe: str, option: str, outcome: Callable[[str], Outcome]) -> None:
    beside = BESIDE.get(f"{recipe} {option}", BESIDE.get(option, ""))
    with_it, without = (outcome(f"{BASE[recipe]} {words}")
                        for words in (f"{beside} {words_of(option, recipe)}", beside))
    assert without[0] == 0
    assert with_it[0] == {"strict": 1, "kind": with_it[0]}.get(option, 0)
    assert with_it != without


@pytest.mark.parametrize(("recipe", "option"), [(recipe, option) for recipe, names in HONOURED.items()
                                                for option in OPTIONS if option not in names.split()])
def test_an_option_that_a_recipe_does_not_honour_is_refused_before_anything_is_loaded(
        recipe: str, option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.datasets, "open_dataset", lambda *_: pytest.fail("looked at the data"))
    command = re.sub(r"[{}]", "", f"{BASE[recipe]} {words_of(option)}")
    assert main(["train", ".", "--out", "m.safetensors", *command.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{OPTIONS[option]} with " in line


def test_every_option_of_the_command_is_declared() -> None:
    assert set(OPTIONS) <= set(VALUES)
    assert {name for names in HONOURED.values() for name in names.split()} == {*OPTIONS, *GIVEN}


@pytest.mark.parametrize(("recipe", "options", "message"), [
    *((recipe, f"--init gesture --arch gsf-mobilenetv2 {option}", f"{option} from gesture") for recipe, option in [
        ("gatestream", "--arch gsm-mobilenetv2"), ("gatestream", "--size 160x120"),
        ("official", "--arch gsm-mobilenetv2"), ("official", "--size 160x120"),
        ("gatestream", "--readout-width 64"), ("gatestream", "--past-shift 1"), ("gatestream", "--keep-interleave"),
        ("gatestream", "--rule moved-two")]),
    ("official", "--rule moved-two", "--rule moved-two from "),
    ("gatestream", "--patience 2", "a patience of 2 validations without any"),
    ("official", "--patience 2", "a patience of 2 validations without any"),
    ("official", "--patience 2 --without-fold 1 --validate-every 0", "a patience of 2 validations without any"),
    ("gatestream", "--validate-every 2", "a validation without anything left out"),
    ("official", "--validate-every 2", "a validation without anything left out"),
    ("gatestream", "--idle-without work", "'work' to leave out"),
    ("gatestream", "--idle {data}/idle --idle-without play", "'play' to leave out"),
    ("gatestream", "--calibration-from {live} --without-fold 1", "--calibration-from where something is left out"),
    ("gatestream", "--freeze 2", "--freeze 2 of gsf-toy; wanted 0 to 1"),
    ("gatestream", "--arch gsf-resnet18 --freeze 1", "--freeze 1 of gsf-resnet18"),
    ("gatestream", "--no-rendered --rendered-only", "rendered hands only, without rendered hands"),
    *((recipe, f"{option} {value}", f"{option} {value!r}" if option == "--name" else option)
      for recipe in ("gatestream", "official") for option, value in [
          ("--name", "a/b"), ("--size", "15x16"), ("--size", "99999x16"), ("--seed", str(2**32))]),
    ("fusion", "--name ../x", "--name '../x'"), ("gatestream", "--rate 1001", "--rate"),
    ("gatestream", "--trimmed 3 --trimmed-first 1", "whole actions before whole actions"),
    ("gatestream", "--no-causal --readout-width 4", "on a bidirectional network"),
    ("gatestream", "--no-causal --past-shift 1", "on a bidirectional network"),
])
def test_what_cannot_be_is_refused_before_anything_is_loaded_unless_it_depends_on_the_data(
        recipe: str, options: str, message: str, outcome: Callable[[str], Outcome],
        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if not re.search("patience|validat|without|rendered|trimmed 3|no-causal", options):
        monkeypatch.setattr(engines.datasets, "open_dataset", lambda *_: pytest.fail("looked at the data"))
    base = BASE[recipe].replace("--size 16x16", "") if "gesture" in options else BASE[recipe]
    assert outcome(f"{base} {options}") == (2,)
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_progress_says_how_many_steps_there_are_and_an_interrupted_run_how_to_go_on(
        outcome: Callable[[str], Outcome], monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(loop, "defer_interrupts", lambda: nullcontext(lambda: True))
    for recipe, options, steps in (("official", "--epochs 3", 6), ("gatestream", "--iterations 5", 5)):
        assert outcome(f"{BASE[recipe]} {options} --seed 9")[0] == 130
        said = capsys.readouterr().out
        assert f"1/{steps}" in said
        assert "the same command goes on from" in said


@pytest.mark.parametrize(("recipe", "options", "steps"), [
    ("gatestream", "--trimmed-first 2", 4), ("official", "", 4),
    ("official", "--arch gsm-toy --teacher {clips}", 2),
    ("official", "--without-fold 1", 2)])
def test_a_run_makes_as_many_steps_as_its_progress_says(
        recipe: str, options: str, steps: int, outcome: Callable[[str], Outcome],
        capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(f"{BASE[recipe]} --seed 7 {options}")[0] == 0
    assert f"{steps}/{steps} 0:00:00" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", HONOURED)
def test_the_same_options_come_to_the_same(recipe: str, outcome: Callable[[str], Outcome]) -> None:
    assert outcome(f"{BASE[recipe]} ") == outcome(f"{BASE[recipe]}  ")
