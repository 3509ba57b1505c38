"""The named endpoints: what gradio_client, curl and MCP clients call. Same requests, same registry as the tabs.

Each returns (text, wav file or None, stats). A parameter's component follows from its annotation; defaults are the
function's own. Errors are Gradio errors with the sentence a person would see.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import numpy as np

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
from tabs.requests import language_of_request, sampling, task_of, text_of, turns_of, waveform_of

Answer = tuple[str, "tuple[int, np.ndarray] | None", dict[str, Any]]


def build(registry: Registry) -> None:
    """Add every named endpoint to the Blocks being built; nothing of them is visible."""

    def mimic(audio=None, language="auto", model="auto", **tuning) -> Answer:
        """Repeat the words of a clip in its speaker's voice, or the closest the model has."""
        request = MimicRequest(
            audio=waveform_of(audio), language=language_of_request(language), sampling=sampling(**tuning)
        )
        return collect(registry.stream(model, request))

    def talk(capability: Capability, audio, text, voice, reference, language, history, model, **tuning) -> Answer:
        request = TalkRequest(
            capability=capability,
            audio=waveform_of(audio) if audio else None,
            text=text_of(text, needed=not audio),
            voice=voice,
            reference=waveform_of(reference, "reference") if reference else None,
            language=language_of_request(language),
            history=turns_of(history),
            sampling=sampling(**tuning),
        )
        return collect(registry.stream(model, request), request)

    def roleplay(
        audio=None, text="", voice="default", reference=None, language="auto", history=None, model="auto", **tuning
    ) -> Answer:
        """One turn with the character of a voice. Pass the `history` of the stats on with the next call."""
        return talk(Capability.ROLEPLAY, audio, text, voice, reference, language, history, model, **tuning)

    def assist(
        audio=None, text="", voice="default", reference=None, language="auto", history=None, model="auto", **tuning
    ) -> Answer:
        """One turn with the voice assistant. Pass the `history` of the stats on with the next call."""
        return talk(Capability.ASSIST, audio, text, voice, reference, language, history, model, **tuning)

    def understand(audio=None, task="transcribe_en", question="", model="auto", **tuning) -> Answer:
        """Answer a question about a recording: transcript, speaker, summary, scene, or the own `question`."""
        request = UnderstandRequest(
            audio=waveform_of(audio, "understand"),
            task=task_of(task),
            question=text_of(question, needed=task == "ask"),
            sampling=sampling(**tuning),
        )
        return collect(registry.stream(model, request))

    def create_voice(instruction="", model="auto", **tuning) -> Answer:
        """Speak the sentence quoted in the instruction, in the voice that the instruction describes."""
        request = CreateVoiceRequest(instruction=text_of(instruction), sampling=sampling(**tuning))
        return collect(registry.stream(model, request))

    def clone(reference=None, text="", speech=None, language="auto", model="auto", **tuning) -> Answer:
        """Read `text`, or repeat the words of `speech`, in the voice of `reference`."""
        request = CloneRequest(
            reference=waveform_of(reference, "reference"),
            text=text_of(text, needed=not speech),
            speech=waveform_of(speech) if speech else None,
            language=language_of_request(language),
            sampling=sampling(**tuning),
        )
        return collect(registry.stream(model, request))

    def live_reply(audio=None, text="", model="auto", **tuning) -> Answer:
        """One short spoken reply, as Live chat gives it."""
        return talk(Capability.LIVE, audio, text, "default", None, "auto", None, model, **tuning)

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
    _endpoint(models, [gr.JSON(visible=False, label="models")])


def collect(events: Iterator[Event | None], talk: TalkRequest | None = None) -> Answer:
    """Gather a whole stream; for a conversation the stats hold its `history` with this turn added."""
    text, heard, stats, pcm, rate = "", "", {}, [], 0
    try:
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
    except UserError as error:
        raise gr.Error(str(error)) from error
    if heard:
        stats["heard"] = heard
    if talk:
        earlier = [{"role": turn.role, "text": turn.text} for turn in talk.history]
        this = [{"role": "user", "text": talk.text or heard}, {"role": "assistant", "text": text}]
        stats["history"] = earlier + this
    return text, (rate, np.concatenate(pcm)) if pcm else None, stats


TUNING = inspect.signature(sampling).parameters.values()


def _endpoint(function: Callable, outputs: list[gr.components.Component]) -> None:
    """Wire `function` to an invisible button: its parameters, with **tuning spelt out, become invisible components."""
    own = inspect.signature(function).parameters.values()
    parameters = [p for p in own if p.kind is not p.VAR_KEYWORD]
    parameters += [p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in TUNING] if len(parameters) < len(own) else []

    def call(*values):
        try:
            return function(**dict(zip([p.name for p in parameters], values, strict=True)))
        except UserError as error:
            raise gr.Error(str(error)) from error

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # names and defaults for the docs
    call.__doc__ = function.__doc__
    inputs = [_component(parameter) for parameter in parameters]
    gr.Button(visible=False).click(
        call, inputs, outputs, api_name=function.__name__, queue=True, concurrency_limit=None, show_progress="hidden"
    )


def _component(parameter: inspect.Parameter) -> gr.components.Component:
    name, default = parameter.name, parameter.default
    if name in ("audio", "reference", "speech"):
        return gr.Audio(visible=False, type="filepath", label=name)
    if name == "history":
        return gr.JSON(visible=False, label=name)
    if isinstance(default, str):
        return gr.Textbox(default, visible=False, label=name)
    return gr.Number(default, visible=False, label=name)
