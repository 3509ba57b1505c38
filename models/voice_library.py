"""The clips of the library's voices, for models that take a voice from a clip."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import yaml

from models.errors import UserError

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "voices"


@lru_cache(maxsize=1)
def listed() -> tuple[dict, ...]:
    """assets/voices/voices.yaml: id, name, language, gender, sample (a file beside it) of each voice."""
    return tuple(yaml.safe_load((FOLDER / "voices.yaml").read_text(encoding="utf-8"))["voices"])


def sample_of(voice: str) -> Path:
    """A voice's clip. Raises UserError("voice_unknown")."""
    sample = next((each["sample"] for each in listed() if each["id"] == voice), None)
    if sample is None:
        raise UserError("voice_unknown", voice=voice)
    return FOLDER / sample
