"""MiniCPM-o's door: requests in, events out, for every capability, in English and Chinese.

A request becomes the messages of the model card; text and sound come as they are made. What a conversation was read
before is found again by its content (see Kept), so that a second turn reads only what is new.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models import audio, voice_library
from models.audio import SPEECH_RATE, resample, to_pcm
from models.capabilities import (
    AudioChunk,
    Capability,
    CloneRequest,
    CreateVoiceRequest,
    Event,
    Heard,
    MimicRequest,
    Request,
    Sampling,
    Stats,
    Status,
    TalkRequest,
    TextDelta,
    Turn,
    UnderstandRequest,
    UnderstandTask,
    WarmRequest,
    Waveform,
)
from models.catalog import MINICPM_O_FILES, ModelSpec
from models.minicpm_o import chat, model
from models.minicpm_o.language import KVCache
from models.minicpm_o.prompts import Message, Prompt
from models.minicpm_o.sampling import Decoding
from models.minicpm_o.system_prompts import MIMIC, READ_ALOUD, UNDERSTAND, system_prompt
from models.reading import HANZI

RATE = 24_000  # Hz
TEMPERATURE = 0.3  # the model card's
TOKENS = 1024  # of an answer, unless a person asks for more
PROMPT_TOKENS = 8192  # of a conversation; older turns leave (0.5 GB of KV cache at 57 KB a token)
KEPT = 4  # conversations whose KV cache waits for their next turn
TASKS = {
    UnderstandTask.TRANSCRIBE_EN: ("transcribe", "en"),
    UnderstandTask.TRANSCRIBE_ZH: ("transcribe", "zh"),
    UnderstandTask.SPEAKER: ("speaker", "en"),
    UnderstandTask.SUMMARY_EN: ("summary", "en"),
    UnderstandTask.SUMMARY_ZH: ("summary", "zh"),
    UnderstandTask.SCENE_EN: ("scene", "en"),
    UnderstandTask.SCENE_ZH: ("scene", "zh"),
}

# Of the model's own sample clips, the voice that its card names as a steady one for the assistant
STEADY_VOICE = Path("assets") / "input_examples" / "assistant_female_voice.wav"

Steps = Iterator["Event | None"]


def load(spec: ModelSpec, path_of: Callable[[str], Path], device: str, precision: str) -> MiniCPMOModel:
    """The registry's loader. Raises UserError("checkpoint_wrong")."""
    folder = path_of(MINICPM_O_FILES.id)
    steady = heard(audio.load(folder / STEADY_VOICE, "reference")) if (folder / STEADY_VOICE).is_file() else None
    return MiniCPMOModel(model.load(folder, precision, device), steady)


class MiniCPMOModel:
    """A SpeechModel (see capabilities.py). Everything of a request lives in its generator."""

    def __init__(self, parts: model.Parts, voice: np.ndarray | None = None):
        """`voice` float32 [n] at 16 kHz: the assistant's, unless a person chooses another."""
        self._parts, self._voice, self._kept = parts, voice, Kept()

    def stream(self, request: Request) -> Steps:
        """Answer a request, an event at a time; a step is a token, a frame of speech, or a slice of a prompt."""
        if isinstance(request, WarmRequest):
            return self._warm(request)
        return self._answer(request, *messages_of(request, self._voice))

    def unload(self) -> None:
        del self._parts, self._kept

    def memory_bytes(self) -> int:
        return self._parts.memory_bytes() + self._kept.memory_bytes()

    # --- answering ----------------------------------------------------------------------------------------------------

    def _warm(self, request: WarmRequest) -> Steps:
        hello = Message("user", (np.zeros(SPEECH_RATE, np.float32), "…"))
        for _ in self._made([hello], Sampling(max_new_tokens=4), speak=True, keep=False):
            yield None

    def _answer(self, request: Any, messages: list[Message], speak: bool) -> Steps:
        talk, said = isinstance(request, TalkRequest), ""
        yield Status("listening")
        for event in self._made(messages, request.sampling, speak, keep=talk):
            said += event.text if isinstance(event, TextDelta) else ""
            yield event
        if talk and request.transcribe and request.audio is not None:
            yield Status("listening")  # the answer still sounds: time to write down what was asked
            yield from self._transcript(request.audio, _language(request.language, said))

    def _made(self, messages: list[Message], sampling: Sampling, speak: bool, keep: bool) -> Steps:
        prompt = self._parts.prompts.chat(messages, aloud=True, limit=PROMPT_TOKENS)
        if prompt.dropped:
            yield Stats({"dropped_turns": prompt.dropped})
        limit = sampling.max_new_tokens or TOKENS
        options = chat.Options(decoding_of(sampling), limit, speak, max(sampling.seed, 0))
        conversation = self._kept.take(prompt) if keep else Conversation()
        try:
            with closing(chat.stream(self._parts, prompt, conversation.cache, options)) as pieces:
                yield from _events(pieces)
        except GeneratorExit:  # left between two steps: what was read stays true
            if keep:
                self._kept.give(conversation, prompt)
            raise
        if keep:
            self._kept.give(conversation, prompt)

    def _transcript(self, asked: Waveform, language: str) -> Steps:
        task = Message("user", (UNDERSTAND["transcribe"][language], heard(asked)))
        words = ""
        for event in self._made([task], Sampling(), speak=False, keep=False):
            words += event.text if isinstance(event, TextDelta) else ""
            yield None
        yield Heard(words.strip())


