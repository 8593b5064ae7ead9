"""Causal forms of bidirectional networks: no look ahead, and the weights of the original under the rule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import engines
from engines.errors import UsageError
from engines.networks.causal import RULES
from engines.networks.gsf import GateShiftFuse
from engines.networks.gsm import GateShift
from engines.networks.network import Network

SIZE_HW = (48, 64)
NETWORKS: list[dict[str, Any]] = [
    {"architecture": "gsm-mobilenetv2"}, {"architecture": "gsf-mobilenetv2", "gate_ratio": 50},
    {"architecture": "tsm-mobilenetv2"}, {"architecture": "stsm-mobilenetv2", "shift": "THW-diagonal"}]


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def make(causal: bool = False, **options: Any) -> Network:
    torch.manual_seed(5)
    network = engines.build(heads={"a": 4}, causal=causal, input_size_hw=SIZE_HW, **options)
    for conv in network.backbone.modules():
        if isinstance(conv, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(conv.weight)
    for module in network.temporal.modules():
        if isinstance(module, torch.nn.Conv3d):
            torch.nn.init.normal_(module.weight, std=0.4)
    return network.double().eval()


def test_a_motion_branch_sees_no_future_and_splits_anywhere() -> None:
    live, x = make(True, architecture="gsf-mobilenetv2", gate_ratio=50, motion=True, middle_grid=2,
                   sites=["motion_0", "motion_1", "features_13", "features_15"]), clip()
    check_no_future_and_any_split(live, x)


def clip(time: int = 6) -> torch.Tensor:
    return torch.randn(1, time, 3, *SIZE_HW, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("options", NETWORKS, ids=lambda options: options["architecture"])
def test_the_causal_form_sees_no_future_and_splits_anywhere(options: dict[str, Any], rule: str) -> None:
    check_no_future_and_any_split(engines.causal(make(**options), rule), clip())


def check_no_future_and_any_split(live: Network, x: torch.Tensor) -> None:
    whole, _ = live(x, live.fresh_state(1))
    changed = x.clone()
    changed[:, 4:] += 1
    assert torch.equal(live(changed, live.fresh_state(1))[0][:, :4], whole[:, :4])
    state, parts = live.fresh_state(1), []
    for part in x.split((1, 3, 2), dim=1):
        features, state = live(part, state)
        parts.append(features)
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-10


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("options", NETWORKS, ids=lambda options: options["architecture"])
def test_weights_are_the_originals_under_the_rule(options: dict[str, Any], rule: str) -> None:
    network = make(**options)
    original = {name: value.clone() for name, value in network.state_dict().items()}
    live = engines.causal(network, rule)
    weights = live.state_dict()
    assert list(weights) == list(original)
    for name, value in original.items():
        wanted = value
        if rule.startswith("dropped") and name.endswith("conv3D.weight"):  # time is the third axis
            wanted = torch.stack([0 * value[:, :, 0], value[:, :, 0], value[:, :, 1]], dim=2)
        if rule.startswith("dropped") and "channel_conv" in name and name.endswith("weight"):  # and here the last
            wanted = torch.stack([0 * value[..., 0], value[..., 0], value[..., 1]], dim=-1)
        assert torch.equal(weights[name], wanted), name
        assert torch.equal(network.state_dict()[name], value), f"{name} of the original was changed"
    assert live.causal
    assert not network.causal
    assert network.fresh_state(1) == ()


@pytest.mark.parametrize("rule", ["dropped-two", "moved-one", "dropped-stay"])
@pytest.mark.parametrize("options", NETWORKS, ids=lambda options: options["architecture"])
def test_build_makes_the_same_network_for_these_weights(options: dict[str, Any], rule: str) -> None:
    live = engines.causal(make(**options), rule)
    built = make(causal=True, past_shift=RULES[rule][1], **options)
    built.load_state_dict(live.state_dict())
    assert built.state_spec() == live.state_spec()
    assert built.receptive_field == live.receptive_field
    assert torch.equal(built(clip(), built.fresh_state(1))[0], live(clip(), live.fresh_state(1))[0])


@pytest.mark.parametrize("kind", [GateShift, GateShiftFuse])
@pytest.mark.parametrize("past_shift", [2, 1, 0])
def test_dropping_keeps_the_gate_where_the_future_is_empty(kind: type[GateShift], past_shift: int) -> None:
    """The last frame of a clip has zeros after it: there a gate without its future tap is the published gate."""
    network = make(architecture="gsm-mobilenetv2" if kind is GateShift else "gsf-mobilenetv2", gate_ratio=100)
    live = engines.causal(network, f"dropped-{('stay', 'one', 'two')[past_shift]}")
    site = next(iter(network.temporal))
    published, causal = network.temporal[site], live.temporal[site]
    assert isinstance(published, kind)
    assert isinstance(causal, kind)
    x = torch.randn(2, 5, published.channels, 4, 4, dtype=torch.float64)
    taps = torch.zeros(2, *causal.state_spec((4, 4))[0].shape, dtype=torch.float64)
    wanted, _ = published.gate(x, ())
    gate, _ = causal.gate(x, (taps,))
    assert (gate[:, -1] - wanted[:, -1]).abs().max() < 1e-12
    assert (gate[:, :-1] - wanted[:, :-1]).abs().max() > 1e-3
    second = published.channels // 2
    state = tuple(torch.zeros(2, *leaf.shape, dtype=torch.float64) for leaf in causal.state_spec((4, 4))
                  if leaf.name.startswith("past"))
    moved, _ = causal.shift(x, state)
    assert torch.equal(moved[:, :, second:], published.shift(x, ())[0][:, :, second:])
    assert torch.equal(moved[:, 2:, :second], x[:, 2 - past_shift:5 - past_shift, :second])


def test_moved_two_is_the_form_that_build_makes() -> None:
    network = make(architecture="gsf-mobilenetv2")
    built = make(architecture="gsf-mobilenetv2", causal=True)
    live = engines.causal(network, "moved-two")
    assert built.state_spec() == live.state_spec()
    assert torch.equal(built(clip(), built.fresh_state(1))[0], live(clip(), live.fresh_state(1))[0])


def test_a_network_without_temporal_modules_stays_the_same_function() -> None:
    network = make(architecture="tsn-mobilenetv2")
    live = engines.causal(network, "dropped-one")
    assert torch.equal(live(clip(), live.fresh_state(1))[0], network(clip(), ())[0])


def test_unknown_rules_and_causal_networks_are_refused() -> None:
    with pytest.raises(UsageError, match=r"'sideways'.*dropped-one"):
        engines.causal(make(architecture="gsm-mobilenetv2"), "sideways")
    with pytest.raises(UsageError, match="gsm-mobilenetv2 that is causal already"):
        engines.causal(make(causal=True, architecture="gsm-mobilenetv2"), "moved-two")
