"""A conversation that is heard while it is spoken: messages are read as they come, an answer is made when asked for.

All state is in the Session; any number of them share one set of weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from models.errors import UserError
from models.minicpm_o.chat import Options, Piece, Steps, ears, voice, write
from models.minicpm_o.language import KVCache
from models.minicpm_o.model import Parts
from models.minicpm_o.prompts import (
    ANSWER_ALOUD,
    CLOSED,
    FIRST_TURN,
    NEXT_TURN,
    TURN_AFTER_BREAK,
    Clip,
    Message,
    Prompt,
)
from models.minicpm_o.sampling import Sampler as TextSampler
from models.minicpm_o.speaking import Speaking
from models.minicpm_o.tokenizer import OPEN, UNFINISHED, Markup
from models.minicpm_o.utterance import Sampler, upstream_draw

MOST_STREAMED_TOKENS = 512  # of an answer, as upstream
ROOM = 8192  # positions of a session: 0.5 GB of KV cache with the real model; older turns leave
CALL = 3  # tokens that upstream asks of the language model at once


class Session:
    """One person's conversation.

    `cache` is what was read. `opens`: the user's next message begins a turn. `answered`: there was an answer, and
    `completed`: it ended of its own accord. `dropped` turns were forgotten to make room; the system prompt never is.
    """

    def __init__(self, parts: Parts, upstream: bool = False, room: int = ROOM):
        self._parts, self._upstream, self._room = parts, upstream, room
        self.cache = KVCache()
        self._turns: list[int] = []  # the position of <|im_start|> of each of the user's turns
        self.dropped = 0
        self.hears = ears(parts).stream() if parts.ears else None
        self.opens, self.answered, self.completed = True, False, False

    def prefill(self, given: Message | Mapping[str, Any]) -> Iterator[None]:
        """Read the next message: the first is a whole turn (the system prompt), later ones are pieces of the user's.

        Raises UserError where it is no message, or the conversation has no room for it.
        """
        message, prompts = Message.of(given), self._parts.prompts
        first = not self.cache.length
        if first:
            parts = prompts.turn(message, joined_by="")
        else:
            parts = [Clip(part, 0) if isinstance(part, np.ndarray) else part for part in message.parts]
            if self.opens and message.role == "user":
                parts.insert(0, self._opening())
        prompt = prompts.build(parts, self._upstream)
        if not first and self.opens:
            prompt = self._begin_turn(prompt)
        self._check_room(len(prompt))
        heard = self._hear(prompt)
        for _ in self._parts.language.prefill(prompt, heard, self.cache):
            yield None
        if first and self.hears:
            self.hears.reset()
        self.opens = first

    def generate(self, options: Options, draw: Sampler = upstream_draw) -> Steps:
        """Answer what was read so far. `draw` is of the speech, and upstream's only.

        It may be left at any step: the next turn then says that the answer was cut short.
        """
        if not self.cache.length:
            raise UserError("session_empty")
        prompt = self._parts.prompts.build([Markup(CLOSED), ANSWER_ALOUD])
        self._check_room(len(prompt))
        self.opens, self.answered, self.completed = True, True, False
        if self.hears:
            self.hears.reset()
        for _ in self._parts.language.prefill(prompt, [], self.cache):
            yield None
        if self._upstream:
            yield from self._as_upstream(prompt.ids, options, draw)
            return
        sampler = options.text_sampler()
        speaking = None
        if options.speak:
            speaking = Speaking(voice(self._parts), self._speaker(), options.speech_sampler(sampler.seed))
        language, stops = self._parts.language, self._parts.tokenizer.stops
        tokens = language.generate(self.cache, sampler, stops, options.limit)
        self.completed = yield from write(self._parts, tokens, speaking)

    def _begin_turn(self, prompt: Prompt) -> Prompt:
        """Forget the oldest turns where the session is full. Without any left, the prompt closes none."""
        opening = self._parts.tokenizer.id(OPEN)
        start = prompt.ids.index(opening) if opening in prompt.ids else 0
        ends = [*self._turns[1:], self.cache.length + start]
        if not self._upstream and self._turns and self.cache.length + len(prompt) > self._room:
            first, over = self._turns[0], self.cache.length + len(prompt) - self._room // 2
            count = next((count for count, end in enumerate(ends, 1) if end - first >= over), len(ends))
            self._parts.language.forget(self.cache, first, ends[count - 1])
            self._turns = [turn - (ends[count - 1] - first) for turn in self._turns[count:]]
            self.dropped += count
            if not self._turns:
                prompt, start = prompt.after(start), 0
        self._turns.append(self.cache.length + start)
        return prompt

    def _opening(self) -> Markup:
        if not self.answered:
            return FIRST_TURN
        return NEXT_TURN if self.completed else TURN_AFTER_BREAK

    def _hear(self, prompt: Prompt) -> list[Tensor]:
        if not prompt.clips:
            return []
        if self.hears is None:
            self.hears = ears(self._parts).stream()  # or says that nothing hears
        clips = [clip.samples for clip in prompt.clips]
        return [self.hears.push(clip) for clip in ([np.concatenate(clips)] if self._upstream else clips)]

    def _speaker(self) -> Tensor:
        assert self.cache.speaker is not None
        return self.cache.speaker[0]

    def _check_room(self, more: int) -> None:
        most = self._parts.language.most_positions
        if self.cache.length + more >= most:
            raise UserError("prompt_too_long", tokens=self.cache.length + more, most=most)

    # --- upstream's streaming_generate() ------------------------------------------------------------------------------

    def _as_upstream(self, prompt: list[int], options: Options, draw: Sampler) -> Steps:
        texts = self._calls(prompt, options)
        if not options.speak:
            yield from (Piece(text) for text in texts)
            return
        first = next(texts)
        speaking = Speaking(voice(self._parts), self._speaker(), draw, upstream=True, first=first)
        yield from paired(speaking, texts, first)

    def _calls(self, seen: list[int], options: Options) -> Iterator[str]:
        """The text of each call. ODDITY of upstream: the repetition penalty counts what the call was given, no more."""
        language, tokenizer = self._parts.language, self._parts.tokenizer
        sampler, held, made = TextSampler(options.decoding, upstream=True), [], 0
        while True:
            ids = list(language.generate(self.cache, sampler, tokenizer.stops, CALL, seen))
            made, held = made + len(ids), held + ids
            end = len(held)
            while end and tokenizer.decode(held[:end], specials=True).endswith(UNFINISHED):
                end -= 1
            text, held = tokenizer.answer(held[:end], upstream=True), held[end:]
            self.completed = ids[-1] in tokenizer.stops
            yield text
            if self.completed or made >= options.limit:
                return
            language.read(ids[-1], self.cache)
            seen = ids[-1:]


def paired(speaking: Speaking, texts: Iterator[str], waiting: str = "") -> Steps:
    """Text and sound in upstream's pairs: text waits for the next sound, and is lost where none comes."""

    def pairs(sounds: Iterator[Tensor | None]) -> Steps:
        nonlocal waiting
        for sound in sounds:
            if sound is not None and len(sound):
                yield Piece(waiting, sound)
                waiting = ""
            else:
                yield None

    for text in texts:
        waiting += text
        yield from pairs(speaking.write(text))
        if speaking.ended:
            return
    yield from pairs(speaking.finish())
