"""The command line: what it prints, where, and with which exit code. The engine is a fake; the rest is real."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fakes import FakeEngine, FakeModel, contract
from typer.main import get_command

import engines
import stream
from engines.bench.doctor import Check
from engines.errors import EngineError
from engines.model.file import Model, bundled
from engines.networks.causal import RULES
from engines.runtime.engine import StepResult
from engines.runtime.registry import ENGINES
from stream.commands.cli import app, main
from stream.commands.train import Precisions
from stream.frame import Event
from stream.sinks.log import EventLog

ROOT = Path(__file__).resolve().parents[1]
SIMULATION = "sim://gestures?width=64&height=48&realtime=0"


@pytest.fixture
def fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "load", lambda name: FakeModel(), raising=False)
    monkeypatch.setattr(engines, "compile", lambda model, **_: FakeEngine(model), raising=False)


@pytest.fixture
def gesture(tmp_path: Path) -> Path:
    """A folder of images on which the fake model sees "left" from 0.2 to 0.8 s, at 10 images a second."""
    folder = tmp_path / "gesture"
    folder.mkdir()
    for index, kind in enumerate("..LLLLLL......"):
        image = np.zeros((24, 32, 3), np.uint8)
        image[..., 0] = 255 * (kind == "L")
        image[index, 0] = 40  # as in a film, no picture is like another
        cv2.imwrite(str(folder / f"{index:03}.png"), image)
    return folder


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.usefixtures("fake_model")
class TestRun:
    def test_json_on_stdout_is_all_there_is(self, gesture: Path, capfd: pytest.CaptureFixture[str]) -> None:
        assert main(["run", str(gesture), "--fps", "10", "--json", "-"]) == 0
        out, err = capfd.readouterr()
        lines = records(out)
        assert err == ""
        assert [line["type"] for line in lines].count("prediction") == 14
        assert {line["camera"] for line in lines} == {"gesture"}
        (event,) = [line for line in lines if line["type"] == "event" and not line["open"]]
        assert (event["label"], event["started_at"], event["ended_at"]) == ("left", 0.2, 0.8)
        assert lines[-1]["type"] == "summary"
        assert (lines[-1]["frames"], lines[-1]["events"]) == (14, 1)
        assert set(lines[-1]["latency_ms"]) == {"p50", "p95", "p99"}

    def test_every_output_at_once(self, gesture: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        names = {option: tmp_path / name for option, name in
                 (("--json", "out.jsonl"), ("--log", "log.db"), ("--save-video", "seen.mp4"))}
        options = [text for option, path in names.items() for text in (option, str(path))]
        assert main(["run", str(gesture), "--fps", "10", "--camera", "cell-3", *options]) == 0
        assert "left" in capfd.readouterr().out
        assert records(names["--json"].read_text())[-1]["camera"] == "cell-3"
        capture = cv2.VideoCapture(str(names["--save-video"]))
        assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 14
        capture.release()

        assert main(["events", str(names["--log"]), "--format", "jsonl", "--label", "left"]) == 0
        (event,) = records(capfd.readouterr().out)
        assert (event["camera"], event["started_at"]) == ("cell-3", 0.2)
        exported = tmp_path / "events.csv"
        assert main(["events", str(names["--log"]), "--format", "csv", "--out", str(exported)]) == 0
        assert exported.read_text().splitlines()[1].startswith("cell-3,gesture,left,0.2,0.8")

    @pytest.mark.parametrize(("limit", "frames"), [(["--max-frames", "4"], 4), (["--max-seconds", "0.5"], 5)])
    def test_limits(self, gesture: Path, limit: list[str], frames: int, capfd: pytest.CaptureFixture[str]) -> None:
        assert main(["run", str(gesture), "--fps", "10", "--json", "-", *limit]) == 0
        assert records(capfd.readouterr().out)[-1]["frames"] == frames

    def test_replay_equals_itself(self, capfd: pytest.CaptureFixture[str]) -> None:
        runs = []
        for _ in range(2):
            assert main(["run", SIMULATION + "&seconds=2", "--json", "-"]) == 0
            lines = records(capfd.readouterr().out)
            runs.append([{key: value for key, value in line.items() if key not in ("latency_ms", "fps")}
                         for line in lines])
        assert runs[0] == runs[1]

    @pytest.mark.parametrize(("options", "code", "told"), [
        (["nothere.mp4"], 2, "no such file"),
        (["sim://gestures?sed=1"], 2, "did you mean seed"),
        (["--json", "/nowhere/out.jsonl", SIMULATION], 1, "no folder /nowhere"),
        (["--log", "{tmp}", SIMULATION], 1, "is a folder"),
        (["--save-video", "{tmp}/video.txt", SIMULATION], 1, "a name ending in"),
        (["--log", "{text}", SIMULATION], 1, "{text}"),
        (["{text}"], 1, "{text}"),
        (["--fps", "10", SIMULATION], 2, "its own rate"),
    ])
    def test_faults(self, options: list[str], code: int, told: str, tmp_path: Path,
                    capfd: pytest.CaptureFixture[str]) -> None:
        text = tmp_path / "text.mp4"
        text.write_text("no video at all, and no database either\n" * 50)
        filled = [option.format(tmp=tmp_path, text=text) for option in options]
        assert main(["run", *filled]) == code
        assert one_line(capfd).count(told.format(text=text)) == 1

    def test_an_engine_that_cannot_be_built(self, monkeypatch: pytest.MonkeyPatch,
                                            capfd: pytest.CaptureFixture[str]) -> None:
        def refuse(model: object, **_: object) -> FakeEngine:
            raise EngineError("engine 'warp'", "auto or openvino", "choose one of these")

        monkeypatch.setattr(engines, "compile", refuse)
        assert main(["run", SIMULATION, "--engine", "warp"]) == 1
        assert one_line(capfd) == "gatestream: error: engine 'warp'; wanted auto or openvino; choose one of these"

    def test_notices_go_to_stderr(self, gesture: Path, monkeypatch: pytest.MonkeyPatch,
                                  capfd: pytest.CaptureFixture[str]) -> None:
        def slow(model: FakeModel, **_: object) -> FakeEngine:
            logging.getLogger("gatestream.engines").info("building the engine")
            return FakeEngine(model)

        monkeypatch.setattr(engines, "compile", slow)
        assert main(["run", str(gesture), "--json", "-"]) == 0
        out, err = capfd.readouterr()
        assert err == "gatestream: building the engine\n"
        assert records(out)

    @pytest.mark.parametrize("error", [MemoryError("Unable to allocate 112. GiB"), RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory")])
    def test_too_little_memory_is_no_bug(self, error: Exception, monkeypatch: pytest.MonkeyPatch,
                                         capfd: pytest.CaptureFixture[str]) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(engines, "compile", fail)
        assert main(["run", SIMULATION]) == 1
        assert "too little memory" in one_line(capfd)

    def test_a_bug_is_one_line_too_and_a_traceback_with_debug(self, monkeypatch: pytest.MonkeyPatch,
                                                              capfd: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(engines, "compile", lambda model, **_: 1 / 0)
        assert main(["run", SIMULATION]) == 1
        assert "an unexpected ZeroDivisionError" in one_line(capfd)
        assert main(["run", SIMULATION, "--debug"]) == 1
        assert "Traceback" in capfd.readouterr().err


def one_line(capfd: pytest.CaptureFixture[str]) -> str:
    """The line on stderr, after checking that it is the only one and that stdout is empty."""
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("gatestream: error: ")
    assert line.count("; ") >= 2
    return line


@pytest.mark.parametrize(("arguments", "told"), [
    (["run", "--nope"], "--nope"),
    (["run", "a" * 300], "no such name"),
    (["data", "check", "a" * 300], "no such name"),
    (["run", "--policy", "sometimes"], "'newest'"),
    (["run", "--max-frames", "0"], "--max-frames"),
    (["run", "--max-seconds", "soon"], "--max-seconds"),
    (["run", "a.mp4", "b.mp4"], "b.mp4"),
    (["run", "--model", "no-such-model"], "no-such-model"),
    (["fly"], "fly"),
    (["events"], "FILE.db"),
    (["events", "no-such.db"], "no-such.db"),
    (["models", "no-such-model"], "no-such-model"),
    (["export", "no-such-model", "--out", "x.engine"], "no-such-model"),
    (["export", "gesture"], "--out"),
    (["train", "."], "--out"),
    (["train", "no-such-folder", "--out", "x.safetensors"], "no-such-folder"),
    (["train", ".", "--out", "x.onnx"], "x.onnx"),
    (["evaluate", "no-such-model"], "DATASET"),
    (["evaluate", "gesture", "no-such-folder"], "no-such-folder"),
    (["evaluate", "gesture", ".", "--idle", "no-such-folder"], "no-such-folder"),
])
def test_wrong_use_is_told_in_one_line(arguments: list[str], told: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert told in one_line(capfd)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["run", "--help"], ["events", "-h"]])
def test_help_teaches(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out, err = capfd.readouterr()
    assert "gatestream run" in out or "gatestream events" in out
    assert err == ""


def commands(command: Any = None, name: str = "gatestream") -> Iterator[tuple[str, Any]]:
    """Every command of the program by its name, as typer makes it."""
    command = get_command(app) if command is None else command
    yield name, command
    for part, one in getattr(command, "commands", {}).items():
        yield from commands(one, f"{name} {part}")


def test_help_of_many_options_is_in_panels() -> None:
    bare = {name: [option.name for option in command.params
                   if option.param_type_name == "option" and not option.rich_help_panel] for name, command in commands()
            if sum(one.param_type_name == "option" for one in command.params) > 10}
    assert "gatestream train" in bare
    assert "gatestream run" in bare
    assert {name: options for name, options in bare.items() if options} == {}
    assert [name for name, one in get_command(app).commands.items() if not one.rich_help_panel] == []


def test_help_says_what_exit_codes_mean(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "130 interrupted" in capfd.readouterr().out


def test_help_repeats_what_the_code_says() -> None:
    """It imports nothing that it describes, so that it is instant."""
    from engines.training.fusion_stage import FusionRecipe
    from engines.training.loop import Precision
    from engines.training.official_recipe import OfficialRecipe
    from engines.training.train import Recipe

    options = {name: {option.name: option for option in command.params} for name, command in commands()}
    engine, train = options["gatestream run"]["engine"].help, options["gatestream train"]
    assert all(name in engine for name in ("auto", *ENGINES))
    assert all(name in RULES for name in re.findall(r"(?:dropped|moved)-[a-z]+", train["rule"].help))
    assert Precisions == Precision
    said = {name: float(found[1]) for name, option in train.items()
            if (found := re.search(r"Default: ([0-9.e-]*[0-9])", option.help or ""))}
    assert said == {"readout_width": Recipe.readout_width, "rate": Recipe.frame_rate, "lr": Recipe.backbone_lr,
                    "freeze": Recipe.frozen_layers}
    assert {name: train[name].default for name in ("iterations", "windows", "window_clips", "epochs", "segments")} == {
        "iterations": Recipe.iterations, "windows": FusionRecipe.windows, "window_clips": FusionRecipe.window_clips,
        "epochs": OfficialRecipe.epochs, "segments": OfficialRecipe.segments}


def test_version_needs_no_torch() -> None:
    with program("--version") as process:
        out, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "False\n")
    assert re.fullmatch(r"gatestream \d+\.\d+\.\d+ \(Python 3\.\d+\.\d+, torch \S+, openvino \S+\)\n", out)
    assert out.split()[1] == stream.__version__


@pytest.mark.parametrize(("line", "completed"), [("bench ca", {"cameras"}), ("run --poli", {"--policy"})])
def test_a_shell_completes(line: str, completed: set[str]) -> None:
    words = f"gatestream {line}"
    asked = {"_GATESTREAM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(line.split()))}
    done = subprocess.run([sys.executable, "-m", "stream"], cwd=ROOT, env={**os.environ, **asked}, capture_output=True,
                          text=True, timeout=60, check=True)
    assert set(done.stdout.split()) == completed


def test_completion_can_be_installed(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert {"--install-completion", "--show-completion"} <= set(capfd.readouterr().out.split())


def test_models_shows_models_engines_and_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                              capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GATESTREAM_CACHE", str(tmp_path))
    assert main(["models"]) == 0
    assert str(tmp_path) in "".join(capfd.readouterr().out.splitlines())
    model = Model(contract(provenance={"data": "two lamps"}), {}, "0" * 64, tmp_path / "lamps.safetensors")
    monkeypatch.setattr(engines, "load", lambda name: model, raising=False)
    assert main(["models", "lamps"]) == 0
    assert "data: two lamps" in capfd.readouterr().out
    (tmp_path / "lamps.md").write_text("# Two lamps\n\nBlue and red.")
    assert main(["models", "lamps"]) == 0
    assert "Blue and red." in capfd.readouterr().out


def test_export_writes_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                 capfd: pytest.CaptureFixture[str]) -> None:
    def write(model: FakeModel, engine: str, out: Path, *_: object) -> Path:
        out.write_text(engine)
        return out

    monkeypatch.setattr(engines, "load", lambda name: FakeModel(), raising=False)
    monkeypatch.setattr(engines, "export", write, raising=False)
    assert main(["export", "gesture", "--engine", "openvino", "--out", str(tmp_path / "x.engine")]) == 0
    assert (tmp_path / "x.engine").read_text() == "openvino"
    assert "x.engine" in capfd.readouterr().out


@pytest.mark.parametrize(("found", "code"), [((True, True), 0), ((True, False), 1)])
def test_doctor_fails_when_one_check_does(found: tuple[bool, ...], code: int, monkeypatch: pytest.MonkeyPatch,
                                          capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("engines.bench.doctor.doctor",
                        lambda model, hop, find_events: iter([Check("a law", ok, model) for ok in found]))
    assert main(["doctor", "lamps"]) == code
    assert [line.split()[0] for line in capfd.readouterr().out.splitlines()] == \
        ["ok" if ok else "FAIL" for ok in found]


@pytest.mark.parametrize("command", [["bench"], ["bench", "stages"]])
def test_bench_times_fusion_as_live_use_does_it(command: list[str], monkeypatch: pytest.MonkeyPatch,
                                                capfd: pytest.CaptureFixture[str]) -> None:
    def measure(model: FakeModel, engine: str, steps: int, fuse: Callable[[StepResult], Any],
                plain: None) -> dict[str, Any]:
        black = np.zeros((1, 16, 16, 3), np.uint8)
        scores = fuse(FakeEngine(model).step(black, [0]))
        return {"engine": engine, "steps": steps, "scores": np.round(scores.now["gesture"], 3).tolist()}

    monkeypatch.setattr(engines, "load", lambda name: FakeModel(), raising=False)
    monkeypatch.setattr("engines.bench.stages.bench", measure)
    assert main([*command, "lamps", "--engine", "eager", "--steps", "10", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"engine": "eager", "steps": 10, "scores": [0.002, 0.002, 0.995]}


def test_bench_cameras_and_bench_data_are_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                   capfd: pytest.CaptureFixture[str]) -> None:
    asked: list[Any] = []
    report = make_dataclass("Load", (), namespace={"text": lambda self: ["it keeps up"]})()
    monkeypatch.setattr("stream.bench.load.measure",
                        lambda *args, **named: asked.append((args, named)) or report)
    assert main(["bench", "cameras", "64", "--rate", "10"]) == 0
    assert main(["bench", "cameras", "16", "--soak", "30", "--model", "lamps"]) == 0
    assert asked == [((64, 10.0, 30.0, "gesture", "auto"), {"churn": False}),
                     ((16, 15.0, 1800.0, "lamps", "auto"), {"churn": True})]
    assert capfd.readouterr().out == "it keeps up\nit keeps up\n"
    assert main(["bench", "data", str(tmp_path / "none")]) == 2
    assert "no such folder" in one_line(capfd)
    assert main(["bench", "--help"]) == 0
    assert {"stages", "data", "cameras", "hands", "soak"} <= set(capfd.readouterr().out.split())


PROGRAM = """
import sys
import engines
from fakes import FakeEngine, FakeModel
engines.load = lambda name: FakeModel()
engines.compile = lambda model, **_: FakeEngine(model)
from stream.commands.cli import main
code = main(sys.argv[1:])
print("torch" in sys.modules, file=sys.stderr)
sys.exit(code)
"""


def program(*arguments: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_stream_in_good_order(number: int, tmp_path: Path) -> None:
    video, log = tmp_path / "seen.mp4", tmp_path / "log.db"
    with program("run", SIMULATION, "--json", "-", "--save-video", str(video), "--log", str(log)) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(number)
        rest, errors = process.communicate(timeout=20)
    lines = records(first + rest)
    assert (process.returncode, errors) == (0, "False\n")  # it never imported torch
    assert lines[-1]["type"] == "summary"
    capture = cv2.VideoCapture(str(video))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == lines[-1]["frames"]
    capture.release()
    assert main(["events", str(log)]) == 0


def test_a_reader_that_leaves_ends_the_stream_quietly() -> None:
    with program("run", SIMULATION, "--json", "-") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=20) == 0
        assert process.stderr.read() == "False\n"


@pytest.mark.parametrize("arguments", [["--help"], ["models"]])
def test_a_reader_that_leaves_before_anything_is_printed_is_no_fault(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as nobody_reads:
        done = subprocess.run([sys.executable, "-m", "stream", *arguments], cwd=ROOT, stdout=nobody_reads,
                              stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("fake_model")
def test_another_pipe_that_breaks_is_a_fault(monkeypatch: pytest.MonkeyPatch,
                                             capfd: pytest.CaptureFixture[str]) -> None:
    def broken(model: object, **_: object) -> FakeEngine:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(engines, "compile", broken)
    assert main(["run", SIMULATION]) == 1
    assert "an unexpected BrokenPipeError" in one_line(capfd)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_without_space_is_told(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "stream", "models"], cwd=ROOT, stdout=full,
                              stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no space left for standard output" in done.stderr


ENCODED = """
import sys
from stream.commands.cli import main
for line in open("lines", encoding="utf-8"):
    print("exit code", main(line.split()))
