"""The Live chat tab: hands-free conversation with turn-taking and barge-in; layout and wiring only.

Two kinds of handlers meet in a Session (tabs/live_session.py): `hear` takes 0.12 s of speech at a time and is done in
milliseconds; `converse` makes one reply. A reply that waits is announced by a number in a gr.State, whose change event
starts `converse`; the session, not the number, says which reply it is, so that none is made twice or lost.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr
import numpy as np

from models.capabilities import AudioChunk, Capability, Status, TalkRequest, WarmRequest
from models.compact.activity import FRAME, VoiceActivity
from models.errors import UserError
from models.text import say
from tabs.answer import TEXT_INTERVAL, error_html, figures_html, status_html
from tabs.house import GLUE, STREAMING, House
from tabs.i18n import both, language_of, t
from tabs.live_audio import heard, heard_chunk, live_audio, live_value
from tabs.live_reply import Began, Written, perform
from tabs.live_session import Line, Reaction, Session
from tabs.model_picker import fast_encoder, fast_wish, model_picker, spec_of
from tabs.player import SoundStream, flush_value
from tabs.requests import language_of_request, text_of
from tabs.shared import advanced_settings, language_picker, two_columns, voice_picker
from tabs.visits import visits

log = logging.getLogger(__name__)

PAUSE = (0.3, 1.5, 0.6)  # s: least, most, at first
Update = dict[Any, Any]


class Sessions:
    """The live conversation of every open page. Thread-safe; two people never meet."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def of(self, request: gr.Request) -> Session:
        """The session of the page that sent `request`; it ends with the visit."""
        visit = request.session_hash or ""
        with self._lock:
            session = self._sessions.get(visit)
            if session is None:
                session = self._sessions[visit] = Session()
                visits.at_end(request, lambda: self._end(visit))
            return session

    def _end(self, visit: str) -> None:
        with self._lock:
            session = self._sessions.pop(visit, None)
        if session is not None:
            session.end()


