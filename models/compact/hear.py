"""Speech to text: Whisper base, decoded greedily a token at a time, on windows that the voice activity cuts.

Rules of decoding (what is suppressed, when a window counts as silent) follow openai-whisper; the tokenizer is its own.
"""

from __future__ import annotations

import codecs
import os
import re
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from models.audio import SPEECH_RATE, resample
from models.capabilities import Waveform
from models.compact import ctranslate2
from models.compact.activity import FRAME, probability_blocks, spans_of, speech_probabilities
from models.compact.spectrum import mel_bank, power_frames

if TYPE_CHECKING:
    from torch import Tensor

    from models.compact.whisper import Cache

HOP, N_FFT = 160, 400  # samples of Whisper's log-mel: 100 frames a second
LONGEST_WINDOW_S = 28.0
GOOD_WINDOW_S = 8.0  # a window this long ends at the next pause of GOOD_PAUSE_S
GOOD_PAUSE_S = 0.6
# Whisper was trained on clips padded to 30 s and needs some silence to see that the speech is over: with 2 s it began
# half of the short clips anew, with 3 s none of 20. What it does begin anew is heard again with all the silence.
SILENCE_AFTER_S, FULL_SILENCE_S = 3.0, 30.0
SPEECH_THRESHOLD = 0.5
NO_SPEECH, LEAST_LOGPROB = 0.6, -1.0  # a window is silent where both fail (openai-whisper's figures)
LEAST_OTHER_LANGUAGE = 0.8  # probability at which "auto" believes in a language that is neither English nor Chinese
HELD_BACK = 20  # tokens that are not yet shown, so that a loop is cut before anybody sees it
LOOP_REPEATS, LOOP_TOKENS = 4, 8  # a loop: at least so many repeats, of at least so many tokens together
AGAIN_TOKENS = 4  # a repeat of at least so many tokens may mean that a clip with little silence was begun anew


@dataclass(frozen=True)
class Transcript:
    """All that was said; `language` is a code such as "en", `seconds` the length of speech found."""

    text: str
    language: str
    seconds: float


UTF8 = codecs.getincrementaldecoder("utf-8")


