"""Official checkpoints: the official numbers from official weights, every manifest loads, and what does not fit is
refused by naming keys."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import engines
from engines.errors import GatestreamError, ModelError, UsageError
from engines.model.official import official_name
from engines.networks import bninception, inception, inceptionv3
from engines.networks.gsm import GateShift
from engines.networks.network import Network

NETS = {"gsm_bninception": ("gsm-bninception", 10), "gsm_inceptionv3": ("gsm-inceptionv3", 10),
        "gsf_bninception": ("gsf-bninception", 10), "gsf_inceptionv3": ("gsf-inceptionv3", 11),
        "gsf_resnet50": ("gsf-resnet50", 16), "gsf_resnet50_r25": ("gsf-resnet50", 16)}
State = dict[str, torch.Tensor]
Mistake = Callable[[pytest.MonkeyPatch, Network], object]


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture
def reference(shared: Path) -> Path:
    return shared / "reference"


@pytest.fixture
def fill(reference: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(reference))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return __import__("fill")


def manifest(reference: Path, net: str) -> dict[str, dict[str, Any]]:
    return dict(json.loads((reference / f"manifest_{net}.json").read_text()))


@pytest.mark.parametrize(("net", "tolerance"), [("gsm_bninception", 2e-4), ("gsf_resnet50", 2e-5)])
def test_networks_give_the_official_numbers(reference: Path, fill: ModuleType, net: str, tolerance: float) -> None:
    state = {f"module.{key}": torch.from_numpy(np.asarray(fill.fill(key, entry["shape"])))
             for key, entry in manifest(reference, net).items()}
    network = engines.official.load({"epoch": 1, "state_dict": state}, arch=NETS[net][0], segments=8)
    frames = {run: torch.from_numpy(fill.net_input(f"in.{net}.{run}", clips * 8, 3, *network.input_size_hw)
                                    ).unflatten(0, (clips, 8)) for run, clips in (("t8b1", 1), ("t8b2", 2))}
    wanted = np.load(reference / "vectors_nets.npz")
    for run, clips in frames.items():
        scores = engines.clip_scores(network, clips)["action"]
        assert np.abs(scores.numpy() - wanted[f"{net}/{run}/logits_f32"]).max() < tolerance
    features, _ = network.double()(frames["t8b1"].double(), ())
    logits = network.scores(features)["action"]
    for ours, name in ((features[0], "features_f64"), (logits[0], "frame_logits_f64"), (logits.mean(1), "logits_f64")):
        assert np.abs(ours.numpy() - wanted[f"{net}/t8b1/{name}"]).max() < 1e-9


def _shifted(first: Callable[[torch.Tensor], torch.Tensor], second: Callable[[torch.Tensor], torch.Tensor]) -> Mistake:
    def shift(_: GateShift, gated: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        before, after = gated.chunk(2, dim=2)
        return torch.cat([first(before), second(after)], dim=2), state

    return lambda patch, network: patch.setattr(GateShift, "shift", shift)


def _later(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)


def _earlier(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], dim=1)


def _not_interleaved(patch: pytest.MonkeyPatch, network: Network) -> None:
    for module in network.temporal.values():
        patch.setitem(module._buffers, "order", torch.arange(len(module.order)))  # type: ignore[arg-type]


def _other_eps(patch: pytest.MonkeyPatch, network: Network) -> None:
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            patch.setattr(module, "eps", 1e-3)


def _padding_not_counted(patch: pytest.MonkeyPatch, _: Network) -> None:
    average = torch.nn.functional.avg_pool2d
    patch.setattr(torch.nn.functional, "avg_pool2d",
                  lambda *arguments, **named: average(*arguments, **{**named, "count_include_pad": False}))


def _clips_of_four(patch: pytest.MonkeyPatch, network: Network) -> None:
    kind = type(next(iter(network.temporal.values())))
    forward = kind.forward
    patch.setattr(kind, "forward", lambda module, x, state: (
        forward(module, x.unflatten(1, (2, 4)).flatten(0, 1), state)[0].reshape(x.shape), state))


# What a mistake in the network would change of its scores at most, as measured on the official code. A network that is
# changed as much by every one of them has the official weights in the official sites, doing the official thing.
MISTAKES: dict[str, Mistake] = {
    "directions swapped": _shifted(_later, _earlier), "no shift": _shifted(lambda x: x, lambda x: x),
    "shift in a circle": _shifted(lambda x: x.roll(-1, 1), lambda x: x.roll(1, 1)),
    "no interleave": _not_interleaved, "eps of 1e-3": _other_eps, "padding not counted": _padding_not_counted,
    "clips of four frames": _clips_of_four}


@pytest.mark.parametrize(("net", "costs"), [
    ("gsm_inceptionv3", (0.27, 1.5, 0.30, 1.7, 0.038, 0.22, 0.38)),
    ("gsf_bninception", (0.11, 0.17, 0.082, 0.64, 0.014, 0.060, 0.12)),
    ("gsf_inceptionv3", (0.037, 0.061, 0.024, 0.29, 0.0051, 0.052, 0.054))])
def test_mistakes_cost_what_they_cost_the_official_networks(reference: Path, fill: ModuleType, net: str,
                                                            costs: tuple[float, ...]) -> None:
    state = {key: torch.from_numpy(np.asarray(fill.fill(key, entry["shape"])))
             for key, entry in manifest(reference, net).items()}
    network = engines.official.load(state, arch=NETS[net][0])
    clip = torch.from_numpy(fill.net_input(f"in.{net}.t8b1", 8, 3, *network.input_size_hw))[None]
    right = engines.clip_scores(network, clip)["action"]
    assert 0.25 < right.std() < 2.95
    for (mistake, make), cost in zip(MISTAKES.items(), costs, strict=True):
        with pytest.MonkeyPatch.context() as patch:
            make(patch, network)
            wrong = engines.clip_scores(network, clip)["action"]
        assert float(f"{(wrong - right).abs().max():.2g}") == cost, mistake
    assert torch.equal(engines.clip_scores(network, clip)["action"], right)  # nothing of the mistakes is left


@pytest.mark.parametrize("net", NETS)
def test_every_manifest_loads_with_its_modules_and_ratio(reference: Path, net: str) -> None:
    listed = manifest(reference, net)
    state = {key: torch.full(entry["shape"], 0.25, dtype=getattr(torch, entry["dtype"]))
             for key, entry in listed.items()}
    arch, modules = NETS[net]
    network = engines.official.load({"model_state_dict": state}, arch=arch)
    ours = network.state_dict()
    assert {official_name(name, arch): list(tensor.shape) for name, tensor in ours.items()} \
        == {key: entry["shape"] for key, entry in listed.items()}
    assert all(tensor.eq(state[official_name(name, arch)]).all() for name, tensor in ours.items())
    assert len(network.temporal) == modules
    assert not network.causal
    assert not network.training
    if "_r25" in net:
        shares = {module.channels / network.backbone.sites()[site].out_channels
                  for site, module in network.temporal.items()}
        assert shares == {0.25}
    else:
        fresh = engines.build(arch, heads={"action": 174})
        assert [(name, value.shape) for name, value in ours.items()] \
            == [(name, value.shape) for name, value in fresh.state_dict().items()]  # the published form is the default


def official_state(arch: str, **options: Any) -> State:
    """A checkpoint of a freshly made network."""
    network = engines.build(arch, heads={"action": 5}, **options)
    return {official_name(name, arch): value for name, value in network.state_dict().items()}


SITES = ("inception_3a_1x1", "inception_4e_3x3_reduce")


@pytest.fixture(scope="module")
def small() -> State:
    return official_state("gsf-bninception", sites=SITES)


def test_modules_and_ratio_are_read_from_the_keys(small: State) -> None:
    assert tuple(engines.official.load(small, "gsf-bninception").temporal) == SITES
    half = official_state("gsf-bninception", sites=SITES, gate_ratio=50)
    network = engines.official.load(half, "gsf-bninception", segments=16)
    assert [module.channels for module in network.temporal.values()] == [32, 64]
    assert network.segments == 16
    assert network.heads["action"].out_features == 5


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_files_are_read_in_both_formats_and_half_precision_becomes_single(
        small: State, tmp_path: Path, zipped: bool, dtype: torch.dtype) -> None:
    stored = {f"module.{name}": value.to(dtype) if value.is_floating_point() else value
              for name, value in small.items()}
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({"epoch": 59, "arch": "BNInception", "state_dict": stored, "best_prec1": torch.tensor(49.0), "lr": 0.01},
               path, _use_new_zipfile_serialization=zipped)
    network = engines.official.load(path, "gsf-bninception")
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    for name, value in network.state_dict().items():
        assert torch.equal(value, small[official_name(name, "gsf-bninception")].to(dtype).to(value.dtype))


def _without(key: str) -> Callable[[State], Any]:
    return lambda state: {name: value for name, value in state.items() if name != key}


def _with(key: str, value: Any) -> Callable[[State], Any]:
    return lambda state: state | {key: value}


FIRST = "base_model.gsf_inception_3a_1x1"
BAD: dict[str, tuple[Callable[[State], Any], str]] = {
    "a missing weight": (_without("base_model.conv2_3x3.weight"), r"no base_model\.conv2_3x3\.weight"),
    "a missing counter": (_without(f"{FIRST}.bn.num_batches_tracked"), f"no {FIRST}.bn.num_batches_tracked"),
    "a module without its norm": (_without(f"{FIRST}.bn.weight"), f"no {FIRST}.bn.weight"),
    "a missing head": (_without("new_fc.weight"), r"no new_fc\.weight"),
    "an extra weight": (_with("base_model.extra.weight", torch.zeros(3)), r"unknown base_model\.extra\.weight"),
    "a module where none can be": (_with("base_model.gsf_mixed_conv_Conv2D.bn.weight", torch.zeros(64)),
                                   r"unknown base_model\.gsf_mixed_conv_Conv2D\.bn\.weight"),
    "a wrong shape": (_with("base_model.conv2_3x3.weight", torch.zeros(192, 64, 1, 1)),
                      r"base_model\.conv2_3x3\.weight of shape \(192, 64, 1, 1\) instead of \(192, 64, 3, 3\)"),
    "classes that disagree": (_with("new_fc.bias", torch.zeros(4)), r"new_fc\.bias of shape \(4,\) instead of \(5,\)"),
    "shares that disagree": (_with(f"{FIRST}.bn.weight", torch.zeros(16)), f"{FIRST}.bn.weight of 16 channels in 64"),
    "a share that cannot be": (_with(f"{FIRST}.bn.weight", torch.zeros(65)), f"{FIRST}.bn.weight of 65 channels in 64"),
    "whole numbers": (_with("new_fc.bias", torch.zeros(5, dtype=torch.int8)), r"with new_fc\.bias, which are no"),
    "not a number": (_with("new_fc.bias", torch.full((5,), torch.nan)), r"with new_fc\.bias, which are no"),
    "no tensor": (_with("new_fc.bias", [0.0]), r"with new_fc\.bias, which are no"),
    "a key twice": (_with("module.new_fc.bias", torch.zeros(5)), r"module\.new_fc\.bias"),
    "nothing": (lambda state: {}, "without a table of weights"),
    "no modules": (lambda state: {name: value for name, value in state.items() if ".gsf_" not in name},
                   r"without any base_model\.gsf_.*but with base_model\.conv1_7x7_s2\.weight"),
    "no head rows": (lambda state: state | {"new_fc.weight": torch.zeros(0, 1024), "new_fc.bias": torch.zeros(0)},
                     r"new_fc\.weight of shape \(0, 1024\)"),
    "a vector for a head": (_with("new_fc.weight", torch.zeros(5)), r"new_fc\.weight of shape \(5,\)"),
    "a tensor larger than its memory": (_with("new_fc.weight", torch.zeros(1).expand(10**9, 10**9)),
                                        r"with new_fc\.weight, which are no dense"),
    "the same in half precision": (_with("new_fc.bias", torch.zeros(1).half().expand(10**15)),
                                   r"with new_fc\.bias, which are no dense"),
    "a sparse tensor": (_with("new_fc.bias", torch.zeros(5).to_sparse()), r"with new_fc\.bias, which are no dense"),
    "a tensor without values": (_with("new_fc.bias", torch.zeros(5, device="meta")), r"with new_fc\.bias, which are"),
    "complex numbers": (_with("new_fc.bias", torch.zeros(5, dtype=torch.complex64)), r"with new_fc\.bias, which are"),
    "an array of objects": (_with("new_fc.bias", np.array([None] * 5)), r"with new_fc\.bias, which are no"),
    "infinity": (_with("new_fc.bias", torch.full((5,), torch.inf)), r"with new_fc\.bias, which are no"),
    "a list for weights": (lambda state: {"state_dict": [1, 2]}, "state_dict, which are no")}


@pytest.mark.parametrize("case", BAD)
def test_weights_that_do_not_fit_are_refused_by_name(small: State, case: str) -> None:
    spoil, named = BAD[case]
    with pytest.raises(ModelError, match=named):
        engines.official.load(spoil(small), "gsf-bninception")


def test_arrays_of_any_byte_order_are_as_good_as_tensors(small: State) -> None:
    arrays = {name: value.numpy().astype(">f4") if value.is_floating_point() else value.numpy()
              for name, value in small.items()}
    network = engines.official.load(arrays, "gsf-bninception")
    assert all(torch.equal(value, small[official_name(name, "gsf-bninception")])
               for name, value in network.state_dict().items())


@pytest.mark.parametrize("arch", ["gsm-bninception", "gsf-inceptionv3", "gsf-resnet50"])
def test_another_networks_weights_are_refused_by_name(small: State, arch: str) -> None:
    with pytest.raises(ModelError, match=r"base_model\."):
        engines.official.load(small, arch)


class Trap:
    """A pickle that makes a file when it is read with code allowed."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return open, (str(self.marker), "w")


