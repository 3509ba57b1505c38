"""When somebody speaks: Silero VAD (MIT) by onnxruntime, a probability of speech every 32 ms.

`Turns` follows a live conversation; `speech_spans` and `trim` look at a finished clip.
The network comes with the package silero-vad, which is found but not imported: importing it would import torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from models.audio import SPEECH_RATE, resample
from models.capabilities import Waveform

FRAME = 512  # samples, 32 ms at 16 kHz
CONTEXT = 64  # samples of the frame before that the network sees too
FRAMES_AT_ONCE = 512  # about 16 s
HYSTERESIS = 0.15  # speech goes on until its probability falls this far below the threshold

EventKind = Literal["speech_start", "maybe_end", "speech_resumed", "turn_end"]


@lru_cache(maxsize=1)
def _session() -> Any:
    """The network, shared by everybody: it keeps no state between calls."""
    import onnxruntime

    spec = find_spec("silero_vad")
    assert spec and spec.submodule_search_locations, "the package silero-vad is not installed"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # a frame is too little work to share
    options.log_severity_level = 3
    path = Path(spec.submodule_search_locations[0]) / "data" / "silero_vad_16k_sequence.onnx"
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class VoiceActivity:
    """The probability of speech along one sound that comes in pieces; holds what the network remembers of it."""

    def __init__(self) -> None:
        self._hidden = np.zeros((1, 1, 128), np.float32)
        self._cell = np.zeros((1, 1, 128), np.float32)
        self._context = np.zeros(CONTEXT, np.float32)

    def push(self, samples: np.ndarray) -> np.ndarray:
        """float32 [frames · FRAME] at 16 kHz → probabilities float32 [frames]."""
        frames = samples.reshape(-1, FRAME)
        contexts = np.concatenate([self._context[None], frames[:, -CONTEXT:]])
        self._context = contexts[-1].copy()
        inputs = np.concatenate([contexts[:-1], frames], axis=1)
        if not len(inputs):
            return np.zeros(0, np.float32)
        sound = {"input": inputs, "h": self._hidden, "c": self._cell}
        probabilities, self._hidden, self._cell = _session().run(["speech_probs", "hn", "cn"], sound)
        return probabilities


# --- finished clips ---


def speech_probabilities(waveform: Waveform) -> np.ndarray:
    """float32 [frames]: the probability of speech in each 32 ms of the clip (the last frame is filled with silence)."""
    return np.concatenate([*probability_blocks(waveform)])


def probability_blocks(waveform: Waveform) -> Iterator[np.ndarray]:
    """`speech_probabilities` in blocks of FRAMES_AT_ONCE, for who must not be long away."""
    samples = resample(waveform, SPEECH_RATE).samples.astype(np.float32, copy=False)
    samples = np.pad(samples, (0, -len(samples) % FRAME))
    activity = VoiceActivity()
    for start in range(0, max(1, len(samples)), FRAMES_AT_ONCE * FRAME):
        yield activity.push(samples[start : start + FRAMES_AT_ONCE * FRAME])


def speech_spans(
    waveform: Waveform,
    threshold: float = 0.5,
    least_speech_s: float = 0.15,
    least_pause_s: float = 0.3,
    margin_s: float = 0.1,
) -> list[tuple[float, float]]:
    """Where somebody speaks: (start, end) in seconds, in order, not overlapping, `margin_s` added on either side."""
    return spans_of(
        speech_probabilities(waveform), waveform.seconds, threshold, least_speech_s, least_pause_s, margin_s
    )


def spans_of(
    probabilities: np.ndarray,
    seconds: float,
    threshold: float,
    least_speech_s: float,
    least_pause_s: float,
    margin_s: float,
) -> list[tuple[float, float]]:
    """`speech_spans` of a clip of `seconds` whose probabilities are known."""
    frame_s = FRAME / SPEECH_RATE
    found: list[list[float]] = []
    speaking = False
    for i, probability in enumerate(probabilities):
        if speaking and probability < threshold - HYSTERESIS:
            speaking = False
            found[-1][1] = i * frame_s
        elif not speaking and probability >= threshold:
            speaking = True
            if found and i * frame_s - found[-1][1] < least_pause_s:
                found[-1][1] = seconds
            else:
                found.append([i * frame_s, seconds])
    spans: list[tuple[float, float]] = []
    for start, end in found:
        if end - start >= least_speech_s:
            start = max(start - margin_s, spans[-1][1] if spans else 0.0)
            spans.append((start, min(end + margin_s, seconds)))
    return spans


def trim(waveform: Waveform) -> Waveform:
    """The clip with its pauses taken out: the spans of speech, joined. Unchanged where no speech is found."""
    spans = [(round(a * waveform.rate), round(b * waveform.rate)) for a, b in speech_spans(waveform)]
    if not spans:
        return waveform
    return Waveform(np.concatenate([waveform.samples[a:b] for a, b in spans]), waveform.rate)


# --- live conversation ---


@dataclass(frozen=True, eq=False)
class TurnEvent:
    """Something happened in a conversation. `audio` (16 kHz) is the turn so far, given with maybe_end and turn_end."""

    kind: EventKind
    audio: Waveform | None = None


class Turns:
    """Cuts one person's live sound into turns. One object a conversation; cheap to make.

    Events: "speech_start" (after `least_speech_s` of speech: enough to stop an answer that is being spoken),
    "maybe_end" after a short pause (time to transcribe on the quiet), then either "speech_resumed" or, after `pause_s`,
    "turn_end" with the very same audio object as the maybe_end before it.
    """

    def __init__(
        self,
        pause_s: float = 0.6,
        threshold: float = 0.5,
        short_pause_s: float = 0.25,
        least_speech_s: float = 0.1,
        pre_roll_s: float = 0.3,
        longest_s: float = 60.0,
    ):
        self.threshold = threshold
        self._pause, self._short_pause = self._frames(pause_s), self._frames(min(short_pause_s, pause_s))
        self._least_speech, self._longest = self._frames(least_speech_s), self._frames(longest_s)
        self._before: deque[np.ndarray] = deque(maxlen=self._frames(pre_roll_s) + self._least_speech)
        self._activity = VoiceActivity()
        self._rest = np.zeros(0, np.float32)  # less than a frame, waits for more
        self._turn: list[np.ndarray] = []  # frames of the turn; empty between turns
        self._speech = self._silence = 0  # frames in a row
        self._offered: Waveform | None = None  # given with maybe_end, until speech resumes

    @property
    def speaking(self) -> bool:
        """Whether a turn is open."""
        return bool(self._turn)

    def push(self, samples: np.ndarray) -> list[TurnEvent]:
        """int16 or float32 [n] at 16 kHz, any n → what happened in it, in order."""
        if samples.dtype == np.int16:
            samples = samples.astype(np.float32) / 32768
        samples = np.concatenate([self._rest, np.nan_to_num(samples.astype(np.float32, copy=False))])
        whole = len(samples) // FRAME * FRAME
        self._rest = samples[whole:].copy()
        probabilities = self._activity.push(samples[:whole])
        events = []
        for frame, probability in zip(samples[:whole].reshape(-1, FRAME), probabilities, strict=True):
            events += self._between_turns(frame, probability) if not self._turn else self._in_turn(frame, probability)
        return events

    def flush(self) -> list[TurnEvent]:
        """The microphone was closed: ends the open turn, if there is one."""
        return self._end() if self._turn else []

    def _between_turns(self, frame: np.ndarray, probability: float) -> list[TurnEvent]:
        self._before.append(frame.copy())
        self._speech = self._speech + 1 if probability >= self.threshold else 0
        if self._speech < self._least_speech:
            return []
        self._turn, self._silence = list(self._before), 0
        self._before.clear()
        return [TurnEvent("speech_start")]

    def _in_turn(self, frame: np.ndarray, probability: float) -> list[TurnEvent]:
        self._turn.append(frame.copy())
        if probability >= self.threshold:
            resumed, self._silence, self._offered = self._offered is not None, 0, None
            if len(self._turn) >= self._longest:
                return self._end()
            return [TurnEvent("speech_resumed")] if resumed else []
        if probability < self.threshold - HYSTERESIS or self._silence:
            self._silence += 1
        if self._silence >= self._pause or len(self._turn) >= self._longest:
            return self._end()
        if self._silence >= self._short_pause and self._offered is None:
            self._offered = self._audio()
            return [TurnEvent("maybe_end", self._offered)]
        return []

    def _end(self) -> list[TurnEvent]:
        event = TurnEvent("turn_end", self._offered or self._audio())
        self._turn, self._offered, self._speech = [], None, 0
        return [event]

    def _audio(self) -> Waveform:
        return Waveform(np.concatenate(self._turn), SPEECH_RATE)

    @staticmethod
    def _frames(seconds: float) -> int:
        return max(1, round(seconds * SPEECH_RATE / FRAME))
