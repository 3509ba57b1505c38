"""The named endpoints: what gradio_client, curl and MCP clients call. Same requests, same registry as the tabs.

Each returns (text, wav file or None, stats); until it does it yields what there is so far, so that a caller who cancels
or goes away stops the model. A parameter's component follows from its name and default. Errors are Gradio errors with
the sentence a person would see.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any

import gradio as gr
import numpy as np
from gradio.components import Component
from gradio.processing_utils import save_bytes_to_cache

from models.audio import encode_wav
from models.capabilities import (
    AudioChunk,
    Capability,
    CloneRequest,
    CreateVoiceRequest,
    Event,
    Heard,
    MimicRequest,
    Stats,
    TalkRequest,
    TextDelta,
    UnderstandRequest,
)
from models.errors import UserError
from models.registry import Registry
from tabs.i18n import language_of
from tabs.requests import language_of_request, sampling, task_of, text_of, turns_of, waveform_of
from tabs.visits import visits

Answer = tuple[str, "bytes | None", dict[str, Any]]  # text, wav, stats
Answers = Iterator[Answer]
CLIPS = ("audio", "reference", "speech")
INTERVAL = 0.25  # s between two answers so far; a call is ended between two of them


def build(registry: Registry) -> None:
    """Add every named endpoint to the Blocks being built; nothing of them is visible."""

    def mimic(audio=None, language="auto", model="auto", **tuning) -> Answers:
        """Repeat the words of a clip in its speaker's voice, or the closest the model has."""
        request = MimicRequest(
            audio=waveform_of(audio), language=language_of_request(language), sampling=sampling(**tuning)
        )
        yield from collect(registry.stream(model, request))

    def talk(
        capability: Capability, audio, text, voice, reference, language, history, model, how=None, **tuning
    ) -> Answers:
        request = TalkRequest(
            capability=capability,
            audio=waveform_of(audio) if audio else None,
            text=text_of(text, needed=not audio),
            voice=voice,
            reference=waveform_of(reference, "reference") if reference else None,
            language=language_of_request(language),
            history=turns_of(history),
            sampling=sampling(**tuning),
            **(how or {}),
        )
        yield from collect(registry.stream(model, request), request)

    def roleplay(
        audio=None, text="", voice="default", reference=None, language="auto", history=None, model="auto", **tuning
    ) -> Answers:
        """One turn with the character of a voice. Pass the `history` of the stats on with the next call."""
        yield from talk(Capability.ROLEPLAY, audio, text, voice, reference, language, history, model, **tuning)

    def assist(
        audio=None, text="", voice="default", reference=None, language="auto", history=None, model="auto", **tuning
    ) -> Answers:
        """One turn with the voice assistant. Pass the `history` of the stats on with the next call."""
        yield from talk(Capability.ASSIST, audio, text, voice, reference, language, history, model, **tuning)

    def understand(
        audio=None, task="transcribe_en", question="", model="auto", *, fast_encoder=None, **tuning
    ) -> Answers:
        """Listen to a recording: transcript, speaker, summary, scene, the own `question`, or an answer to its words."""
        request = UnderstandRequest(
            audio=waveform_of(audio, "understand"),
            task=task_of(task),
            question=text_of(question, needed=task == "ask"),
            fast_encoder=_yes_or_no(fast_encoder),
            sampling=sampling(**tuning),
        )
        yield from collect(registry.stream(model, request))

    def create_voice(instruction="", model="auto", **tuning) -> Answers:
        """Speak the sentence quoted in the instruction, in the voice that the instruction describes."""
        request = CreateVoiceRequest(instruction=text_of(instruction), sampling=sampling(**tuning))
        yield from collect(registry.stream(model, request))

    def clone(reference=None, text="", speech=None, language="auto", model="auto", **tuning) -> Answers:
        """Read `text`, or repeat the words of `speech`, in the voice of `reference`."""
        request = CloneRequest(
            reference=waveform_of(reference, "reference"),
            text=text_of(text, needed=not speech),
            speech=waveform_of(speech) if speech else None,
            language=language_of_request(language),
            sampling=sampling(**tuning),
        )
        yield from collect(registry.stream(model, request))

    def live_reply(
        audio=None, text="", model="auto", *, language="auto", speak=True, fast_encoder=None, **tuning
    ) -> Answers:
        """One short reply, as Live chat gives it; `speak=False` gives text alone."""
        how = {"speak": bool(speak), "fast_encoder": _yes_or_no(fast_encoder)}
        yield from talk(Capability.LIVE, audio, text, "default", None, language, None, model, how, **tuning)

    def models() -> list[dict[str, Any]]:
        """The registry's status: every model, where it runs, how big it is, what it is doing."""
        return registry.status()

    for function in (mimic, roleplay, assist, understand, create_voice, clone, live_reply):
        outputs = [
            gr.Textbox(visible=False, label="text"),
            gr.Audio(visible=False, label="audio", format="wav"),
            gr.JSON(visible=False, label="stats"),
        ]
        _endpoint(function, outputs)
    _publish(models, [], [gr.JSON(visible=False, label="models")], "models")


