"""The look of the Gradio frame: the tokens and the mark that our own pages have, too."""

import inspect
from pathlib import Path

import gradio as gr

PAGE = Path(__file__).parent / "page"
HEAD = '<link rel="icon" href="/page/mark.svg">' + "".join(
    f'<link rel="stylesheet" href="/page/{sheet}">' for sheet in ("tokens.css", "frame.css"))
# Gradio's names for the colours of tokens.css, which know light and dark themselves.
TOKENS = {
    "body_background_fill": "paper", "background_fill_primary": "surface", "background_fill_secondary": "paper",
    "block_background_fill": "surface", "block_label_background_fill": "surface", "input_background_fill": "surface",
    "body_text_color": "ink", "block_label_text_color": "soft", "block_title_text_color": "soft",
    "body_text_color_subdued": "soft", "block_info_text_color": "soft", "border_color_primary": "line",
    "block_border_color": "line", "input_border_color": "edge", "input_placeholder_color": "soft",
    "border_color_accent": "accent", "color_accent": "accent", "color_accent_soft": "accent-fill",
    "button_primary_background_fill": "accent", "button_primary_background_fill_hover": "accent",
    "button_primary_text_color": "on-accent", "button_secondary_background_fill": "surface",
    "button_secondary_background_fill_hover": "fill", "button_secondary_text_color": "ink",
    "button_secondary_border_color": "edge", "link_text_color": "accent", "link_text_color_hover": "accent",
    "link_text_color_visited": "accent", "link_text_color_active": "accent",
    "table_even_background_fill": "surface", "table_odd_background_fill": "paper", "table_border_color": "line",
    "table_text_color": "ink"}


def make_theme() -> gr.themes.Base:
    """Gradio's plainest theme in our colours, with fonts of this machine: its own would be fetched from the network."""
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    known = inspect.signature(theme.set).parameters
    return theme.set(**{name: f"var(--{token})" for plain, token in TOKENS.items()
                        for name in (plain, f"{plain}_dark") if name in known})


def header_html() -> str:
    """The name and the mark."""
    return f'<div class="shell">{(PAGE / "mark.svg").read_text(encoding="utf-8")}gatestream</div>'
