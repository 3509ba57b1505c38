"""Conversations as MiniCPM-o reads them: messages → ids, with places for the sound that is heard in them.

A person's text never becomes an order: special tokens are only those that this file writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models.errors import UserError
from models.minicpm_o.audio_encoder import check_clip, cut, placeholder_counts
from models.minicpm_o.config import MiniCPMOConfig
from models.minicpm_o.tokenizer import (
    AUDIO,
    AUDIO_CLOSE,
    AUDIO_OPEN,
    CLOSE,
    OPEN,
    SPEAKER,
    SPEAKER_CLOSE,
    SPEAKER_OPEN,
    SPEECH_CLOSE,
    SPEECH_OPEN,
    Markup,
    Tokenizer,
)

NO_VOICE = Markup("Use the <reserved_53> voice.")  # a part of upstream's own prompts, known again in plain text
ROLES = ("system", "user", "assistant")
TAG = "(<audio>./</audio>)"  # how upstream writes a clip into a message, before it counts its vectors
MOST_IDS = 32768  # of a prompt, as upstream
DROPPED_AT_ONCE = 4  # the oldest turns leave in quarters of what fits, so that the kept cache stays good for a while

# What opens and closes a turn. Speech is answered after SPEAK; its second token's state is the speaker's.
ANSWER = f"{OPEN}assistant\n"
SPEAK = f"{SPEAKER_OPEN}{SPEAKER}{SPEAKER_CLOSE}{SPEECH_OPEN}"
CLOSED = f"{CLOSE}\n"
ANSWER_ALOUD = Markup(ANSWER + SPEAK)
# In a session that is heard as it is spoken, a user's turn opens so: at first, after an answer that ended of its own
# accord, after one that was cut short. All three are closed by CLOSED and ANSWER_ALOUD.
FIRST_TURN = Markup(f"{OPEN}user\n")
NEXT_TURN = Markup(CLOSED + FIRST_TURN)
TURN_AFTER_BREAK = Markup(SPEECH_CLOSE + NEXT_TURN)

# A chat without sound, where the checkpoint brings no template of its own.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class Clip:
    """Sound in a message: float32 [n] at 16 kHz. Upstream hears the clips of one message as one."""

    def __init__(self, samples: np.ndarray, message: int):
        self.samples, self.message = samples, message
        self.key = hashlib.blake2b(samples.tobytes(), digest_size=16).digest()


@dataclass(frozen=True)
class Message:
    """A turn of a conversation: texts and clips, in their order. Upstream's system prompts have the role "user"."""

    role: str
    parts: tuple[Any, ...]  # of str and np.ndarray

    @classmethod
    def of(cls, given: Message | Mapping[str, Any]) -> Message:
        """From {"role": …, "content": a text, a clip, an earlier answer (with .text), or a list of them}.

        Raises UserError where it is something else.
        """
        if isinstance(given, Message):
            return given
        if not isinstance(given, Mapping) or given.get("role") not in ROLES or "content" not in given:
            raise UserError("message_unknown", what="the role or the content")
        content = given["content"]
        return cls(given["role"], tuple(map(_part, content if isinstance(content, (list, tuple)) else [content])))