def _yes_or_no(value: Any) -> bool | None:
    return None if value is None else bool(value)


def collect(events: Generator[Event | None, None, None], talk: TalkRequest | None = None) -> Answers:
    """Follow a stream: the answer so far every INTERVAL, at last the whole, with its sound.

    For a conversation the last stats hold its `history` with this turn added.
    """
    text, heard, stats, pcm, rate = "", "", {}, [], 0
    told = time.monotonic()
    with closing(events):
        for event in events:
            if isinstance(event, TextDelta):
                text += event.text
            elif isinstance(event, Heard):
                heard = event.text
            elif isinstance(event, AudioChunk):
                pcm.append(event.pcm)
                rate = event.rate
            elif isinstance(event, Stats):
                stats.update(event.values)
            if time.monotonic() - told >= INTERVAL:
                told = time.monotonic()
                made = sum(map(len, pcm))
                yield text, None, {**stats, "audio_s": round(made / rate, 3)} if made else {**stats}
    if heard:
        stats["heard"] = heard
    if talk:
        earlier = [{"role": turn.role, "text": turn.text} for turn in talk.history]
        this = [{"role": "user", "text": talk.text or heard}, {"role": "assistant", "text": text}]
        stats["history"] = earlier + this
    yield text, encode_wav(np.concatenate(pcm), rate) if pcm else None, stats


TUNING = inspect.signature(sampling).parameters.values()


def _endpoint(function: Callable, outputs: list[Component]) -> None:
    """Wire `function` to an invisible button: its parameters become invisible components.

    **tuning is spelt out; keyword-only ones come last, so that a call by position stays what it was.
    """
    own = inspect.signature(function).parameters.values()
    parameters = [p for p in own if p.kind is p.POSITIONAL_OR_KEYWORD]
    parameters += TUNING if any(p.kind is p.VAR_KEYWORD for p in own) else []
    parameters += [p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in own if p.kind is p.KEYWORD_ONLY]

    def call(request: gr.Request, *values):
        given = dict(zip([p.name for p in parameters], values, strict=True))
        visits.keep(request, *(given.get(name) for name in CLIPS))
        try:
            with closing(function(**given)) as answers:
                for text, wav, stats in answers:
                    path = save_bytes_to_cache(wav, "parley.wav", outputs[1].GRADIO_CACHE) if wav else None
                    visits.keep(request, path)
                    yield text, path, stats
        except UserError as error:
            raise gr.Error(error.sentence(language_of(request)), print_exception=False) from error

    asks = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    call.__signature__ = inspect.Signature([asks, *parameters])  # type: ignore[attr-defined]  # for Gradio's docs
    call.__doc__ = function.__doc__
    inputs = [_component(parameter) for parameter in parameters]
    _publish(call, inputs, outputs, function.__name__)


def _publish(function: Callable, inputs: list[Any], outputs: list[Any], name: str) -> None:
    gr.Button(visible=False).click(
        function, inputs, outputs, api_name=name, queue=True, concurrency_limit=None, show_progress="hidden"
    )


def _component(parameter: inspect.Parameter) -> Component:
    name, default = parameter.name, parameter.default
    if name in CLIPS:
        return gr.Audio(visible=False, type="filepath", label=name)
    if name in ("history", "fast_encoder"):  # the latter: true, false or null
        return gr.JSON(visible=False, label=name)
    if isinstance(default, bool):
        return gr.Checkbox(default, visible=False, label=name)
    if isinstance(default, str):
        return gr.Textbox(default, visible=False, label=name)
    return gr.Number(default, visible=False, label=name)
