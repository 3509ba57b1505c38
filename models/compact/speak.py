"""Kokoro-82M (ONNX, int8) speaks English and Mandarin: text → int16 chunks at 24 kHz, a clause at a time.

Source of the model: hexgrad/Kokoro-82M v1.0 (Apache-2.0), exported to ONNX by thewh1teagle/kokoro-onnx (MIT).
Knows nothing of who asks or of how the text came to be.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.compact import phonemes
from models.compact.clauses import clauses

if TYPE_CHECKING:
    from models.compact.voices import VoiceStyle

RATE = 24_000  # Hz
THREADS = 2  # more do not pay: the convolutions of one clause are short
SILENCE_DB = -42.0  # below the clause's peak counts as silence at its ends
KEEP_SECONDS = 0.03  # of the silence at each end, so that soft consonants survive
FADE_SECONDS = 0.005
PAUSES = {".": 0.32, "!": 0.32, "?": 0.32, "…": 0.40, ",": 0.14, ";": 0.22, ":": 0.20, "—": 0.18}  # s, at speed 1
NO_PAUSE = 0.02  # s, where a sentence was broken between two words
SPEEDS = (0.5, 2.0)  # what Kokoro still speaks clearly
CEILING = 0.98  # of full scale; the soft limiter begins at KNEE
KNEE = 0.80


class Speaker:
    """Kokoro in memory. Holds nothing between calls, so that any number of texts may be spoken in turn."""

    def __init__(self, path: str | Path, threads: int = THREADS):
        """`path`: kokoro-v1.0.int8.onnx. Loads in 1.3 CPU-s; 150 MB resident, 60 more after the first clause."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a waiting thread burns no CPU
        options.add_session_config_entry("session.set_denormal_as_zero", "1")  # silence costs no more than speech
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._bytes = Path(path).stat().st_size

    def memory_bytes(self) -> int:
        """Bytes of the weights in memory."""
        return self._bytes

    def warm(self, language: str) -> None:
        """Load what `language` ("en" or "zh") needs beside the model; safe to call from another thread."""
        phonemes.warm(language)

    def speak(
        self, text: str, style: VoiceStyle | str, language: str = "auto", speed: float = 1.0
    ) -> Generator[np.ndarray, None, None]:
        """Speak a whole text: int16 [n] at RATE for every clause, each computed when asked for.

        `style` is a VoiceStyle or the id of a library voice; `language` ("auto", "en", "zh") decides how a text of
        digits alone is read; `speed` multiplies the style's own. Nothing speakable gives nothing.
        """
        for clause in clauses(text):
            yield from self.speak_clause(clause, style, language, speed)

    def speak_clause(
        self, clause: str, style: VoiceStyle | str, language: str = "auto", speed: float = 1.0
    ) -> Generator[np.ndarray, None, None]:
        """Speak one clause (of clauses.Clauses): one chunk, more only if it passes Kokoro's 510 tokens."""
        if isinstance(style, str):
            from models.compact.voices import style_of

            style = style_of(style)
        for piece in phonemes.pieces(phonemes.phonemes(clause, language, style.accent)):
            pace = float(np.clip(style.speed * speed, *SPEEDS))
            ratio = 2 ** (style.pitch_shift / 12)
            sound = _trim(self._synthesize(piece, style.pack, float(np.clip(pace / ratio, *SPEEDS))))
            sound = _shift(sound, ratio) * 10 ** (style.gain_db / 20)
            yield _finish(sound, PAUSES.get(piece.rstrip('"”) ')[-1:], NO_PAUSE) / pace)

    def _synthesize(self, piece: str, pack: np.ndarray, speed: float) -> np.ndarray:
        """Phonemes → float32 [n] at RATE. The style's row depends on the number of tokens, as in Kokoro's training."""
        ids = phonemes.tokens(piece)[: phonemes.MOST_TOKENS]
        feed = {
            "tokens": np.array([[0, *ids, 0]], np.int64),
            "style": pack[min(len(ids), len(pack) - 1)][None].astype(np.float32),
            "speed": np.array([speed], np.float32),
        }
        return np.asarray(self._session.run(None, feed)[0], np.float32).ravel()


def _trim(sound: np.ndarray) -> np.ndarray:
    """`sound` without the silence at its ends; the pause that belongs there is added by its punctuation."""
    window = RATE // 100
    level = np.sqrt(np.convolve(sound**2, np.ones(window) / window, "same"))
    loud = np.flatnonzero(level > level.max(initial=0) * 10 ** (SILENCE_DB / 20))
    if not len(loud):
        return sound[:0]
    keep = int(KEEP_SECONDS * RATE)
    return sound[max(0, loud[0] - keep) : loud[-1] + keep]


def _shift(sound: np.ndarray, ratio: float) -> np.ndarray:
    """Play `sound` `ratio` times as fast: pitch and formants move together, as between smaller and larger speakers.

    Kokoro was asked to speak as much slower, so the pace stays.
    """
    if ratio == 1 or not len(sound):
        return sound
    import soxr

    return soxr.resample(sound, RATE * ratio, RATE).astype(np.float32)


def _finish(sound: np.ndarray, pause: float) -> np.ndarray:
    """Limit softly, fade both ends so that no seam clicks, add the pause; float32 → int16."""
    size = np.abs(sound)
    room = CEILING - KNEE
    limited = np.where(size > KNEE, np.sign(sound) * (KNEE + room * np.tanh((size - KNEE) / room)), sound)
    fade = min(int(FADE_SECONDS * RATE), len(limited) // 2)
    if fade:
        ramp = np.linspace(0, 1, fade, dtype=np.float32)
        limited[:fade] *= ramp
        limited[-fade:] *= ramp[::-1]
    return np.concatenate([(limited * 32767).astype(np.int16), np.zeros(int(pause * RATE), np.int16)])
