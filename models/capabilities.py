"""The words of the house: what may be asked of a speech model, and what it answers.

A request is frozen data. An answer is a stream of events. A model is anything with `stream(request)`.
Nothing here knows Gradio, torch, or in which process a model lives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, Union

import numpy as np


class Capability(str, Enum):
    """What a person can ask for. A tab and a named endpoint each; `live` is the conversation of Live chat."""

    MIMIC = "mimic"
    ROLEPLAY = "roleplay"
    ASSIST = "assist"
    UNDERSTAND = "understand"
    CREATE_VOICE = "create_voice"
    CLONE = "clone"
    LIVE = "live"


@dataclass(frozen=True, eq=False)
class Waveform:
    """Mono sound: `samples` float32 [n] within -1…1, at `rate` Hz."""

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


# --- requests --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. None means the model's own default; `seed` -1 means a fresh one, given back in Stats."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int = -1
    max_new_tokens: int | None = None


@dataclass(frozen=True, eq=False)
class Turn:
    """One earlier turn of a conversation; `role` is "user" or "assistant"."""

    role: str
    text: str
    audio: Waveform | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class MimicRequest:
    """Repeat what is said in `audio`, in the speaker's voice (or the closest the model has)."""

    audio: Waveform
    language: str = "auto"  # "auto" | "en" | "zh"
    sampling: Sampling = Sampling()
    capability = Capability.MIMIC


@dataclass(frozen=True, kw_only=True, eq=False)
class TalkRequest:
    """One turn of a conversation, spoken (`audio`) or typed (`text`). `capability` is ROLEPLAY, ASSIST or LIVE.

    `voice` is a voice of the library by id or "default"; `reference` is an own clip and wins over it.
    `character` describes whom a role-play should play, in the person's own words. `speak=False` asks for text alone;
    `transcribe=False` tells a model that writes down what it heard after its answer (Heard) that nobody will read it.
    `fast_encoder` lets a model that has one skip most of the silence that fills a clip up to its window; None is the
    model's own choice (yes on a CPU, no on a GPU), models without one ignore it.
    """

    capability: Capability
    audio: Waveform | None = None
    text: str = ""
    voice: str = "default"
    reference: Waveform | None = None
    character: str = ""
    language: str = "auto"
    history: tuple[Turn, ...] = ()
    speak: bool = True
    transcribe: bool = True
    fast_encoder: bool | None = None
    sampling: Sampling = Sampling()


class UnderstandTask(str, Enum):
    TRANSCRIBE_ZH = "transcribe_zh"
    TRANSCRIBE_EN = "transcribe_en"
    SPEAKER = "speaker"
    SUMMARY_ZH = "summary_zh"
    SUMMARY_EN = "summary_en"
    SCENE_ZH = "scene_zh"
    SCENE_EN = "scene_en"
    ASK = "ask"
    ANSWER = "answer"


@dataclass(frozen=True, kw_only=True, eq=False)
class UnderstandRequest:
    """Answer `task` about `audio` in text; also aloud if `speak`. `question` is read for the task "ask" only.

    "ask" is a question about the recording, "answer" answers what is said in it. `language` is that of the answer where
    the task does not say it; "auto" is the language that is spoken in the clip. `fast_encoder`: see TalkRequest.
    """

    audio: Waveform
    task: UnderstandTask
    question: str = ""
    language: str = "auto"
    speak: bool = False
    fast_encoder: bool | None = None
    sampling: Sampling = Sampling()
    capability = Capability.UNDERSTAND


@dataclass(frozen=True, kw_only=True, eq=False)
class CreateVoiceRequest:
    """Speak the sentence that `instruction` quotes, in the voice that it describes (Chinese or English)."""

    instruction: str
    sampling: Sampling = Sampling()
    capability = Capability.CREATE_VOICE


@dataclass(frozen=True, kw_only=True, eq=False)
class CloneRequest:
    """Say `text`, or the words of `speech`, in the voice of `reference`. One of `text` and `speech` is given."""

    reference: Waveform
    text: str = ""
    speech: Waveform | None = None
    language: str = "auto"
    sampling: Sampling = Sampling()
    capability = Capability.CLONE


@dataclass(frozen=True, kw_only=True, eq=False)
class WarmRequest:
    """Be ready to answer `capability` in `language`: load and warm what it needs, say nothing."""

    capability: Capability
    language: str = "auto"
    sampling: Sampling = Sampling()


Request = Union[MimicRequest, TalkRequest, UnderstandRequest, CreateVoiceRequest, CloneRequest, WarmRequest]  # noqa: UP007


def use_of(request: Request) -> Capability | UnderstandTask:
    """What a request uses of a model, as finely as weights are told apart: the task where there is one."""
    return request.task if isinstance(request, UnderstandRequest) else request.capability


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """What is going on now. `phase` is one of PHASES; `facts` fill the sentence the page makes of it."""

    phase: str
    facts: Mapping[str, Any] = field(default_factory=dict)


PHASES = (
    "starting",  # what
    "connecting",  # what
    "downloading",  # what, done, total (bytes), seconds_left
    "waiting_for_memory",  # what
    "loading",  # what
    "queued",  # place
    "listening",
    "thinking",
    "speaking",
)


@dataclass(frozen=True)
class Heard:
    """What the model understood of the speech it was given (the transcript of the person's turn)."""

    text: str


@dataclass(frozen=True)
class TextDelta:
    """More text of the answer; the deltas of a stream concatenate to the whole text."""

    text: str


@dataclass(frozen=True, eq=False)
class AudioChunk:
    """More sound of the answer: `pcm` int16 [n] mono at `rate` Hz. All chunks of one stream share one rate."""

    pcm: np.ndarray
    rate: int


@dataclass(frozen=True)
class Stats:
    """Facts about the answer, JSON-able. A stream's Stats merge; later values win.

    An engine gives `seed` and what the capability measures (similarity, tags with scores, voice description …);
    the registry adds model, device, precision, time_to_first_audio_s, audio_s and rtf.
    """

    values: Mapping[str, Any]


Event = Union[Status, Heard, TextDelta, AudioChunk, Stats]  # noqa: UP007


class SpeechModel(Protocol):
    """A loaded model. All methods are called on the one thread that owns it (see worker.py)."""

    def stream(self, request: Request) -> Iterator[Event | None]:
        """Answer `request`, an event at a time; None marks a step without news.

        Every step is short (one token, one clause): between steps other requests are advanced, and the stream may be
        closed, which cancels it. What a person may be told is raised as errors.UserError.
        """
        ...

    def unload(self) -> None:
        """Give the memory back. Called when no stream is open."""
        ...

    def memory_bytes(self) -> int:
        """Bytes of the weights in memory now."""
        ...
