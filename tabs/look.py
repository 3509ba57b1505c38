"""How the page looks: theme, style sheet, scripts, the slim head. The app uses it like this:

    with gr.Blocks(title="Parley") as demo:
        badge = head_row()
        with gr.Tabs(elem_classes="parley-tabs"): …
    demo.launch(**launch_options(), …)

`badge_html(parts)` makes the badge's value: what runs where.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr
from gradio.themes import Base
from starlette.middleware import Middleware

from tabs.i18n import LanguageMiddleware, both, translations
from tabs.player import WEB, words

FONT = ("system-ui", "-apple-system", "Segoe UI", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
FONT_MONO = ("ui-monospace", "SFMono-Regular", "Consolas", "monospace")
SCRIPTS = ("sound.js", "player.js", "live.js", "page.js")

# One accent, teal: 5.5:1 on white as #0f766e, 9:1 on the dark ground as #5eead4 (WCAG AA asks for 4.5:1).
ACCENT, ACCENT_HOVER, ACCENT_DARK, ACCENT_DARK_HOVER = "#0f766e", "#115e59", "#5eead4", "#99f6e4"


def theme() -> Base:
    """System fonts, one accent, quiet surfaces, in light and dark."""
    base = Base(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        radius_size="lg",
        spacing_size="md",
        font=FONT,
        font_mono=FONT_MONO,
    )
    return base.set(
        body_background_fill="#f6f8f8",
        body_background_fill_dark="#0e1414",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#151d1d",
        background_fill_secondary="#f1f5f4",
        background_fill_secondary_dark="#1a2424",
        body_text_color="#14211f",
        body_text_color_dark="#e6efed",
        body_text_color_subdued="#56706c",
        body_text_color_subdued_dark="#93aba7",
        border_color_primary="#dbe5e3",
        border_color_primary_dark="#2a3736",
        block_background_fill="#ffffff",
        block_background_fill_dark="#151d1d",
        block_border_width="1px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_label_text_color="#56706c",
        block_label_text_color_dark="#93aba7",
        block_title_text_weight="500",
        input_background_fill="#f4f7f6",
        input_background_fill_dark="#101818",
        input_border_color="#c9d6d4",
        input_border_color_dark="#33423f",
        input_border_color_focus=ACCENT,
        input_border_color_focus_dark=ACCENT_DARK,
        button_primary_background_fill=ACCENT,
        button_primary_background_fill_hover=ACCENT_HOVER,
        button_primary_background_fill_dark=ACCENT_DARK,
        button_primary_background_fill_hover_dark=ACCENT_DARK_HOVER,
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#06231f",
        button_secondary_background_fill="#eaf0ef",
        button_secondary_background_fill_hover="#dde7e5",
        button_secondary_background_fill_dark="#223030",
        button_secondary_background_fill_hover_dark="#2b3c3b",
        button_large_text_weight="600",
        color_accent=ACCENT,
        slider_color=ACCENT,
        slider_color_dark=ACCENT_DARK,
        link_text_color=ACCENT,
        link_text_color_dark=ACCENT_DARK,
    )


def head() -> str:
    """Style sheet and scripts, for the page's head; they are there before any component is.

    The style sheet goes here and not into `css`, which Gradio rewrites: it prefixes selectors.
    """
    style = f"<style>{(WEB / 'parley.css').read_text(encoding='utf-8')}</style>"
    return style + "".join(f"<script>{(WEB / name).read_text(encoding='utf-8')}</script>" for name in SCRIPTS)


def launch_options() -> dict[str, Any]:
    """What `launch` needs to make it this page. Call it after the Blocks is built: only then all texts are known."""
    return {
        "theme": theme(),
        "head": head(),
        "i18n": translations(),
        "footer_links": [],
        "ssr_mode": False,  # the page is ours to rewrite, and a Node server beside it would be one more thing to break
        "allowed_paths": [str(WEB.parent)],
        "app_kwargs": {"middleware": [Middleware(LanguageMiddleware)]},
    }


HEAD = f"""
<header class="parley-head">
  <div class="parley-name"><strong>Parley</strong><span>{both("page.tagline")}</span></div>
  <div class="parley-badge">${{value}}</div>
  <div class="parley-tools">
    <button type="button" data-part="stage" aria-pressed="false">{both("page.stage_on")}</button>
    <div role="group" data-part="languages">
      <button type="button" data-code="en" lang="en-GB">English</button>
      <button type="button" data-code="zh" lang="zh-Hans">简体中文</button>
    </div>
  </div>
</header>
"""


def head_row(badge: str = "") -> gr.HTML:
    """Name, badge, big-type switch, language switch. Its value is the badge: update it with `badge_html`."""
    return gr.HTML(
        badge,
        html_template=HEAD,
        js_on_load="window.parley.head(element, props, watch)",
        words=words("language", "stage_hint"),
        apply_default_css=False,
        elem_classes="parley-head-row",
    )


def badge_html(parts: Sequence[str], *, busy: bool = False) -> str:
    """What runs where, e.g. ("Compact", "CPU"); `busy` while it is being loaded."""
    state = "busy" if busy else "ready"
    return f'<span class="parley-chip" data-state="{state}">{escape(" · ".join(parts))}</span>' if parts else ""
