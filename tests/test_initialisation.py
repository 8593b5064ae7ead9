"""What a network starts from is kept: every option of a whole network, and what a backbone says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_models import LABELS, make_model
from tiny_training import frames
from torch import Tensor, nn

import engines
from engines.errors import ModelError, UsageError
from engines.model.contract import Contract
from engines.model.file import save
from engines.networks.backbone import Backbone, Hook, Pixels, Step, mean_over_space
from engines.networks.config import NetworkConfig
from engines.networks.network import BACKBONES, Network, clip_scores
from engines.training import loop
from engines.training.distributed import Ranks
from engines.training.initialisation import initialise, load_whole, whole_config
from engines.training.loop import LoopConfig
from engines.training.runfolder import RunFolder
from engines.training.stream_loader import StreamLoader, StreamSchedule
from engines.training.stream_task import AdamWConfig, StreamTask
from stream.commands.cli import main

SIZE_HW = (40, 56)


@pytest.fixture
def official_checkpoint(tmp_path: Path) -> Path:
    from engines.model.official import official_name

    network = engines.build("gsm-bninception", heads={"action": 3})
    path = tmp_path / "segment8.pth.tar"
    torch.save({"state_dict": {official_name(name, "gsm-bninception"): value
                               for name, value in network.state_dict().items()}}, path)
    return path


def contract_of(network: Network) -> Contract:
    return Contract(name="again", network=network.config, heads={"gesture": LABELS}, frame_rate=5.0,
                    cover_hw=network.input_size_hw, receptive_frames=1, warmup_frames=0, clip_frames=4, window_clips=1,
                    **network.backbone.pixels._asdict())


@pytest.mark.parametrize(("architecture", "options"), [
    ("stsm-mobilenetv2", {"causal": False, "shift": "THW-diagonal", "segments": 6, "hop": 4}),
    ("stsm-mobilenetv2", {"causal": True, "shift": ((0.25, (-1, 0, 1)), (0.125, (1, -1, 0))), "past_shift": 2}),
    ("gsf-mobilenetv2", {"causal": True, "gate_ratio": 50, "past_shift": 1, "readout_width": 8,
                         "sites": ("features_12", "features_15")})])
def test_a_model_that_is_trained_on_keeps_every_option(architecture: str, options: dict[str, object],
                                                       tmp_path: Path) -> None:
    first = make_model(tmp_path, architecture, **options)
    wanted = NetworkConfig(module="any", backbone="thing", causal=bool(options["causal"]), segments=6)
    network = initialise(wanted, str(first.path), {"gesture": len(LABELS)})
    assert network.config == first.network.config.replace(segments=6)
    path = tmp_path / "again.safetensors"
    save(path, contract_of(network), {name: value.numpy() for name, value in network.state_dict().items()}, half=False)
    again = engines.load(path)
    assert again.network.config == network.config
    assert again.network.hop == options.get("hop", 1)
    clip = torch.randn(1, 6, 3, *SIZE_HW)
    with torch.no_grad():
        assert torch.equal(clip_scores(again.network, clip)["gesture"], clip_scores(first.network, clip)["gesture"])


def test_a_hop_that_no_longer_fits_is_the_usual_one(tmp_path: Path) -> None:
    first = make_model(tmp_path, causal=False, segments=8, hop=7)
    network = initialise(NetworkConfig.of("any-thing", segments=6), str(first.path), {"gesture": 4})
    assert (network.segments, network.config.hop, network.hop) == (6, None, 1)


def test_another_input_size_than_the_start_has_is_refused(tmp_path: Path, official_checkpoint: Path,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path)
    for init, size_hw in ((str(model.path), SIZE_HW), (str(official_checkpoint), (224, 224))):
        start = whole_config(init)
        assert start is not None
        assert start.input_size_hw == size_hw
        with pytest.raises(UsageError, match=r"input of 48x64 pixels .*{}x{}".format(*size_hw)):
            initialise(start.replace(input_size_hw=(48, 64)), init, {"gesture": 4})
        assert initialise(start, init, {"gesture": 4}).input_size_hw == size_hw
    for label in ("left", "right"):
        (tmp_path / "recordings" / label).mkdir(parents=True)
        (tmp_path / "recordings" / label / "one.mp4").touch()
    for recipe in ("gatestream", "official"):
        command = ["train", str(tmp_path / "recordings"), "--out", str(tmp_path / "m.safetensors"), "--recipe", recipe,
                   "--init", str(model.path)]
        assert main([*command, "--size", "64x48"]) == 2
        assert "64x48" in (error := capsys.readouterr().err)
        assert "56x40" in error


@pytest.mark.parametrize("architecture", ["gsf-mobilenetv2", "tsn-mobilenetv2"])
def test_frames_of_a_size_that_a_network_was_not_built_for_are_refused(architecture: str) -> None:
    network = engines.build(architecture, heads={"a": 2}, causal=True, input_size_hw=SIZE_HW).eval()
    for size_hw in ((56, 40), (48, 64)):
        with pytest.raises(UsageError, match=r"frames of {}x{} pixels .*40x56".format(*size_hw)):
            network(torch.zeros(1, 2, 3, *size_hw), network.fresh_state(1))
    bidirectional = engines.build(architecture, heads={"a": 2}, input_size_hw=SIZE_HW).eval()
    assert bidirectional(torch.zeros(1, 2, 3, 48, 64), ())[0].shape == (1, 2, 1280)  # nothing there has a size


def test_only_whole_networks_are_whole(tmp_path: Path) -> None:
    other = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    assert whole_config(str(other)) is None
    assert whole_config("imagenet") is None
    assert load_whole(str(other)) is None


class Toy(Backbone):
    """All that it takes to add a backbone: this class, and a line in BACKBONES."""

    width = 16
    input_size_hw, cover_hw = (16, 16), (18, 18)
    pixels = Pixels("BGR", 1.0, (100.0, 110.0, 120.0), (50.0, 50.0, 50.0))
    hub_model = "somebody/toy"

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)

    def sites(self) -> dict[str, nn.Conv2d]:
        return {"conv": self.conv}

    def input_sites(self) -> dict[str, int]:
        return {"conv_input": 8}

    def default_sites(self, module: str, causal: bool) -> tuple[str, ...]:
        return ("conv",)

    def default_gate_ratio(self, causal: bool) -> int:
        return 50

    def freezable_layers(self) -> Sequence[nn.Module]:
        return [self.stem]

    @staticmethod
    def imagenet_state(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name.replace("layer0", "stem").replace("layer1", "conv"): value for name, value in weights.items()}

    def steps(self) -> list[Step]:
        return [lambda x, _: self.stem(x), self._second, mean_over_space]

    def _second(self, x: Tensor, hook: Hook) -> Tensor:
        return torch.relu(hook("conv", self.conv(hook("conv_input", x))))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Registers the toy; returns weights of it under names of others."""
    monkeypatch.setitem(BACKBONES, "toy", Toy)
    path = tmp_path / "weights.safetensors"
    save_file({name.replace("stem", "layer0").replace("conv", "layer1"): value
               for name, value in Toy().state_dict().items()}, path)
    return path


