"""Laws of gated clip fusion, and that the live form without torch is the one that trains."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeEngine, FakeModel
from pydantic import ValidationError
from small_models import write_unchecked
from test_model import contract, weights  # noqa: F401 - a fixture
from test_recognizer import play, still

import engines
from engines.errors import ModelError, first_problem
from engines.model.clip_fusion import GatedFusion
from engines.model.contract import Contract
from engines.model.file import Array, save
from engines.networks.clip_fusion import GatedClipFusion
from engines.networks.config import FusionRule, tensor_shapes
from engines.runtime.engine import StepResult
from stream.frame import Prediction
from stream.recognizer import Recognizer
from stream.scoring import Scorer
from stream.window import AverageFusion, Window

WIDTH = 12
FORMS: dict[str, dict[str, Any]] = {
    "attention": {}, "attention tied": {"tied": True}, "attention alone": {"gate": False},
    "bigru": {"relate": "bigru"}, "bigru tied": {"relate": "bigru", "tied": True},
    "gate alone": {"relate": "none"}, "average": {"relate": "none", "gate": False}, "narrow": {"inner": 1}}
SUBSETS: dict[str, dict[str, Any]] = {
    "two best": {"keep": 2}, "best": {"keep": 1}, "above": {"keep_above": 0.5},
    "two best above": {"keep": 2, "keep_above": 0.6}, "one above all": {"keep_above": 1.0}}
forms = pytest.mark.parametrize("options", FORMS.values(), ids=FORMS.keys())


def lively(options: dict[str, Any], width: int = WIDTH, dtype: torch.dtype = torch.float64) -> GatedClipFusion:
    """A module far from its start, where it only averages."""
    torch.manual_seed(5)
    fusion = GatedClipFusion(width, FusionRule(**options)).to(dtype)
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return fusion.eval()


def windows(batch: int = 5, clips: int = 4, width: int = WIDTH, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Descriptors [B, C, D], and frame counts [B, C]: full clips of 6 frames, and a newest one that grows."""
    generator = torch.Generator().manual_seed(seed)
    counts_BC = torch.full((batch, clips), 6)
    counts_BC[:, -1] = torch.randint(1, 7, (batch,), generator=generator)
    return torch.randn(batch, clips, width, dtype=torch.float64, generator=generator), counts_BC


def tensors_of(fusion: GatedClipFusion) -> dict[str, Array]:
    return {f"fusion.{name}": value.float().numpy() for name, value in fusion.state_dict().items()}


def average(clips_BCD: torch.Tensor, counts_BC: torch.Tensor) -> torch.Tensor:
    return (clips_BCD * counts_BC[..., None]).sum(1) / counts_BC.sum(1, keepdim=True)


@forms
@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_masked_clip_changes_nothing_wherever_it_stands_and_whatever_it_holds(
        options: dict[str, Any], at: int) -> None:
    fusion, (clips, counts) = lively(options), windows()
    wanted, wanted_gates = fusion(clips, counts)
    rubbish = torch.full((5, 1, WIDTH), float("nan"), dtype=torch.float64)
    more = torch.cat([clips[:, :at], rubbish, clips[:, at:]], dim=1)
    mask = torch.cat([counts[:, :at], torch.zeros(5, 1), counts[:, at:]], dim=1)
    got, gates = fusion(more, mask)
    assert (got - wanted).abs().max() < 1e-12
    assert (torch.cat([gates[:, :at], gates[:, at + 1:]], dim=1) - wanted_gates).abs().max() < 1e-12
    assert (gates[:, at] == 0).all()


@forms
def test_windows_in_a_batch_do_not_matter_to_each_other_and_an_empty_one_gives_zeros(options: dict[str, Any]) -> None:
    fusion, (clips, counts) = lively(options), windows()
    wanted, wanted_gates = fusion(clips[1:2], counts[1:2])
    counts[0] = 0
    got, gates = fusion(clips, counts)
    assert (got[1] - wanted[0]).abs().max() < 1e-12
    assert (gates[1] - wanted_gates[0]).abs().max() < 1e-12
    assert not got[0].any()
    assert not gates[0].any()


@forms
def test_it_starts_as_the_mean_over_all_frames(options: dict[str, Any]) -> None:
    fusion, (clips, counts) = GatedClipFusion(WIDTH, FusionRule(**options)).double(), windows()
    descriptor, gates = fusion(clips, counts)
    assert (descriptor - average(clips, counts)).abs().max() < 1e-12
    assert (gates == gates[0, 0]).all()


