"""Lessons for streams: what was before an action, rooms that nobody filmed, and how events are named and divided."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import contract
from small_lessons import RNG, D, action, lessons, model
from small_models import make_base

import engines
from engines.model.contract import Contract, EventRule, PoolingRule
from engines.model.pooling import StatisticsWindow, foreground_of
from engines.networks.config import NetworkConfig
from engines.training.few_shot import HeldOut
from engines.training.pooled_examples import (
    AFTER_ACTION,
    AFTER_S,
    BEFORE_S,
    STREAMED,
    choose_moments,
    surround_with_idle,
)
from engines.training.pooled_few_shot import teach_pooled
from engines.training.support_clips import SupportClip
from stream.events import detect_events
from stream.teaching import support_videos
from stream.teaching.support_videos import FeatureExtractor
from stream.teaching.teach import event_rule

NONE_TD = np.zeros((0, 0), np.float32)


def rendered(count: int = 4) -> list[SupportClip]:
    return [SupportClip(f"room/{i}", "background", action("mean", 8, 500 + i, 30), NONE_TD, 0, 0, natural=False,
                        rendered=True) for i in range(count)]


def seeing_foreground() -> Contract:
    grid = NetworkConfig.of("gsf-mobilenetv2", causal=True, input_size_hw=(64, 96), middle_grid=1)
    return contract(network=grid, cover_hw=(64, 96), frame_rate=8.0, pooling=PoolingRule(foreground_s=2.0, hands=2))


def test_actions_are_shown_between_idle_footage_with_the_foreground_that_a_stream_would_have() -> None:
    rule = seeing_foreground()
    network, cells, hands = rule.network.middle_features + 3, rule.foreground_cells, 2

    def clip(name: str, ticks: int, ended: int) -> SupportClip:
        rows_TD = RNG(ticks).standard_normal((ticks, network + cells + hands)).astype(np.float32)
        return SupportClip(name, "background" if not ended else "wave", rows_TD, NONE_TD, 2 * bool(ended), ended)

    wave, idle = clip("wave/0", 12, 10), clip("idle/0", 100, 0)
    shown, *others = surround_with_idle(rule, [wave, replace(wave, natural=False), idle, *rendered()], seed=1)
    assert len(others) == STREAMED - 1
    assert all(len(one.features_TD) != len(shown.features_TD) for one in others)
    after = round(8 * AFTER_S)
    before = len(shown.features_TD) - 12 - after
    assert BEFORE_S[0] * 8 <= before <= BEFORE_S[1] * 8
    assert (shown.started, shown.ended) == (2 + before, 10 + before)
    assert (shown.recording, shown.label, shown.natural) == ("wave/0", "wave", False)
    np.testing.assert_array_equal(shown.features_TD[before:-after, :network], wave.features_TD[:, :network])
    np.testing.assert_array_equal(shown.features_TD[before:-after, -hands:], wave.features_TD[:, -hands:])
    for part_TD in (shown.features_TD[:before, :network], shown.features_TD[-after:, :network]):
        rows = [idle.features_TD[k:k + len(part_TD), :network] for k in range(100)]
        assert any(np.array_equal(one, part_TD) for one in rows)
    foreground = foreground_of(rule)
    assert foreground is not None
    for row_D in shown.features_TD:
        np.testing.assert_array_equal(row_D[network:-hands], foreground.push(row_D[:network]))
    assert surround_with_idle(rule, [wave, *rendered()], seed=1) == []


def test_rendered_rooms_count_as_much_as_a_label_and_are_no_idle_footage_by_themselves() -> None:
    labels = ("label0", "label1", "label2", "background")
    clips = [*lessons("mean", idle=3), *rendered()]
    names = sorted({clip.recording for clip in clips})
    moments = choose_moments(model().contract, clips, labels, names)
    of_room_N = np.array([names[k].startswith("room") for k in moments.recording_N])
    for chosen_N in (of_room_N, *((moments.label_N == k) & ~of_room_N for k in range(4))):
        assert moments.weight_N[chosen_N].sum() == pytest.approx(1)
    taught = teach_pooled(model(), clips, "action", "background")
    assert taught.contract.background == "background"
    assert not any(one.clip.rendered for one in taught.held_out)
    assert taught.report.recordings["background"] == 3
    alone = teach_pooled(model(), [*lessons("mean"), *rendered()], "action", "background")
    without = teach_pooled(model(), lessons("mean"), "action", "background")
    assert alone.contract == without.contract
    assert alone.contract.background is None


def test_what_comes_just_after_an_action_is_named_by_it_and_never_beyond_the_recording() -> None:
    rule = model().contract
    assert rule.pooling is not None
    now = rule.pooling.now_clips * rule.clip_frames
    [whole, cut] = [replace(lessons("mean")[0], ended=10, natural=False, features_TD=action("mean", 0, 0, ticks))
                    for ticks in (40, 11)]
    for clip, expected in ((whole, [9 + round(share * now) for share in AFTER_ACTION]), (cut, [])):
        moments = choose_moments(rule, [clip], ("label0", "background"), [clip.recording])
        assert [tick for tick in moments.tick_N.tolist() if tick > 9] == expected
        assert set(moments.label_N.tolist()) == {0}


def test_a_lesson_with_idle_footage_names_actions_in_a_stream() -> None:
    clips = lessons("mean", idle=3)
    taught = teach_pooled(model(), clips, "action", "background")
    right = []
    for label in range(3):
        stream_TD = np.concatenate([action("mean", 9, 7100 + label, 40), action("mean", label, 8000 + label)])
        learnt = replace(model(), contract=taught.contract, tensors=taught.tensors)
        window = learnt.pooled_heads["action", "window"]
        seen = StatisticsWindow(taught.contract.clip_frames, taught.contract.window_clips, D)
        for row_D in stream_TD:
            seen.push(row_D)
        logits_K = window.logits(seen.statistics(taught.contract.window_clips))
        right.append(taught.contract.heads["action"][int(logits_K.argmax())] == f"label{label}")
    assert all(right)


RULE = EventRule(open_above=0.8, close_below=0.6, min_score=0.35)


def test_an_event_of_spans_is_named_by_the_moment_and_the_window_together() -> None:
    times, labels = np.arange(40) / 10, ["left", "right", "none"]
    now_TK, window_TK = np.tile([0.0, 0.0, 1.0], (40, 1)), np.tile([0.0, 0.0, 1.0], (40, 1))
    now_TK[10:30], window_TK[10:30] = [0.6, 0.4, 0.0], [0.1, 0.9, 0.0]
    for now_s, label, score in ((0.0, "left", 0.6), (0.4, "right", 0.65)):
        [event] = detect_events(times, now_TK, window_TK, labels=labels, background="none", rule=RULE, now_s=now_s)
        assert (event.label, event.score) == (label, pytest.approx(score))


def test_an_event_of_spans_opens_when_the_window_shows_an_action_too_and_lasts_as_long_as_the_moments() -> None:
    times, labels = np.arange(40) / 10, ["left", "none"]
    now_TK, window_TK = np.tile([0.0, 1.0], (40, 1)), np.tile([0.0, 1.0], (40, 1))
    now_TK[10:30], window_TK[:] = [0.9, 0.1], [0.7, 0.3]
    assert len(detect_events(times, now_TK, window_TK, labels=labels, background="none", rule=RULE)) == 1
    assert detect_events(times, now_TK, window_TK, labels=labels, background="none", rule=RULE, now_s=0.4) == []
    window_TK[29] = [0.9, 0.1]
    [event] = detect_events(times, now_TK, window_TK, labels=labels, background="none", rule=RULE, now_s=0.4)
    assert (event.started_at, event.ended_at) == (pytest.approx(0.8), pytest.approx(2.7))


def test_an_event_is_divided_only_into_parts_as_long_as_actions() -> None:
    for seconds in (0.5, 2.0, 9.0):
        held_out = [HeldOut(SupportClip(f"wave/{i}", "wave", NONE_TD, NONE_TD, 0, round(8 * seconds * length)),
                            np.zeros((1, 2)), np.zeros((1, 2))) for i, length in enumerate((0.8, 1.0, 1.5))]
        rule = event_rule(model().contract, "action", held_out)
        assert rule.split_after_s == pytest.approx(seconds, abs=0.1)
    assert event_rule(model().contract, "action", []) == model().contract.events


def test_rendered_rooms_are_played_as_any_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support_videos, "RENDERED_ROOMS", 2)
    monkeypatch.setattr(support_videos, "RENDERED_S", 1.5)
    loaded = engines.load(make_base(tmp_path / "base.safetensors"))
    ticks = round(support_videos.RENDERED_S * loaded.contract.frame_rate)
    played = []
    for _ in range(2):
        engine = engines.compile(loaded, "eager")
        played.append(FeatureExtractor(loaded, engine).play_rendered("idle"))
        engine.close()
    for first, again in zip(*played, strict=True):
        assert (first.label, first.ended, first.rendered, first.natural) == ("idle", 0, True, False)
        assert abs(len(first.features_TD) - ticks) <= loaded.contract.warmup_frames
        np.testing.assert_array_equal(first.features_TD, again.features_TD)
    assert not np.array_equal(played[0][0].features_TD[-1], played[0][1].features_TD[-1])
