"""The Assistant tab: a conversation by voice or text."""

from __future__ import annotations

import gradio as gr

from models.capabilities import Capability
from tabs.conversation import Example
from tabs.conversation import build as build_conversation
from tabs.house import House
from tabs.i18n import t
from tabs.shared import two_columns

EXAMPLES = (
    Example("What is the tallest mountain in the world, and who climbed it first?", "question_en.ogg"),
    Example("你能推荐一道简单又好吃的家常菜吗？", "question_zh.ogg"),
    Example("Why is the sky blue in the day and red in the evening?"),
    Example("给我讲一个关于小猫的睡前故事。"),
)


def build(house: House) -> None:
    """Draw the tab and wire it."""
    with gr.Tab(t("assistant.title"), id="assistant", elem_id="parley-assistant") as tab:
        columns = two_columns()
        with columns[0]:
            gr.Markdown(t("assistant.intro"))
        build_conversation(house, tab, Capability.ASSIST, columns, EXAMPLES, "assistant.empty")