def _events(pieces: chat.Steps) -> Steps:
    phase = "listening"
    for piece in pieces:
        if piece is None:
            yield None
            continue
        now = "speaking" if piece.sound is not None else "thinking"
        if now != phase and phase != "speaking":
            phase = now
            yield Status(phase)
        if piece.text:
            yield TextDelta(piece.text)
        if piece.sound is not None:
            yield AudioChunk(to_pcm(piece.sound.float().cpu().numpy()), RATE)


@dataclass
class Conversation:
    """What was read of one; `turns` are the positions at which its questions end."""

    cache: KVCache = field(default_factory=KVCache)
    turns: list[int] = field(default_factory=list)


class Kept:
    """The last conversations. One is found by what it holds, so that none reaches a stranger's turn:

    who has the same beginning word for word, and sound for sound, has said it too. It is taken up at the end of an
    earlier question, and nowhere else: so a question that is asked again is read in the same steps, which in int8 give
    the same numbers only then, and a seed its answer again.
    """

    def __init__(self):
        self._conversations: list[Conversation] = []

    def take(self, prompt: Prompt) -> Conversation:
        """The conversation that the prompt goes on with, up to there, or an empty one. It is the taker's alone."""
        best, ends = None, []
        for kept in self._conversations:
            shared = min(_shared(kept.cache, prompt), _question(prompt) - 1)
            turns = [end for end in kept.turns if end <= shared]
            if len(turns) > len(ends) or (best and len(turns) == len(ends) and kept.cache.length < best.cache.length):
                best, ends = kept, turns
        if best is None:
            return Conversation()
        self._conversations = [kept for kept in self._conversations if kept is not best]
        best.cache.truncate(ends[-1])
        return Conversation(best.cache, ends)

    def give(self, conversation: Conversation, prompt: Prompt) -> None:
        """Keep one that the prompt was read into; the one that was silent longest is forgotten."""
        if conversation.cache.length >= _question(prompt):
            conversation.turns.append(_question(prompt))
        self._conversations = [*self._conversations, conversation][-KEPT:]

    def memory_bytes(self) -> int:
        return sum(kept.cache.memory_bytes() for kept in self._conversations)


def _question(prompt: Prompt) -> int:
    """Where the prompt's last question ends. What follows opens an answer to be spoken, and is in no history."""
    assert prompt.speaker is not None
    return prompt.speaker - 1


def _shared(cache: KVCache, prompt: Prompt) -> int:
    pairs = enumerate(zip(cache.keys, prompt.keys, strict=False))
    return next((place for place, (ours, its) in pairs if ours != its), min(cache.length, len(prompt)))


# --- requests as messages ---------------------------------------------------------------------------------------------


def messages_of(request: Any, voice: np.ndarray | None = None) -> tuple[list[Message], bool]:
    """The conversation that asks for what is requested, and whether it is answered aloud. `voice`: the assistant's."""
    if isinstance(request, MimicRequest):
        return [_user(MIMIC, heard(request.audio))], True
    if isinstance(request, CreateVoiceRequest):
        return [_user(request.instruction)], True
    if isinstance(request, CloneRequest):
        return _clone(request), True
    if isinstance(request, UnderstandRequest):
        return [_user(*_task(request), heard(request.audio))], request.speak
    return _talk(request, voice), request.speak


def _clone(request: CloneRequest) -> list[Message]:
    language = _language(request.language, request.text)
    told = system_prompt("voice_cloning", language, heard(request.reference))
    if request.speech is not None:
        return [told, _user(heard(request.speech))]
    return [told, _user(READ_ALOUD[language], request.text)]


def _task(request: UnderstandRequest) -> list[str]:
    if request.task is UnderstandTask.ASK:
        return [request.question + "\n"]
    if request.task is UnderstandTask.ANSWER:
        return []
    task, language = TASKS[request.task]
    return [UNDERSTAND[task][language]]


def _talk(request: TalkRequest, voice: np.ndarray | None) -> list[Message]:
    mode = "audio_roleplay" if request.capability is Capability.ROLEPLAY else "audio_assistant"
    written = "".join((*(turn.text for turn in request.history), request.text))
    chosen = _voice(request)
    if chosen is None and mode == "audio_assistant":
        chosen = voice
    told = system_prompt(mode, _language(request.language, written), chosen)
    if request.character:
        told = Message(told.role, (*told.parts, request.character))
    said: list[Any] = [request.text] if request.text else []
    said += [heard(request.audio)] if request.audio is not None else []
    return [told, *map(_turn, request.history), _user(*said)]


def _turn(turn: Turn) -> Message:
    said = [turn.text] if turn.text else []
    return Message(turn.role, (*said, *([heard(turn.audio)] if turn.audio is not None else [])))


def _voice(request: TalkRequest) -> np.ndarray | None:
    if request.reference is not None:
        return heard(request.reference)
    if request.voice == "default":
        return None
    return heard(audio.load(voice_library.sample_of(request.voice), "reference"))


def _user(*parts: Any) -> Message:
    return Message("user", parts)


def heard(waveform: Waveform) -> np.ndarray:
    """As the model hears it: float32 [n] at 16 kHz."""
    return resample(waveform, SPEECH_RATE).samples


def _language(wanted: str, text: str) -> str:
    return wanted if wanted != "auto" else "zh" if re.search(f"[{HANZI}]", text) else "en"


def decoding_of(sampling: Sampling) -> Decoding:
    """The model card's settings, but for what a person has chosen."""
    own = Decoding()
    return Decoding(
        temperature=TEMPERATURE if sampling.temperature is None else sampling.temperature,
        top_p=own.top_p if sampling.top_p is None else sampling.top_p,
        top_k=own.top_k if sampling.top_k is None else sampling.top_k,
    )
