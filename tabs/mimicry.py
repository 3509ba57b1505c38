"""The Mimicry tab: a clip is repeated, in its speaker's voice or the closest there is; original and copy compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from models.audio import from_pcm
from models.capabilities import Capability, MimicRequest, Waveform
from tabs.answer import Answer, answer
from tabs.examples import clips_for, example_buttons, wire_example
from tabs.house import STREAMING, House
from tabs.i18n import language_of, t
from tabs.likeness import likeness_html
from tabs.model_picker import model_picker
from tabs.pictures import comparison_html
from tabs.requests import language_of_request, waveform_of
from tabs.shared import (
    advanced_settings,
    answer_card,
    language_picker,
    run_buttons,
    speech_input,
    two_columns,
    wire_stop,
)
from tabs.visits import visits


def build(house: House) -> None:
    """Draw the tab and wire it."""
    with gr.Tab(t("mimicry.title"), id="mimicry", elem_id="parley-mimicry"):
        left, right = two_columns()
        with left:
            gr.Markdown(t("mimicry.intro"))
            speech = speech_input(elem_id="parley-mimicry-speech")
            clips = clips_for("speech")
            examples = example_buttons([clip.label for clip in clips])
            buttons = run_buttons(t("mimicry.run"))
            language = language_picker(t("mimicry.language"))
            model = model_picker(house, Capability.MIMIC)
            settings = advanced_settings()
        with right:
            card = answer_card("mimicry.empty")
            pictures = gr.HTML("", apply_default_css=False, elem_classes="parley-pictures")

    def go(path: str | None, spoken: str, chosen: str, request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
        made, given = Answer(), []

        def open_stream():
            original: Waveform = waveform_of(path)
            given.append(original)
            asked = MimicRequest(
                audio=original, language=language_of_request(spoken), sampling=settings.sampling(*values)
            )
            return house.registry.stream(chosen, asked)

        visits.keep(request, path)
        yield {pictures: ""}
        yield from answer(open_stream, card, language_of(request), request, made)
        visits.keep(request, made.path)
        if made.pcm and not made.error:
            compared = comparison_html(given[0], from_pcm(made.samples, made.rate))
            yield {pictures: likeness_html(made.stats, language_of(request)) + compared}

    inputs, outputs = [speech, language, model, *settings.inputs], [*card.outputs, pictures]
    buttons.run.click(go, inputs, outputs, **STREAMING)
    for button, clip in zip(examples, clips, strict=True):
        wire_example(button, {speech: clip.path, language: "auto"}, go, inputs, outputs)
    wire_stop(buttons, card)
