"""From what a component or an API client gives to a frozen request: checked once, refused with a sentence."""

from __future__ import annotations

from typing import Any

from models import audio
from models.capabilities import Sampling, Turn, UnderstandTask, Waveform
from models.errors import UserError

MAX_CHARACTERS = 50_000
LANGUAGES = ("auto", "en", "zh")


def waveform_of(path: str | None, use: str = "speech") -> Waveform:
    """The checked clip at `path` (see audio.load)."""
    return audio.load(path, use)


def text_of(text: str | None, needed: bool = True) -> str:
    """The text without its outer space; UserError where it is needed and empty, or too long."""
    text = (text or "").strip()
    if needed and not text:
        raise UserError("no_text")
    if len(text) > MAX_CHARACTERS:
        raise UserError("text_too_long", characters=len(text), most=MAX_CHARACTERS)
    return text


def language_of_request(language: str | None) -> str:
    """ "auto", "en" or "zh"."""
    language = language or "auto"
    if language not in LANGUAGES:
        raise UserError("language_unknown", language=language)
    return language


def task_of(task: str) -> UnderstandTask:
    """The task of this name."""
    try:
        return UnderstandTask(task)
    except ValueError:
        raise UserError("task_unknown", task=task, known=", ".join(t.value for t in UnderstandTask)) from None


def turns_of(history: Any) -> tuple[Turn, ...]:
    """Turns from a JSON list of {"role": "user" | "assistant", "text": str}."""
    try:
        turns = tuple(Turn(turn["role"], str(turn["text"])) for turn in history or ())
    except (TypeError, KeyError):
        raise UserError("history_malformed") from None
    if any(turn.role not in ("user", "assistant") for turn in turns):
        raise UserError("history_malformed")
    return turns


def sampling(
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int = -1,
    max_new_tokens: int | None = None,
) -> Sampling:
    """Sampling from raw numbers, each in its range: temperature 0–2, top_p 0–1, top_k ≥ 0, seed -1…2³¹-1."""
    bounds = {
        "temperature": (0, 2),
        "top_p": (0, 1),
        "top_k": (0, 1000),
        "seed": (-1, 2**31 - 1),
        "max_new_tokens": (1, 8192),
    }
    given = dict(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, max_new_tokens=max_new_tokens)
    for name, value in given.items():
        low, high = bounds[name]
        if value is not None and not (isinstance(value, int | float) and low <= value <= high):
            raise UserError("setting_out_of_range", setting=name, low=low, high=high)
    return Sampling(
        temperature=temperature,
        top_p=top_p,
        top_k=None if top_k is None else int(top_k),
        seed=-1 if seed is None else int(seed),
        max_new_tokens=None if max_new_tokens is None else int(max_new_tokens),
    )