def test_a_pickle_with_code_is_refused_unread(small: State, tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "trap.pth.tar"
    torch.save({"state_dict": small, "extra": Trap(marker)}, path)
    with pytest.raises(ModelError, match="not read"):
        engines.official.load(path, "gsf-bninception")
    path.write_bytes(pickle.dumps(Trap(marker)))
    with pytest.raises(ModelError):
        engines.official.load(path, "gsf-bninception")
    assert not marker.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.0, 1e-6, 0.001, 0.5, 0.999])
def test_truncated_files_are_refused(tmp_path: Path, zipped: bool, kept: float) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({"state_dict": {f"w{i}": torch.zeros(1000) for i in range(50)}}, path,
               _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[:int(len(whole) * kept)])
    with pytest.raises(ModelError, match=str(path)):
        engines.official.load(path, "gsf-bninception")


# Millions of parameters, and billions of multiplications for a frame, gates and head included; as the originals have.
@pytest.mark.parametrize(("arch", "parameters_m", "macs_g"), [
    ("gsm-bninception", 10.50, 2.042), ("gsm-inceptionv3", 22.21, 3.337), ("gsf-bninception", 10.50, 2.042),
    ("gsf-inceptionv3", 22.22, 3.338), ("gsf-resnet50", 24.30, 4.237)])
