"""From a stream of events to an answer card: live text, live sound, what is being waited for, and at the end the whole.

A handler is

    def go(speech, model, request: gr.Request, *settings):  # Gradio puts the request in by position
        language = language_of(request)
        yield from answer(lambda: registry.stream(model, make_request(...)), card, language, request)

with `outputs=card.outputs`. The stream is given as a function so that what goes wrong while the request is made (bad
audio, no model) is shown in the card as well. To show more than the card, pass an `Answer` and read it between updates:

    made = Answer()
    for update in answer(open_stream, card, language, request, made):
        yield {**update, chatbot: …made.heard, made.text…}

Stopping: `stop(card, request)` (wired by shared.answer_card) ends the stream at its next event or heartbeat and keeps
what was answered; closing the generator (closed tab, `cancels=`) closes the stream at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, Protocol

import gradio as gr
import numpy as np
from gradio.processing_utils import save_bytes_to_cache

from models.audio import encode_wav
from models.capabilities import AudioChunk, Event, Heard, Stats, Status, TextDelta
from models.errors import UserError
from models.text import say
from tabs.i18n import both
from tabs.pace import Pace
from tabs.player import SoundStream

log = logging.getLogger(__name__)

TEXT_INTERVAL = 1 / 15  # s between two updates of the text
MB = 10**6

Update = dict[Any, Any]  # component → its new value


class Card(Protocol):
    """The components an answer is written to (shared.AnswerCard)."""

    status: gr.HTML
    error: gr.HTML
    text: gr.HTML
    player: gr.HTML
    audio: gr.Audio
    mp3: gr.Button
    figures: gr.HTML


@dataclass
class Answer:
    """What was answered so far. `error` is the exception that ended it, `path` the wav file once it is whole."""

    heard: str = ""
    text: str = ""
    stats: dict[str, Any] = field(default_factory=dict)
    pcm: list[np.ndarray] = field(default_factory=list)  # int16 [n] each, at `rate` Hz
    rate: int = 0
    path: str | None = None
    error: Exception | None = None
    stopped: bool = False

    @property
    def samples(self) -> np.ndarray:
        """int16 [n], all the sound."""
        return np.concatenate(self.pcm) if self.pcm else np.zeros(0, np.int16)


def answer(
    open_stream: Callable[[], Iterator[Event | None]],
    card: Card,
    language: str,
    request: gr.Request | None = None,
    made: Answer | None = None,
) -> Iterator[Update]:
    """Run a stream into `card`, an update at a time; never raises: errors stand where the answer would."""
    made = Answer() if made is None else made
    sound = SoundStream()
    stop_wish = _open(card, request)
    stream: Iterator[Event | None] | None = None
    try:
        yield {
            card.status: status_html(Status("thinking"), language),
            card.error: "",
            card.text: "",
            card.player: sound.start(),
            card.audio: gr.update(value=None, visible=False),
            card.mp3: gr.update(visible=False),
            card.figures: "",
        }
        try:
            stream = open_stream()
            yield from _follow(stream, made, card, sound, language, stop_wish)
        except UserError as error:
            made.error = error
        except Exception as error:
            log.exception("An answer failed")
            made.error = error
        if stop_wish.is_set():
            made.stopped = True
        yield _finish(made, card, sound, language)
    finally:
        _close(card, request, stop_wish)
        close = getattr(stream, "close", None)
        if close is not None:
            close()


def _follow(
    stream: Iterator[Event | None],
    made: Answer,
    card: Card,
    sound: SoundStream,
    language: str,
    stop_wish: threading.Event,
) -> Iterator[Update]:
    shown_at, shown = 0.0, ("", "")
    status, pace = "", Pace()
    for event in stream:
        if stop_wish.is_set():
            return
        update: Update = {}
        sounding = pace.see(event)
        if isinstance(event, Heard):
            made.heard = event.text
        elif isinstance(event, TextDelta):
            made.text += event.text
        elif isinstance(event, AudioChunk) and len(event.pcm):
            made.pcm.append(event.pcm)
            made.rate = event.rate
        elif isinstance(event, Stats):
            made.stats.update(event.values)
        phase = pace.slow or (event if isinstance(event, Status) else None)
        if sounding is not None:
            update[card.player] = sound.chunk(sounding.pcm, sounding.rate)
            phase = phase or Status("speaking")
        if phase is not None and (new := status_html(phase, language)) != status:
            update[card.status] = status = new
        if shown != (made.heard, made.text) and time.monotonic() - shown_at >= TEXT_INTERVAL:
            shown_at, shown = time.monotonic(), (made.heard, made.text)
            update[card.text] = text_html(made.heard, made.text)
        if update:
            yield update
        elif event is None:  # a heartbeat: between two yields the handler of a closed page can be ended
            yield {card.status: gr.skip()}
    if (rest := pace.end()) is not None:
        yield {card.player: sound.chunk(rest.pcm, rest.rate)}


def _finish(made: Answer, card: Card, sound: SoundStream, language: str) -> Update:
    """The last update: the whole text, the whole sound as a file, the figures, or the error."""
    update: Update = {
        card.status: "" if made.error else ended_html("stopped" if made.stopped else "finished", language),
        card.error: error_html(made.error, language) if made.error else "",
        card.text: text_html(made.heard, made.text),
        card.player: sound.flush() if made.stopped else sound.end(),
        card.figures: figures_html(made.stats, language),
    }
    if made.pcm:
        wav = encode_wav(made.samples, made.rate)
        made.path = save_bytes_to_cache(wav, "parley.wav", card.audio.GRADIO_CACHE)
        update[card.audio] = gr.update(value=made.path, visible=True)
        update[card.mp3] = gr.update(visible=True)
    return update


# --- stopping ---------------------------------------------------------------------------------------------------------

_running: dict[tuple[str, int], threading.Event] = {}  # (visit, card) → set it to stop the answer that runs there
_running_lock = threading.Lock()


def stop(card: Card, request: gr.Request | None) -> None:
    """Ask the answer that `request`'s visitor is getting in `card` to stop; nothing happens if there is none."""
    with _running_lock:
        wish = _running.get(_place(card, request))
    if wish is not None:
        wish.set()


