"""Laws of the networks: causality, any split, reset, neighbours; and the official numbers of the modules."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engines.errors import ModelError, UsageError
from engines.networks.gsf import GateShiftFuse
from engines.networks.gsm import GateShift
from engines.networks.network import Network, build, clip_scores
from engines.training.initialisation import load_pretrained

SIZE_HW = (48, 64)
CAUSAL = [("gsm-mobilenetv2", 0), ("gsf-mobilenetv2", 0), ("gsf-mobilenetv2", 24), ("tsn-mobilenetv2", 0),
          ("tsm-mobilenetv2", 0), ("stsm-mobilenetv2", 0)]
MIXING = ["gsm-mobilenetv2", "gsf-mobilenetv2", "tsm-mobilenetv2", "stsm-mobilenetv2"]


def lively(architecture: str, *, causal: bool = True, readout_width: int = 0,
           sites: tuple[str, ...] | None = None, **options: Any) -> Network:
    """A float64 network whose gates and norms are far from their starting values."""
    torch.manual_seed(3)
    network = build(architecture, heads={"verb": 5, "noun": 7}, causal=causal, readout_width=readout_width,
                    input_size_hw=SIZE_HW, sites=sites, **options)
    for conv in network.backbone.modules():
        if isinstance(conv, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(conv.weight)
    for module in network.temporal.values():
        if not isinstance(module, GateShift):
            continue
        torch.nn.init.normal_(module.conv3D.weight, std=0.4)
        torch.nn.init.normal_(module.conv3D.get_parameter("bias"), std=0.3)
        torch.nn.init.normal_(module.bn.running_mean, std=0.3)
        torch.nn.init.uniform_(module.bn.running_var, 0.5, 2.0)
    return network.double().eval()


def frames(batch: int, time: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, time, 3, *SIZE_HW, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.parametrize(("architecture", "readout_width"), CAUSAL)
@pytest.mark.parametrize("split", [(1,) * 7, (3, 4), (1, 5, 1)])
def test_any_split_of_a_causal_clip_equals_the_clip(architecture: str, readout_width: int,
                                                    split: tuple[int, ...]) -> None:
    network, clip = lively(architecture, readout_width=readout_width), frames(2, 7)
    whole, whole_state = network(clip, network.fresh_state(2))
    state, parts = network.fresh_state(2), []
    for part in clip.split(split, dim=1):
        features, state = network(part, state)
        parts.append(features)
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-10
    assert all((a - b).abs().max() < 1e-10 for a, b in zip(state, whole_state, strict=True))


@pytest.mark.parametrize(("architecture", "readout_width"), CAUSAL)
def test_a_later_frame_never_changes_an_earlier_output(architecture: str, readout_width: int) -> None:
    network, clip = lively(architecture, readout_width=readout_width), frames(1, 6)
    before, _ = network(clip, network.fresh_state(1))
    clip[:, 4:] += 1.0
    after, _ = network(clip, network.fresh_state(1))
    assert torch.equal(before[:, :4], after[:, :4])
    assert ((before - after).abs().amax(dim=(0, 2))[4:] > 1e-3).all()


@pytest.mark.parametrize("architecture", MIXING)
def test_an_earlier_frame_reaches_later_outputs_and_bidirectional_looks_ahead(architecture: str) -> None:
    clip = frames(1, 6)
    changed = clip.clone()
    changed[:, 3] += 1.0
    for causal, reaches_back in ((True, False), (False, True)):
        network = lively(architecture, causal=causal)
        difference = (network(clip, network.fresh_state(1))[0] - network(changed, network.fresh_state(1))[0]).abs()
        per_frame = difference.amax(dim=(0, 2))
        assert (per_frame[3:] > 1e-3).all()
        assert bool((per_frame[:3] > 1e-3).any()) is reaches_back


@pytest.mark.parametrize(("architecture", "past_shift"), [
    *((architecture, None) for architecture in MIXING),
    *((architecture, past_shift) for architecture in MIXING for past_shift in (0, 1, 2))])
@pytest.mark.parametrize("sites", [("features_12",), ("features_12", "features_16")])
def test_receptive_field_is_how_far_back_a_frame_shows(architecture: str, past_shift: int | None,
                                                        sites: tuple[str, ...]) -> None:
    if architecture.startswith(("tsm", "stsm")):
        sites = tuple(f"{site}_input" for site in sites)
    network = lively(architecture, sites=sites, past_shift=past_shift)
    clip = frames(1, network.receptive_field + 2)
    changed = clip.clone()
    changed[:, 0] += 1.0
    difference = (network(clip, network.fresh_state(1))[0] - network(changed, network.fresh_state(1))[0]).abs()
    per_frame = difference.amax(dim=(0, 2))
    assert per_frame[network.receptive_field - 1] > 0
    assert (per_frame[network.receptive_field:] == 0).all()


@pytest.mark.parametrize(("architecture", "readout_width"), CAUSAL)
def test_neighbours_in_the_batch_and_other_rows_do_not_matter(architecture: str, readout_width: int) -> None:
    network = lively(architecture, readout_width=readout_width)
    clip = frames(3, 5)
    together, _ = network(clip, network.fresh_state(3))
    alone, _ = network(clip[1:2], network.fresh_state(1))
    assert (together[1:2] - alone).abs().max() < 1e-10


@pytest.mark.parametrize(("architecture", "readout_width"), CAUSAL)
def test_zeroing_a_row_makes_it_fresh(architecture: str, readout_width: int) -> None:
    network = lively(architecture, readout_width=readout_width)
    _, used = network(frames(2, 5, seed=1), network.fresh_state(2))
    kept = tuple(leaf.clone() for leaf in used)
    for leaf in kept:
        leaf[0] = 0
    clip = frames(2, 4, seed=2)
    again, _ = network(clip, kept)
    fresh, _ = network(clip[:1], network.fresh_state(1))
    onward, _ = network(clip[1:], tuple(leaf[1:] for leaf in used))
    assert (again[:1] - fresh).abs().max() < 1e-10
    assert (again[1:] - onward).abs().max() < 1e-10


@pytest.mark.parametrize(("architecture", "readout_width"), CAUSAL)
def test_forward_is_pure_and_state_is_as_its_spec_says(architecture: str, readout_width: int) -> None:
    network, clip = lively(architecture, readout_width=readout_width), frames(2, 3)
    state = tuple(torch.randn_like(leaf) * 0.1 for leaf in network.fresh_state(2))
    copies = clip.clone(), tuple(leaf.clone() for leaf in state)
    first, new = network(clip, state)
    second, _ = network(clip, state)
    assert torch.equal(first, second)
    assert torch.equal(clip, copies[0])
    assert all(torch.equal(a, b) for a, b in zip(state, copies[1], strict=True))
    spec = network.state_spec()
    assert len({leaf.name for leaf in spec}) == len(spec)
    assert [(tuple(t.shape), t.dtype) for t in new] == [((2, *leaf.shape), leaf.dtype) for leaf in spec]


def test_the_order_in_which_sites_are_named_does_not_matter() -> None:
    networks = [lively("gsf-mobilenetv2", sites=sites)
                for sites in (("features_5", "features_16"), ("features_16", "features_5"))]
    assert networks[0].state_spec() == networks[1].state_spec()
    outputs = [network(frames(1, 3), network.fresh_state(1))[0] for network in networks]
    assert torch.equal(*outputs)


def test_bidirectional_state_is_empty_and_scores_average_over_time() -> None:
    network, clip = lively("gsf-mobilenetv2", causal=False), frames(2, 4)
    assert network.fresh_state(2) == ()
    features, state = network(clip, ())
    assert state == ()
    scores = clip_scores(network, clip)
    assert {name: tuple(s.shape) for name, s in scores.items()} == {"verb": (2, 5), "noun": (2, 7)}
    assert torch.allclose(scores["verb"], network.scores(features)["verb"].mean(1))


@pytest.mark.parametrize(("wrong", "named"), [
    ({"architecture": "gsx-mobilenetv2"}, "gsx-mobilenetv2"), ({"architecture": "gsf-vgg"}, "gsf-vgg"),
    ({"sites": ["features_99"]}, "features_99"), ({"causal": False, "readout_width": 8}, "readout_width"),
    ({"sites": ["features_12_input"]}, "features_12_input"), ({"past_shift": 3}, "past_shift=3"),
    ({"architecture": "tsm-mobilenetv2", "sites": ["features_12"]}, "features_12"),
    ({"hop": 2}, "hop=2 on a causal"), ({"causal": False, "segments": 4, "hop": 5}, "hop=5 on a clip of 4"),
    ({"causal": False, "past_shift": 1}, "past_shift=1 on a bidirectional"),
    ({"architecture": "stsm-mobilenetv2", "shift": "WHT"}, "'WHT'")])
def test_impossible_networks_are_refused_by_name(wrong: dict[str, Any], named: str) -> None:
    arguments = {"architecture": "gsf-mobilenetv2", "heads": {"a": 2}, "causal": True} | wrong
    with pytest.raises(UsageError, match=named):
        build(**arguments)


def official_cases() -> list[str]:
    return [f"{kind}_{case}" for kind, cases in (("gsm", ("a", "b", "t1", "t2", "t16")),
                                                ("gsf", ("a", "b", "r25", "round", "r50", "t1", "t2", "t16")))
            for case in cases]


@pytest.mark.parametrize("case", official_cases())
def test_modules_give_the_official_numbers(shared: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(shared / "reference"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    fill = __import__("fill")
    info = json.loads((shared / "reference" / "vectors_module_cases.json").read_text())
    info = info.get("cases", info)[case]
    vectors = np.load(shared / "reference" / "vectors_module.npz")
    x, wanted = vectors[f"{case}/x"], vectors[f"{case}/out_f64"]
    channels = x.shape[1]
    ratio = info.get("ratio", info.get("gsf_ch_ratio", 100))
    module = GateShift(channels, causal=False) if case.startswith("gsm") \
        else GateShiftFuse(channels, causal=False, gate_ratio=ratio)
    state = {name: torch.from_numpy(np.asarray(fill.fill(f"mod.{case}.{name}", tuple(value.shape))))
             for name, value in module.state_dict().items()}
    module.load_state_dict(state)
    time = info.get("T", info.get("segments", info.get("num_segments")))
    for dtype, tolerance, reference in ((torch.float64, 1e-9, wanted), (torch.float32, 2e-5, wanted)):
        batch = torch.from_numpy(x).to(dtype).reshape(-1, time, *x.shape[1:])
        out, _ = module.to(dtype).eval()(batch, ())
        assert np.abs(out.flatten(0, 1).numpy() - reference).max() < tolerance


def test_modules_start_transparent_from_imagenet_weights(tmp_path: Path) -> None:
    plain = lively("tsn-mobilenetv2")
    path = tmp_path / "weights.safetensors"
    save_file({name: value.float() for name, value in plain.backbone.state_dict().items()}, path)
    outputs = []
    for architecture in ("tsn-mobilenetv2", "gsm-mobilenetv2", "gsf-mobilenetv2"):
        network = lively(architecture)
        load_pretrained(network, path)
        outputs.append(network(frames(1, 3), network.fresh_state(1))[0])
    assert (outputs[1] - outputs[0]).abs().max() < 1e-10
    assert (outputs[2] - outputs[0]).abs().max() < 1e-10


def test_wrong_starting_weights_are_refused(tmp_path: Path) -> None:
    network = build("gsf-mobilenetv2", heads={"a": 2}, causal=True, input_size_hw=SIZE_HW)
    with pytest.raises(UsageError, match="nowhere"):
        load_pretrained(network, tmp_path / "nowhere.safetensors")
    other = tmp_path / "other.safetensors"
    save_file({"features.0.0.weight": torch.zeros(3, 3)}, other)
    with pytest.raises(ModelError, match=r"features\.0\.0\.weight"):
        load_pretrained(network, other)
    other.write_bytes(b"not safetensors at all")
    with pytest.raises(ModelError, match="safetensors"):
        load_pretrained(network, other)