def test_no_relation_and_open_gates_are_the_average_of_the_live_window() -> None:
    fusion, (clips, counts) = lively(FORMS["average"]), windows()
    descriptor, gates = fusion(clips, counts)
    live = GatedFusion(fusion.rule, {})
    for row, (clips_CD, counts_C) in enumerate(zip(clips.float().numpy(), counts.numpy(), strict=True)):
        wanted_D, wanted_gates = AverageFusion().fuse(clips_CD, counts_C)
        assert np.allclose(descriptor[row].numpy(), wanted_D, atol=1e-6)
        assert np.array_equal(gates[row].numpy(), wanted_gates)
        got_D, got_gates = live.fuse(clips_CD, counts_C)
        assert np.array_equal(got_D, wanted_D)
        assert np.array_equal(got_gates, wanted_gates)


def test_a_mask_of_booleans_counts_every_clip_alike() -> None:
    fusion, (clips, counts) = lively({}), windows()
    counts[:, -1], counts[1, :2] = 6, 0
    for got, wanted in zip(fusion(clips, counts > 0), fusion(clips, counts), strict=True):
        assert (got - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["attention tied", "gate alone", "average"])
def test_permuting_clips_permutes_gates_where_no_direction_is_told(name: str) -> None:
    fusion, (clips, counts) = lively(FORMS[name]), windows()
    order = torch.tensor([2, 0, 3, 1])
    (wanted, wanted_gates), (got, gates) = fusion(clips, counts), fusion(clips[:, order], counts[:, order])
    assert (got - wanted).abs().max() < 1e-12
    assert (gates - wanted_gates[:, order]).abs().max() < 1e-12


def test_tied_recurrence_reads_a_reversed_window_in_reverse_and_untied_forms_tell_the_order() -> None:
    clips, counts = windows()
    for name, same in (("bigru tied", True), ("attention", False), ("bigru", False)):
        fusion = lively(FORMS[name])
        difference = (fusion(clips.flip(1), counts.flip(1))[1] - fusion(clips, counts)[1].flip(1)).abs().max()
        assert (difference < 1e-12) == same, name


@pytest.mark.parametrize("relate", ["attention", "bigru"])
def test_a_direction_sees_only_its_side_and_all_of_it(relate: str) -> None:
    fusion, (clips, counts) = lively({"relate": relate}), windows(batch=1, clips=5)
    changed = clips.clone()
    changed[:, 2] += 1
    for name, sees in (("past", [False, False, True, True, True]), ("future", [True, True, True, False, False])):
        look = fusion.relate[name]
        moved = (look(changed, counts.double(), name) - look(clips, counts.double(), name)).abs().amax(dim=(0, 2))
        assert [bool(value > 1e-6) for value in moved] == sees


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS.keys())
def test_gradient_reaches_every_parameter(options: dict[str, Any]) -> None:
    fusion, (clips, counts) = lively(options).train(), windows()
    descriptor, _ = fusion(clips, counts)
    parameters = dict(fusion.named_parameters())
    assert bool(parameters) == (options != FORMS["average"])
    if parameters:
        descriptor.pow(2).sum().backward()
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().amax() > 1e-8, name


def test_the_subset_is_the_best_gates_and_all_of_them_are_the_soft_result() -> None:
    clips, counts = windows(clips=6)
    soft, soft_gates = lively({})(clips, counts)
    for keep in range(1, 9):
        got, gates = lively({"keep": keep})(clips, counts)
        chosen = soft_gates.argsort(1, descending=True)[:, :keep]
        wanted_gates = torch.zeros_like(gates).scatter(1, chosen, soft_gates.gather(1, chosen))
        assert torch.equal(gates, wanted_gates)
        assert torch.equal(got, soft) == (keep >= 6)
    for limit in (0.0, 0.3, 0.6, 1.0):
        _, gates = lively({"keep_above": limit})(clips, counts)
        best = soft_gates == soft_gates.amax(1, keepdim=True)
        assert torch.equal(gates, soft_gates * ((soft_gates >= limit) | best))
    best_alone, gates = lively({"relate": "none", "keep": 1})(clips, counts)
    assert (best_alone - clips[torch.arange(5), gates.argmax(1)]).abs().max() < 1e-12  # renormalised: the clip itself


def test_training_sees_all_clips_and_masked_clips_are_never_chosen() -> None:
    clips, counts = windows()
    soft, _ = lively({})(clips, counts)
    assert torch.equal(lively({"keep": 1}).train()(clips, counts)[0], soft)
    counts[:, :3] = 0
    _, gates = lively({"keep": 3, "keep_above": 0.0})(clips, counts)
    assert (gates > 0).tolist() == [[False, False, False, True]] * 5