@pytest.mark.parametrize("module", ["tsn", "tsm", "gsm", "gsf", "stsm"])
def test_a_backbone_of_one_file_and_one_line_starts_trains_and_runs(
        toy: Path, module: str, tmp_path: Path) -> None:
    network = initialise(NetworkConfig.of(f"{module}-toy", causal=True, readout_width=4), str(toy),
                         {"gesture": 3})
    assert network.config.input_size_hw == (16, 16)
    assert network.config.sites == {"tsn": (), "tsm": ("conv_input",), "stsm": ("conv_input",)}.get(module, ("conv",))
    assert network.config.gate_ratio == (50 if module == "gsf" else None)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    labels = ("left", "right", "none")
    contract = Contract(name="toy", network=network.config, heads={"gesture": labels}, frame_rate=5.0,
                        cover_hw=network.backbone.cover_hw, receptive_frames=network.receptive_field, warmup_frames=0,
                        clip_frames=3, window_clips=2, background="none", **network.backbone.pixels._asdict())
    ranks = Ranks()
    loader = StreamLoader(frames, StreamSchedule(5, 0.4), range(2), chunk=4)
    task = StreamTask(network, contract, loader, [(0,), (1,), (2,)],
                      AdamWConfig(backbone_lr=0.01, module_lr=0.01, head_lr=0.01, weight_decay=0.0, frozen_layers=1,
                                  iterations=1, average=0.0), ranks, finds_tips=True)
    loop.run(task, LoopConfig(1, precision="f32"), RunFolder(tmp_path / "toy.safetensors", {}, True), ranks,
             lambda _: None, lambda _, __: None)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert "backbone.conv.weight" in changed
    assert "backbone.stem.weight" not in changed

    path = tmp_path / "toy.safetensors"
    save(path, contract, {name: value.numpy() for name, value in network.state_dict().items()}, half=False)
    model = engines.load(path)
    assert (model.contract.architecture, model.contract.colour) == (f"{module}-toy", "BGR")
    assert model.contract.cover_hw == (18, 18)
    clip = torch.randn(1, 4, 3, 16, 16)
    with torch.no_grad():
        ours, theirs = (clip_scores(one, clip)["gesture"] for one in (model.network, network.eval()))
    assert torch.allclose(ours, theirs, atol=1e-5)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 16, 16, 3), np.uint8)
    eager = engines.compile(model, engine="eager", slots=1)
    again = engines.compile(model, engine="openvino", slots=1)
    for frame in pixels:
        scores = [engine.step(frame, [0]).scores["gesture"] for engine in (eager, again)]
        assert np.allclose(*scores, atol=1e-2)
    for engine in (eager, again):
        engine.close()