"""


@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "cp1252"},
                                      {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_no_character_is_a_fault(settings: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("# Zwei Lampen \u2013 \u4e8c\u76de\u706f\n\n* blau\n", encoding="utf-8")
    shutil.copy(bundled()["gesture"], tmp_path / "card.safetensors")
    with EventLog(tmp_path / "log.db", "lamps", "desk") as log:
        log.write(None, [Event("\u4e8c", "lamp", "\u706f", 1.0, 2.0, 0.9, False)])
    lines = ["--help", "train --help", "models", "models gesture", "models card.safetensors", "events log.db",
             "events log.db --format csv", "events log.db --format jsonl"]
    (tmp_path / "lines").write_text("\n".join(lines), encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", ENCODED], cwd=tmp_path, capture_output=True, timeout=60, check=False,
                          env={**os.environ, **settings, "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"exit code 0") == len(lines)
    assert "\u4e8c,lamp,\u706f,1.0,2.0".encode() in done.stdout  # a file format, as --out writes it


INTERRUPTED = {
    "by the import itself": "os.kill(os.getpid(), signal.SIGINT)",
    # As pybind11 does, while it initialises a module.
    "as an ImportError": """try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt as error:
    raise ImportError("initialization failed") from error""",
}


@pytest.mark.parametrize(("module", "how"), [("typer", "by the import itself"), ("openvino", "as an ImportError")])
def test_ctrl_c_during_an_import_ends_the_program(module: str, how: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(f"import os, signal\n{INTERRUPTED[how]}\n")
    paths = os.pathsep.join((str(tmp_path), str(ROOT)))
    done = subprocess.run([sys.executable, "-m", "stream", "run", SIMULATION + "&seconds=1"], capture_output=True,
                          cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


SWALLOWED = """
import os, signal, sys
import engines
from fakes import FakeEngine, FakeModel

