"""What the compact chat model is told: assets/prompts/compact.yaml turned into messages. Knows nothing of llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from models.capabilities import Capability, Sampling, TalkRequest
from models.compact.think import Message, Thinker
from models.errors import UserError

FILE = Path(__file__).resolve().parents[2] / "assets" / "prompts" / "compact.yaml"
DEFAULT_CHARACTER = "captain"
CHARACTER_LIMIT = 600  # characters of a person's own description
TRANSCRIPT_TOKENS = 1200  # of a long transcript: at 25–40 ms a token, its reading stays under a minute
FACTUAL = Sampling(temperature=0.2)  # summaries and answers about a recording
TASKS = {Capability.ASSIST: "assistant", Capability.LIVE: "live", Capability.ROLEPLAY: "roleplay"}


@lru_cache(maxsize=1)
def prompts() -> dict[str, Any]:
    """All prompts, as they stand in the file."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def characters(language: str) -> dict[str, dict[str, str]]:
    """Ready-made characters by id: name, persona and first line in "en" or "zh"."""
    return {
        key: {part: translations[language] for part, translations in character.items()}
        for key, character in prompts()["characters"].items()
    }


def persona(capability: Capability, language: str, character: str = "") -> list[Message]:
    """The messages in front of every conversation: who the model is, and a few turns as examples.

    `character` is a ready-made one's id or the person's own words (role-play only). Raises UserError("text_too_long").
    """
    if len(character) > CHARACTER_LIMIT:
        raise UserError("text_too_long", characters=len(character), most=CHARACTER_LIMIT)
    prompt = prompts()[TASKS[capability]][language]
    known = characters(language).get(character.strip() or DEFAULT_CHARACTER)
    described = known["persona"] if known else character.strip()
    system = prompt["system"].replace("{character}", described)
    turns = [[line.replace("{character}", described) for line in turn] for turn in prompt["examples"]]
    if capability is Capability.ROLEPLAY and known:
        turns[-1][1] = known["first"]
    messages = [Message("system", system, keep=True)]
    for asked, answered in turns:
        messages += Message("user", asked, keep=True), Message("assistant", answered, keep=True)
    return messages


def conversation(request: TalkRequest, text: str, language: str) -> list[Message]:
    """The messages of a turn in `language` ("en" or "zh"): persona, earlier turns, what the person says now."""
    earlier = [Message(turn.role, turn.text) for turn in request.history if turn.text.strip()]
    return [*persona(request.capability, language, request.character), *earlier, Message("user", text)]


def warm(thinker: Thinker, capability: Capability) -> Iterator[None]:
    """Read both languages' persona into the cache ahead of the first turn."""
    for language in ("en", "zh"):
        yield from thinker.warm(persona(capability, language))


def summary(thinker: Thinker, transcript: str, language: str) -> list[Message]:
    """Ask for a summary of a transcript in "en" or "zh"; of a long one, its beginning, middle and end are read."""
    prompt = prompts()["summary"][language]
    excerpt = excerpts(thinker, transcript, language)
    return [
        Message("system", prompt["system"], keep=True),
        Message("user", prompt["user"].replace("{transcript}", excerpt)),
    ]


def ask(
    thinker: Thinker,
    question: str,
    language: str,
    *,
    transcript: str,
    seconds: float,
    tags: Sequence[str] = (),
    pitch: float | None = None,
) -> list[Message]:
    """Ask `question` about a recording of which this was measured. `pitch` is in Hz, None where there is no voice."""
    heard = excerpts(thinker, transcript, language)
    facts = [
        fact("transcript", language, heard) if heard else fact("no_words", language),
        fact("tags", language, "、".join(tags) if language == "zh" else ", ".join(tags)) if tags else "",
        fact("pitch", language, pitch) if pitch else "",
        fact("seconds", language, seconds),
    ]
    prompt = prompts()["ask"][language]
    user = prompt["user"].replace("{facts}", "\n".join(filter(None, facts))).replace("{question}", question)
    return [Message("system", prompt["system"], keep=True), Message("user", user)]


def fact(name: str, language: str, value: Any = None) -> str:
    """A line about the recording."""
    sentence: Mapping[str, str] = prompts()["facts"][name]
    return sentence[language].format(value=value)


def excerpts(thinker: Thinker, transcript: str, language: str) -> str:
    """The transcript, or of a long one three equal excerpts (beginning, middle, end) of TRANSCRIPT_TOKENS together."""
    transcript = transcript.strip()
    tokens = thinker.count([Message("user", transcript)])
    if tokens <= TRANSCRIPT_TOKENS:
        return transcript
    third = len(transcript) * TRANSCRIPT_TOKENS // tokens // 3
    middle = len(transcript) // 2 - third // 2
    parts = (transcript[:third], transcript[middle : middle + third], transcript[-third:])
    return f"\n{prompts()['facts']['left_out'][language]}\n".join(parts)
