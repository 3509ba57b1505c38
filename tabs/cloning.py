"""The Cloning tab: a text, or the words of another recording, in the voice of a reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from models import voice_library
from models.capabilities import Capability, CloneRequest
from models.errors import UserError
from models.text import say
from tabs.answer import Answer, answer
from tabs.examples import clips, example_buttons, wire_example
from tabs.house import STREAMING, House
from tabs.i18n import language_of, t
from tabs.likeness import likeness_html
from tabs.model_picker import model_picker
from tabs.my_voices import keep_voices
from tabs.requests import language_of_request, text_of, waveform_of
from tabs.shared import (
    advanced_settings,
    answer_card,
    language_picker,
    run_buttons,
    speech_input,
    text_input,
    two_columns,
    voice_picker,
    wire_stop,
)
from tabs.visits import visits

READ, CONVERT = "read", "convert"
SHOW_JS = f"""how => [
  {{visible: how === '{READ}', __type__: 'update'}}, {{visible: how === '{CONVERT}', __type__: 'update'}}
]"""


def build(house: House) -> None:
    """Draw the tab and wire it."""
    with gr.Tab(t("cloning.title"), id="cloning", elem_id="parley-cloning") as tab:
        left, right = two_columns()
        with left:
            gr.Markdown(t("cloning.intro"))
            reference = speech_input(t("cloning.reference"), elem_id="parley-cloning-reference")
            keep_voices(reference, tab)
            with gr.Accordion(t("cloning.library"), open=False):
                voices = voice_picker()
            how = gr.Radio(
                [(t("cloning.read"), READ), (t("cloning.convert"), CONVERT)],
                value=READ,
                label=t("cloning.how"),
                elem_classes="parley-pills",
                elem_id="parley-cloning-how",
            )
            text = text_input(t("cloning.text"), lines=4, elem_id="parley-cloning-text")
            speech = speech_input(t("cloning.speech"), visible=False, elem_id="parley-cloning-speech")
            examples = example_buttons([t("cloning.example_en"), t("cloning.example_zh"), t("cloning.example_convert")])
            buttons = run_buttons(t("cloning.run"))
            language = language_picker()
            model = model_picker(house, Capability.CLONE)
            settings = advanced_settings()
        with right:
            card = answer_card("cloning.empty")
            likeness = gr.HTML("", apply_default_css=False, elem_classes="parley-pictures")

    def go(
        path: str | None, voice: str, mode: str, written: str, spoken: str | None, words: str, chosen: str,
        request: gr.Request, *values: Any,
    ) -> Iterator[dict[Any, Any]]:  # fmt: skip
        made = Answer()

        def open_stream():
            read = mode != CONVERT
            asked = CloneRequest(
                reference=waveform_of(path or sample_of(voice), "reference"),
                text=text_of(written) if read else "",
                speech=None if read else waveform_of(spoken),
                language=language_of_request(words),
                sampling=settings.sampling(*values),
            )
            return house.registry.stream(chosen, asked)

        visits.keep(request, path, spoken)
        yield {likeness: ""}
        yield from answer(open_stream, card, language_of(request), request, made)
        visits.keep(request, made.path)
        yield {likeness: likeness_html(made.stats, language_of(request)) if not made.error else ""}

    inputs = [reference, voices.voice, how, text, speech, language, model, *settings.inputs]
    outputs = [*card.outputs, likeness]
    buttons.run.click(go, inputs, outputs, **STREAMING)
    how.change(None, how, [text, speech], js=SHOW_JS, api_visibility="private")
    english, mandarin = clips()["story-en"].path, clips()["news-zh"].path
    fills: list[dict[Any, Any]] = [
        {reference: english, how: READ, text: say("cloning.sample_text", "en"), language: "auto"},
        {reference: mandarin, how: READ, text: say("cloning.sample_text", "zh"), language: "auto"},
        {reference: mandarin, how: CONVERT, speech: english, language: "auto"},
    ]
    for button, fill in zip(examples, fills, strict=True):
        wire_example(button, fill, go, inputs, outputs)
    wire_stop(buttons, card)


def sample_of(voice: str) -> str:
    """The sample clip of a library voice, as a reference. UserError where none was chosen or it is unknown."""
    if voice == "default" or not voice:
        raise UserError("no_reference")
    return str(voice_library.sample_of(voice))
