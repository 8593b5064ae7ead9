"""The official recipe: its numbers, its pictures, its order of clips, its updates; and learning from a teacher."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_training import LABELS, SIZE_HW, contract, picture, tiny_network
from torch import nn

import engines
from engines.datasets import open_dataset
from engines.datasets.base import Dataset, Media, Segment
from engines.errors import DatasetError, UsageError
from engines.model import official
from engines.model.file import save
from engines.networks.causal import causal
from engines.networks.config import NetworkConfig
from engines.networks.network import Network, build, clip_scores
from engines.training import clip_augment, official_recipe
from engines.training.clip_task import (
    ClipDataset,
    ClipOrder,
    ClipTask,
    SGDConfig,
    can_mirror,
    distillation_loss,
    epoch_rate,
)
from engines.training.distributed import Ranks
from engines.training.initialisation import initialise
from engines.training.loop import LoopConfig, run
from engines.training.loss import UNKNOWN
from engines.training.official_recipe import OfficialRecipe
from engines.training.runfolder import RunFolder
from stream.commands.cli import main

Images = NDArray[np.uint8]
SEGMENTS = [Segment(f"clip {k}", Media(Path(f"{k}.mp4")), labels={"gesture": LABELS[k % 2]}) for k in range(8)]
HEADS = {"gesture": LABELS}


def test_the_learning_rate_is_the_published_one(shared: Path) -> None:
    known = json.loads((shared / "reference" / "vectors_lr.json").read_text())
    ours = [known["base_lr"] * epoch_rate(e, known["epochs"], known["warmup"]) for e in range(known["epochs"] + 1)]
    assert np.allclose(ours, [*known["lr_per_epoch"], known["after_last"]], rtol=1e-12, atol=0)


def test_crops_are_the_published_ones(shared: Path) -> None:
    known = json.loads((shared / "reference" / "vectors_preprocess.json").read_text())
    tables = {name: table for name, table in known.items() if name.startswith("multiscale/")}
    assert len(tables) == 4
    for name, table in tables.items():
        width, height = map(int, name.split("/")[1].split("x"))
        side = int(name.split("/")[2])
        sizes = clip_augment.crop_sizes((height, width), (side, side))
        assert [[w, h] for h, w in sizes] == table["pairs_wh"]
        crop_w, crop_h = table["offset_pair"]
        offsets = clip_augment.crop_offsets((height, width), (crop_h, crop_w))
        assert [[left, top] for top, left in offsets] == table["offsets_for_first_pair"]
    assert clip_augment.crop_sizes((256, 340), (224, 224))[3] == (224, 224)  # 0.875 of 256
    assert (112, 224) not in clip_augment.crop_sizes((256, 340), (224, 224))


def test_crops_show_the_same_part_of_every_frame() -> None:
    ramp = np.add.outer(np.arange(60), np.arange(80)).astype(np.uint8)
    clip = np.repeat(np.repeat(ramp[None, ..., None], 3, -1), 4, 0)
    crops = {clip_augment.multi_scale_crop(clip, (32, 32), np.random.default_rng(seed)).tobytes() for seed in range(40)}
    assert len(crops) > 15
    crop = clip_augment.multi_scale_crop(clip, (32, 32), np.random.default_rng(1))
    assert crop.shape == (4, 32, 32, 3)
    assert (crop == crop[:1]).all()


@pytest.mark.parametrize("name", list(clip_augment._OPERATIONS))
def test_every_operation_changes_a_picture_and_frames_alike(name: str) -> None:
    rng = np.random.default_rng(0)
    noise = cv2.resize(rng.integers(0, 256, (9, 11, 3)).astype(np.uint8), (50, 40), interpolation=cv2.INTER_CUBIC)
    image = np.clip(noise * 0.8 + 40 + rng.integers(-6, 6, noise.shape), 0, 255).astype(np.uint8)
    operation = clip_augment._OPERATIONS[name](0.8, np.random.default_rng(3))
    pillow = clip_augment.Image.fromarray(image)
    one, other = (np.asarray(operation(pillow, filter_)) for filter_ in
                  (clip_augment.Image.Resampling.BILINEAR, clip_augment.Image.Resampling.BICUBIC))
    assert one.shape == image.shape
    assert np.abs(one.astype(int) - image).mean() > 0.5
    assert np.abs(one.astype(int) - other).mean() < 3


def test_randaugment_leaves_a_quarter_of_the_clips_alone_and_repeats_itself() -> None:
    image = np.random.default_rng(0).integers(30, 200, (2, 24, 24, 3)).astype(np.uint8)
    changed = [clip_augment.rand_augment(image, np.random.default_rng(seed)) for seed in range(200)]
    again = clip_augment.rand_augment(image, np.random.default_rng(7))
    assert np.array_equal(changed[7], again)
    assert all(one.shape == image.shape and one.dtype == np.uint8 for one in changed)
    untouched = np.mean([np.array_equal(one, image) for one in changed])
    assert 0.15 < untouched < 0.35


def test_every_epoch_is_another_permutation() -> None:
    order = ClipOrder(seed=1, clips=11, rows=3)
    epochs = [[clip for batch in order.batches(3 * e, 3 * e + 3, range(3)) for _, clip in batch] for e in range(2)]
    assert all(len(set(clips)) == 9 for clips in epochs)
    assert epochs[0] != epochs[1]
    assert {e for e, _ in next(order.batches(5, 6, range(3)))} == {1}
    assert list(order.batches(2, 5, range(3))) == [*order.batches(0, 6, range(3))][2:5]
    assert [row for _, row in next(order.batches(4, 5, [0, 2]))] == epochs[1][3:6:2]
    few = next(ClipOrder(1, 2, 4).batches(0, 1, range(4)))
    assert [clip for _, clip in few].count(0) == 2  # fewer clips than rows: each twice


def test_an_epoch_is_shuffled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something-Something V2 has 169,000 clips: a schedule of 60 epochs is never made at once."""
    many = [replace(SEGMENTS[k % 8], id=f"clip {k}") for k in range(60)]
    task = task_of(SGDConfig(epochs=50), tiny_network(causal=False), rows=4, segments=many)
    epochs = [np.random.default_rng((0, epoch)).permutation(60).reshape(15, 4) for epoch in (1, 2)]
    expected = [[many[clip].id for clip in batch] for batch in np.concatenate(epochs)[14:17]]
    shuffled: list[object] = []
    monkeypatch.setattr(np.random, "default_rng", lambda seed: shuffled.append(seed) or generator(seed))
    batches_from_29 = task.batches(29)
    found = [next(batches_from_29).names for _ in range(3)]
    assert [list(names) for names in found] == expected
    assert [seed for seed in shuffled if len(seed) == 2] == [(0, 1), (0, 2)]  # type: ignore[arg-type]


