"""Every state of every page: nobody is kept out of it, and nothing sticks out of a telephone's screen."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("gradio", reason="needs the page's server (gatestream[ui])")
pytest.importorskip("playwright.sync_api", reason="needs Playwright, which drives the browser")

from page_states import HEIGHT, STATES, WIDTHS, State, open_state
from test_ui import accessible, address, browser, needs_browser, sessions, trainer  # noqa: F401

OUTSIDE = """() => [...document.querySelectorAll("body *")].filter(one => {
    const { left, right, width } = one.getBoundingClientRect(), style = getComputedStyle(one);
    if (!width || style.visibility === "hidden" || one.closest("svg")) return false;
    for (let at = one.parentElement; at; at = at.parentElement)
        if (getComputedStyle(at).overflowX !== "visible") return false;
    return left < -1 || right > innerWidth + 1;
}).map(one => one.outerHTML.slice(0, 120))"""


@needs_browser
@pytest.mark.parametrize("state", STATES, ids=[state.name for state in STATES])
def test_a_state_keeps_nobody_out_and_fits(state: State, browser: Any, address: str) -> None:  # noqa: F811
    with browser.new_context(viewport={"width": min(WIDTHS), "height": HEIGHT}) as context:
        page = context.new_page()
        open_state(state, page, address)
        assert page.evaluate(OUTSIDE) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        accessible(page)
