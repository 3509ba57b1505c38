"""How close a copied voice came to its reference, said honestly: what was measured, and who really spoke."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.text import say
from models.voice_library import listed
from tabs.pictures import STRANGERS, similarity_html

FAR = STRANGERS[1] + 0.06  # below it a score tells two people hardly from one


def likeness_html(stats: Mapping[str, Any], language: str) -> str:
    """The similarity of an answer's Stats. `voice` is only there where a voice of a library spoke, not a clone."""
    similarity, voice = stats.get("similarity"), stats.get("voice")
    if similarity is None:
        return ""
    remark = ""
    if voice:
        found = "closest_but_far" if similarity < FAR else "closest_voice"
        remark = say(f"pictures.{found}", language, voice=voice_title(str(voice), language))
    return similarity_html(similarity, remark)


def voice_title(style: str, language: str) -> str:
    """The name of a voice "af_heart", or of a blend "af_heart+af_bella", as the page writes it."""
    names = {voice["id"]: voice["name"][language] for voice in listed()}
    return " + ".join(names.get(part, part) for part in style.split("+"))
