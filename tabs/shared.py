"""Widgets that the tabs share. Each function draws into the Blocks that is open and returns its components; no tab's
logic is here. A tab is two columns: what you give, and the answer card:

    with gr.Tab(t("mimicry.title")):
        left, right = two_columns()
        with left:
            speech = speech_input()
            model = model_picker(house, Capability.MIMIC)
            settings = advanced_settings()
            buttons = run_buttons()
        with right:
            card = answer_card()
        wire_stop(buttons, card)
        buttons.run.click(go, [speech, model, *settings.inputs], card.outputs, …)

`settings.sampling(*values)` makes a Sampling of what those inputs held. See tabs/answer.py for `go`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from html import escape
from typing import Any

import gradio as gr
from gradio.i18n import I18nData
from gradio.processing_utils import save_bytes_to_cache

from models.audio import encode_mp3
from models.capabilities import Sampling
from models.text import FOLDER as TEXTS
from models.text import say
from models.voice_library import listed
from tabs.answer import stop
from tabs.house import GLUE
from tabs.i18n import both, language_of, phrase, t
from tabs.player import player
from tabs.requests import sampling as check_sampling
from tabs.visits import visits

log = logging.getLogger(__name__)

ASSETS = TEXTS.parent
SILENCE_JS = "() => { window.parleyPlayers?.silence(); return []; }"


def two_columns() -> tuple[gr.Column, gr.Column]:
    """What you give (left) and the answer (right); on a phone they stack."""
    with gr.Row(elem_classes="parley-columns", equal_height=False):
        left = gr.Column(scale=5, min_width=320, elem_classes="parley-give")
        right = gr.Column(scale=6, min_width=320, elem_classes="parley-answer")
    return left, right


# --- what a person gives ----------------------------------------------------------------------------------------------


def speech_input(label: I18nData | None = None, **options: Any) -> gr.Audio:
    """Recorder and upload. Gives a path, to be checked by models.audio.load. No `format`: converting wants ffmpeg."""
    speech = gr.Audio(
        sources=["microphone", "upload"],
        type="filepath",
        label=label or t("page.speech"),
        elem_classes="parley-speech",
        **options,
    )
    speech.input(_keep_clip, speech, None, **GLUE)
    return speech


def _keep_clip(path: str | None, request: gr.Request) -> None:
    visits.keep(request, path)  # it goes with the visit, whether or not it was ever used


def text_input(label: I18nData | None = None, lines: int = 2, **options: Any) -> gr.Textbox:
    """A box to type in."""
    options.setdefault("placeholder", t("page.text_hint"))
    return gr.Textbox(label=label or t("page.text"), lines=lines, max_lines=12, **options)


def language_picker(label: I18nData | None = None) -> gr.Radio:
    """ "auto", "en" or "zh"."""
    choices = [(t("page.auto"), "auto"), (t("page.english"), "en"), (t("page.chinese"), "zh")]
    return gr.Radio(choices, value="auto", label=label or t("page.answer_language"), elem_classes="parley-pills")


# --- voices -----------------------------------------------------------------------------------------------------------


@dataclass
class VoicePicker:
    """`voice` gives a voice's id or "default"."""

    voice: gr.Dropdown
    language: gr.Radio
    sample: gr.HTML


def voice_picker(default: str = "default") -> VoicePicker:
    """A voice of the library, filtered by language, with a button that plays its sample."""
    choices: list[Any] = [(t("page.voice_default"), "default")]
    choices += [(phrase(_voice_name(v, "en"), _voice_name(v, "zh")), v["id"]) for v in listed()]
    with gr.Group(elem_classes="parley-voices"):
        with gr.Row(elem_classes="parley-voice-row"):
            voice = gr.Dropdown(choices, value=default, label=t("page.voice"), scale=4, min_width=180)
            sample = gr.HTML(
                value=_sample(default),
                html_template=f'<button type="button" class="parley-listen" hidden>{both("page.listen")}</button>',
                js_on_load="window.parley.sample(element, props, watch)",
                apply_default_css=False,
                min_width=80,
                scale=0,
                elem_classes="parley-sample",
            )
        language = gr.Radio(
            [(t("page.all"), "all"), (t("page.english"), "en"), (t("page.chinese"), "zh")],
            value="all",
            label=t("page.voice_language"),
            show_label=False,
            elem_classes="parley-pills",
        )

    def filtered(wanted: str, chosen: str, request: gr.Request) -> dict[str, Any]:
        words = language_of(request)
        kept = [v for v in listed() if wanted in ("all", v["language"])]
        choices = [(say("page.voice_default", words), "default"), *((_voice_name(v, words), v["id"]) for v in kept)]
        return gr.update(choices=choices, value=chosen if chosen in {c[1] for c in choices} else "default")

    glue = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    language.change(filtered, [language, voice], voice, **glue)
    voice.change(_sample, voice, sample, **glue)
    return VoicePicker(voice, language, sample)


