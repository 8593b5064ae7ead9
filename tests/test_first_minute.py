"""What a newcomer meets on the page Live: it runs, says what it knows, shows what happened and when."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("gradio", reason="needs the page's server (gatestream[ui])")
pytest.importorskip("playwright.sync_api", reason="needs Playwright, which drives the browser")

from fakes import contract
from test_ui import (  # noqa: F401
    PATIENCE_S,
    address,
    browser,
    connect,
    events,
    needs_browser,
    playwright,
    sessions,
    tab,
    trainer,
    use_own_camera,
    wait,
)

from demo.live_sessions import LiveSessions
from demo.sensitivity import sensitivity
from demo.theme import PAGE
from demo.trainer import Trainer
from engines.model.contract import EventRule
from engines.synthetic import LABELS

OWN_BYTES = 200_000  # of all own pages together
MS = 1000 * PATIENCE_S


@needs_browser
class TestPage:
    def test_an_event_comes_without_a_click_and_the_frame_tells_who_sees_it(self, browser: Any,  # noqa: F811
                                                                             address: str) -> None:  # noqa: F811
        with browser.new_context() as context:
            page = context.new_page()
            page.goto(address)
            live = page.frame_locator("iframe[title=Live]")
            playwright.expect(live.get_by_text("This is a simulation")).to_be_visible(timeout=MS)
            playwright.expect(live.locator("#events li").first).to_be_visible(timeout=MS)
            frame = next(one for one in page.frames if one.url.endswith("/live"))
            for name, seen in (("Video", False), ("Live", True)):
                page.get_by_role("tab", name=name).click()
                wait(lambda seen=seen: (json.loads(frame.evaluate("document.body.dataset.facts"))["rate"] > 0) == seen)

    def test_ones_own_camera_is_one_click_away_with_a_hint_until_it_is_understood(self, tab: Any) -> None:  # noqa: F811
        hint = tab.locator("#first-hint")
        playwright.expect(hint).to_be_hidden()
        use_own_camera(tab)
        playwright.expect(hint).to_be_visible()
        assert "circle" in hint.inner_text()
        wait(lambda: events(tab))
        playwright.expect(hint).to_be_hidden(timeout=MS)
        tab.reload()
        use_own_camera(tab)
        playwright.expect(hint).to_be_hidden()

    def test_what_is_recognised_lights_up_and_is_told_once(self, tab: Any) -> None:  # noqa: F811
        assert tab.locator("[aria-live], [role=status], [role=alert]").count() == 1
        playwright.expect(tab.locator("#known li")).to_have_count(len(LABELS), timeout=MS)
        lit, banner = wait(lambda: tab.evaluate("""() => {
            const lit = [...document.querySelectorAll(".known.lit")].map(one => one.title);
            return lit.length && [lit, document.getElementById("banner").textContent];
        }"""))
        assert lit == [banner]
        wait(lambda: events(tab))
        playwright.expect(tab.locator("#spoken")).to_contain_text("recognised", timeout=MS)

    def test_a_moment_is_shown_again_by_keyboard(self, tab: Any) -> None:  # noqa: F811
        wait(lambda: events(tab))
        tab.click("#freeze")
        event, card = tab.locator("#lanes .event").first, tab.locator("#moment")
        event.focus()
        tab.keyboard.press("Enter")
        playwright.expect(card).to_contain_text("score", timeout=MS)
        assert event.get_attribute("aria-label").split(",")[0] in card.inner_text()
        shown = card.locator("canvas")
        playwright.expect(shown).to_be_visible()
        seen = {wait(lambda: shown.evaluate("canvas => canvas.toDataURL()"))}
        wait(lambda: seen.add(shown.evaluate("canvas => canvas.toDataURL()")) or len(seen) > 2)  # it moves
        tab.keyboard.press("Escape")
        playwright.expect(card).to_be_hidden()
        assert event.evaluate("one => one === document.activeElement")

    def test_pictures_of_the_last_minute_are_kept_and_no_more(self, tab: Any) -> None:  # noqa: F811
        wait(lambda: events(tab))
        for size, most in ((10, 10 * 550), (200_000, 24_000_000)):
            kept = tab.evaluate("""async size => {
                const { tell } = await import("/page/feed.js"), { keptBytes } = await import("/page/moments.js");
                tell("source", "other");
                for (let i = 0; i < 3000; i++) tell("kept", { at: 1e9 + 0.11 * i, jpeg: new Uint8Array(size) });
                return keptBytes();
            }""", size)
            assert 0.9 * most < kept <= most

    def test_sensitivity_is_a_step_in_words(self, tab: Any, sessions: LiveSessions) -> None:  # noqa: F811
        slider = tab.locator("#threshold")
        playwright.expect(slider).to_have_attribute("aria-valuetext", "as the model was made", timeout=MS)
        own = sessions.recognizer.contract.events.open_above
        assert str(own) in slider.get_attribute("title")
        slider.focus()
        for key, lower in (("ArrowRight", True), ("ArrowLeft", None), ("ArrowLeft", False)):
            tab.keyboard.press(key)
            wait(lambda lower=lower: [above < own for above in sessions._open_above.values()] ==
                 ([] if lower is None else [lower]))
        assert tab.inner_text("#above") == "fewer false alarms"


def test_after_a_change_of_source_nothing_of_the_one_before_comes(address: str) -> None:  # noqa: F811
    with connect(f"ws{address[4:]}/live/feed", origin=address) as feed:
        feed.send(json.dumps({"source": "sim://gestures"}))
        wait(lambda: isinstance(feed.recv(PATIENCE_S), bytes))
        feed.send(json.dumps({"source": None}))
        wait(lambda: isinstance(heard := feed.recv(PATIENCE_S), str) and json.loads(heard).get("stopped"))
        feed.send("[]")
        assert "error" in json.loads(feed.recv(PATIENCE_S))


@pytest.mark.parametrize(("label", "way"), [("left", (-1, 0)), ("right", (1, 0)), ("up", (0, -1)), ("down", (0, 1))])
def test_a_stroke_is_drawn_the_way_it_goes(label: str, way: tuple[int, int], address: str) -> None:  # noqa: F811
    drawn = httpx.get(f"{address}/live/pictograms").json()
    assert set(drawn) == set(LABELS)
    points = np.array([point.split(" ") for point in drawn[label]["path"].removeprefix("M").split("L")], float)
    assert points.min() >= 0
    assert points.max() <= 100
    assert (points[-1] - points[0]) @ way > 70


def test_a_circle_is_drawn_counter_clockwise(address: str) -> None:  # noqa: F811
    path = httpx.get(f"{address}/live/pictograms").json()["circlecc"]["path"]
    x, y = np.array([point.split(" ") for point in path.removeprefix("M").split("L")], float).T
    assert float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) < 0  # y goes down


def test_a_label_that_was_recorded_is_shown_as_that_recording(address: str, trainer: Trainer) -> None:  # noqa: F811
    trainer.store.add("star", ((k / 10, np.full((48, 64, 3), 8 * k, np.uint8)) for k in range(12)))
    clip = httpx.get(f"{address}/live/pictograms").json()["star"]["clip"]
    video = httpx.get(f"{address}{clip}")
    trainer.store.remove("star", 1)
    assert video.headers["content-type"] == "video/mp4"
    assert "path" in httpx.get(f"{address}/live/pictograms").json()["star"]


@pytest.mark.parametrize("own", [0.0, 0.3, 0.5, 0.6, 0.96, 0.998, 1.0])
def test_steps_run_from_strict_to_loose_through_the_models_own(own: float) -> None:
    found = sensitivity(contract(events=EventRule(open_above=own, close_below=0.0)))
    thresholds = found["thresholds"]
    assert thresholds[found["own"]] == own
    assert found["measured"] is None
    assert all(0 <= threshold <= 1 for threshold in thresholds)
    assert thresholds == sorted(thresholds, reverse=True)
    if 0 < own < 1:
        assert len(set(thresholds)) == 5


def test_what_was_measured_is_told_of_the_rule_it_was_measured_at() -> None:
    rule = EventRule(open_above=0.9)
    chosen = {"events": rule.model_dump(), "f1": 0.93, "false_events_per_hour": 6.0}
    measured = {"event_thresholds": {"chosen": chosen}}
    assert sensitivity(contract(events=rule, provenance=measured))["measured"] == {"f1": 0.93,
                                                                                    "false_events_per_hour": 6.0}
    other = rule.model_copy(update={"open_above": 0.8})
    assert sensitivity(contract(events=other, provenance=measured))["measured"] is None


def test_own_files_are_light() -> None:
    assert sum(file.stat().st_size for file in PAGE.iterdir()) < OWN_BYTES
