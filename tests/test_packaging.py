"""What is installed: the program beside other distributions' packages of its names, and what the distribution holds."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import stream
from engines.errors import GatestreamError
from stream.commands.cli import main

ROOT = Path(__file__).resolve().parents[1]
START = "import sys; from gatestream import main; sys.exit(main())"  # the console script


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder as pip fills it with gatestream."""
    folder = tmp_path / "site"
    for name in ("engines", "stream", "demo"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "pictures", "*.md"))
    shutil.copy(ROOT / "stream" / "commands" / "gatestream.py", folder)
    return folder


def install(folder: Path, package: str, distribution: str | None) -> None:
    """Another distribution's package, over whatever is there."""
    (folder / package).mkdir(parents=True, exist_ok=True)
    (folder / package / "__init__.py").write_text("import a_module_that_nobody_has\n")
    if distribution is not None:
        info = folder / f"{distribution}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "RECORD").write_text(f"{package}/__init__.py,,\n")


def python(site: Path, *arguments: str, first: Path | None = None) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(str(path) for path in (first, site) if path is not None)
    return subprocess.run([sys.executable, *arguments], cwd=site.parent, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}, check=False)


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("gatestream: error: ")
    assert line.count("; ") == 2
    return line


@pytest.mark.parametrize(("package", "command"), [("stream", ["models"]), ("engines", ["models"]), ("demo", ["ui"])])
def test_a_package_of_ours_that_was_overwritten_is_named(package: str, command: list[str], site: Path) -> None:
    install(site, package, "shoes")
    line = error_line(python(site, "-c", START, *command))
    assert f"{site / package / '__init__.py'} of the distribution shoes" in line
    assert "pip uninstall shoes and then pip install --force-reinstall --no-deps gatestream" in line


@pytest.mark.parametrize(("package", "distribution", "command", "do"), [
    ("stream", "shoes", ["models"], "or pip uninstall shoes"), ("engines", None, ["models"], "rename it, or take "),
    ("demo", "shoes", ["ui"], "or pip uninstall shoes")])
def test_a_package_that_comes_before_ours_is_named(package: str, distribution: str | None, command: list[str], do: str,
                                                   site: Path, tmp_path: Path) -> None:
    install(tmp_path / "first", package, distribution)
    line = error_line(python(site, "-c", START, *command, first=tmp_path / "first"))
    assert str(tmp_path / "first" / package / "__init__.py") in line
    assert str(site / package / "__init__.py") in line
    assert do in line


@pytest.mark.parametrize("package", ["stream", "engines"])
def test_what_an_uninstalled_package_took_with_it_is_named(package: str, site: Path) -> None:
    (site / package / "__init__.py").unlink()
    line = error_line(python(site, "-c", START, "models"))
    assert f"no {site / package / '__init__.py'}" in line
    assert "pip install --force-reinstall --no-deps gatestream" in line


@pytest.mark.parametrize("arguments", [["-c", "from stream import Recognizer"], ["-m", "stream"]])
def test_python_and_dash_m_name_a_foreign_engines_too(arguments: list[str], site: Path, tmp_path: Path) -> None:
    install(tmp_path / "first", "engines", "shoes")
    done = python(site, *arguments, first=tmp_path / "first")
    assert done.returncode == 1
    assert "of the distribution shoes in the place of gatestream's package 'engines'" in done.stderr


