"""A free description of a voice, in Chinese or English → what was understood → a style; and back to a sentence.

Words are data (assets/prompts/voice_words.yaml). Rules, no language model: the same words always mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from models.compact import voices
from models.compact.voices import VoiceStyle
from models.errors import UserError
from models.reading import HANZI

QUOTES = (("“", "”"), ('"', '"'), ("「", "」"), ("『", "』"), ("«", "»"), ("„", "“"), ("‘", "’"))
CHOICES = ("gender", "age", "pitch", "volume", "pace", "emotion", "scene")
YEARS = ((13, "child"), (30, "young"), (45, "adult"), (60, "middle-aged"), (200, "elderly"))  # up to this age

PITCH = {"very low": -5.0, "low": -3.0, "high": 3.0, "very high": 5.0}  # semitones from the gender's usual pitch
AGE_PITCH = {"child": 4.0, "young": 0.7, "middle-aged": -0.5, "elderly": -1.5}  # semitones
AGE_PACE = {"child": 1.05, "young": 1.03, "middle-aged": 0.97, "elderly": 0.85}
VOLUME = {"low": -9.0, "high": 6.0}  # dB
PACE = {"very slow": 0.68, "slow": 0.82, "fast": 1.22, "very fast": 1.45}
FARTHEST = 6.0  # semitones that a voice is moved at most
CANDIDATES = 5  # voices nearest in pitch, of which a take is blended


@dataclass(frozen=True)
class VoiceDescription:
    """What was understood; None (or empty) where nothing was said. `language` is the sentence's: "en" or "zh"."""

    sentence: str
    language: str
    gender: str | None = None
    age: str | None = None
    pitch: str | None = None
    volume: str | None = None
    pace: str | None = None
    emotion: tuple[str, ...] = ()
    scene: str | None = None

    @property
    def not_honoured(self) -> tuple[str, ...]:
        """What this voice cannot act out: Kokoro has no emotions and no scenes."""
        return tuple(field for field in ("emotion", "scene") if getattr(self, field))

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, for the page and the endpoint."""
        return {**asdict(self), "emotion": list(self.emotion), "not_honoured": list(self.not_honoured)}


@lru_cache(maxsize=1)
def words() -> dict[str, Any]:
    """The lexicon: {"gender": {"female": {"say": {en, zh}, "en": […], "zh": […]}, …}, …, "pronouns", "build"}."""
    path = Path(__file__).resolve().parents[2] / "assets" / "prompts" / "voice_words.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def choices(field: str) -> tuple[str, ...]:
    """The values the builder offers for one of CHOICES."""
    return tuple(words()[field])


# --- description → meaning ------------------------------------------------------------------------------------------


def parse(instruction: str) -> VoiceDescription:
    """Understand an instruction. UserError("no_text") if it is empty, ("no_sentence") if it quotes nothing to say."""
    if not instruction.strip():
        raise UserError("no_text")
    sentence, about = _quoted(re.sub(r"<\|.{0,40}?\|>", " ", instruction))
    found = _spotted(about)
    first = {field: next((value for kind, value in found if kind == field), None) for field in CHOICES}
    emotions = tuple(dict.fromkeys(value for kind, value in found if kind == "emotion"))
    return VoiceDescription(
        sentence,
        language_of(sentence),
        gender=first["gender"] or _pronoun(about),
        age=_years(about) or first["age"],
        pitch=first["pitch"],
        volume=first["volume"],
        pace=first["pace"],
        emotion=emotions,
        scene=first["scene"],
    )


def language_of(text: str) -> str:
    """ "zh" if `text` holds a Chinese character, else "en"."""
    return "zh" if re.search(f"[{HANZI}]", text) else "en"


def _quoted(text: str) -> tuple[str, str]:
    """The sentence to say (the longest in quotes, else what follows a colon) and the text without it."""
    spans = [
        (found.start(1), found.end(1))
        for left, right in QUOTES
        for found in re.finditer(rf"{left}([^{left}{right}]+){right}", text)
    ]
    spans += [(f.start(1), f.end(1)) for f in re.finditer(r"(?<!\w)'((?:[^']|(?<=\w)'(?=\w))+)'(?!\w)", text)]
    if not spans and (colon := re.search(r"[：:](?!\d)\s*(?=\S)", text)):
        spans = [(colon.end(), len(text))]
    start, end = max(spans, key=lambda span: span[1] - span[0], default=(0, 0))
    sentence = re.sub(r"\s+", " ", text[start:end]).strip('“”"「」『』 ')
    if not re.search(r"\w", sentence):
        raise UserError("no_sentence")
    return sentence, text[:start] + " | " + text[end:]


@lru_cache(maxsize=1)
def _lexicon() -> tuple[re.Pattern[str], dict[str, list[tuple[str, str]]]]:
    """One pattern of all words, longest first, and what each of them says as (field, value)."""
    meaning: dict[str, list[tuple[str, str]]] = {}
    for field in CHOICES:
        for value, entry in words()[field].items():
            for word in (*entry["en"], *entry["zh"]):
                meaning.setdefault(word, []).append((field, value))
    ordered = sorted(meaning, key=len, reverse=True)
    return re.compile("|".join(_bounded(word) for word in ordered), re.IGNORECASE), meaning


def _bounded(word: str) -> str:
    """A pattern for a whole English word, or for Chinese anywhere."""
    return rf"\b{re.escape(word)}\b" if word.isascii() else re.escape(word)


def _spotted(about: str) -> list[tuple[str, str]]:
    """(field, value) in the order of the text."""
    about = re.sub(r"(?i)\b([\w ]{3,12}?) pitch and volume\b", r"\1 pitch and \1 volume", about)
    about = re.sub(r"([低高]|正常的?)音调和音量", r"\1音调和\1音量", about)
    about = re.sub(r"(?i)[\s-]years?[\s-]old|岁的?老", " ", about)
    pattern, meaning = _lexicon()
    return [said for found in pattern.finditer(about) for said in meaning[found.group().lower()]]


def _pronoun(about: str) -> str | None:
    found = [
        (match.start(), gender)
        for gender, entry in words()["pronouns"].items()
        for word in (*entry["en"], *entry["zh"])
        if (match := re.search(_bounded(word), about, re.IGNORECASE))
    ]
    return min(found)[1] if found else None


def _years(about: str) -> str | None:
    """An age in years, "a 70-year-old woman", "70岁", as one of the ages."""
    found = re.search(r"(\d{1,3})(?:[\s-]years?[\s-]old|\s?岁)", about)
    return next((name for most, name in YEARS if int(found[1]) < most), None) if found else None


# --- meaning → style ------------------------------------------------------------------------------------------------


def to_style(description: VoiceDescription, seed: int) -> VoiceStyle:
    """A style for what was understood: the same for the same seed, another take for another.

    A take is a blend of two voices near the wanted pitch; what pitch is still missing, volume and pace are set on it.
    """
    draw = np.random.default_rng(seed & 0xFFFFFFFF)
    gender = description.gender or ("female" if description.age == "child" else str(draw.choice(["female", "male"])))
    known = voices.measured()
    matching = [v.id for v in voices.library() if (v.language, v.gender) == (description.language, gender)]
    usual = float(np.median([known[name].f0_hz for name in matching]))
    moved = PITCH.get(description.pitch or "", 0.0) + AGE_PITCH.get(description.age or "", 0.0)
    wanted = usual * 2 ** ((moved + draw.uniform(-0.4, 0.4)) / 12)
    nearest = sorted(matching, key=lambda name: abs(np.log2(known[name].f0_hz / wanted)))[:CANDIDATES]
    first, second = (str(name) for name in draw.choice(nearest, 2, replace=False))
    share = float(draw.uniform(0.5, 0.9))
    style = voices.blend({first: share, second: 1 - share})
    f0 = known[first].f0_hz ** share * known[second].f0_hz ** (1 - share)
    return voices.changed(
        style,
        pitch_shift=float(np.clip(12 * np.log2(wanted / f0), -FARTHEST, FARTHEST)),
        gain_db=VOLUME.get(description.volume or "", 0.0),
        speed=PACE.get(description.pace or "", 1.0)
        * AGE_PACE.get(description.age or "", 1.0)
        * float(draw.uniform(0.97, 1.03)),
    )


# --- the builder ----------------------------------------------------------------------------------------------------


def build(
    gender: str | None,
    age: str | None,
    pitch: str | None,
    volume: str | None,
    pace: str | None,
    emotion: str | Sequence[str] | None,
    scene: str | None,
    sentence: str,
    language: str,
) -> str:
    """The instruction that says all this in `language` ("en" or "zh"); parse() of it gives the same values back."""
    form = words()["build"]["zh" if language == "zh" else "en"]

    def say(field: str, value: str | None) -> str:
        return words()[field][value]["say"]["zh" if language == "zh" else "en"] if value else ""

    emotions = [emotion] if isinstance(emotion, str) and emotion else list(emotion or ())
    values = {
        "who": _who(form["who"], gender, age, say),
        "emotion": form["and_emotion"].join(say("emotion", each) for each in emotions),
        "scene": say("scene", scene),
        "pace": say("pace", pace),
        "manner": form["and"].join(
            form[field].format(**{field: say(field, value)})
            for field, value in (("pitch", pitch), ("volume", volume))
            if value
        ),
    }
    opening, closing = next((q for q in form["quotes"] if not set(q) & set(sentence)), form["quotes"][0])
    parts = {
        name: form[name].format(**values) if values[name] else "" for name in ("emotion", "scene", "pace", "manner")
    }
    parts["one"] = form["one"].format(**values)
    parts["says"] = form["says"].format(open=opening, sentence=sentence.strip(), close=closing)
    tail = bool(values["manner"] or values["pace"])
    parts["they"] = form.get("they", {}).get(gender or "none", "") if tail else ""
    parts["end"] = form.get("end", "") if tail else ""
    text = form["order"].format(**parts)
    text = re.sub(r"\ba (?=[aeiou])", "an ", text[: text.index(opening)]) + text[text.index(opening) :]
    return text[:1].upper() + text[1:]


def _who(form: dict[str, str], gender: str | None, age: str | None, say: Any) -> str:
    if age == "child":
        return form[f"child {gender}" if gender else "child"]
    kind = "both" if gender and age else "ageless" if gender else "genderless" if age else "none"
    return form[kind].format(gender=say("gender", gender), age=say("age", age))
