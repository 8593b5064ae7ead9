"""Laws of TSM and STSM: the official numbers, the sparse convolution they stand for, and what streaming asks for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engines.errors import UsageError
from engines.networks.mobilenetv2 import InvertedResidual, MobileNetV2
from engines.networks.stsm import PRESETS, SpatioTemporalShift, groups_of
from engines.networks.temporal import State, TemporalModule
from engines.networks.tsm import TemporalShift

C = 32
MIXED = [[1 / 8, [1, -1, 0]], [0.29, [-1, 1, 1]], [1 / 4, [0, 0, -1]]]
GROUPS: list[Any] = [*PRESETS, MIXED]
CAUSAL: list[Callable[[], TemporalModule]] = [
    *(lambda past_shift=past_shift: TemporalShift(C, True, past_shift=past_shift) for past_shift in (None, 0, 1, 2)),
    *(lambda groups=groups, past_shift=past_shift: SpatioTemporalShift(C, True, groups, past_shift)
      for groups in GROUPS for past_shift in (None, 0, 2))]


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def vectors(shared: Path) -> Any:
    return np.load(shared / "reference" / "vectors_module.npz")


def clip(batch: int = 2, time: int = 6, seed: int = 0, channels: int = C) -> torch.Tensor:
    return torch.randn(batch, time, channels, 5, 4, generator=torch.Generator().manual_seed(seed))


def fresh(module: TemporalModule, batch: int) -> State:
    return tuple(torch.zeros(batch, *leaf.shape) for leaf in module.state_spec((5, 4)))


@pytest.mark.parametrize(("case", "time", "division"), [("tsm_a", 8, 8), ("tsm_b", 4, 3)])
def test_tsm_gives_the_official_numbers(vectors: Any, case: str, time: int, division: int) -> None:
    x = torch.from_numpy(vectors[f"{case}/x"])
    out, state = TemporalShift(x.shape[1], False, division)(x.reshape(-1, time, *x.shape[1:]), ())
    assert np.array_equal(out.flatten(0, 1).numpy(), vectors[f"{case}/out_f32"])
    assert state == ()


def test_online_tsm_in_a_residual_block_gives_the_official_numbers(shared: Path, vectors: Any,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(shared / "reference"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    fill = __import__("fill").fill
    convolutions = {"conv.0": ("conv.0.0", (96, 16, 1, 1)), "conv.3": ("conv.1.0", (96, 1, 3, 3)),
                    "conv.6": ("conv.2", (16, 96, 1, 1))}
    norms = {"conv.1": ("conv.0.1", 96), "conv.4": ("conv.1.1", 96), "conv.7": ("conv.3", 16)}
    shapes = {f"{theirs}.weight": (f"{ours}.weight", shape) for theirs, (ours, shape) in convolutions.items()}
    shapes |= {f"{theirs}.{leaf}": (f"{ours}.{leaf}", (channels,)) for theirs, (ours, channels) in norms.items()
               for leaf in ("weight", "bias", "running_mean", "running_var")}
    block = InvertedResidual(16, 16, stride=1, expansion=6).double().eval()
    block.load_state_dict(MobileNetV2.imagenet_state({
        ours: torch.from_numpy(fill(f"mod.tsm_online.{theirs}", shape)).double()
        for theirs, (ours, shape) in shapes.items()}))
    module = TemporalShift(16, True)
    state: State = (torch.zeros(1, 1, 2, 5, 5, dtype=torch.float64),)
    seen = []

    def hook(site: str, x: torch.Tensor) -> torch.Tensor:
        nonlocal state
        seen.append(site)
        if site != "block_input":
            return x
        shifted, state = module(x[None], state)
        return shifted[0]

    for x, wanted in zip(vectors["tsm_online/x"], vectors["tsm_online/out_f64"], strict=True):
        out = block(torch.from_numpy(x)[None].double(), "block", hook)
        assert np.abs(out[0].numpy() - wanted).max() < 1e-12
    assert seen[:2] == ["block_input", "block"]
    assert np.array_equal(state[0][:, 0].numpy(), vectors["tsm_online/final_buffer"])


@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_stsm_is_a_depthwise_convolution_with_one_hot_kernels(groups: Any) -> None:
    kernel, start = torch.zeros(C, 1, 3, 3, 3), 0
    for share, (dt, dh, dw) in groups_of(groups):
        end = start + int(C * share)
        kernel[start:end, 0, 1 - dt, 1 - dh, 1 - dw] = 1
        start = end
    kernel[start:, 0, 1, 1, 1] = 1
    x = clip()
    wanted = F.conv3d(x.transpose(1, 2), kernel, padding=1, groups=C).transpose(1, 2)
    assert torch.equal(SpatioTemporalShift(C, False, groups)(x, ())[0], wanted)
    assert not torch.equal(wanted, x)


@pytest.mark.parametrize("channels", [8, 24, C, 100])
def test_preset_t_is_tsm(channels: int) -> None:
    x = clip(channels=channels)
    assert torch.equal(SpatioTemporalShift(channels, False, "T")(x, ())[0], TemporalShift(channels, False)(x, ())[0])
    ours, tsm = SpatioTemporalShift(channels, True, "T"), TemporalShift(channels, True, past_shift=1)
    assert torch.equal(ours(x, fresh(ours, 2))[0], tsm(x, fresh(tsm, 2))[0])


def test_preset_t_gives_the_official_numbers(vectors: Any) -> None:
    x = torch.from_numpy(vectors["tsm_a/x"])
    out, _ = SpatioTemporalShift(C, False, "T")(x.reshape(-1, 8, *x.shape[1:]), ())
    assert np.array_equal(out.flatten(0, 1).numpy(), vectors["tsm_a/out_f32"])


@pytest.mark.parametrize(("preset", "moved"), [("T", 8), ("HW", 8), ("TH", 12), ("TW", 12), ("THW", 16),
                                               ("THW-diagonal", 16)])
def test_presets_move_their_share_and_leave_the_rest(preset: str, moved: int) -> None:
    x = clip()
    out, _ = SpatioTemporalShift(C, False, preset)(x, ())
    assert [not torch.equal(out[:, :, c], x[:, :, c]) for c in range(C)] == [True] * moved + [False] * (C - moved)


@pytest.mark.parametrize("make", CAUSAL)
@pytest.mark.parametrize("split", [(1,) * 6, (2, 4), (1, 3, 2)])
def test_any_split_of_a_causal_clip_equals_the_clip(make: Callable[[], TemporalModule], split: tuple[int, ...]) -> None:
    module, x = make(), clip()
    whole, last = module(x, fresh(module, 2))
    state, parts = fresh(module, 2), []
    for part in x.split(split, dim=1):
        y, state = module(part, state)
        parts.append(y)
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert all(torch.equal(a, b) for a, b in zip(state, last, strict=True))


@pytest.mark.parametrize("make", CAUSAL)
def test_later_frames_change_nothing_and_a_zeroed_row_is_fresh(make: Callable[[], TemporalModule]) -> None:
    module, x = make(), clip()
    before, state = module(x, fresh(module, 2))
    changed = x.clone()
    changed[:, 3:] += 1
    assert torch.equal(module(changed, fresh(module, 2))[0][:, :3], before[:, :3])
    reset = tuple(leaf * torch.tensor([0.0, 1.0]).view(2, 1, 1, 1, 1) for leaf in state)
    again, _ = module(clip(seed=1), reset)
    assert torch.equal(again[:1], module(clip(seed=1)[:1], fresh(module, 1))[0])
    assert torch.equal(again[1:], module(clip(seed=1)[1:], tuple(leaf[1:] for leaf in state))[0])


@pytest.mark.parametrize("groups", GROUPS, ids=str)
@pytest.mark.parametrize("past_shift", [None, 0, 2])
def test_causal_groups_that_looked_ahead_take_from_the_past(groups: Any, past_shift: int | None) -> None:
    module, x = SpatioTemporalShift(C, True, groups, past_shift), clip()
    out, _ = module(x, fresh(module, 2))
    start = 0
    for share, (dt, dh, dw) in groups_of(groups):
        end = start + int(C * share)
        back = dt if dt >= 0 else {None: 1}.get(past_shift, past_shift)
        wanted = F.pad(x, [1, 1, 1, 1, 0, 0, 2, 0])[:, 2 - back:8 - back, start:end, 1 - dh:6 - dh, 1 - dw:5 - dw]
        assert torch.equal(out[:, :, start:end], wanted)
        start = end


@pytest.mark.parametrize(("groups", "named"), [
    ("WHT", "'WHT'"), ([(0.5, (0, 0, 2))], r"\(0, 0, 2\)"), ([(0.75, (1, 0, 0)), (0.5, (0, 1, 0))], r"0\.75"),
    ([(-0.5, (1, 0, 0))], r"-0\.5"), ([(0.5, (1, 0))], r"\(1, 0\)"), (7, "7")])
def test_groups_that_make_no_sense_are_refused(groups: Any, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        SpatioTemporalShift(C, False, groups)


@pytest.mark.parametrize(("channels", "division"), [(4, 8), (8, 1)])
def test_a_shift_of_no_channels_or_too_many_is_refused(channels: int, division: int) -> None:
    with pytest.raises(ValueError, match=f"of {channels} channels"):
        TemporalShift(channels, False, division)