@pytest.mark.parametrize("options", [*FORMS.values(), *SUBSETS.values()], ids=[*FORMS.keys(), *SUBSETS.keys()])
@pytest.mark.parametrize("width", [WIDTH, 128])
def test_the_live_form_equals_the_one_that_trains(options: dict[str, Any], width: int) -> None:
    fusion = lively(options, width, torch.float32)
    with torch.no_grad():
        for parameter in fusion.parameters():  # sizes as training makes them: outputs of order one
            parameter *= (2 / parameter.shape[-1]) ** 0.5
    live = GatedFusion(fusion.rule, tensors_of(fusion))
    for clips in (1, 2, 4, 9):
        clips_BCD, counts_BC = windows(clips=clips, width=width, seed=clips)
        with torch.no_grad():
            wanted_BD, wanted_BC = fusion(clips_BCD.float(), counts_BC)
        for row in range(5):
            got_D, gates_C = live.fuse(clips_BCD[row].float().numpy(), counts_BC[row].numpy())
            assert got_D.dtype == gates_C.dtype == np.float32
            assert np.abs(got_D - wanted_BD[row].numpy()).max() < 1e-6
            assert np.abs(gates_C - wanted_BC[row].numpy()).max() < 1e-6


@forms
def test_the_live_window_equals_the_module_on_the_same_frames(options: dict[str, Any]) -> None:
    fusion = lively(options, dtype=torch.float32)
    frames_TD = torch.randn(23, WIDTH, generator=torch.Generator().manual_seed(4))
    window = Window(clip_frames=4, window_clips=3, features=WIDTH,
                    fusion=GatedFusion(fusion.rule, tensors_of(fusion)))
    for now in range(1, 24):
        descriptor_D, gates_C = window.push(frames_TD[now - 1].numpy())
        clips = frames_TD[:now].split(4)[-3:]
        with torch.no_grad():
            wanted_1D, gates_1C = fusion(torch.stack([clip.mean(0) for clip in clips])[None],
                                         torch.tensor([[len(clip) for clip in clips]]))
        assert np.allclose(descriptor_D, wanted_1D[0].numpy(), atol=1e-5)
        assert np.allclose(gates_C, gates_1C[0].numpy(), atol=1e-6)


@forms
def test_kept_projections_give_what_fusing_anew_gives(options: dict[str, Any]) -> None:
    fusion = lively(options, dtype=torch.float32)
    live = GatedFusion(fusion.rule, tensors_of(fusion))
    clips_BCD, counts_BC = windows()
    for clips_CD, counts_C in zip(clips_BCD.float().numpy(), counts_BC.numpy(), strict=True):
        kept_CX = np.concatenate([live.project(clip_D[None]) for clip_D in clips_CD])
        for got, wanted in zip(live.fuse(clips_CD, counts_C, kept_CX), live.fuse(clips_CD, counts_C), strict=True):
            assert np.allclose(got, wanted, atol=1e-5)


@forms
def test_a_file_holds_just_the_modules_parameters(options: dict[str, Any]) -> None:
    fusion = GatedClipFusion(WIDTH, FusionRule(**options))
    assert {f"fusion.{name}": tuple(value.shape) for name, value in fusion.state_dict().items()} == tensor_shapes(
        fusion.rule, WIDTH)


def test_gates_do_not_overflow() -> None:
    fusion = lively(FORMS["gate alone"], dtype=torch.float32)
    live = GatedFusion(fusion.rule, tensors_of(fusion))
    clips_CD = np.full((3, WIDTH), 1e6, np.float32) * np.array([[1], [-1], [3]], np.float32)
    descriptor_D, gates_C = live.fuse(clips_CD, np.array([6, 6, 1]))
    assert np.isfinite(descriptor_D).all()
    assert ((gates_C >= 0) & (gates_C <= 1)).all()


FUSED = FusionRule(keep=2, inner=6)


@pytest.fixture
def fused(weights: dict[str, Array]) -> tuple[Contract, dict[str, Array]]:  # noqa: F811
    """A model file's contents, with a clip fusion that is far from averaging."""
    return contract(fusion=FUSED.model_dump()), weights | tensors_of(lively({"keep": 2, "inner": 6}, 8))


