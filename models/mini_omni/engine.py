"""Mini-Omni's door: requests in, events out. English, one voice, one turn at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.audio import SPEECH_RATE, resample
from models.capabilities import (
    AudioChunk,
    Event,
    Heard,
    Request,
    Sampling,
    Stats,
    Status,
    TalkRequest,
    TextDelta,
    UnderstandRequest,
    UnderstandTask,
    WarmRequest,
    Waveform,
)
from models.catalog import MINI_OMNI, ModelSpec
from models.errors import UserError
from models.mini_omni import checkpoint
from models.mini_omni.codec import RATE, Codec, to_pcm
from models.mini_omni.encoder import AudioEncoder
from models.mini_omni.generate import Column, Frames, Sampler, columns
from models.mini_omni.model import MiniOmni
from models.mini_omni.prompts import Prompt, Task, speech_prompt, text_prompt
from models.mini_omni.tokenizer import Tokenizer, Writing

Steps = Iterator["Event | None"]
Heeded = Generator["Event | None", None, "tuple[torch.Tensor, Prompt]"]

POSITION_S = 0.02  # s of sound that one feature stands for
FIRST_FRAMES = 4  # decoded together at first, so that playback begins with some lead
LATER_FRAMES = 2
TEXT_TOKENS = 512  # the longest answer without sound, unless a person asks for more


def load(spec: ModelSpec, path_of: Callable[[str], Path], device: str, precision: str) -> MiniOmniModel:
    """The registry's loader. Raises UserError("checkpoint_wrong")."""
    folder = path_of("mini-omni")
    encoder = AudioEncoder.load(path_of("whisper-small"), precision, device)
    codec = Codec.load(path_of("snac-24khz"), device)
    tokenizer = Tokenizer(folder / "tokenizer.json")
    return MiniOmniModel(checkpoint.load(folder, precision, device), encoder, codec, tokenizer)


class MiniOmniModel:
    """A SpeechModel (see capabilities.py). Everything of a request lives in its generator."""

    def __init__(self, network: MiniOmni, encoder: AudioEncoder, codec: Codec, tokenizer: Tokenizer):
        self._network, self._encoder, self._codec, self._tokenizer = network, encoder, codec, tokenizer
        self._vocabulary, self._block = network.config.vocabulary, network.config.transformer.block_size

    def stream(self, request: Request) -> Steps:
        """Answer a request, an event at a time."""
        if isinstance(request, WarmRequest):
            return self._warm()
        if isinstance(request, TalkRequest):
            return self._talk(request)
        if isinstance(request, UnderstandRequest) and request.task in UNDERSTOOD:
            return self._write_about(request)
        raise UserError("unexpected")

    def unload(self) -> None:
        del self._network, self._encoder, self._codec

    def memory_bytes(self) -> int:
        return sum(part.memory_bytes() for part in (self._network, self._encoder, self._codec))

    # --- requests -----------------------------------------------------------------------------------------------------

    def _warm(self) -> Steps:
        silence = Waveform(np.zeros(SPEECH_RATE // 2, np.float32), SPEECH_RATE)
        features, prompt = yield from self._hear(silence, Task.A1A2_BATCH, fast=True)
        for _ in self._say(prompt, features, Sampling(max_new_tokens=12)):
            yield None

    def _talk(self, request: TalkRequest) -> Steps:
        features = None
        if request.audio is not None and request.text.strip():
            raise UserError("speech_or_text", model=MINI_OMNI.title)
        if request.audio is not None:
            task = Task.A1A2_BATCH if request.speak else Task.A1T2
            features, prompt = yield from self._hear(request.audio, task, request.fast_encoder)
        else:
            task = Task.T1A2 if request.speak else Task.T1T2
            prompt = self._read(request.text.strip(), task)
        yield Stats({"task": task.value})
        yield from self._say(prompt, features, request.sampling)
        if features is not None and request.transcribe:  # the answer still sounds: time to write down what was asked
            yield Status("listening")
            yield from self._transcript(features)

    def _write_about(self, request: UnderstandRequest) -> Steps:
        task = UNDERSTOOD[request.task]
        features, prompt = yield from self._hear(request.audio, task, request.fast_encoder)
        yield Stats({"task": task.value})
        yield from self._say(prompt, features, request.sampling)

    # --- what requests are made of ------------------------------------------------------------------------------------

    def _hear(self, waveform: Waveform, task: Task, fast: bool | None) -> Heeded:
        """The sound's features [n, width], and the prompt that asks `task` about them."""
        yield Status("listening")
        mel, length = self._encoder.log_mel(resample(waveform, SPEECH_RATE).samples)
        prompt = speech_prompt(task, self._vocabulary, length)
        if prompt.length >= self._block:
            most = (self._block - (prompt.length - length) - 1) * POSITION_S
            raise UserError("audio_too_long_for", model=MINI_OMNI.title, seconds=waveform.seconds, most=most)
        on_cpu = self._network.cos.device.type == "cpu"
        return self._encoder.encode(mel, length, trimmed=on_cpu if fast is None else fast), prompt

    def _read(self, text: str, task: Task) -> Prompt:
        prompt = text_prompt(task, self._vocabulary, self._tokenizer.encode(text))
        if prompt.length >= self._block:
            most = len(text) * (self._block - 4) // prompt.length
            raise UserError("text_too_long", characters=len(text), most=most)
        return prompt

    def _say(self, prompt: Prompt, features: torch.Tensor | None, sampling: Sampling) -> Steps:
        """Text as it is written, sound as its frames come."""
        yield Status("thinking")
        vocabulary = self._vocabulary
        frames, writing = Frames(vocabulary), Writing(self._tokenizer)
        sound = self._codec.stream(torch.Generator().manual_seed(max(sampling.seed, 0)))
        waiting, at_once, text_ended = [], FIRST_FRAMES, False
        for column in self._columns(prompt, features, sampling):
            if column is None:
                yield None
                continue
            text_ended = text_ended or column.text >= vocabulary.text_end
            delta = "" if text_ended else writing.push(column.text)
            yield TextDelta(delta) if delta else None
            frame = column.audio and frames.push(column.audio)
            if frame:
                waiting.append(frame)
            if len(waiting) == at_once:
                yield from _sounds(sound.push(torch.tensor(waiting)))
                waiting, at_once = [], LATER_FRAMES
            if frames.ended and text_ended:
                break
        rest = writing.finish()
        if rest:
            yield TextDelta(rest)
        if prompt.task.speaks:
            if waiting:
                yield from _sounds(sound.push(torch.tensor(waiting)))
            yield from _sounds(sound.finish())

    def _transcript(self, features: torch.Tensor) -> Steps:
        prompt = speech_prompt(Task.A1T1, self._vocabulary, len(features))
        heard = ""
        for event in self._say(prompt, features, Sampling()):
            if isinstance(event, TextDelta):
                heard += event.text
            yield None
        yield Heard(heard.strip())

    def _columns(self, prompt: Prompt, features: torch.Tensor | None, sampling: Sampling) -> Iterator[Column | None]:
        limit = sampling.max_new_tokens or (self._block if prompt.task.speaks else TEXT_TOKENS)
        return columns(self._network, prompt, features, Sampler(sampling), limit)


UNDERSTOOD: dict[Any, Task] = {UnderstandTask.TRANSCRIBE_EN: Task.A1T1, UnderstandTask.ANSWER: Task.A1T2}


def _sounds(samples: np.ndarray) -> Iterator[AudioChunk]:
    if len(samples):
        yield AudioChunk(to_pcm(samples), RATE)
