"""The Voice creation tab: a voice from a description, written freely or put together; several takes side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import gradio as gr
import yaml

from models.capabilities import Capability, CreateVoiceRequest, Sampling
from models.compact import describe
from models.text import say
from tabs.answer import Answer, answer
from tabs.examples import example_buttons, wire_example
from tabs.house import GLUE, STREAMING, House
from tabs.i18n import both, language_of, phrase, t
from tabs.model_picker import model_picker
from tabs.pictures import chips_html
from tabs.requests import text_of
from tabs.shared import (
    ASSETS,
    advanced_settings,
    answer_card,
    notice,
    run_buttons,
    text_input,
    two_columns,
    wire_stop,
)
from tabs.visits import visits

MOST_TAKES = 3
FIELDS = describe.CHOICES
SEEDS = 2**31  # a seed is 0…SEEDS - 1; the takes after a chosen seed count on


def build(house: House) -> None:
    """Draw the tab and wire it."""
    ready = yaml.safe_load((ASSETS / "prompts" / "voice_examples.yaml").read_text(encoding="utf-8"))
    with gr.Tab(t("voice_creation.title"), id="voice_creation", elem_id="parley-voice-creation"):
        left, right = two_columns()
        with left:
            gr.Markdown(t("voice_creation.intro"))
            instruction = text_input(
                t("voice_creation.instruction"),
                lines=5,
                placeholder=t("voice_creation.instruction_hint"),
                elem_id="parley-creation-instruction",
            )
            with gr.Accordion(t("voice_creation.builder"), open=False, elem_classes="parley-builder"):
                language, fields, sentence = builder()
            examples = example_buttons([phrase(each["title"]["en"], each["title"]["zh"]) for each in ready])
            takes = gr.Radio(
                [(str(n), n) for n in range(1, MOST_TAKES + 1)],
                value=1,
                label=t("voice_creation.takes"),
                elem_classes="parley-pills",
                elem_id="parley-creation-takes",
            )
            buttons = run_buttons(t("voice_creation.run"))
            model = model_picker(house, Capability.CREATE_VOICE)
            settings = advanced_settings()
        with right:
            card = answer_card("voice_creation.empty")
            understood = gr.HTML("", apply_default_css=False, elem_classes="parley-pictures")
            with gr.Column(visible=False, elem_classes="parley-takes") as shelf:
                gr.HTML(f'<p class="parley-small-title">{both("voice_creation.side_by_side")}</p>')
                sounds = [
                    gr.Audio(
                        type="filepath",
                        interactive=False,
                        visible=False,
                        buttons=["download"],
                        waveform_options=gr.WaveformOptions(
                            waveform_color="#8aa8a4", waveform_progress_color="#0f766e"
                        ),
                        elem_classes="parley-recording",
                    )
                    for _ in range(MOST_TAKES)
                ]

    def go(wanted: str, count: int, chosen: str, request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
        words = language_of(request)
        several = int(count or 1) > 1
        hidden = gr.update(value=None, visible=False)
        yield {understood: "", shelf: gr.update(visible=several), **dict.fromkeys(sounds, hidden)}
        for number in range(min(max(int(count or 1), 1), MOST_TAKES)):
            made = Answer()

            def open_stream(number: int = number):
                asked = CreateVoiceRequest(
                    instruction=text_of(wanted), sampling=take(settings.sampling(*values), number)
                )
                return house.registry.stream(chosen, asked)

            described = False
            for update in answer(open_stream, card, words, request, made):
                if "description" in made.stats and not described:
                    described = True
                    update = {**update, understood: understood_html(made.stats["description"], words)}
                if several and made.path and card.audio in update:  # it stands among the takes; the mp3 is made of it
                    update = {**update, card.audio: {**update[card.audio], "visible": "hidden"}}
                yield update
            visits.keep(request, made.path)
            if several and made.path:
                seed = made.stats.get("seed", "–")
                label = say("voice_creation.take", words, number=number + 1, seed=seed)
                yield {sounds[number]: gr.update(value=made.path, label=label, visible=True)}
            if made.error or made.stopped:
                return

    inputs, outputs = [instruction, takes, model, *settings.inputs], [*card.outputs, understood, shelf, *sounds]
    buttons.run.click(go, inputs, outputs, **STREAMING)
    for button, each in zip(examples, ready, strict=True):
        wire_example(button, {instruction: each["instruction"]}, go, inputs, outputs)
    gr.on(
        [field.input for field in (language, *fields, sentence)],
        write,
        [language, sentence, *fields],
        instruction,
        **GLUE,
    )
    wire_stop(buttons, card)


def builder() -> tuple[gr.Radio, list[gr.Dropdown], gr.Textbox]:
    """Draw what a description can be put together from: its language, the fields of FIELDS, the sentence to say."""
    sentence = gr.Textbox(
        label=t("voice_creation.sentence"), placeholder=t("voice_creation.sample_sentence"), max_lines=6,
        elem_id="parley-creation-sentence",
    )  # fmt: skip
    language = gr.Radio(
        [(t("page.auto"), "auto"), (t("page.english"), "en"), (t("page.chinese"), "zh")],
        value="auto",
        label=t("voice_creation.description_language"),
        elem_classes="parley-pills",
    )
    fields = []
    with gr.Row(elem_classes="parley-fields"):
        for name in FIELDS:
            choices: list[Any] = [(t("voice_creation.any"), "")]
            choices += [
                (phrase(entry["say"]["en"], entry["say"]["zh"]), value)
                for value, entry in describe.words()[name].items()
            ]
            fields.append(
                gr.Dropdown(choices, value="", label=t(f"voice_creation.{name}"), filterable=False, min_width=130)
            )
    return language, fields, sentence


def write(language: str, sentence: str, request: gr.Request, *chosen: str) -> str:
    """The instruction that says what was put together."""
    words = language_of(request)
    if language == "auto":
        language = describe.language_of(sentence) if sentence.strip() else words
    values = {name: value or None for name, value in zip(FIELDS, chosen, strict=True)}
    said = sentence.strip() or say("voice_creation.sample_sentence", language)
    return describe.build(**values, sentence=said, language=language)


def take(sampling: Sampling, number: int) -> Sampling:
    """The sampling of the take of this number: a chosen seed counts on, so that takes differ and can be had again."""
    return sampling if sampling.seed < 0 else replace(sampling, seed=(sampling.seed + number) % SEEDS)


def understood_html(description: Mapping[str, Any], language: str) -> str:
    """What a model understood of an instruction, as chips; what it cannot honour is struck through and said."""
    chips = []
    refused = set(description.get("not_honoured") or ())
    for field in FIELDS:
        values = description.get(field) or ()
        for value in [values] if isinstance(values, str) else values:
            entry = describe.words()[field].get(value)
            shown = entry["say"][language] if entry else str(value)
            chips.append((say(f"voice_creation.{field}", language), shown, field not in refused))
    if not chips:
        return f'<figure class="parley-facts">{notice(say("voice_creation.nothing_understood", language))}</figure>'
    remark = notice(say("voice_creation.not_honoured", language)) if refused else ""
    title = f"<figcaption>{both('voice_creation.understood')}</figcaption>"
    return f'<figure class="parley-facts">{title}{chips_html(chips)}{remark}</figure>'
