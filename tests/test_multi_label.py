"""Multi-label heads: what overlaps is true together, learnt and calibrated by label; where they are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeModel, contract
from test_training_sources import HEADS, KITCHEN, TICK_S, clock, dataset, stream_of
from tiny_training import NETWORK, SIZE_HW, tiny_network

from engines.datasets.base import Media
from engines.datasets.selection import with_idle
from engines.errors import UsageError
from engines.model.contract import Contract
from engines.model.file import save
from engines.model.scores import calibrated, probabilities
from engines.training import loop
from engines.training.calibrate import ValidationClip, calibrate
from engines.training.distributed import Ranks
from engines.training.fusion_stage import FusionRecipe
from engines.training.fusion_stage import train as train_fusion
from engines.training.loop import LoopConfig
from engines.training.loss import UNKNOWN, Truth, label_loss, label_window_loss
from engines.training.pixels import normalise
from engines.training.runfolder import RunFolder
from engines.training.sections import LabelledFrame
from engines.training.sources import TrainingSources
from engines.training.stream_loader import StreamLoader, StreamSchedule
from engines.training.stream_task import AdamWConfig, StreamTask
from engines.training.temperature import label_scales, label_temperature
from stream.evaluation.clips import ClipScores, HeadClips
from stream.teaching.teach import check_head
from stream.trackers import event_trackers

SIDES = ("left", "right")
CONTRACT = Contract(name="tiny", network=NETWORK.replace(causal=True), heads={"side": SIDES}, frame_rate=5.0,
                    cover_hw=SIZE_HW, receptive_frames=7, warmup_frames=0, clip_frames=3, window_clips=2,
                    multi_label=("side",))


def test_segments_that_overlap_are_true_together() -> None:
    mirrored = {"noun": {"left hand": "right hand", "right hand": "left hand"}}
    data = dataset(KITCHEN, mirrored=mirrored)
    sources = TrainingSources(data, frame_rate=10.0, read_frames=clock, rendered=False, multi_label=True)
    assert sources.heads == HEADS  # nothing needs no label
    assert sources.background_label is None
    known, seen = list(sources.label_sets), set()
    for frame in islice(stream_of(sources, strength=0.0).frames(), 3000):
        left, right = (float(frame.image_bgr[8, x, 0]) for x in (4, 28))
        time_s, labels = max(left, right) / 10, sources.label_sets[frame.label]
        if all(abs(time_s - edge) > TICK_S for one in KITCHEN for edge in (one.start_s, one.stop_s or 0)):
            here = [one for one in KITCHEN if one.start_s < time_s < (one.stop_s or 0)]
            turned = [sources.mirror(one.labels) if right > left else one.labels for one in here]
            for head, found in zip(HEADS, labels, strict=True):
                assert {HEADS[head][k] for k in found} == {one[head] for one in turned if one and head in one}, time_s
            seen.add(labels)
    assert ((0, 1), (0,)) in seen  # take the cup, and put
    assert ((), ()) in seen
    assert sources.label_sets == known  # nothing new came up: loader workers number them alike


def test_a_label_for_nothing_is_no_label_of_a_multi_label_head(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").touch()
    sources = TrainingSources(with_idle(dataset(KITCHEN), [tmp_path]), frame_rate=10.0, read_frames=clock,
                              rendered=False, multi_label=True)
    assert sources.heads == HEADS
    assert any(one.kind == "idle" for one in sources.idle)
    with pytest.raises(ValueError, match="without a label for background"):
        contract(multi_label=("gesture",))
    with pytest.raises(ValueError, match="no such head"):
        contract(multi_label=("verb",))


def truth(label: int, progress: float, gesture: int = 0, weight: float = 1.0) -> Truth:
    return Truth(torch.tensor([[label]]), torch.tensor([[progress]]), torch.tensor([[weight]]),
                 torch.tensor([[gesture]]), torch.full((1, 1, 2), float("nan")))


@pytest.mark.parametrize(("said", "true", "of", "cost"), [
    ((9, 9, -9), (1, 1, 0), truth(0, 1.0), 0.0),                       # both are right
    ((9, -9, -9), (1, 1, 0), truth(0, 1.0), 9.0),                      # one is missing
    ((9, -9, -9), (1, 1, 0), truth(0, 0.5), 4.5),                      # half of which can be known
    ((9, -9, 9), (1, 0, 0), truth(0, 0.1), 9.0),                       # what is not there is always asked for
    ((-9, 9, -9), (0, 0, 0), truth(UNKNOWN, 0.0, -1), 9.0),            # nothing is going on
    ((-9, 9, -9), (0, 0, 0), truth(UNKNOWN, 1.0, 0), 0.0),             # something without a label of this head is
    ((-9, 9, -9), (0, 0, 0), truth(UNKNOWN, 0.0, -1, 0.0), 0.0),       # just after an action
])
def test_each_label_is_asked_for_by_itself(said: tuple[float, ...], true: tuple[float, ...], of: Truth,
                                           cost: float) -> None:
    logits, wanted = torch.tensor([[said]], dtype=torch.float32), torch.tensor([[true]], dtype=torch.float32)
    assert float(label_loss(logits, of, wanted).mean) == pytest.approx(cost, abs=0.01)
    if of.progress.item() == 1.0:
        assert float(label_window_loss(logits, of, wanted).mean) == pytest.approx(cost, abs=0.01)


def sides(rng: np.random.Generator, left: bool, right: bool) -> np.ndarray:
    image = rng.integers(0, 120, (*SIZE_HW, 3))
    image[:, :8] += 100 * left
    image[:, 8:16] += 100 * right
    return image.astype(np.uint8)


def both(row: int, began: int, rng: np.random.Generator) -> Iterator[LabelledFrame]:
    gesture = 0
    while True:
        kind = int(rng.integers(4))  # neither, left, right, both: truths in this order
        for k in range(int(rng.integers(3, 7))):
            yield LabelledFrame(sides(rng, kind in (1, 3), kind in (2, 3)), kind, (k + 1) / 5 if kind else 0.0,
                                gesture=gesture if kind else -1)
        gesture += 1


def test_a_network_learns_what_is_true_at_a_time_and_is_calibrated_by_label(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clips = [ValidationClip(np.stack([sides(rng, left, right) for _ in range(6)]), np.arange(6) / 5.0,
                            {"side": label}, [{"side": "right"}] if left and right else [])
             for left, right, label in [(1, 0, "left"), (0, 1, "right"), (1, 1, "left"), (0, 0, "background")] * 3]
    loader = StreamLoader(both, StreamSchedule(0, 0.4), range(4), 8)
    task = StreamTask(tiny_network(heads={"side": 2}), CONTRACT, loader, [(UNKNOWN,), (0,), (1,), (0,)],
                      AdamWConfig(backbone_lr=0.01, module_lr=0.01, head_lr=0.03, weight_decay=0.0, frozen_layers=0,
                                  iterations=150, average=0.9), Ranks(),
                      label_sets=[((),), ((0,),), ((1,),), ((0, 1),)], held_out=lambda: clips)
    network = loop.run(task, LoopConfig(150, validate_every=150, precision="f32"), RunFolder(tmp_path / "m.safetensors",
                                                                                          {}), Ranks(), lambda _: None)
    made = calibrate(CONTRACT, network, clips)
    assert made.temperature == {"side": 1.0}
    network.eval()
    for left, right in ((0, 0), (1, 0), (0, 1), (1, 1)):
        frames = torch.from_numpy(np.stack([sides(rng, bool(left), bool(right)) for _ in range(12)]))
        with torch.no_grad():
            features, _ = network(normalise(frames, made)[None], network.fresh_state(1))
            logits = network.scores(features)["side"][0, -1].numpy()
        assert (calibrated(made, "side", logits) > 0.5).tolist() == [bool(left), bool(right)]


def test_labels_get_scales_of_their_own() -> None:
    rng = np.random.default_rng(0)
    meant_NK = rng.normal(0, 2, (4000, 3))
    true_NK = (rng.random(meant_NK.shape) < probabilities(meant_NK, multi_label=True)).astype(float)
    true_NK[:, 2] = 0.0  # never seen: left as it is
    true_NK[::5, 0] = np.nan  # may be true or not
    scales_K, shifts_K = label_scales(list(zip((meant_NK * [3, 0.5, 1] + [1, -2, 0]).astype("f4"), true_NK,
                                               strict=True)))
    assert scales_K == pytest.approx([1 / 3, 2, 1], rel=0.15)
    assert shifts_K == pytest.approx([-1 / 3, 4, 0], abs=0.4)


def test_a_few_clips_that_are_told_apart_make_no_label_sure() -> None:
    scored = [(np.array([sign * 3.0], "f4"), np.array([float(sign > 0)])) for sign in (1, -1) for _ in range(4)]
    (scale,), (shift,) = label_scales(scored)
    assert probabilities(np.array([3.0 * scale + shift]), multi_label=True) == pytest.approx([5 / 6], abs=0.02)
    assert label_temperature(scored) > 1


def test_what_overlaps_a_segment_is_known() -> None:
    endless = replace(KITCHEN[2], stop_s=None)
    assert [[one.overlaps(other) for other in (*KITCHEN, endless)] for one in KITCHEN] == [
        [True, True, False, False], [True, True, False, False], [False, False, True, True]]
    assert not KITCHEN[0].overlaps(replace(KITCHEN[0], media=Media(Path("garden.mp4"))))


def test_what_may_be_true_besides_does_not_count_against_a_calibration() -> None:
    model = contract(heads={"verb": ("take", "put")}, background=None, multi_label=("verb",))
    played = [ClipScores(one, {"verb": np.array([0.99, 0.99])}) for one in KITCHEN[:2]]
    assert HeadClips(played, "verb", model, None).calibration()["after"].ece == pytest.approx(0.01)


def test_a_verb_finds_the_noun_whose_event_overlaps_it_most() -> None:
    heads = {"verb": ("cut", "wash"), "noun": ("bread", "cup")}
    tracker = event_trackers(contract(heads=heads, background=None, multi_label=tuple(heads)), "0")["action"]
    shown = {"cut": (0, 20), "bread": (0, 21), "wash": (12, 40), "cup": (14, 40)}  # ticks of 0.1 s
    told = []
    for k in range(50):
        probs_K = np.array([0.95 if first <= k < last else 0.05 for name in ("cut", "wash", "bread", "cup")
                            for first, last in [shown[name]]])
        told += tracker.update(k / 10, probs_K, probs_K)
    told += tracker.flush()
    closed = [(event.label, event.started_at, event.ended_at) for event in told if not event.open]
    assert closed == [("cut bread", 0.0, 1.9), ("wash cup", 1.2, 3.9)]
    opened, ended = ([event.number for event in told if event.open == is_open] for is_open in (True, False))
    assert opened == ended == [1, 2]
    assert told[-1].score == pytest.approx(0.95 ** 2)


def test_a_multi_label_model_is_refused_where_single_labels_are_needed(tmp_path: Path) -> None:
    save(tmp_path / "m.safetensors", CONTRACT, {name: value.numpy() for name, value in
                                                tiny_network(heads={"side": 2}).state_dict().items()})
    with pytest.raises(UsageError, match="is multi-label"):
        train_fusion(FusionRecipe(tmp_path / "f.safetensors", str(tmp_path / "m.safetensors")), dataset(KITCHEN))
    with pytest.raises(UsageError, match="multi-label"):
        check_head(FakeModel(heads={"gesture": ("a", "b")}, background=None, multi_label=("gesture",)), None)
