"""The Understanding tab: a recording is transcribed, described, summarised, or asked about; its sounds over time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from models.capabilities import Capability, UnderstandRequest, UnderstandTask
from models.text import say
from tabs.answer import Answer, answer
from tabs.examples import clips, example_buttons, wire_example
from tabs.house import GLUE, STREAMING, House
from tabs.i18n import language_of, phrase, t
from tabs.model_picker import fast_encoder, fast_wish, model_picker, spec_of
from tabs.pictures import chips_html, tags_html
from tabs.requests import language_of_request, task_of, text_of, waveform_of
from tabs.shared import (
    advanced_settings,
    answer_card,
    notice,
    run_buttons,
    speech_input,
    two_columns,
    wire_stop,
)
from tabs.visits import visits

ASK = UnderstandTask.ASK.value
EXAMPLES = (  # clip, task
    ("story-en", UnderstandTask.TRANSCRIBE_EN),
    ("news-zh", UnderstandTask.TRANSCRIBE_ZH),
    ("story-en", UnderstandTask.SUMMARY_ZH),
    ("news-zh", UnderstandTask.SPEAKER),
    ("harbour", UnderstandTask.SCENE_EN),
)
SHOW_QUESTION_JS = f"task => ({{visible: task === '{ASK}', __type__: 'update'}})"
UNITS = {"pitch_hz": "Hz", "per_minute": "/ min", "loudest_dbfs": "dBFS", "speech_s": "s"}


def build(house: House) -> None:
    """Draw the tab and wire it."""
    with gr.Tab(t("understanding.title"), id="understanding", elem_id="parley-understanding"):
        left, right = two_columns()
        with left:
            gr.Markdown(t("understanding.intro"))
            recording = speech_input(t("understanding.recording"), elem_id="parley-understanding-recording")
            task = gr.Radio(
                [(t(f"understanding.{each.value}"), each.value) for each in UnderstandTask],
                value=UnderstandTask.TRANSCRIBE_EN.value,
                label=t("understanding.task"),
                elem_classes="parley-pills",
                elem_id="parley-understanding-task",
            )
            question = gr.Textbox(
                label=t("understanding.question"),
                placeholder=t("understanding.question_hint"),
                max_lines=4,
                visible=False,
                elem_id="parley-understanding-question",
            )
            aloud = gr.Checkbox(False, label=t("understanding.aloud"), container=False)
            titles = [(clips()[clip].title, say_both(f"understanding.{each.value}")) for clip, each in EXAMPLES]
            examples = example_buttons(
                [phrase(f"{what['en']} · {clip['en']}", f"{what['zh']} · {clip['zh']}") for clip, what in titles]
            )
            buttons = run_buttons(t("understanding.run"))
            model = model_picker(house, Capability.UNDERSTAND)
            fast = fast_encoder(house, Capability.UNDERSTAND, model)
            settings = advanced_settings()
        with right:
            card = answer_card("understanding.empty")
            findings = gr.HTML("", apply_default_css=False, elem_classes="parley-pictures")

    def go(
        path: str | None,
        wanted: str,
        asked: str,
        spoken: bool,
        chosen: str,
        quick_ear: bool,
        request: gr.Request,
        *values: Any,
    ) -> Iterator[dict[Any, Any]]:
        words, made = language_of(request), Answer()

        def open_stream():
            kind = task_of(wanted)
            return house.registry.stream(
                chosen,
                UnderstandRequest(
                    audio=waveform_of(path, "understand"),
                    task=kind,
                    question=text_of(asked, needed=kind is UnderstandTask.ASK),
                    language=language_of_request(words if kind is UnderstandTask.SPEAKER else "auto"),
                    speak=bool(spoken) and speaks(chosen),
                    fast_encoder=fast_wish(house, Capability.UNDERSTAND, chosen, quick_ear),
                    sampling=settings.sampling(*values),
                ),
            )

        visits.keep(request, path)
        yield {findings: ""}
        yield from answer(open_stream, card, words, request, made)
        visits.keep(request, made.path)
        yield {findings: findings_html(made.stats, words)}

    def speaks(chosen: str) -> bool:
        spec = spec_of(house, Capability.UNDERSTAND, chosen)
        return spec is None or spec.speaks_findings

    def offer(chosen: str, wanted: str, request: gr.Request) -> dict[Any, Any]:
        """The tasks that the chosen model serves, their examples, and what else it can do."""
        spec, words = spec_of(house, Capability.UNDERSTAND, chosen), language_of(request)
        served = spec.tasks if spec is not None else tuple(UnderstandTask)
        choices = [(say(f"understanding.{each.value}", words), each.value) for each in UnderstandTask if each in served]
        kept = wanted if wanted in {each.value for each in served} else choices[0][1]
        return {
            task: gr.update(choices=choices, value=kept),
            question: gr.update(visible=kept == ASK),
            aloud: gr.update(visible=speaks(chosen)),
            **{button: gr.update(visible=each in served) for button, (_, each) in zip(examples, EXAMPLES, strict=True)},
        }

    inputs, outputs = [recording, task, question, aloud, model, fast, *settings.inputs], [*card.outputs, findings]
    gr.on([buttons.run.click, question.submit], go, inputs, outputs, **STREAMING)
    model.change(offer, [model, task], [task, question, aloud, *examples], **GLUE)
    task.change(None, task, question, js=SHOW_QUESTION_JS, api_visibility="private")
    for button, (clip, each) in zip(examples, EXAMPLES, strict=True):
        wire_example(button, {recording: clips()[clip].path, task: each.value}, go, inputs, outputs)
    wire_stop(buttons, card)


def say_both(name: str) -> dict[str, str]:
    """The sentence in both languages of the page."""
    return {language: say(name, language) for language in ("en", "zh")}


def findings_html(stats: Mapping[str, Any], language: str) -> str:
    """What was measured: the speaker as chips, what cannot be judged, the sounds over time."""
    html = speaker_html(stats["speaker"], language) if stats.get("speaker") else ""
    if stats.get("tag_timeline"):
        html += tags_html(stats["tag_timeline"])
    return html


def speaker_html(facts: Mapping[str, Any], language: str) -> str:
    """A speaker's facts as chips; what the model cannot judge stands there as such."""
    chips = []
    if facts.get("language") in ("en", "zh"):
        spoken = say("page.chinese" if facts["language"] == "zh" else "page.english", language)
        chips.append((say("understanding.fact_language", language), spoken, True))
    if facts.get("voice") in ("female", "male"):
        sure = f" · {100 * facts.get('voice_probability', 0):.0f} %"
        chips.append((say("understanding.fact_voice", language), say(f"page.{facts['voice']}", language) + sure, True))
    for fact, unit in UNITS.items():
        if facts.get(fact) is not None:
            chips.append((say(f"understanding.fact_{fact}", language), f"{facts[fact]:g} {unit}", True))
    missing = [say(f"understanding.not_judged_{each}", language) for each in facts.get("not_judged", ())]
    chips += [("", name, False) for name in missing]
    remark = say("understanding.not_judged", language) if missing else ""
    return f'<figure class="parley-facts">{chips_html(chips)}{notice(remark) if remark else ""}</figure>'