generator = np.random.default_rng


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1])
def test_loading_clips_leaves_opencv_its_threads(workers: int) -> None:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        loaded = ClipDataset(SEGMENTS, HEADS, look, 3, {}).batches([[(0, 1)], [(0, 2)]], workers)
        assert [batch.names for batch in loaded] == [("clip 1",), ("clip 2",)]
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(threads)


def look(segment: Segment, rng: np.random.Generator) -> tuple[Images, bool]:
    label = LABELS.index(segment.labels.get("gesture", "none"))
    return np.stack([picture(label, rng) for _ in range(4)]), False


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_clips_depend_on_seed_epoch_and_number_only() -> None:
    clips = ClipDataset(SEGMENTS, HEADS, look, 3, {})
    chosen = list(ClipOrder(3, 8, 4).batches(0, 4, range(4)))
    expected = list(clips.batches(chosen, 0))
    for other, first in [(list(clips.batches(chosen, 2)), 0), (list(clips.batches(chosen[2:], 0)), 2)]:
        for ours, wanted in zip(other, expected[first:], strict=True):
            assert torch.equal(ours.pixels, wanted.pixels)
            assert (ours.names, ours.labels.tolist()) == (wanted.names, wanted.labels.tolist())
    assert not torch.equal(expected[0].pixels, expected[2].pixels)