def test_a_model_file_carries_its_fusion_to_predictions(fused: tuple[Contract, dict[str, Array]],
                                                        tmp_path: Path) -> None:
    path = tmp_path / "fused.safetensors"
    save(path, *fused, half=False)
    model = engines.load(path)
    assert model.contract.fusion == FUSED
    assert not any(name.startswith("fusion.") for name in model.network.state_dict())
    scorer = Scorer(model)
    by_hand = Window(4, 3, 8, GatedFusion(FUSED, fused[1]))
    rng = np.random.default_rng(2)
    for frame in range(20):
        features_D = rng.normal(size=8).astype(np.float32)
        scores = scorer.score(StepResult(features_D[None], {"gesture": np.zeros((1, 2), np.float32)}))
        descriptor_D, gates_C = by_hand.push(features_D)
        assert scores.gates == tuple(gates_C.tolist())
        assert sum(gate > 0 for gate in scores.gates) == min(2, 1 + frame // 4)
        logits_K = model.head_logits(descriptor_D)["gesture"]
        assert np.allclose(np.diff(np.log(scores.window["gesture"])), np.diff(logits_K), atol=1e-5)


def test_predictions_show_the_gates_and_replay_equals_live() -> None:
    fusion = lively({"inner": 4}, 3, torch.float32)
    model = FakeModel(clip_fusion=GatedFusion(fusion.rule, tensors_of(fusion)))
    text = "..LLLLLL..RRRRR"
    first, second = (play(Recognizer(model, FakeEngine(model)), text) for _ in range(2))
    predictions = [item for item in first if isinstance(item, Prediction)]
    assert [len(item.clips) for item in predictions[:13]] == [1 + index // 3 for index in range(12)] + [4]
    assert len(set(predictions[-1].clips)) == 4, "gates differ"
    assert all(0 < gate < 1 for item in predictions for gate in item.clips)
    assert still(first) == still(second)


Damage = Callable[[dict[str, Array]], Any]
WRONG: dict[str, tuple[dict[str, Any], Damage, str]] = {
    "missing": ({}, lambda held: held.pop("fusion.gate.score.bias"), r"no fusion\.gate\.score\.bias"),
    "extra": ({}, lambda held: held.update({"fusion.gate.third": np.ones(2, np.float32)}),
              r"unknown fusion\.gate\.third"),
    "of another shape": ({}, lambda held: held.update({"fusion.relate.past.out.weight": np.ones((8, 3), np.float32)}),
                         r"fusion\.relate\.past\.out\.weight of shape \(8, 3\) instead of \(8, 6\)"),
    "of another form": ({"fusion": {"tied": True}}, lambda held: None, r"no fusion\.relate\.both\.query\.weight"),
    "of no form": ({"fusion": None}, lambda held: None, r"unknown fusion\.gate\.score\.bias"),
    "not finite": ({}, lambda held: held.update({"fusion.gate.score.bias": np.full(1, np.nan, np.float32)}),
                   r"fusion\.gate\.score\.bias")}


@pytest.mark.parametrize("case", WRONG)
def test_fusion_tensors_that_do_not_fit_are_refused_by_name(case: str, fused: tuple[Contract, dict[str, Array]],
                                                            tmp_path: Path) -> None:
    changes, damage, named = WRONG[case]
    held = dict(fused[1])
    damage(held)
    path = tmp_path / "fused.safetensors"
    write_unchecked(path, fused[0].model_copy(update={"fusion": FUSED} | {
        key: value and FusionRule(**value) for key, value in changes.items()}), held)
    with pytest.raises(ModelError, match=named):
        engines.load(path)


@pytest.mark.parametrize("wrong", [{"relate": "lstm"}, {"keep": 0}, {"keep_above": 2}, {"clips": 4}])
def test_a_rule_that_cannot_be_is_refused_by_its_field(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"fusion\.{next(iter(wrong))}"):
        contract(fusion=wrong)


@pytest.mark.parametrize("wrong", [{"relate": "lstm"}, {"keep": 0}, {"keep_above": 2.0}, {"inner": 0}, {"clips": 0}])
def test_a_rule_on_its_own_is_refused_by_its_option(wrong: dict[str, Any]) -> None:
    (name, value), = wrong.items()
    with pytest.raises(ValidationError) as caught:
        FusionRule(**wrong)
    assert first_problem(caught.value)[0] == f"{name}={value!r}"


def test_fusing_never_imports_torch(fused: tuple[Contract, dict[str, Array]], tmp_path: Path) -> None:
    path = tmp_path / "fused.safetensors"
    save(path, *fused)
    code = ("import sys, numpy, engines\nfrom engines.runtime.engine import StepResult\n"
            "from stream.scoring import Scorer\n"
            f"scorer = Scorer(engines.load({str(path)!r}))\n"
            "row = numpy.ones((1, 8), numpy.float32)\n"
            "gates = scorer.score(StepResult(row, {'gesture': row[:, :2]})).gates\n"
            "sys.exit('torch' in sys.modules or gates == (1.0,))")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
