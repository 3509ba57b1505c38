"""The Role-play tab: a conversation with a character, one of ours or the person's own."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import gradio as gr
import yaml

from models.capabilities import Capability
from tabs.conversation import Example
from tabs.conversation import build as build_conversation
from tabs.house import GLUE, House
from tabs.i18n import language_of, phrase, t
from tabs.shared import ASSETS, two_columns

OWN = "own"
EXAMPLES = (
    Example("Good evening! Who are you, and what have you been doing today?", "hello_en.ogg"),
    Example("你好呀！你是谁？今天都忙了些什么？", "hello_zh.ogg"),
    Example("What is the strangest thing that ever happened to you?"),
    Example("你最怕的是什么？"),
)


@lru_cache(maxsize=1)
def characters() -> dict[str, dict[str, Any]]:
    """assets/prompts/characters.yaml by id: name, character and voice, each {"en": …, "zh": …}."""
    found = yaml.safe_load((ASSETS / "prompts" / "characters.yaml").read_text(encoding="utf-8"))
    return {character["id"]: character for character in found}


def build(house: House) -> None:
    """Draw the tab and wire it."""
    first = next(iter(characters().values()))
    with gr.Tab(t("roleplay.title"), id="roleplay", elem_id="parley-roleplay") as tab:
        columns = two_columns()
        with columns[0]:
            gr.Markdown(t("roleplay.intro"))
            choices: list[Any] = [(phrase(c["name"]["en"], c["name"]["zh"]), c["id"]) for c in characters().values()]
            preset = gr.Dropdown(
                [*choices, (t("roleplay.own"), OWN)], value=first["id"], label=t("roleplay.preset"), filterable=False
            )
            character = gr.Textbox(
                label=t("roleplay.character"), info=t("roleplay.character_hint"), lines=2, max_lines=8,
                elem_id="parley-roleplay-character",
            )  # fmt: skip
        voices = build_conversation(house, tab, Capability.ROLEPLAY, columns, EXAMPLES, "roleplay.empty", character)
        with columns[0]:
            gr.Markdown(t("roleplay.steadier"), elem_classes="parley-notice")

    def choose(chosen: str, request: gr.Request) -> tuple[Any, Any]:
        if chosen not in characters():
            return "", gr.skip()
        words = language_of(request)
        return characters()[chosen]["character"][words], characters()[chosen]["voice"][words]

    gr.on(None, choose, preset, [character, voices.voice], **GLUE)  # when the page opens, and at each choice