def _voice_name(voice: dict[str, Any], language: str) -> str:
    name = voice["name"][language] if isinstance(voice["name"], dict) else voice["name"]
    spoken = say("page.chinese" if voice["language"] == "zh" else "page.english", language)
    return f"{name} · {spoken} · {say('page.' + voice['gender'], language)}"


def _sample(voice_id: str) -> str:
    """The path of a voice's sample, which the page serves from assets/; empty where there is none."""
    for voice in listed():
        if voice["id"] == voice_id and voice.get("sample"):
            return str(ASSETS / "voices" / voice["sample"])
    return ""


# --- settings ---------------------------------------------------------------------------------------------------------


@dataclass
class AdvancedSettings:
    """While `own` is ticked the model's own values count, whatever the sliders say; seed -1 is a fresh one."""

    own: gr.Checkbox
    temperature: gr.Slider
    top_p: gr.Slider
    top_k: gr.Slider
    max_new_tokens: gr.Slider
    seed: gr.Number

    @property
    def inputs(self) -> list[Any]:
        return [getattr(self, part.name) for part in fields(self)]

    @staticmethod
    def sampling(
        own: bool, temperature: float, top_p: float, top_k: int, max_new_tokens: int, seed: float | None
    ) -> Sampling:
        """What `inputs` held, as the models take it; UserError where a number is out of its range."""
        drawn = -1 if seed is None else int(seed)
        return check_sampling(seed=drawn) if own else check_sampling(temperature, top_p, top_k, drawn, max_new_tokens)


SHOW_UNLESS_JS = "ticked => ({visible: !ticked, __type__: 'update'})"
ROLL_JS = "() => Math.floor(Math.random() * 2 ** 31)"
LAST_SEED_JS = """() => {
  const seen = [...document.querySelectorAll('.parley-figures[data-seed]')].filter(line => line.offsetParent);
  return seen.length ? Number(seen[seen.length - 1].dataset.seed) : -1;
}"""


def advanced_settings() -> AdvancedSettings:
    """Temperature, top-p, top-k, maximum length, and the seed with dice and "same again"; folded."""

    def slider(name: str, low: float, high: float, value: float, step: float) -> gr.Slider:
        words: dict[str, Any] = {"label": t(f"page.{name}"), "info": t(f"page.{name}_info")}
        return gr.Slider(low, high, value, step=step, min_width=180, **words)

    with gr.Accordion(t("page.advanced"), open=False, elem_classes="parley-advanced"):
        own = gr.Checkbox(True, label=t("page.model_default"))
        with gr.Group(visible=False) as sliders:
            with gr.Row():
                temperature = slider("temperature", 0, 2, 0.7, 0.05)
                top_p = slider("top_p", 0.05, 1, 0.9, 0.05)
            with gr.Row():
                top_k = slider("top_k", 0, 200, 40, 1)
                max_new_tokens = slider("max_length", 16, 4096, 512, 16)
        with gr.Row(elem_classes="parley-seed"):
            words: dict[str, Any] = {"label": t("page.seed"), "info": t("page.seed_info")}
            seed = gr.Number(-1, minimum=-1, maximum=2**31 - 1, precision=0, scale=3, min_width=130, **words)
            dice = gr.Button(t("page.dice"), size="sm", min_width=70)
            again = gr.Button(t("page.seed_again"), size="sm", min_width=70)
    own.change(None, own, sliders, js=SHOW_UNLESS_JS, api_visibility="private")
    dice.click(None, None, seed, js=ROLL_JS, api_visibility="private")
    again.click(None, None, seed, js=LAST_SEED_JS, api_visibility="private")
    return AdvancedSettings(own, temperature, top_p, top_k, max_new_tokens, seed)


# --- running and answering --------------------------------------------------------------------------------------------


@dataclass
class RunButtons:
    run: gr.Button
    stop: gr.Button