class Recognizer:
    """Whisper, from a CTranslate2 file. Holds no state of any transcription: many may advance in turn."""

    def __init__(self, path: str | Path, int8: bool = True):
        # Read when torch is first imported. Threads that spin while they wait take a busy 2-core machine four times
        # the CPU for a short clip, and make it slower too.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from whisper.tokenizer import get_tokenizer

        from models.compact.whisper import Whisper

        self._whisper = Whisper(ctranslate2.read(path), int8)
        self._tokens = tokens = get_tokenizer(multilingual=True, num_languages=99)
        self._languages = dict(zip(tokens.all_language_codes, tokens.all_language_tokens, strict=True))
        specials = [*tokens.special_tokens.values()]
        self._suppressed = sorted({*tokens.non_speech_tokens, *specials} - {tokens.eot})
        self._blank = [*tokens.encode(" "), tokens.eot]

    def memory_bytes(self) -> int:
        """Bytes of the weights in memory."""
        return self._whisper.bytes

    def transcribe(self, waveform: Waveform, language: str = "auto") -> Generator[str | Transcript | None, None, None]:
        """Yields pieces of text as they are sure (None: a step without news), then one Transcript, and ends.

        `language`: "auto", or a code of Whisper such as "en" or "zh". Chinese is written in simplified characters.
        A step takes a tenth of a second or so; closing the generator cancels at the next one.
        """
        pieces: list[str] = []
        spoken: Counter[str] = Counter()
        yield None
        waveform = resample(waveform, SPEECH_RATE)
        probabilities = []
        for block in probability_blocks(waveform):
            probabilities.append(block)
            yield None
        seconds = 0.0
        for start, end in windows(np.concatenate(probabilities), waveform.seconds):
            samples = waveform.samples[round(start * SPEECH_RATE) : round(end * SPEECH_RATE)]
            seconds += end - start
            draft = _Draft(language)
            begun = len(pieces)
            for piece in self._transcribe_window(samples, draft):
                if piece and len(pieces) == begun:  # the first of this window
                    piece = _joint(pieces) + piece.lstrip()
                if piece:
                    pieces.append(piece)
                    spoken[draft.language] += len(piece)
                yield piece
        best = spoken.most_common(1)[0][0] if spoken else (language if language != "auto" else "en")
        yield Transcript("".join(pieces).strip(), best, seconds)

    def language_of(self, waveform: Waveform) -> str:
        """The language spoken in the first window: "en" or "zh", or another where Whisper is sure of it."""
        waveform = resample(waveform, SPEECH_RATE)
        draft = _Draft("auto")
        for start, end in windows(speech_probabilities(waveform), waveform.seconds)[:1]:
            samples = waveform.samples[round(start * SPEECH_RATE) : round(end * SPEECH_RATE)]
            for _ in self._listen(samples, SILENCE_AFTER_S, draft):
                pass
        return draft.language if draft.language != "auto" else "en"

    def _transcribe_window(self, samples: np.ndarray, draft: _Draft) -> Iterator[str | None]:
        cache = yield from self._listen(samples, SILENCE_AFTER_S, draft)
        if (yield from self._decode(cache, draft, last_try=False)):
            return
        del draft.tokens[draft.shown :]
        cache = yield from self._listen(samples, FULL_SILENCE_S, draft)
        yield from self._decode(cache, draft, last_try=True)

    def _listen(self, samples: np.ndarray, silence_s: float, draft: _Draft) -> Generator[None, None, Cache]:
        """Encode a window, find its language (which costs the decoder one position), set the scene in it."""
        yield None
        cache = yield from self._whisper.encode(whisper_features(samples, self._whisper.mels, silence_s))
        probabilities = self._whisper.decode([self._tokens.sot], cache)[0].softmax(-1)
        draft.no_speech = float(probabilities[self._tokens.no_speech])
        if draft.language == "auto":
            found = {code: float(probabilities[token]) for code, token in self._languages.items()}
            draft.language = likely_language(found)
        if hint := hints().get(draft.language):
            cache.said = []
            self._whisper.decode([self._tokens.sot_prev, *self._tokens.encode(hint), self._tokens.sot], cache)
        return cache

    def _decode(self, cache: Cache, draft: _Draft, last_try: bool) -> Generator[str | None, None, bool]:
        """Greedy decoding, on from the tokens already shown → pieces of text; False if it began the clip anew."""
        tokens, logprobs, ended = draft.tokens, [], False
        cue = [self._languages[draft.language], self._tokens.transcribe, self._tokens.no_timestamps, *tokens]
        doubtful = draft.no_speech > NO_SPEECH
        while not ended and len(tokens) < self._whisper.decoder_positions // 2:
            token, logprob = self._choose(self._whisper.decode(cue, cache)[-1], first=not tokens)
            logprobs.append(logprob)
            ended = token == self._tokens.eot
            if not ended:
                tokens.append(token)
                cue = [token]
                if not last_try and repeats(tokens, AGAIN_TOKENS, 2):
                    return False
                if period := loop_period(tokens):
                    if not last_try:
                        return False
                    first_repeat = len(tokens) - period * (LOOP_REPEATS - 1)
                    del tokens[max(first_repeat, draft.shown) :]
                    ended = True
            yield None if doubtful else self._show(draft, len(tokens) - HELD_BACK)
        if not doubtful or np.mean(logprobs) >= LEAST_LOGPROB:
            yield self._show(draft, len(tokens))
        return True

    def _show(self, draft: _Draft, end: int) -> str | None:
        """The text of the tokens up to `end` that was not yet shown; whole characters only."""
        if end <= draft.shown:
            return None
        text = draft.characters.decode(self._tokens.encoding.decode_bytes(draft.tokens[draft.shown : end]))
        draft.shown = end
        return (simplified(text) if draft.language == "zh" else text) or None

    def _choose(self, logits: Tensor, first: bool) -> tuple[int, float]:
        """The likeliest token that may be said, and the logarithm of its probability."""
        logits[self._suppressed] = -float("inf")
        if first:
            logits[self._blank] = -float("inf")
        token = int(logits.argmax())
        return token, float(logits[token] - logits.logsumexp(0))