def test_parameters_and_operations_are_as_many_as_published(arch: str, parameters_m: float, macs_g: float) -> None:
    macs = []
    with torch.device("meta"):
        network = engines.build(arch, heads={"action": 174}).eval()

        def count(conv: torch.nn.Module, _: Any, out: torch.Tensor) -> None:
            macs.append(conv.weight.numel() * out.shape[-2] * out.shape[-1])  # type: ignore[union-attr, operator]

        def gate(site: str, x: torch.Tensor) -> torch.Tensor:
            if site in network.temporal:
                macs.append(network.temporal[site].conv3D.weight.numel() * x.shape[-2] * x.shape[-1])
            return x

        for module in network.backbone.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(count)
        network.backbone(torch.zeros(1, 3, *network.input_size_hw), gate)
    macs.append(network.heads["action"].weight.numel())
    assert round(sum(value.numel() for value in network.parameters()) / 1e6, 2) == parameters_m
    assert round(sum(macs) / 1e9, 3) == macs_g


@pytest.mark.parametrize(("arch", "pools"), [
    ("gsm-bninception", ["max 2 0"] * 2 + ["average"] * 2 + ["max 2 0"] + ["average"] * 4 + ["max 2 0", "average",
                                                                                           "max 1 1"]),
    ("gsm-inceptionv3", ["max 2 0"] * 2 + ["average"] * 3 + ["max 2 0"] + ["average"] * 4 + ["max 2 0", "average",
                                                                                           "max 1 1"])])