def test_a_mirrored_clip_has_the_mirrored_label_and_a_broken_one_gives_way() -> None:
    swap = {"gesture": {"left": "right", "right": "left", "none": ""}}
    turned = ClipDataset(SEGMENTS, HEADS, lambda s, rng: (look(s, rng)[0], True), 0, swap)
    assert turned.indices(SEGMENTS[0]) == [0]
    assert turned.clip(0, 0).labels == [1]
    assert turned.indices(Segment("?", SEGMENTS[0].media)) == [UNKNOWN]
    assert can_mirror(SEGMENTS[0], swap)
    assert not can_mirror(Segment("n", SEGMENTS[0].media, labels={"gesture": "none"}), swap)

    def broken(segment: Segment, rng: np.random.Generator) -> tuple[Images, bool]:
        if segment.id == "clip 2" or everything:
            raise DatasetError(f"{segment.id} is broken", "a video", "remove it")
        return look(segment, rng)

    everything = False
    clips = ClipDataset(SEGMENTS, HEADS, broken, 0, {})
    assert clips.clip(0, 2).name == "clip 3"
    with pytest.raises(DatasetError, match="clip 2 is broken"):
        next(ClipDataset(SEGMENTS, HEADS, broken, 0, {}, strict=True).batches([[(0, 2)]], 0))
    everything = True
    with pytest.raises(DatasetError, match="is broken"):
        next(clips.batches([[(0, 1)]], 0))


def task_of(how: SGDConfig, network: Network, rows: int = 4, teacher: Network | None = None,
            segments: list[Segment] = SEGMENTS) -> ClipTask:
    clips, order = ClipDataset(segments, HEADS, look, 0, {}), ClipOrder(0, len(segments), rows)
    return ClipTask(network, contract(), how, clips, order, [], lambda _: np.zeros((4, *SIZE_HW, 3), np.uint8),
                    Ranks(), teacher=teacher)


@pytest.mark.parametrize("strict", [False, True])
def test_a_clip_to_validate_with_that_cannot_be_read_is_named(strict: bool, caplog: pytest.LogCaptureFixture) -> None:
    def broken(segment: Segment) -> Images:
        if segment.id == "clip 1":
            raise DatasetError("clip 1.mp4, which is broken", "a video", "remove it")
        return np.zeros((4, *SIZE_HW, 3), np.uint8)

    task = ClipTask(tiny_network(causal=False), contract(), SGDConfig(), ClipDataset(SEGMENTS, HEADS, look, 0, {}),
                    ClipOrder(0, len(SEGMENTS), 4), SEGMENTS, broken, Ranks(), strict=strict)
    if strict:
        with pytest.raises(DatasetError, match="clip 1"):
            task.validate(task.network.eval())
    else:
        with torch.no_grad():
            assert 0 <= task.validate(task.network.eval())["validation accuracy"] <= 1
        assert "clip 1.mp4, which is broken" in caplog.text


def without_norms() -> Network:
    network = tiny_network(causal=False)
    network.temporal = nn.ModuleDict()
    network.backbone.bn = nn.Identity()
    return network


def test_two_half_batches_make_the_update_of_a_whole_one(tmp_path: Path) -> None:
    weights = []
    for batch, accumulation in ((4, 1), (2, 2)):
        task = task_of(SGDConfig(accumulation=accumulation, epochs=2, warmup=0), without_norms(), batch)
        config = LoopConfig(4, accumulation=accumulation, precision="f32", clip_norm=20.0)
        assert task.updates_per_epoch == 2
        folder = RunFolder(tmp_path / f"{batch}.safetensors", {})
        weights.append(run(task, config, folder, Ranks(), lambda _: None).state_dict())
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=1e-6), name