def build(house: House) -> None:
    """Draw the tab and wire it."""
    sessions = Sessions()
    with gr.Tab(t("live_chat.title"), id="live_chat", elem_id="parley-live-chat"):
        left, right = two_columns()
        with left:
            gr.Markdown(t("live_chat.intro"))
            live = live_audio(elem_id="parley-live")
            with gr.Row(equal_height=True, elem_classes="parley-type"):
                text = gr.Textbox(
                    placeholder=t("page.text_hint"),
                    label=t("live_chat.type"),
                    show_label=False,
                    container=False,
                    scale=5,
                    max_lines=4,
                    elem_id="parley-live-text",
                )
                send = gr.Button(t("live_chat.send"), scale=1, min_width=80, elem_id="parley-live-send")
            pause = gr.Slider(
                PAUSE[0], PAUSE[1], PAUSE[2], step=0.1, label=t("live_chat.pause"), info=t("live_chat.pause_info")
            )
            with gr.Accordion(t("live_chat.settings"), open=False):
                model = model_picker(house, Capability.LIVE)
                with gr.Column(elem_id="parley-live-voice") as of_choice:
                    voices = voice_picker()
                    language = language_picker()
                answers = gr.Radio(
                    [(t("live_chat.answers_spoken"), "spoken"), (t("live_chat.answers_text"), "text")],
                    value="spoken",
                    label=t("live_chat.answers"),
                    elem_classes="parley-pills",
                    elem_id="parley-live-answers",
                )
                fast = fast_encoder(house, Capability.LIVE, model)
            settings = advanced_settings()
        with right, gr.Column(elem_classes="parley-card"):
            transcript = gr.Chatbot(
                label=t("live_chat.transcript"),
                placeholder=both("live_chat.empty"),
                height=460,
                layout="bubble",
                render_markdown=False,
                group_consecutive_messages=False,
                buttons=[],
                elem_id="parley-live-transcript",
                elem_classes="parley-chat",
            )
            status = gr.HTML("", apply_default_css=False, elem_classes="parley-line")
            error = gr.HTML("", apply_default_css=False, elem_classes="parley-line")
            with gr.Row(elem_classes="parley-under"):
                figures = gr.HTML("", apply_default_css=False, elem_classes="parley-line", scale=4)
                clear = gr.Button(t("live_chat.clear"), size="sm", min_width=140, scale=1)
        ticket = gr.State(0)  # changes when a reply waits to be made

    # --- the person ---------------------------------------------------------------------------------------------------

    def wishes(chosen: str, voice: str, spoken: str) -> tuple[str, str]:
        """Voice and language to ask for: what the chosen model has no choice of is hidden, and does not count."""
        spec = spec_of(house, Capability.LIVE, chosen)
        if spec is not None and not spec.voices:
            voice = "default"
        only = spec.languages[0] if spec is not None and len(spec.languages) == 1 else None
        return voice, only or language_of_request(spoken)

    def start(chosen: str, voice: str, spoken: str, event: gr.EventData, request: gr.Request) -> Iterator[Update]:
        """The microphone is open: get everything ready, so that the first answer is as quick as the tenth."""
        sessions.of(request).open(str((event._data or {}).get("visit", ""))[:64])
        VoiceActivity().push(np.zeros(FRAME, np.float32))  # loads the network before the first chunk comes
        words = language_of(request)
        yield {error: "", status: ""}
        try:
            warm = WarmRequest(capability=Capability.LIVE, language=wishes(chosen, voice, spoken)[1])
            for step in house.registry.stream(chosen, warm):
                if isinstance(step, Status):
                    yield {status: status_html(step, words)}
            yield {status: _line(say("live_chat.ready", words))}
        except Exception as caught:
            yield {status: "", error: _error(caught, words)}

    def hear(pause_s: float, event: gr.EventData, request: gr.Request) -> tuple[Any, Any]:
        try:
            chunk = heard_chunk(event)
        except ValueError:
            return gr.skip(), gr.skip()
        reaction = sessions.of(request).hear(chunk, min(max(pause_s or PAUSE[2], PAUSE[0]), PAUSE[1]))
        update = heard(chunk)
        if reaction.silence:
            update["value"] = live_value("listening", sound=flush_value(reaction.silence))
        return update, _ticket(reaction)

    def write(typed: str, request: gr.Request) -> Update:
        try:
            reaction = sessions.of(request).write(text_of(typed))
        except UserError as caught:
            return {error: error_html(caught, language_of(request))}
        return {text: "", error: "", live: _silence(reaction), ticket: _ticket(reaction)}

    def interrupt(request: gr.Request) -> Any:
        return _silence(sessions.of(request).interrupt())

    def close(request: gr.Request) -> Update:
        return {live: _silence(sessions.of(request).close()), status: ""}

    def forget(request: gr.Request) -> Update:
        return {live: _silence(sessions.of(request).clear()), transcript: [], status: "", error: "", figures: ""}

    # --- the reply ----------------------------------------------------------------------------------------------------

    def converse(
        chosen: str, voice: str, spoken: str, answer_as: str, quick_ear: bool, request: gr.Request, *values: Any
    ) -> Iterator[Update]:
        session, words = sessions.of(request), language_of(request)
        reply = session.take()
        if reply is None:
            yield {ticket: gr.skip()}
            return

        reply.spoken = answer_as != "text"

        def open_stream():
            own_voice, in_language = wishes(chosen, voice, spoken)
            asked = TalkRequest(
                capability=Capability.LIVE,
                audio=reply.audio,
                text=reply.text,
                voice=own_voice,
                language=in_language,
                history=reply.history,
                speak=reply.spoken,
                fast_encoder=fast_wish(house, Capability.LIVE, chosen, quick_ear),
                sampling=settings.sampling(*values),
            )
            return house.registry.stream(chosen, asked)

        sound, measured, shown_at, phase = SoundStream(reply.stream), {}, 0.0, ""
        failure: Exception | None = None
        steps = perform(session, reply, open_stream, measured)
        try:
            for step in steps:
                if isinstance(step, Began):
                    yield {
                        live: live_value("thinking", sound=sound.start()),
                        transcript: messages(session.lines(), words),
                        status: status_html(Status("thinking"), words),
                        error: "",
                    }
                elif isinstance(step, AudioChunk):
                    update: Update = {live: live_value("thinking", sound=sound.chunk(step.pcm, step.rate))}
                    if sound.seq == 1:
                        update |= {status: "", transcript: messages(session.lines(), words)}
                    yield update
                elif isinstance(step, Written) and time.monotonic() - shown_at >= TEXT_INTERVAL:
                    shown_at = time.monotonic()
                    yield {transcript: messages(session.lines(), words)}
                elif isinstance(step, Status) and sound.seq and step.phase != "speaking":
                    # It goes on to something else, such as writing down what it heard: no more sound comes.
                    yield {live: live_value("listening", sound=sound.end())}
                elif isinstance(step, Status) and step.phase != phase and not sound.seq:
                    phase = step.phase
                    yield {status: status_html(step, words)}
        except Exception as caught:
            failure = caught
        finally:
            steps.close()
        if reply.cancelled.is_set():
            if reply.confirmed.is_set():
                yield {transcript: messages(session.lines(), words)}
            return
        yield {
            live: live_value("listening", sound=sound.end()),
            transcript: messages(session.lines(), words),
            status: _line(say("live_chat.not_caught", words)) if _unclear(failure) else "",
            error: _error(failure, words) if failure and not _unclear(failure) else "",
            figures: _figures({**measured, **reply.figures()}, words),
            text: reply.text if failure and reply.text else gr.skip(),
        }

    # Whoever gives a ticket must be queued: only then Gradio's page learns that the State has changed.
    quick = {**STREAMING, "trigger_mode": "multiple", "concurrency_limit": None}
    model.change(
        lambda chosen: gr.update(visible=(spec := spec_of(house, Capability.LIVE, chosen)) is None or spec.voices),
        model,
        of_choice,
        **GLUE,
    )
    live.start(start, [model, voices.voice, language], [status, error], **quick)
    live.chunk(hear, pause, [live, ticket], **quick)
    live.interrupt(interrupt, None, live, **GLUE)
    live.stop(close, None, [live, status], **GLUE)
    gr.on([send.click, text.submit], write, text, [text, error, live, ticket], **quick)
    clear.click(forget, None, [live, transcript, status, error, figures], **GLUE)
    ticket.change(
        converse,
        [model, voices.voice, language, answers, fast, *settings.inputs],
        [live, transcript, status, error, figures, text, ticket],
        **quick,
    )


