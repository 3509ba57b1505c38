"""The voices of the library and what is known of them. A voice is a Kokoro style pack; new ones are blends of packs.

Voices and samples are listed in assets/voices/voices.yaml; what was measured on them (speaker embedding, pitch, level)
stands in assets/voices/measured.npz, made by scripts/measure_voices.py. Knows nothing of sound output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "voices"
LEVEL_DB = -22.0  # dBFS (RMS of speech): every voice is brought to this level
DEFAULTS = {
    ("en", "female"): "af_heart",
    ("en", "male"): "am_michael",
    ("zh", "female"): "zf_xiaoxiao",
    ("zh", "male"): "zm_yunxi",
}
PITCH_REACH = 2.0  # semitones; further, the shift itself makes a stranger


@dataclass(frozen=True)
class Voice:
    """A voice of the library. `name` by language of the page; `sample` is a clip of it (synthetic, by Kokoro)."""

    id: str
    name: dict[str, str]
    language: str  # "en" | "zh": what it was trained to speak
    accent: str  # espeak's name for the English it speaks: "en-us" | "en-gb"
    gender: str  # "female" | "male"
    pack: str
    licence: str
    source: str
    sample: Path


@dataclass(frozen=True, eq=False)
class VoiceStyle:
    """How to speak: a pack float32 [510, 256] (possibly a blend), and how to change its sound.

    `pitch_shift` in semitones, `gain_db` in dB, `speed` as a factor. `name` says which voice or blend it is.
    """

    name: str
    pack: np.ndarray
    accent: str = "en-us"
    pitch_shift: float = 0.0
    gain_db: float = 0.0
    speed: float = 1.0


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured on a style: GE2E speaker embedding [256] (unit length), median f0 in Hz, level in dBFS."""

    embedding: np.ndarray
    f0_hz: float
    level_db: float


@lru_cache(maxsize=1)
def library() -> tuple[Voice, ...]:
    """Every voice, in the order the page shows them."""
    listed = yaml.safe_load((FOLDER / "voices.yaml").read_text(encoding="utf-8"))
    common = listed["common"]
    return tuple(
        Voice(**{**common, **{k: v for k, v in voice.items() if k != "sample"}}, sample=FOLDER / voice["sample"])
        for voice in listed["voices"]
    )


def voice(voice_id: str) -> Voice:
    """The voice of this id; KeyError if there is none."""
    return _by_id()[voice_id]


@lru_cache(maxsize=1)
def _by_id() -> dict[str, Voice]:
    return {entry.id: entry for entry in library()}


@lru_cache(maxsize=48)
def pack(voice_id: str) -> np.ndarray:
    """The pack of a voice, float32 [510, 256]."""
    from safetensors import safe_open

    name, key = voice(voice_id).pack.split("#")
    with safe_open(FOLDER / name, "numpy") as file:
        return file.get_tensor(key).astype(np.float32)


@lru_cache(maxsize=1)
def measured() -> dict[str, Measured]:
    """What was measured, by style name: every voice "af_heart", and same-language blends "af_heart+af_bella"."""
    with np.load(FOLDER / "measured.npz", allow_pickle=False) as file:
        embeddings = file["embeddings"].astype(np.float32)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        rows = zip(file["names"].tolist(), embeddings, file["f0_hz"].tolist(), file["level_db"].tolist(), strict=True)
        return {name: Measured(embedding, f0, level) for name, embedding, f0, level in rows}


def blend(shares: Mapping[str, float]) -> VoiceStyle:
    """The style that mixes voices {id: share}, shares summing to 1, at the common level."""
    mixed = np.zeros((510, 256), np.float32)
    for name, share in shares.items():
        mixed += share * pack(name)
    level = sum(share * measured()[name].level_db for name, share in shares.items())
    first = next(iter(shares))
    return VoiceStyle("+".join(shares), mixed, voice(first).accent, gain_db=LEVEL_DB - level)


def style_of(name: str) -> VoiceStyle:
    """The style of a voice ("af_heart") or of an even blend ("af_heart+af_bella")."""
    ids = name.split("+")
    return blend(dict.fromkeys(ids, 1 / len(ids)))


def changed(style: VoiceStyle, pitch_shift: float = 0.0, gain_db: float = 0.0, speed: float = 1.0) -> VoiceStyle:
    """`style` moved further: semitones and dB add, speeds multiply."""
    return replace(
        style,
        pitch_shift=style.pitch_shift + pitch_shift,
        gain_db=style.gain_db + gain_db,
        speed=style.speed * speed,
    )


def default_voice(language: str, gender: str | None = None) -> str:
    """The id of the voice to use when nobody chose: `language` "en" or "zh", `gender` "female", "male" or None."""
    return DEFAULTS["zh" if language == "zh" else "en", gender or "female"]


def closest_voice(embedding: np.ndarray, language: str, f0_hz: float | None = None) -> tuple[VoiceStyle, float]:
    """The style of `language` ("en" or "zh") whose measured speaker embedding is nearest to `embedding` [256].

    Blends compete with single voices where they were measured. Returns the style and the cosine similarity measured for
    it before the pitch is moved; `f0_hz`, the median pitch of the reference, moves it by at most PITCH_REACH semitones.
    """
    wanted = np.asarray(embedding, np.float32).ravel()
    wanted = wanted / max(float(np.linalg.norm(wanted)), 1e-9)
    scores = {name: float(m.embedding @ wanted) for name, m in measured().items() if name_language(name) == language}
    best = max(scores, key=lambda name: scores[name])
    style = style_of(best)
    if f0_hz and f0_hz > 0:
        distance = 12 * float(np.log2(f0_hz / measured()[best].f0_hz))
        style = changed(style, pitch_shift=float(np.clip(distance, -PITCH_REACH, PITCH_REACH)))
    return style, scores[best]


def name_language(name: str) -> str:
    """The language of a voice's or blend's name."""
    return voice(name.split("+")[0]).language


def gender_of(embedding: np.ndarray) -> tuple[str, float]:
    """("female" | "male", probability) from a GE2E embedding [256]: logistic regression on the library's voices."""
    with np.load(FOLDER / "measured.npz", allow_pickle=False) as file:
        weights = file["gender"]
    unit = np.asarray(embedding, np.float32).ravel()
    female = float(1 / (1 + np.exp(-(unit / max(float(np.linalg.norm(unit)), 1e-9)) @ weights[:-1] - weights[-1])))
    return ("female", female) if female >= 0.5 else ("male", 1 - female)