def test_a_partial_sum_is_clipped_before_the_rest_is_added(tmp_path: Path) -> None:
    network = without_norms()
    task = task_of(SGDConfig(accumulation=2, epochs=1, warmup=0, momentum=0.0, weight_decay=0.0, lr=1.0), network, 2)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    summed: dict[str, torch.Tensor] = {}
    halves = task.batches(0)
    for _ in range(2):
        network.zero_grad()
        batch = next(halves)
        loss = nn.functional.cross_entropy(clip_scores(network, task._frames(batch.pixels))["gesture"],
                                           batch.labels[:, 0]) / 2
        loss.backward()
        for name, p in network.named_parameters():
            summed[name] = summed.get(name, 0) + (p.grad if p.grad is not None else torch.zeros_like(p))
        length = torch.sqrt(sum(g.square().sum() for g in summed.values()))
        summed = {name: g * min(1.0, 0.1 / (length + 1e-6)) for name, g in summed.items()}
    network.zero_grad()
    run(task, LoopConfig(1, accumulation=2, clip_norm=0.1, clip_partial=True, precision="f32"),
        RunFolder(tmp_path / "m.safetensors", {}), Ranks(), lambda _: None)
    for name, p in network.named_parameters():
        assert torch.allclose(p, before[name] - summed[name], atol=1e-6), name


def test_norms_that_stand_still_stand_still() -> None:
    network = build("gsm-resnet18", heads=HEADS_BY_NUMBER, input_size_hw=(32, 32), segments=4)
    task = task_of(SGDConfig(partial_norm=True), network)
    task.set_mode()
    norms = [m for m in network.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [norm.training for norm in norms] == [True] + [False] * (len(norms) - 1)
    learnt = {id(p) for group in task.optimiser.param_groups for p in group["params"]}
    assert {id(p) for p in norms[0].parameters()} <= learnt
    gates = [m for m in network.temporal.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(gate.training for gate in gates)
    assert not learnt & {id(p) for norm in [*norms[1:], *gates] for p in norm.parameters()}


HEADS_BY_NUMBER = {"gesture": len(LABELS)}


def test_multipliers_are_applied_only_when_asked_for() -> None:
    plain, asked = (task_of(SGDConfig(multipliers=multipliers), tiny_network(causal=False)).optimiser.param_groups
                    for multipliers in (False, True))
    assert [(group["lr"], group["weight_decay"]) for group in plain] == [(0.01, 5e-4)]
    assert [(group["lr"], group["weight_decay"]) for group in asked] == [(0.01, 5e-4), (0.02, 0.0), (0.01, 0.0)]
    assert sum(len(group["params"]) for group in asked) == len(plain[0]["params"])


def test_a_causal_network_learns_from_a_teacher_without_labels(tmp_path: Path) -> None:
    teacher = tiny_network(causal=False)
    with torch.no_grad():
        for p in teacher.heads.parameters():
            p.mul_(30)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = causal(tiny_network(1, causal=False), "dropped-one")
    unlabelled = [Segment(f"clip {k}", Media(Path(f"{k}.mp4"))) for k in range(8)]
    seen: list[dict[str, float]] = []
    task = task_of(SGDConfig(lr=0.05, epochs=30, warmup=2), student, 4, teacher, unlabelled)
    run(task, LoopConfig(60, precision="f32", clip_norm=20.0), RunFolder(tmp_path / "m.safetensors", {}), Ranks(),
        lambda _: None, lambda _, figures: seen.append(figures))
    first, last = (np.mean([figures["distillation"] for figures in part]) for part in (seen[:5], seen[-5:]))
    assert last < 0.5 * first
    assert {figures["gesture loss"] for figures in seen} == {0.0}
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])


def test_distillation_is_nothing_for_equal_scores_and_a_divergence_else() -> None:
    ours, theirs = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[3.0, 0.0, 1.0]])
    assert float(distillation_loss(ours, ours, 2.0)) == pytest.approx(0, abs=1e-6)
    p, q = (np.exp(x / 2) / np.exp(x / 2).sum() for x in (theirs.numpy(), ours.numpy()))
    assert float(distillation_loss(ours, theirs, 2.0)) == pytest.approx(4 * float((p * np.log(p / q)).sum()), rel=1e-5)