def messages(lines: list[Line], language: str) -> list[dict[str, str]]:
    """The transcript as gr.Chatbot takes it; an answer that was interrupted ends in an ellipsis."""
    spoken = say("live_chat.spoken_turn", language)
    return [
        {"role": line.role, "content": escape(line.text or spoken, quote=False) + ("…" if line.cut else "")}
        for line in lines
    ]


def _ticket(reaction: Reaction) -> Any:
    return time.monotonic_ns() if reaction.reply else gr.skip()


def _silence(reaction: Reaction) -> Any:
    return live_value("listening", sound=flush_value(reaction.silence)) if reaction.silence else gr.skip()


def _unclear(failure: Exception | None) -> bool:
    """Whether noise was taken for speech: in a hands-free conversation that is no error."""
    return isinstance(failure, UserError) and failure.code in ("no_speech_heard", "audio_silent", "audio_too_short")


def _line(sentence: str) -> str:
    return f'<p class="parley-notice">{escape(sentence)}</p>'


def _error(caught: Exception, language: str) -> str:
    if not isinstance(caught, UserError):
        log.error("Live chat failed", exc_info=caught)
    return error_html(caught, language)


def _figures(stats: dict[str, Any], language: str) -> str:
    """The line of figures; how soon the answer came stands first, and as data-after-speech for scripts."""
    line, soon = figures_html(stats, language), stats.get("after_speech_s")
    if soon is None:
        return line
    sentence = escape(say("live_chat.after_speech", language, seconds=f"{soon:.1f}"))
    return f'<p class="parley-figures" data-after-speech="{soon}">{sentence}</p>{line}'