@dataclass(eq=False)
class _Draft:
    """The text of a window as it is found: tokens, and how many of them were shown."""

    language: str
    no_speech: float = 0.0
    tokens: list[int] = field(default_factory=list)
    shown: int = 0
    characters: codecs.IncrementalDecoder = field(default_factory=lambda: UTF8("ignore"))  # a token may be half of one


@lru_cache(maxsize=1)
def hints() -> dict[str, str]:
    """What the decoder is told was said before the clip, by language (assets/prompts/hearing.yaml)."""
    path = Path(__file__).resolve().parents[2] / "assets" / "prompts" / "hearing.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def windows(probabilities: np.ndarray, seconds: float) -> list[tuple[float, float]]:
    """Cut a clip where nobody speaks: windows (start, end) in seconds of at most LONGEST_WINDOW_S, speech in each.

    probabilities: of speech, a FRAME each, of the whole clip of `seconds`. A talk without a pause is cut where speech
    is least likely.
    """
    spans = spans_of(probabilities, seconds, SPEECH_THRESHOLD, 0.1, 0.3, margin_s=0.2)
    found: list[tuple[float, float]] = []
    for start, end in spans:
        while end - start > LONGEST_WINDOW_S:
            low, high = (round((start + s) * SPEECH_RATE / FRAME) for s in (LONGEST_WINDOW_S / 2, LONGEST_WINDOW_S))
            cut = (low + int(probabilities[low:high].argmin())) * FRAME / SPEECH_RATE
            found.append((start, cut))
            start = cut
        if found:
            before, pause = found[-1], start - found[-1][1]
            long_enough = before[1] - before[0] >= GOOD_WINDOW_S and pause >= GOOD_PAUSE_S
            if end - before[0] <= LONGEST_WINDOW_S and pause < SILENCE_AFTER_S and not long_enough:
                found[-1] = (before[0], end)
                continue
        found.append((start, end))
    return found


def whisper_features(samples: np.ndarray, n_mels: int, silence_s: float) -> np.ndarray:
    """float32 [n] at 16 kHz, at most 30 s → log-mel float32 [n_mels, frames], frames even, silence added at the end."""
    length = min(len(samples) + round(silence_s * SPEECH_RATE), 30 * SPEECH_RATE)
    length = -(-length // (2 * HOP)) * 2 * HOP
    samples = np.pad(samples, (0, length - len(samples)))
    mel = power_frames(samples, N_FFT, HOP)[:-1] @ mel_bank(SPEECH_RATE, N_FFT, n_mels)
    log = np.log10(np.maximum(mel, 1e-10))
    return ((np.maximum(log, log.max() - 8) + 4) / 4).T.astype(np.float32, copy=False)


def likely_language(probabilities: dict[str, float]) -> str:
    """English or Chinese, whichever is likelier, unless the clip is clearly in another language."""
    other = max(probabilities, key=lambda code: probabilities[code])
    if other not in ("en", "zh") and probabilities[other] >= LEAST_OTHER_LANGUAGE:
        return other
    return "en" if probabilities["en"] >= probabilities["zh"] else "zh"


def repeats(tokens: list[int], least_period: int, times: int) -> int | None:
    """The period, at least `least_period`, in which the end of `tokens` is said `times` over; None if it is not."""
    for period in range(least_period, len(tokens) // times + 1):
        if tokens[-period * times :] == tokens[-period:] * times:
            return period
    return None


def loop_period(tokens: list[int]) -> int | None:
    """The period of the loop at the end of `tokens`; None if there is none."""
    period = repeats(tokens, 1, LOOP_REPEATS)
    if period and period * LOOP_REPEATS < LOOP_TOKENS:  # "no, no, no, no" is speech
        return period if repeats(tokens, 1, LOOP_TOKENS) else None
    return period


def simplified(text: str) -> str:
    """Chinese in simplified characters and with its own punctuation (Whisper writes now these, now others)."""
    import zhconv

    return re.sub(r"(?<![0-9A-Za-z])[,?!]", lambda mark: chr(ord(mark[0]) + 0xFEE0), zhconv.convert(text, "zh-hans"))


def _joint(pieces: list[str]) -> str:
    """What stands between two windows: a space, but nothing after the punctuation of Chinese."""
    return "" if not pieces or pieces[-1].endswith(("。", "，", "！", "？")) else " "