def swallow(model, **_):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        return FakeEngine(model)

engines.load, engines.compile = lambda name: FakeModel(), swallow
from stream.commands.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_that_a_library_swallows_ends_the_program() -> None:
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    done = subprocess.run([sys.executable, "-c", SWALLOWED, "run", SIMULATION + "&seconds=1"], capture_output=True,
                          text=True, timeout=60, env={**os.environ, "PYTHONPATH": paths}, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


EARLY = """
import os, signal, sys
from importlib.abc import MetaPathFinder
from stream.commands.start import start

class HangUp(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("typer", "pydantic", "stream.service.config"):
            os.kill(os.getpid(), signal.SIGHUP)

sys.meta_path.insert(0, HangUp())
sys.exit(start())
"""


@pytest.mark.parametrize(("arguments", "code", "printed"), [
    (["serve", "--check"], 0, "the defaults: fine, 0 cameras configured\n"), (["run", "none.mp4"], -signal.SIGHUP, "")])
def test_serve_outlives_sighup_before_its_configuration_is_read(arguments: list[str], code: int, printed: str) -> None:
    done = subprocess.run([sys.executable, "-c", EARLY, *arguments], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, printed, "")


def test_python_dash_m_is_the_program() -> None:
    done = subprocess.run([sys.executable, "-m", "stream", "run", "no-such.mp4", "--model", "no-such-model"], cwd=ROOT,
                          capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gatestream: error: ")


@pytest.mark.usefixtures("fake_model")
def test_a_video_is_never_saved_over_its_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (32, 24))
    for _ in range(5):
        writer.write(np.zeros((24, 32, 3), np.uint8))
    writer.release()
    before = video.read_bytes()
    assert main(["run", str(video), "--save-video", str(tmp_path / "." / "clip.avi")]) == 2
    assert "which is the source" in capsys.readouterr().err
    assert video.read_bytes() == before