def run_buttons(label: I18nData | None = None) -> RunButtons:
    """The one primary button of a tab, with Stop beside it."""
    with gr.Row(elem_classes="parley-run"):
        run = gr.Button(label or t("page.run"), variant="primary", size="lg", scale=3, min_width=160)
        halt = gr.Button(t("page.stop"), variant="secondary", size="lg", scale=1, min_width=90)
    return RunButtons(run, halt)


@dataclass(eq=False)
class AnswerCard:
    """Where an answer appears. `outputs` are the components that tabs.answer.answer updates."""

    status: gr.HTML
    error: gr.HTML
    text: gr.HTML
    player: gr.HTML
    audio: gr.Audio
    mp3: gr.Button
    mp3_file: gr.DownloadButton
    figures: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        return [self.status, self.error, self.text, self.player, self.audio, self.mp3, self.figures]


def answer_card(empty: str = "page.answer_empty", *, show_text: bool = True) -> AnswerCard:
    """The answer: status, text, live player, then the whole recording with downloads, and a line of figures.

    `empty` names the sentence that stands there before the first answer; `show_text=False` where a tab shows the text
    in its own way (a conversation).
    """
    with gr.Column(elem_classes="parley-card"):
        gr.HTML(f'<h2 class="parley-card-title">{both("page.answer")}</h2>', apply_default_css=False)
        status = gr.HTML("", apply_default_css=False, elem_classes="parley-line")
        error = gr.HTML("", apply_default_css=False, elem_classes="parley-line")
        text = gr.HTML(
            f'<p class="parley-empty">{both(empty)}</p>',
            html_template='<div aria-live="polite">${value}</div>',
            apply_default_css=False,
            visible=show_text,
            elem_classes="parley-text",
        )
        sound = player(elem_classes="parley-sound")
        audio = gr.Audio(
            label=t("page.recording"),
            type="filepath",
            interactive=False,
            visible=False,
            buttons=["download"],
            waveform_options=gr.WaveformOptions(waveform_color="#8aa8a4", waveform_progress_color="#0f766e"),
            elem_classes="parley-recording",
        )
        with gr.Row(elem_classes="parley-under"):
            figures = gr.HTML("", apply_default_css=False, elem_classes="parley-line", scale=4)
            mp3 = gr.Button(t("page.mp3"), size="sm", visible=False, min_width=120, scale=1)
            mp3_file = gr.DownloadButton(visible="hidden", elem_classes="parley-mp3-file")

    def make_mp3(path: str | None, request: gr.Request) -> str | None:
        try:
            mp3_path = _mp3(path, mp3_file.GRADIO_CACHE)
        except (OSError, RuntimeError) as caught:
            log.exception("An mp3 could not be made")
            raise gr.Error(say("status.mp3_failed", language_of(request)), print_exception=False) from caught
        visits.keep(request, mp3_path)
        return mp3_path

    # The file is made when it is asked for; the hidden button then hands it to the browser.
    made = mp3.click(make_mp3, audio, mp3_file, show_progress="minimal", api_visibility="private")
    made.success(None, None, None, js=press(mp3_file), api_visibility="private")
    return AnswerCard(status, error, text, sound, audio, mp3, mp3_file, figures)


def wire_stop(buttons: RunButtons, card: AnswerCard) -> None:
    """Stop: silence in the browser at once, then the stream ends at its next step and what was answered is kept."""

    def halt(request: gr.Request) -> None:
        stop(card, request)

    buttons.stop.click(halt, None, None, js=SILENCE_JS, queue=False, show_progress="hidden", api_visibility="private")


def press(button: gr.DownloadButton) -> str:
    """JavaScript that presses a download button once its new address has reached the page."""
    button.elem_id = f"parley-press-{button._id}"
    return f"""() => {{ setTimeout(() => {{
      const place = document.getElementById('{button.elem_id}');
      (place?.closest('a') ?? place?.querySelector('a') ?? place)?.click();
    }}, 150); return []; }}"""


def _mp3(path: str | None, folder: str) -> str | None:
    """The wav at `path` as an mp3 in `folder`; gives its path."""
    import soundfile

    if not path:
        return None
    pcm, rate = soundfile.read(path, dtype="int16")
    return save_bytes_to_cache(encode_mp3(pcm, rate), "parley.mp3", folder)


def notice(sentence: str) -> str:
    """A quiet remark as HTML (what the compact set cannot judge, where a voice comes from)."""
    return f'<p class="parley-notice">{escape(sentence)}</p>'
