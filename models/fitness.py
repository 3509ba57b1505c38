"""What a model cannot do of what a request asks, in sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence

from models.capabilities import Request, UnderstandRequest, UnderstandTask
from models.catalog import ModelSpec
from models.errors import UserError
from models.reading import HANZI
from models.text import say


class MeanwhileError(UserError):
    """An error of one model's files, with another model that is here and can answer."""

    def __init__(self, error: UserError, other: str):
        super().__init__(error.code, **error.facts)
        self._error, self._other = error, other

    def sentence(self, language: str = "en") -> str:
        return f"{self._error.sentence(language)}\n{say('weights.meanwhile', language, model=self._other)}"


def lack(spec: ModelSpec, request: Request) -> UserError | None:
    """What the model cannot do of what the request asks, or None."""
    if isinstance(request, UnderstandRequest) and request.task not in spec.tasks:
        return UserError("task_not_served", model=spec.title, task=request.task.value, known=_names(spec.tasks))
    language = getattr(request, "language", "auto")
    if language == "auto" and re.search(f"[{HANZI}]", getattr(request, "text", "")):
        language = "zh"
    if language not in ("auto", *spec.languages):
        return UserError("language_not_spoken", model=spec.title, language=language, known=", ".join(spec.languages))
    if not spec.voices and (getattr(request, "reference", None) or getattr(request, "voice", "default") != "default"):
        return UserError("voice_not_chosen", model=spec.title)
    clip = getattr(request, "audio", None)
    if clip is not None and spec.longest_s is not None and clip.seconds > spec.longest_s:
        return UserError("audio_too_long_for", model=spec.title, seconds=clip.seconds, most=spec.longest_s)
    return None


def _names(tasks: Sequence[UnderstandTask]) -> str:
    return ", ".join(task.value for task in tasks)