def _open(card: Card, request: gr.Request | None) -> threading.Event:
    stop(card, request)  # a second press of Go replaces the answer that runs
    wish = threading.Event()
    with _running_lock:
        _running[_place(card, request)] = wish
    return wish


def _close(card: Card, request: gr.Request | None, wish: threading.Event) -> None:
    with _running_lock:
        if _running.get(_place(card, request)) is wish:
            del _running[_place(card, request)]


def _place(card: Card, request: gr.Request | None) -> tuple[str, int]:
    return getattr(request, "session_hash", None) or "", id(card)


# --- the card's HTML --------------------------------------------------------------------------------------------------


def status_html(status: Status, language: str) -> str:
    """What is going on, as HTML with a moving dot; a bar where the share done is known."""
    facts = dict(status.facts)
    bar = ""
    if status.phase == "downloading" and facts.get("total"):
        bar = f'<progress max="1" value="{facts["done"] / facts["total"]:.3f}"></progress>'
    sentence = escape(status_sentence(status, language))
    return f'<p class="parley-status" data-phase="{escape(status.phase)}"><i aria-hidden="true"></i>{sentence}</p>{bar}'


def status_sentence(status: Status, language: str) -> str:
    """What is going on, in words: "Downloading Kokoro: 12 of 92 MB, about 20 s left"."""
    facts = {"what": say("status.the_model", language), **status.facts}
    phase = status.phase
    if phase == "downloading":
        left = facts.get("seconds_left")
        facts |= {"done": round(facts["done"] / MB), "total": round(facts["total"] / MB)}
        if left is not None:
            minutes = left >= 90
            count = round(left / 60) if minutes else max(1, round(left))
            facts["left"] = say("status.minutes" if minutes else "status.seconds", language, count=count)
            phase = "downloading_left"
    return say(f"status.{phase}", language, **facts)


def ended_html(how: str, language: str) -> str:
    """The status line of an answer that "finished" or was "stopped"."""
    return f'<p class="parley-status" data-phase="{how}">{escape(say(f"status.{how}", language))}</p>'


def text_html(heard: str, text: str) -> str:
    """What was heard, quietly, and the answer; both escaped: nothing that a model writes becomes markup."""
    parts = []
    if heard:
        parts.append(f'<p class="parley-heard"><b>{both("page.heard")}</b>{escape(heard)}</p>')
    if text:
        parts.append(f'<div class="parley-said" dir="auto">{escape(text)}</div>')
    return "".join(parts)


def error_html(error: Exception, language: str) -> str:
    """The box that stands where the answer would."""
    sentence = error.sentence(language) if isinstance(error, UserError) else say("status.unknown_error", language)
    return f'<div class="parley-error" role="alert">{escape(sentence)}</div>'


def figures_html(stats: Mapping[str, Any], language: str) -> str:
    """The quiet line: model · device · precision · seed · first sound · length · RTF, as far as they are known."""
    parts = [str(stats[key]) for key in ("model", "device", "precision") if stats.get(key)]
    seed = stats.get("seed")
    if seed is not None:
        parts.append(say("status.seed", language, seed=seed))
    if stats.get("time_to_first_audio_s") is not None:
        parts.append(say("status.first_sound", language, seconds=f"{stats['time_to_first_audio_s']:.1f}"))
    if stats.get("audio_s"):
        parts.append(say("status.audio_length", language, seconds=f"{stats['audio_s']:.1f}"))
    if stats.get("rtf") is not None:
        parts.append(say("status.rtf", language, rtf=f"{stats['rtf']:.2f}"))
    if not parts:
        return ""
    mark = f' data-seed="{int(seed)}"' if seed is not None else ""
    return f'<p class="parley-figures"{mark}>{escape(" · ".join(parts))}</p>'