def test_an_official_checkpoint_becomes_a_causal_network_with_other_heads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build("gsm-bninception", heads={"action": 5})
    for p in network.temporal.parameters():
        nn.init.normal_(p, std=0.1)
    path = tmp_path / "segment8_checkpoint.pth.tar"
    torch.save({"state_dict": {f"module.{official.official_name(name, 'gsm-bninception')}": value
                               for name, value in network.state_dict().items()}}, path)
    config = NetworkConfig.of("any-thing", causal=True)
    kept = initialise(config, str(path), {"verb": 5})
    assert kept.causal
    assert kept.training
    assert torch.equal(kept.heads["verb"].weight, network.heads["action"].weight)
    assert kept.config == NetworkConfig.of("gsm-bninception", causal=True, input_size_hw=(224, 224),
                                           sites=tuple(network.temporal), past_shift=1)
    site = next(iter(network.temporal))
    ours, theirs = (one.temporal[site].conv3D.weight for one in (kept, network))
    assert torch.equal(ours[:, :, 1:], theirs[:, :, :2])
    fresh = initialise(config.replace(causal=False), str(path), {"verb": 7, "noun": 5})
    assert not fresh.causal
    assert {head: linear.out_features for head, linear in fresh.heads.items()} == {"verb": 7, "noun": 5}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of small videos, and a small bidirectional model trained for as many classes."""
    folder = tmp_path_factory.mktemp("project")
    for split, clips in (("train", 2), ("val", 1)):
        for k, label in enumerate(("down", "up")):
            (folder / "data" / split / label).mkdir(parents=True)
            for clip in range(clips):
                writer = cv2.VideoWriter(str(folder / "data" / split / label / f"{label}{clip}.avi"),
                                         cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (48, 40))
                for t in range(10):
                    writer.write(np.full((40, 48, 3), 100 + (15 * t if k else -10 * t), np.uint8))
                writer.release()
    torch.manual_seed(0)
    network = build("gsf-resnet18", heads={"action": 2}, input_size_hw=(32, 32), segments=4)
    recipe = OfficialRecipe(folder / "m.safetensors", segments=4, name="start")
    made = official_recipe.make_contract(recipe, network, Dataset("made", {"action": ("down", "up")}, {}), 1.0)
    save(folder / "start.safetensors", made, {name: value.numpy() for name, value in network.state_dict().items()})
    return folder


def test_the_command_converts_and_distils(project: Path, tmp_path: Path,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    out, start = tmp_path / "live.safetensors", str(project / "start.safetensors")
    code = main(["train", str(project / "data"), "--init", start, "--causal", "--teacher", start, "--out", str(out),
                 "--epochs", "2", "--batch", "2", "--segments", "4", "--validate-every", "1", "--workers", "0",
                 "--precision", "f32"])
    assert code == 0, capsys.readouterr().err
    model = engines.load(out)
    assert model.contract.network.causal is True
    assert model.contract.heads == {"action": ("down", "up")}
    assert model.contract.name == "live"
    assert model.contract.provenance["data"] == "class folders"
    assert model.contract.provenance["recipe"]["teacher"] == "start.safetensors"
    assert model.contract.input_size_hw == (32, 32)
    assert model.network.causal
    metrics = (out.with_suffix(".run") / "metrics.csv").read_text().splitlines()
    assert "distillation" in metrics[0]
    assert "validation accuracy" in metrics[0]


def test_the_command_trains_on_streams_of_any_dataset_from_a_whole_network(
        project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "live.safetensors"
    code = main(["train", str(project / "data"), "--init", str(project / "start.safetensors"), "--out", str(out),
                 "--iterations", "2", "--batch", "2", "--rate", "5", "--workers", "0"])
    assert code == 0, capsys.readouterr().err
    contract_ = engines.load(out).contract
    assert (contract_.architecture, contract_.frame_rate, contract_.input_size_hw) == ("gsf-resnet18", 5.0, (32, 32))
    assert contract_.network.causal is True
    assert contract_.provenance["recipe"]["iterations"] == 2


@pytest.mark.parametrize("recipe", ["official", "gatestream"])
def test_a_class_of_the_data_may_mean_nothing(recipe: str, project: Path, tmp_path: Path) -> None:
    out, some = tmp_path / "live.safetensors", open_dataset(project / "data").heads["action"][0]
    short = ["--iterations", "1", "--trimmed-first", "0"] if recipe == "gatestream" else ["--epochs", "1"]
    assert main(["train", str(project / "data"), "--init", str(project / "start.safetensors"), "--out", str(out),
                 "--recipe", recipe, "--batch", "2", "--workers", "0", "--background", some, *short]) == 0
    assert engines.load(out).contract.background == some


@pytest.mark.parametrize(("options", "message"), [
    (["--size", "96"], "--size 96"),
    (["--recipe", "official", "--idle", "."], "--idle with the recipe official"),
    (["--recipe", "gatestream", "--teacher", "t.safetensors"], "--teacher with the recipe gatestream"),
    (["--recipe", "official", "--without-fold", "9"], "fold 9"),
    (["--arch", "gsf-lenet"], "gsf-lenet"),
    (["--background", "Idel"], "did you mean"),
    (["--kind", "cinema"], "cinema")])
def test_wrong_use_of_the_command_is_named(options: list[str], message: str, project: Path, tmp_path: Path,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["train", str(project / "data"), "--out", str(tmp_path / "m.safetensors"), "--init",
                 str(project / "nothing.safetensors"), *options])
    assert code == 2
    assert message in capsys.readouterr().err


def test_a_teacher_of_something_else_is_refused(project: Path) -> None:
    network = build("gsf-resnet18", heads={"action": 3}, input_size_hw=(32, 32), causal=True)
    with pytest.raises(UsageError, match="labels"):
        official_recipe.load_teacher(str(project / "start.safetensors"), network, {"action": ("a", "b", "c")}, 4)
    with pytest.raises(UsageError, match="model file or an official"):
        official_recipe.load_teacher(str(project / "nothing.safetensors"), network, {"action": ("a", "b", "c")}, 4)


def test_a_teacher_is_asked_by_the_names_of_its_labels(project: Path, tmp_path: Path) -> None:
    network = build("gsf-resnet18", heads={"action": 2}, input_size_hw=(32, 32), causal=True)
    start = engines.load(project / "start.safetensors")

    def teach(theirs: tuple[str, ...], ours: tuple[str, ...]) -> torch.Tensor:
        path = tmp_path / "teacher.safetensors"
        tensors = {name.replace("heads.action", "heads.gesture"): value for name, value in start.tensors.items()}
        save(path, start.contract.model_copy(update={"heads": {"gesture": theirs}}), tensors, half=False)
        return official_recipe.load_teacher(str(path), network, {"action": ours}, 4).heads["gesture"].weight

    same = teach(("down", "up"), ("down", "up"))
    assert torch.equal(teach(("down", "up"), ("up", "down")), same.flip(0))
    assert torch.equal(teach(("0", "1"), ("up", "down")), same)  # imported without names
    with pytest.raises(UsageError, match="with the gesture 'cat'; wanted one of down, up"):
        teach(("cat", "dog"), ("down", "up"))


def test_the_architecture_must_be_that_of_the_start(project: Path, tmp_path: Path) -> None:
    data = Dataset("d", {"action": ("a", "b")}, {"train": [Segment("s", Media(Path("s")), labels={"action": "a"})]})
    recipe = OfficialRecipe(tmp_path / "m.safetensors", str(project / "start.safetensors"), architecture="gsm-resnet50")
    with pytest.raises(UsageError, match="use --arch gsf-resnet18"):
        official_recipe.train(recipe, data)
    with pytest.raises(DatasetError, match="none of them labelled"):
        official_recipe.train(recipe, Dataset("d", {"action": ("a", "b")}, {}))