@dataclass(frozen=True)
class Prompt:
    """`ids`, in which the vectors of the `clips` take the places `audio_bounds` (start, end), in their order.

    `keys` says what stands at each position: an id, or for a clip's position which clip. `speaker` is the position
    whose hidden state is the speaker's. `text` is what the ids say. `dropped` messages did not fit.
    """

    ids: list[int]
    keys: list[Hashable]
    audio_bounds: list[tuple[int, int]]
    clips: list[Clip]
    spans: list[tuple[int, int]]  # of each clip: from its first token to behind its last
    speaker: int | None
    text: str
    dropped: int = 0
    templated: str = field(default="", repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def after(self, start: int) -> Prompt:
        """What stands behind the first `start` positions; must not cut a clip."""
        assert not any(begin < start < end for begin, end in self.spans)
        kept = [place for place, (begin, _) in enumerate(self.spans) if begin >= start]
        return Prompt(
            ids=self.ids[start:],
            keys=self.keys[start:],
            audio_bounds=[(begin - start, end - start) for begin, end in self.audio_bounds if begin >= start],
            clips=[self.clips[place] for place in kept],
            spans=[(self.spans[place][0] - start, self.spans[place][1] - start) for place in kept],
            speaker=None if self.speaker is None or self.speaker < start else self.speaker - start,
            text="",
            dropped=self.dropped,
        )

    def pieces(self, upstream: bool = False) -> list[np.ndarray]:
        """The sound to encode, in pieces of at most 30 s. `upstream`: the clips of a message are joined first."""
        if not upstream:
            return [piece for clip in self.clips for piece in cut(clip.samples)]
        joined: dict[int, list[np.ndarray]] = {}
        for clip in self.clips:
            joined.setdefault(clip.message, []).append(clip.samples)
        return [piece for clips in joined.values() for piece in cut(np.concatenate(clips))]


class Prompts:
    """Writes prompts for one checkpoint."""

    def __init__(self, tokenizer: Tokenizer, config: MiniCPMOConfig):
        self.tokenizer, self._config = tokenizer, config

    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        aloud: bool = True,
        joined_by: str = "\n",
        limit: int = MOST_IDS,
        upstream: bool = False,
    ) -> Prompt:
        """A whole conversation, up to where the answer begins.

        `aloud`, or with any clip in it: the template of speech; otherwise the checkpoint's own template of text.
        `joined_by` stands between the parts of a message (upstream: "" for omni_input). A prompt over `limit` ids loses
        its oldest turns, never its system prompt or its last turn; UserError("prompt_too_long") where these alone are
        too long. `upstream`: special tokens count in any text, and what is over the limit is cut from the end.
        """
        turns = [Message.of(message) for message in messages]
        if not turns:
            raise UserError("no_text")
        aloud = aloud or any(isinstance(part, np.ndarray) for turn in turns for part in turn.parts)
        written = self._written(turns, aloud, joined_by, upstream)
        if upstream:
            return _cut_off(written, limit)
        if len(written) <= limit:
            return written
        kept = self._fitting(turns, aloud, joined_by, len(written), limit)
        written = self._written(kept, aloud, joined_by, upstream)
        if len(written) > limit:
            raise UserError("prompt_too_long", tokens=len(written), most=limit)
        return Prompt(**{**vars(written), "dropped": len(turns) - len(kept)})

    def turn(self, message: Message | Mapping[str, Any], joined_by: str = "\n", index: int = 0) -> list[Any]:
        """A closed turn of a conversation, as parts for `build`."""
        message = Message.of(message)
        content = _joined(message.parts, joined_by, index)
        return [Markup(f"{OPEN}{message.role}\n"), *content, Markup(CLOSED)]

    def build(self, parts: Iterable[Any], upstream: bool = False) -> Prompt:
        """Parts (Markup, text, Clip) in their order. `upstream`: special tokens count in any text."""
        parts = [Markup(part) if upstream and isinstance(part, str) else part for part in parts]
        ids: list[int] = []
        keys: list[Hashable] = []
        clips: list[Clip] = []
        spans: list[tuple[int, int]] = []
        run: list[str] = []
        texts: list[str] = []

        def write(run: list[str]) -> None:
            new = self.tokenizer.encode(run)
            ids.extend(new)
            keys.extend(new)
            texts.extend(run)

        for part in parts:
            if not isinstance(part, Clip):
                run.append(part)
                continue
            write(run)
            run = []
            start, held = len(ids), Markup(self.placeholders(len(part.samples)))
            ids.extend(self.tokenizer.encode([held]))
            keys.extend((part.key, place) for place in range(len(ids) - start))
            texts.append(held)
            clips.append(part)
            spans.append((start, len(ids)))
        write(run)
        templated = "".join(TAG if isinstance(part, Clip) else part for part in parts)
        bounds = self._bounds(ids, AUDIO_OPEN, AUDIO_CLOSE)
        speakers = self._bounds(ids, SPEAKER_OPEN, SPEAKER_CLOSE)
        speaker = speakers[-1][0] if speakers else None
        return Prompt(ids, keys, bounds, clips, spans, speaker, "".join(texts), 0, templated)

    def placeholders(self, samples: int) -> str:
        """What stands for a clip of so many samples."""
        counts = placeholder_counts(samples, self._config.audio_pool_step, self._config.chunk_input)
        return "".join(AUDIO_OPEN + AUDIO * count + AUDIO_CLOSE for count in counts)

    def _written(self, turns: Sequence[Message], aloud: bool, joined_by: str, upstream: bool) -> Prompt:
        if aloud:
            parts = [part for index, turn in enumerate(turns) for part in self.turn(turn, joined_by, index)]
            return self.build([*parts, ANSWER_ALOUD], upstream)
        return self.build(self._plain(turns, joined_by), upstream)

    def _plain(self, turns: Sequence[Message], joined_by: str) -> list[Any]:
        """A chat in text by the checkpoint's template, which gets a mark for each message's content."""
        from transformers.utils.chat_template_utils import render_jinja_template

        marks = [f"\ue000{index}\ue001" for index in range(len(turns))]
        given = [{"role": turn.role, "content": mark} for turn, mark in zip(turns, marks, strict=True)]
        template = self.tokenizer.chat_template or PLAIN_TEMPLATE
        [text], _ = render_jinja_template([given], chat_template=template, add_generation_prompt=True)
        parts: list[Any] = []
        for mark, turn in zip(marks, turns, strict=True):
            before, _, text = text.partition(mark)
            parts += [Markup(before), *_joined(turn.parts, joined_by, 0)]
        return [*parts, Markup(text)]

    def _bounds(self, ids: Sequence[int], opening: str, closing: str) -> list[tuple[int, int]]:
        """What stands between two special tokens, each time: from, and up to."""
        first, last = self.tokenizer.id(opening), self.tokenizer.id(closing)
        starts = (place + 1 for place, each in enumerate(ids) if each == first)
        ends = (place for place, each in enumerate(ids) if each == last)
        return list(zip(starts, ends, strict=False))

    def _fitting(self, turns: list[Message], aloud: bool, joined_by: str, length: int, limit: int) -> list[Message]:
        """Without as many of the oldest turns as are over the limit, rounded up."""
        first = 1 if leads(turns) else 0
        starts = [place for place, turn in enumerate(turns) if place >= first and turn.role == "user"]
        quarter = max(1, limit // DROPPED_AT_ONCE)
        over = -(-(length - limit) // quarter) * quarter
        end = first
        for start in starts[1:]:  # the last turn stays
            over -= sum(len(self.build(self.turn(turn, joined_by))) for turn in turns[end:start])
            end = start
            if over <= 0:
                break
        return turns[:first] + turns[end:]


def leads(turns: Sequence[Message]) -> bool:
    """Whether the first message is a system prompt: by its role, or since another of the user's follows it."""
    return turns[0].role == "system" or (len(turns) > 1 and turns[0].role == turns[1].role == "user")


def _joined(parts: Sequence[Any], joined_by: str, message: int) -> list[Any]:
    joined: list[Any] = []
    for part in parts:
        joined += [joined_by] if joined else []
        joined.append(Clip(part, message) if isinstance(part, np.ndarray) else part)
    return joined


def _part(given: Any) -> Any:
    """One part of a message's content."""
    if isinstance(given, str):
        return NO_VOICE if given == NO_VOICE else given
    if isinstance(text := getattr(given, "text", None), str):  # an answer, handed back as it was given
        return text
    if isinstance(given, np.ndarray) or (hasattr(given, "numpy") and hasattr(given, "cpu")):
        return check_clip(given if isinstance(given, np.ndarray) else given.cpu().numpy())
    raise UserError("message_unknown", what=type(given).__name__)


def _cut_off(prompt: Prompt, limit: int) -> Prompt:
    """As upstream cuts, from the end."""
    return Prompt(**{**vars(prompt), "ids": prompt.ids[:limit], "keys": prompt.keys[:limit]})
