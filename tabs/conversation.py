"""What the Assistant and Role-play tabs share: many turns by voice or text, with undo, retry, clear and export.

A conversation is data in a gr.State: a list of turns as JSON-able dicts,
`{"role": "user", "text": what was typed, "heard": what was made out of the speech, "audio": path of a wav or None}` and
`{"role": "assistant", "text": str, "audio": path of a wav or None}`. A handler gives a new list back only when a turn
has succeeded, so that a turn that fails leaves the conversation as it was.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from models.audio import encode_wav, to_pcm
from models.capabilities import Capability, TalkRequest, Turn
from models.text import say
from tabs.answer import Answer, answer, stop
from tabs.house import GLUE, STREAMING, House
from tabs.i18n import both, language_of, t
from tabs.model_picker import model_picker
from tabs.my_voices import keep_voices
from tabs.requests import language_of_request, text_of, waveform_of
from tabs.shared import (
    ASSETS,
    SILENCE_JS,
    VoicePicker,
    advanced_settings,
    answer_card,
    language_picker,
    press,
    run_buttons,
    speech_input,
    text_input,
    voice_picker,
    wire_stop,
)
from tabs.visits import visits

Turns = list[dict[str, Any]]
Update = dict[Any, Any]


@dataclass(frozen=True)
class Example:
    """One click: something to say, typed or, with `clip`, spoken in a file of assets/examples."""

    text: str
    clip: str | None = None


class _Wish:
    """What is asked in one turn besides the question: the values of the inputs, in the order of `wishes`."""

    def __init__(self, model: str, voice: str, reference: str | None, language: str, character: str, *settings: Any):
        self.model, self.voice, self.reference = model, voice or "default", reference
        self.language, self.character, self.settings = language, character, settings
        self.fresh_seed = False


def build(
    house: House,
    tab: gr.Tab,
    capability: Capability,
    columns: tuple[gr.Column, gr.Column],
    examples: Sequence[Example],
    empty: str,
    character: gr.Textbox | None = None,
) -> VoicePicker:
    """Draw a conversation into two columns of `tab` and wire it. Returns the voice picker, which a tab may set.

    `empty` names the sentence of a conversation without turns; `character` holds whom the model is to play.
    """
    name = capability.value
    with columns[0]:
        speech = speech_input(elem_id=f"parley-{name}-speech")
        at_once = gr.Checkbox(True, label=t("conversation.send_at_once"), container=False)
        text = text_input(lines=1, elem_id=f"parley-{name}-text")
        buttons = run_buttons(t("conversation.send"))
        with gr.Accordion(t("conversation.settings"), open=False):
            voices = voice_picker()
            with gr.Accordion(t("conversation.own_voice_fold"), open=False):
                reference = speech_input(t("conversation.own_voice"))
                keep_voices(reference, tab)
            language = language_picker()
            model = model_picker(house, capability)
        settings = advanced_settings()
    with columns[1]:
        chat = gr.Chatbot(
            label=t("conversation.chat"),
            height=430,
            layout="bubble",
            render_markdown=False,
            group_consecutive_messages=False,
            buttons=[],
            placeholder=both(empty),
            examples=[_example_card(example) for example in examples],  # type: ignore[arg-type]
            elem_id=f"parley-{name}-chat",
            elem_classes="parley-chat",
        )
        with gr.Row(elem_classes="parley-chat-tools"):
            undo = gr.Button(t("conversation.undo"), size="sm", min_width=80)
            retry = gr.Button(t("conversation.retry"), size="sm", min_width=80, elem_id=f"parley-{name}-retry")
            clear = gr.Button(t("conversation.clear"), size="sm", min_width=80)
            export = gr.Button(t("conversation.export"), size="sm", min_width=80)
            exported = gr.DownloadButton(visible="hidden", elem_classes="parley-export-file")
        card = answer_card("conversation.card_empty", show_text=False)
    turns = gr.State([])
    whom: Any = character or gr.State("")
    asleep = [buttons.run, undo, retry, clear, export]  # while an answer is being made; Stop is the way out

    wishes = [model, voices.voice, reference, language, whom, *settings.inputs]
    outputs = [*card.outputs, turns, chat, speech, text, *asleep]

    def run(
        before: Turns, clip: str | None, typed: str, wish: _Wish, request: gr.Request, back: Update, kept: bool = False
    ) -> Iterator[Update]:
        """One turn after `before`; `back` is what the inputs get back if it fails. `kept`: the clip is of a turn."""
        user: dict[str, Any] = {"role": "user", "text": typed.strip(), "heard": "", "audio": None}
        made = Answer()

        def open_stream():
            audio = waveform_of(clip) if clip else None
            user["text"] = text_of(typed, needed=audio is None)
            if audio is not None:
                wav = encode_wav(to_pcm(audio.samples), audio.rate)
                user["audio"] = clip if kept else save_bytes_to_cache(wav, "question.wav", chat.GRADIO_CACHE)
                visits.keep(request, clip, user["audio"])
                audio = waveform_of(user["audio"])  # sample for sample what later turns will give as history
            visits.keep(request, wish.reference)
            sampling = settings.sampling(*wish.settings)
            asked = TalkRequest(
                capability=capability,
                audio=audio,
                text=user["text"],
                voice=wish.voice,
                reference=waveform_of(wish.reference, "reference") if wish.reference else None,
                character=text_of(wish.character, needed=False),
                language=language_of_request(wish.language),
                history=history_of(before),
                transcribe=False,  # the sound itself goes along
                sampling=replace(sampling, seed=-1) if wish.fresh_seed else sampling,
            )
            return house.registry.stream(wish.model, asked)

        yield {speech: None, text: ""} | {button: gr.update(interactive=False) for button in asleep}
        for update in answer(open_stream, card, language_of(request), request, made):
            if card.text in update:
                user["heard"] = made.heard
                update = update | {chat: messages([*before, user, {"role": "assistant", "text": made.text}])}
            yield update
        awake: Update = {button: gr.update(interactive=True) for button in asleep}
        if made.error is not None or not (made.text.strip() or made.pcm):
            yield awake | back
            return
        visits.keep(request, made.path)
        after = [*before, user, {"role": "assistant", "text": made.text.strip(), "audio": made.path}]
        yield awake | {turns: after, chat: messages(after)}

    def send(clip: str | None, typed: str, before: Turns, request: gr.Request, *wish: Any) -> Iterator[Update]:
        back = {speech: clip, text: typed, chat: messages(before)}
        yield from run(before, clip, typed, _Wish(*wish), request, back)

    def send_recording(
        wanted: bool, clip: str | None, before: Turns, request: gr.Request, *wish: Any
    ) -> Iterator[Update]:
        if not wanted or not clip:
            yield {turns: gr.skip()}
            return
        for update in run(before, clip, "", _Wish(*wish), request, {speech: clip, chat: messages(before)}):
            update.pop(text, None)  # what is being typed stays
            yield update

    def again(before: Turns, request: gr.Request, *values: Any) -> Iterator[Update]:
        if len(before) < 2:
            yield {turns: gr.skip()}
            return
        wish = _Wish(*values)
        wish.fresh_seed = True  # a fixed one would give the same answer again
        *earlier, user, _ = before
        for update in run(earlier, user["audio"], user["text"], wish, request, {chat: messages(before)}, kept=True):
            update.pop(text, None)
            update.pop(speech, None)
            yield update

    def send_example(before: Turns, event: gr.SelectData, request: gr.Request, *wish: Any) -> Iterator[Update]:
        example = examples[int(event.index)]  # type: ignore[arg-type]
        clip = str(ASSETS / "examples" / example.clip) if example.clip else None
        typed = "" if clip else example.text
        yield from run(before, clip, typed, _Wish(*wish), request, {chat: messages(before)})

    def take_back(before: Turns) -> Update:
        if len(before) < 2:
            return {turns: before}
        *earlier, user, _ = before
        return {turns: earlier, chat: messages(earlier), text: user["text"]}

    def forget() -> Update:
        return {turns: [], chat: []}

    def pack(before: Turns, request: gr.Request) -> str:
        words = language_of(request)
        if not before:
            raise gr.Error(say("conversation.nothing_to_export", words), print_exception=False)
        path = save_bytes_to_cache(export_zip(before, words), "parley-conversation.zip", exported.GRADIO_CACHE)
        visits.keep(request, path)
        return path

    def hush(request: gr.Request) -> None:
        stop(card, request)

    gr.on([buttons.run.click, text.submit], send, [speech, text, turns, *wishes], outputs, **STREAMING)
    speech.start_recording(hush, None, None, js=SILENCE_JS, **GLUE)
    speech.stop_recording(send_recording, [at_once, speech, turns, *wishes], outputs, **STREAMING)
    retry.click(again, [turns, *wishes], outputs, **STREAMING)
    chat.example_select(send_example, [turns, *wishes], outputs, **STREAMING)
    wire_stop(buttons, card)
    undo.click(take_back, turns, [turns, chat, text], **GLUE)
    clear.click(forget, None, [turns, chat], js=SILENCE_JS, **GLUE)
    packed = export.click(pack, turns, exported, show_progress="minimal", api_visibility="private")
    packed.success(None, None, None, js=press(exported), api_visibility="private")
    return voices


def history_of(turns: Turns) -> tuple[Turn, ...]:
    """The turns as a model takes them; the sound of a question goes along where nobody wrote down what was said."""
    return tuple(
        Turn(turn["role"], words_of(turn), waveform_of(turn["audio"]) if _unwritten(turn) else None) for turn in turns
    )


def _unwritten(turn: dict[str, Any]) -> bool:
    written = turn.get("heard") if turn["role"] == "user" else turn["text"]
    return bool(turn["audio"] and not written)


def words_of(turn: dict[str, Any]) -> str:
    """What was written and said in a turn."""
    return "\n".join(part for part in (turn["text"], turn.get("heard")) if part)


def messages(turns: Turns) -> list[dict[str, Any]]:
    """The turns as gr.Chatbot takes them: text (which it would read as HTML), and the sound to play again."""
    shown = []
    for turn in turns:
        content: list[Any] = [escape(words_of(turn), quote=False)] if words_of(turn) else []
        if turn.get("audio"):
            content.append({"path": turn["audio"]})
        if content:
            shown.append({"role": turn["role"], "content": content})
    return shown


def export_zip(turns: Turns, language: str = "en") -> bytes:
    """A zip of transcript.txt (in the page's language), transcript.json and a wav of each turn that has sound."""
    names = {"user": say("conversation.you", language), "assistant": say("conversation.model", language)}
    lines, listed = [], []
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, turn in enumerate(turns, 1):
            file = None
            if turn["audio"] and Path(turn["audio"]).exists():
                file = f"{number:02d}-{turn['role']}.wav"
                archive.write(turn["audio"], file)
            lines.append(f"{names[turn['role']]}: {words_of(turn)}" + (f"  [{file}]" if file else ""))
            listed.append({"role": turn["role"], "text": words_of(turn), "audio": file})
        archive.writestr("transcript.txt", "\n\n".join(lines) + "\n")
        archive.writestr("transcript.json", json.dumps(listed, ensure_ascii=False, indent=2) + "\n")
    return buffer.getvalue()


def _example_card(example: Example) -> dict[str, Any]:
    return {"text": example.text, "display_text": f"▶ {example.text}" if example.clip else example.text}