def test_pools_are_as_published(arch: str, pools: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stride and padding of each 3x3 pool, in order. All round up; averages count the padding, as zeros do here."""
    seen: list[str] = []
    average, maximum = torch.nn.functional.avg_pool2d, inception.max_pool

    def max_pool(x: torch.Tensor, stride: int) -> torch.Tensor:
        padding, out = 2 - stride, maximum(x, stride)
        assert torch.equal(out, torch.nn.functional.max_pool2d(x, 3, stride, padding, ceil_mode=True))
        seen.append(f"max {stride} {padding}")
        return out

    def avg_pool2d(x: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        out = average(torch.ones_like(x), *arguments, **named)
        assert out.shape == x.shape
        assert torch.allclose(out[0, 0, :2, 0], torch.tensor([4 / 9, 6 / 9]))
        seen.append("average")
        return average(x, *arguments, **named)

    network = engines.build(arch, heads={"action": 2}).eval()
    for module in (inception, bninception, inceptionv3):
        monkeypatch.setattr(module, "max_pool", max_pool)
    monkeypatch.setattr(torch.nn.functional, "avg_pool2d", avg_pool2d)
    network(torch.randn(1, 1, 3, *network.input_size_hw), ())
    assert seen == pools


@pytest.mark.parametrize(("arch", "error"), [("gsf-vgg", UsageError), ("gsm-resnet50", UsageError),
                                             ("gsf-bninception", UsageError)])
def test_unknown_names_and_files_are_wrong_use(tmp_path: Path, arch: str, error: type[GatestreamError]) -> None:
    with pytest.raises(error, match="nowhere" if arch == "gsf-bninception" else arch):
        engines.official.load(tmp_path / "nowhere.pth.tar", arch)