def test_the_weights_of_a_toy_are_looked_for_under_its_own_name(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(model: str, file: str) -> str:
        asked.append((model, file))
        return str(toy)

    asked: list[tuple[str, object]] = []
    huggingface = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface, "hf_hub_download", download)
    monkeypatch.setattr(huggingface, "get_hf_file_metadata", lambda url, timeout: asked.append((url, timeout)))
    network = initialise(NetworkConfig.of("gsf-toy"), "imagenet", {"gesture": 3})
    assert asked.pop() == ("somebody/toy", "model.safetensors")
    ((url, timeout),) = asked
    assert "somebody/toy" in url
    assert timeout <= 10
    plain = initialise(NetworkConfig.of("tsn-toy"), str(toy), {"gesture": 3})
    clip = torch.randn(2, 3, 3, 16, 16)
    with torch.no_grad():  # a module that has not learnt yet changes nothing
        features, _ = network.eval()(clip, ())
        assert torch.allclose(features.sort()[0], plain.eval()(clip, ())[0].sort()[0], atol=1e-6)


def test_without_a_network_imagenet_is_given_up_at_once_unless_it_was_downloaded_before(
        toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise httpx.ConnectError("no such host")

    huggingface = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface, "hf_hub_download", lambda *_: pytest.fail("tries again and again"))
    monkeypatch.setattr(huggingface, "get_hf_file_metadata", refuse)
    with pytest.raises(ModelError, match="no answer from the hub for somebody/toy"):
        initialise(NetworkConfig.of("gsf-toy"), "imagenet", {"gesture": 3})
    monkeypatch.setattr(huggingface, "try_to_load_from_cache", lambda *_: str(toy))
    assert initialise(NetworkConfig.of("gsf-toy"), "imagenet", {"gesture": 3}).backbone.width == 16


def test_a_bundled_model_is_started_from_by_its_name() -> None:
    network = initialise(NetworkConfig.of("gsf-mobilenetv2", causal=True), "gesture", {"gesture": 11})
    assert torch.equal(network.heads["gesture"].weight, engines.load("gesture").network.heads["gesture"].weight)