def test_folders_of_our_names_do_no_harm(site: Path) -> None:
    for name in ("engines", "stream", "demo"):
        (site.parent / name).mkdir()  # such as a checkout of something else, the current folder
    done = python(site, "-c", START, "--version", first=site.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("gatestream ")


def uninstalled(packages: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """As if these packages were not installed, and nothing of ours that needs them imported yet."""
    monkeypatch.delenv("GATESTREAM_HANDS", raising=False)
    for name in list(sys.modules):
        if name.split(".")[0] in packages:
            monkeypatch.setitem(sys.modules, name, None)
        elif name.startswith("demo.") or name == "engines.runtime.onnx":
            monkeypatch.delitem(sys.modules, name)
    for name in packages:
        monkeypatch.setitem(sys.modules, name, None)


def start_from_imagenet() -> None:
    from engines.networks.network import build
    from engines.training.initialisation import load_pretrained

    load_pretrained(build("tsn-mobilenetv2", heads={"label": 2}, segments=2, causal=True), "imagenet")


def results_over_mqtt() -> None:
    from stream.sinks.mqtt import MqttSink

    MqttSink()


EXTRAS: dict[str, tuple[tuple[str, ...], list[str] | Callable[[], None]]] = {
    "ui": (("gradio",), ["ui", "--no-browser"]),
    "cluster": (("ray",), ["label", "{folder}", "--out", "{folder}/events.parquet"]),
    "onnx": (("onnx", "onnxscript", "onnxruntime"),
             ["export", "gesture", "--engine", "onnx", "--out", "{folder}/x.onnx"]),
    "tensorrt": (("torch_tensorrt", "tensorrt"), ["run", "sim://gestures?seconds=1", "--engine", "tensorrt"]),
    "tensorrt-rtx": (("torch_tensorrt", "tensorrt_rtx"), ["run", "sim://gestures?seconds=1", "--engine", "tensorrt"]),
    "hub": (("huggingface_hub",), start_from_imagenet),
    "mqtt": (("paho",), results_over_mqtt),
    "hands": (("mediapipe",), ["bench", "hands", "sim://gestures?seconds=1"]),
}
ELSEWHERE = {"dev", "all", "train", "teach", "int8"}  # test_light.py; int8: test_tensorrt.py, as it needs a GPU


def test_every_extra_is_asked_for_somewhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert set(extras) == {*EXTRAS, *ELSEWHERE}
    within = {extra: set(re.findall(r"\[(.*)\]", extras[extra][0])[0].split(",")) for extra in ("all", "dev", "train")}
    # A GPU of NVIDIA's, or a release of mediapipe that few Pythons have, is not everybody's.
    assert set(EXTRAS) - within["all"] == {"tensorrt", "tensorrt-rtx", "hands"}
    assert (within["dev"], within["train"]) == ({"train"}, {"teach"})
    light = " ".join(project["dependencies"])
    assert not re.search("torch|scikit|scipy|matplotlib|pillow", light)


@pytest.mark.parametrize("extra", EXTRAS)
def test_what_lacks_its_extra_says_how_to_install_it(extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     capfd: pytest.CaptureFixture[str]) -> None:
    packages, use = EXTRAS[extra]
    uninstalled(packages, monkeypatch)
    (tmp_path / "in.avi").touch()
    if callable(use):
        with pytest.raises(GatestreamError) as refused:
            use()
        line = str(refused.value)
    else:
        assert main([part.format(folder=tmp_path) for part in use]) in (1, 2)
        out, line = capfd.readouterr()
        assert (out, line.count("\n")) == ("", 1)
    assert f"pip install 'gatestream[{extra}]'" in line
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {re.split(r"[\[<>=]", name)[0].replace("_", "-") for name in project["optional-dependencies"][extra]}
    assert any(name in line.split("; ")[0].lower().replace("_", "-") for name in wanted - {"gatestream"})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unpacked source distribution, with a wheel that was built from it beside it."""
    pytest.importorskip("hatchling.build", reason="needs hatchling, to build with")
    pytest.importorskip("hatch_fancy_pypi_readme", reason="needs hatch-fancy-pypi-readme, to build with")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for path in ROOT.iterdir():
        if path.name in ("engines", "stream", "demo", "tests", ".ci"):
            shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
        elif path.is_file() and path.name != ".git":
            shutil.copy(path, source)
    (source / "engines" / "zoo" / "gesture.safetensors").touch()

    def build(form: str, folder: Path) -> None:
        code = f"from hatchling import build; build.build_{form}({str(out)!r})"
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)

    build("sdist", source)
    with tarfile.open(next(out.glob("*.tar.gz"))) as packed:
        packed.extractall(out, filter="data")
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    build("wheel", folder)
    return folder


def test_a_source_distribution_has_what_its_tests_need(built: Path) -> None:
    def files(of: Path) -> set[str]:
        return {path.relative_to(of).as_posix() for path in of.rglob("*") if path.is_file()
                and "__pycache__" not in path.parts and path.parts[len(of.parts)] in ("tests", ".ci", "demo")}

    assert files(ROOT) == files(built)
    guides = {path.relative_to(ROOT) for room in ("engines", "stream", "demo", "tests") for path in
              (ROOT / room).rglob("*.md")}
    for file in (*guides, "README.md", "LICENSE", "engines/zoo/NOTICE", "pyproject.toml"):
        assert (built / file).is_file(), file


def test_a_wheel_has_what_users_need_and_no_more(built: Path) -> None:
    with zipfile.ZipFile(next(built.parent.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        info = next(name for name in names if name.endswith("METADATA"))
        metadata = email.message_from_bytes(wheel.read(info))
    assert {name.split("/")[0] for name in names} == {"engines", "stream", "demo", "gatestream.py", info.split("/")[0]}
    assert {"engines/zoo/gesture.safetensors", "engines/zoo/gesture.md", "demo/page/live.html", "engines/py.typed",
            "stream/py.typed"} <= names
    assert not any(name.startswith("demo/pictures/") for name in names)
    assert {Path(name).name for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}
    assert metadata["Version"] == stream.__version__
    description = metadata.get_payload()
    assert isinstance(description, str)
    assert description.startswith("# gatestream")
    assert re.findall(r"<img|\]\((?!https?:|#)[^)]*\)", description) == []  # they lead nowhere on a package index
