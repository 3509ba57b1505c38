"""The compact set's speed, warm, through the registry, as a visitor gets it."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.report import Row
from models import audio
from models.capabilities import (
    AudioChunk,
    Capability,
    CloneRequest,
    CreateVoiceRequest,
    Request,
    Sampling,
    TalkRequest,
    UnderstandRequest,
    UnderstandTask,
    Waveform,
)
from models.registry import Registry
from models.weights import WeightStore

ROUNDS = 5
SILENCE = "median; Kokoro computes 0.8 s of silence around every clause, which is cut off"
QUESTIONS = (  # a new one each round: an asked one would be in the chat model's cache
    "What should I cook for dinner when it is cold outside?",
    "How many legs does a spider have, and why so many?",
    "Which planet is the largest one in our solar system?",
    "Can you tell me a short story about a brave mouse?",
    "What is a good way to fall asleep on a long flight?",
)
READ_ALOUD = (
    "The library opens at nine in the morning and closes at six in the evening. "
    "Please bring your card, and leave large bags at the door."
)
SAMPLES = Path(__file__).resolve().parent.parent / "assets" / "voices" / "samples"


def rows() -> list[Row]:
    """Every figure that needs no page."""
    registry = Registry(WeightStore())
    for _ in registry.load("compact"):
        pass
    reference = audio.load(SAMPLES / "am_michael.ogg", "reference")
    questions = itertools.cycle([spoken(registry, text, 3.0) for text in QUESTIONS])
    ten = spoken(registry, READ_ALOUD, 10.0)

    def question() -> Request:
        return TalkRequest(capability=Capability.ASSIST, audio=next(questions), sampling=Sampling(seed=1))

    def reading() -> Request:
        return CloneRequest(reference=reference, text=READ_ALOUD)

    def creation() -> Request:
        return CreateVoiceRequest(instruction=f'A young woman says calmly: "{READ_ALOUD}"', sampling=Sampling(seed=1))

    def transcription() -> Request:
        return UnderstandRequest(audio=ten, task=UnderstandTask.TRANSCRIBE_EN)

    return [
        Row("3 s question → first sound (Assistant)", first_sound(registry, question), 4.0, "s", "median, warm"),
        Row(
            "text → first sound (Cloning)",
            first_sound(registry, reading),
            1.0,
            "s",
            f"{SILENCE}, reference measured as well",
        ),
        Row("text → first sound (Voice creation)", first_sound(registry, creation), 1.0, "s", SILENCE),
        Row("10 s clip transcribed", whole(registry, transcription), 4.0, "s", "median"),
        Row("RTF of speech", rtf(registry, creation), 0.8, "", "whole answer: computing time over sounding time"),
    ]


def spoken(registry: Registry, text: str, seconds: float) -> Waveform:
    """`text` spoken by a library voice, cut or padded with silence to `seconds`."""
    request = CloneRequest(reference=audio.load(SAMPLES / "af_heart.ogg", "reference"), text=text)
    chunks = [event for event in registry.stream("compact", request) if isinstance(event, AudioChunk)]
    pcm = np.concatenate([chunk.pcm for chunk in chunks])
    wanted = round(seconds * chunks[0].rate)
    return audio.from_pcm(np.pad(pcm, (0, max(0, wanted - len(pcm))))[:wanted], chunks[0].rate)


def first_sound(registry: Registry, make: Callable[[], Request]) -> float:
    """Median seconds from the request to its first sound."""
    return statistics.median(_time(registry, make(), until_sound=True) for _ in range(ROUNDS))


def whole(registry: Registry, make: Callable[[], Request]) -> float:
    """Median seconds from the request to the end of its answer."""
    return statistics.median(_time(registry, make(), until_sound=False) for _ in range(ROUNDS))


def rtf(registry: Registry, make: Callable[[], Request]) -> float:
    """Median of computing time over sounding time, of whole answers."""
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        sounding = 0.0
        for event in registry.stream("compact", make()):
            if isinstance(event, AudioChunk):
                sounding += len(event.pcm) / event.rate
        found.append((time.perf_counter() - start) / sounding)
    return statistics.median(found)


def _time(registry: Registry, request: Request, until_sound: bool) -> float:
    start = time.perf_counter()
    stream = registry.stream("compact", request)
    for event in stream:
        if until_sound and isinstance(event, AudioChunk):
            break
    seconds = time.perf_counter() - start
    stream.close()
    while registry.status_of("compact")["state"] == "answering":  # the step that was cancelled ends by itself
        time.sleep(0.05)
    return seconds
