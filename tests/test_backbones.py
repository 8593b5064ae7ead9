"""Laws of every backbone: it names its sites in order, takes modules causally, and compiled engines can follow."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engines.errors import ModelError, UsageError
from engines.networks.config import NetworkConfig
from engines.networks.network import BACKBONES, Network, build
from engines.runtime.lowering import StepNetwork
from engines.training.initialisation import load_pretrained

SIZES_HW = {"bninception": (64, 96), "inceptionv3": (75, 107), "resnet18": (48, 64), "resnet50": (48, 64),
            "mobilenetv2": (48, 64)}
NETWORKS = [f"{module}-{backbone}" for backbone in BACKBONES for module in ("tsm", "gsm", "gsf", "stsm")]


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def lively(architecture: str) -> Network:
    """A float64 causal network whose gates, fuses and norms are far from their starting values."""
    torch.manual_seed(1)
    network = build(architecture, heads={"action": 4}, causal=True,
                    input_size_hw=SIZES_HW[NetworkConfig.of(architecture).backbone])
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("bn3.weight"):
            value.fill_(0.3)  # sixteen bottlenecks of full weight would blow rounding up
        elif name.endswith("running_mean") or name.startswith("temporal."):
            value.copy_(value + 0.2 * torch.randn(value.shape))
    return network.double().eval()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_hook_is_called_at_every_site_in_order_with_the_raw_map(backbone: str) -> None:
    network = BACKBONES[backbone]().eval()
    sites, seen, inputs, made = network.sites(), [], [], {}
    for site, conv in sites.items():
        conv.register_forward_hook(lambda _, __, out, site=site: made.update({site: out}))

    def hook(site: str, x: torch.Tensor) -> torch.Tensor:
        if site in sites:
            assert x is made[site]
            seen.append(site)
        else:
            assert x.shape[1] == network.input_sites()[site]
            inputs.append(site)
        return x

    features = network(torch.rand(2, 3, *network.input_size_hw), hook)
    assert seen == list(sites)
    assert inputs == list(network.input_sites())
    assert features.shape == (2, network.width)
    for chosen, known in [(network.default_input_sites(), network.input_sites()),
                          *((network.default_sites(module, causal), sites)
                            for module, causal in product(("gsm", "gsf"), (False, True)))]:
        assert chosen == tuple(site for site in known if site in chosen)
        assert len(chosen) >= 4


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_backbone_in_two_parts_is_the_whole(backbone: str) -> None:
    network = BACKBONES[backbone]().eval()
    images = torch.rand(2, 3, *SIZES_HW[backbone])
    met: list[str] = []

    def hook(site: str, x: torch.Tensor) -> torch.Tensor:
        met.append(site)
        return 0.9 * x

    whole, sites = network(images, hook), tuple(met)
    for cut in (0, 1, len(network.steps()) // 2, len(network.steps())):
        met.clear()
        halfway = network(images, hook, slice(cut))
        assert torch.equal(network(halfway, hook, slice(cut, None)), whole)
        assert tuple(met) == sites


@pytest.mark.parametrize("architecture", NETWORKS)
def test_one_frame_at_a_time_equals_the_clip_and_the_step_for_engines(architecture: str) -> None:
    network = lively(architecture)
    clip = torch.rand(1, 5, 3, *network.input_size_hw, dtype=torch.float64)
    whole, _ = network(clip, network.fresh_state(1))
    step = StepNetwork(network)
    state, lowered = network.fresh_state(1), step.fresh_state()
    for t in range(clip.shape[1]):
        features, state = network(clip[:, t:t + 1], state)
        torch.testing.assert_close(features[:, 0], whole[:, t], rtol=1e-10, atol=1e-10)
        stepped, scores, *lowered = step(clip[:, t], *lowered)
        torch.testing.assert_close(stepped, whole[:, t], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(scores, network.scores(whole[:, t])["action"], rtol=1e-10, atol=1e-10)
    assert (whole[:, 0] - whole[:, -1]).abs().max() > 1e-4


def test_building_leaves_norms_as_they_were() -> None:
    network = build("gsf-resnet18", heads={"action": 4}, input_size_hw=(48, 64))
    assert network.training
    assert all(module.training for module in network.modules())
    assert all(value.eq(0).all() for name, value in network.state_dict().items() if name.endswith("running_mean"))


def test_sites_may_be_given_in_any_order() -> None:
    sites = ("layer4_1", "layer1_0")
    network = build("gsm-resnet18", heads={"action": 4}, causal=True, input_size_hw=(48, 64), sites=sites).eval()
    assert tuple(network.temporal) == sites[::-1]
    _, state = network(torch.rand(1, 1, 3, 48, 64), network.fresh_state(1))
    assert [leaf.shape[1:] for leaf in state] == [leaf.shape for leaf in network.state_spec()]


@pytest.mark.parametrize(("architecture", "size_hw"), [("tsn-bninception", (50, 64)), ("tsn-inceptionv3", (64, 64)),
                                                       ("tsn-inceptionv3", (228, 229))])
def test_a_size_that_does_not_fit_is_refused(architecture: str, size_hw: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="{}x{} pixels".format(*size_hw)):
        build(architecture, heads={"action": 4}, input_size_hw=size_hw)


@pytest.mark.parametrize("architecture", ["gsf-resnet18", "gsm-resnet50", "gsf-bninception"])
def test_modules_start_transparent_from_the_backbones_weights(architecture: str, tmp_path: Path) -> None:
    plain, network = lively(f"tsn-{architecture.partition('-')[2]}"), lively(architecture)
    path = tmp_path / "weights.safetensors"
    save_file({name: value for name, value in plain.backbone.state_dict().items()
               if not name.endswith("num_batches_tracked")} | {"fc.bias": torch.zeros(1000)}, path)
    load_pretrained(network, path)
    plain.backbone.float().double()  # starting weights are read as single precision
    clip = torch.rand(1, 3, 3, *network.input_size_hw, dtype=torch.float64)
    ours, theirs = (net(clip, net.fresh_state(1))[0] for net in (network, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_other_backbones_weights_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(ModelError, match=r"bn1\.weight.*resnet18"):
        load_pretrained(lively("gsm-resnet18"), path)
    with pytest.raises(UsageError, match="imagenet for bninception"):
        load_pretrained(lively("gsm-bninception"), "imagenet")
