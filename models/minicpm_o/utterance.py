"""From text to codes of sound, a stretch at a time: the state of an utterance, and how codes are drawn.

Text and sound are two streams on one clock: 50 frames more let the decoder see 10 wordpieces more, whatever has been
read by then. The network met its oddities while it was trained, so they are kept, each in one place: the mask of a step
(`visible_text`; position 302 is seen by nobody, not even by itself; text slots that are visible and not yet read count
as zeros), the carried frames that all see each other (`Utterance.carry`), the first frame drawn from the whole
distribution, and the end that no stretch may have among its first ten frames (`Utterance.frames`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import TopKLogitsWarper, TopPLogitsWarper

from models.minicpm_o.speech_decoder import FIRST_TEXT, MOST_FRAMES, SpeechDecoder

TEXT_STEP = 10  # wordpieces that are read, and come into view, together
FRAMES_PER_TEXT_STEP = 50  # after so many frames the next wordpieces come into view
NO_END = 10  # frames of a stretch in which speech cannot end
GROWTH = 256  # frames for which a KV cache makes room at once

Sampler = Callable[[Tensor], Tensor]
"""Chances float32 [4, codes] → drawn codes int64 [4]."""


@dataclass(frozen=True)
class Drawing:
    """How codes are drawn; upstream's values, which its code fixes. The penalty 1.0 is none."""

    temperatures: tuple[float, ...] = (0.1, 0.3, 0.1, 0.3)  # of the four codebooks
    top_p: float = 0.7
    top_k: int = 20
    keep: int = 3  # codes that top-p and top-k leave at least
    repetition_penalty: float = 1.0
    penalty_frames: int = 16  # frames back that it looks


def greedy(chances: Tensor) -> Tensor:
    """The most likely codes."""
    return chances.argmax(-1)


def upstream_draw(chances: Tensor) -> Tensor:
    """Codes drawn from torch's global generator, as upstream does: torch.manual_seed() gives its speech again."""
    return torch.multinomial(chances, 1).view(-1)


def seeded(seed: int) -> Sampler:
    """Codes drawn from a generator of its own, the same for every device; `seed` is any whole number."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    return lambda chances: torch.multinomial(chances.cpu(), 1, generator=generator).view(-1)


def visible_text(frames: int, text_length: int, reserved: int) -> int:
    """How many of the first slots a step sees after `frames` frames, where `text_length` wordpieces are known.

    One slot more than the text, for its end; at frame 49 the view widens, for [Ptts] counts as a position of sound.
    """
    steps = math.ceil((frames + FIRST_TEXT) / FRAMES_PER_TEXT_STEP)
    return FIRST_TEXT + min(steps * TEXT_STEP, text_length + 1, reserved)


def penalize(logits: Tensor, recent: Tensor, penalty: float) -> Tensor:
    """Make codes less likely by `penalty` for each time that they are among the `recent` ones.

    Logits float [codebooks, codes], recent int64 [frames, codebooks].
    """
    times = F.one_hot(recent.t(), logits.shape[-1]).sum(1)
    factor = penalty**times
    return torch.where(logits < 0, logits * factor, logits / factor)


class Utterance:
    """All state of one stretch of text being spoken in one voice.

    The cache holds text backwards before slot `reserved + 2`, sound from there on, and [Ptts], which nobody sees, not
    at all: what a step sees is then one run of slots, and nothing hidden is read. Text not yet read is zeros.
    """

    def __init__(self, decoder: SpeechDecoder, speaker: Tensor, drawing: Drawing | None = None):
        """`speaker`: the language model's state at <|spk|>, [width of the LLM]."""
        self.decoder = decoder
        config = decoder.config
        self.drawing = drawing or Drawing(
            top_p=config.top_p, top_k=config.top_k, repetition_penalty=config.repetition_penalty
        )
        self._temperatures = torch.tensor(self.drawing.temperatures, device=decoder.device)[:, None]
        with torch.inference_mode():
            self._speaker = decoder.speaker(speaker)
        self._cache = self._zeros(0)
        self.codes: list[Tensor] = []
        """Frames so far, int64 [4] each, those carried over included."""
        self.slots = 0
        """Slots read so far."""
        self.text_length = 0
        """Wordpieces known so far: what the mask goes by. feed() counts them, and a caller may run ahead of it."""
        self._closed = False  # [Etts] was read
        self.ended = False
        self.logits: Tensor | None = None
        """Of the last step, float32 [4, codes]: before anything is done to them."""

    def feed(self, ids: Sequence[int]) -> None:
        """Read the next slots: [Stts] and [spk_emb] first, wordpieces, at last [Etts]. May be called at any time.

        Raises IndexError beyond the slots that are reserved.
        """
        if not ids:
            return
        decoder, begin, end = self.decoder, self.slots, self.slots + len(ids)
        if end > decoder.bos:
            raise IndexError(f"{end} slots of text, where {decoder.bos} are reserved")
        with torch.inference_mode():
            x = decoder.embed_text(ids, self._speaker).flip(0)
            where = torch.arange(end - 1, begin - 1, -1, device=decoder.device)
            mask = torch.ones(len(ids), end, dtype=torch.bool, device=decoder.device).triu()  # backwards: later sees
            kept, seen = slice(decoder.bos - end, decoder.bos - begin), slice(decoder.bos - end, decoder.bos)
            decoder.run(x, where, self._cache, kept, seen, mask)
        self.slots = end
        closing = decoder.config.text_eos_token_id
        if not self._closed:
            self._closed = closing in ids
            read = begin + ids.index(closing) if self._closed else end
            self.text_length = max(self.text_length, read - FIRST_TEXT)

    def rewind(self) -> None:
        """Read from the first slot again. What was read stays until it is written over."""
        self.slots, self._closed = 0, False

    def carry(self, frames: Sequence[Tensor]) -> None:
        """Go on from the last frames of an earlier utterance of the same voice, codes int64 [4] each.

        The last one is the input of the next step. The others and [Ptts] are read in one go and with one row of the
        mask: text as a first frame sees it, and each other, later ones too.
        """
        assert not self.codes
        decoder, before = self.decoder, torch.stack([frame.cpu() for frame in frames[:-1]])
        self._make_room(len(before))
        text = visible_text(0, self.text_length, decoder.reserved)
        with torch.inference_mode():
            x = torch.cat([decoder.embed_text([decoder.config.audio_bos_token_id]), decoder.embed_codes(before)])
            kept = slice(decoder.bos, decoder.bos + len(before))
            seen = slice(decoder.bos - text, decoder.bos + len(before))
            decoder.run(x, slice(decoder.bos, decoder.bos + len(x)), self._cache, kept, seen)
        self.codes = list(frames)

    def frames(self, count: int, sampler: Sampler) -> Iterator[Tensor]:
        """Speak a stretch of at most `count` frames, int64 [4] each.

        Speech ends, and `ended` says so, where any codebook draws the end; that frame is not given back. It cannot end
        among the first ten frames of a stretch.
        """
        for index in range(count):
            if self.ended:
                return
            with torch.inference_mode():
                drawn = sampler(self._chances(may_end=index >= NO_END)).cpu()
            if (drawn == self.decoder.end).any():
                self.ended = True
                return
            self.codes.append(drawn)
            yield drawn

    @property
    def full(self) -> bool:
        """Whether there is no room for another stretch."""
        return len(self.codes) > MOST_FRAMES

    def _chances(self, may_end: bool) -> Tensor:
        """A step of the network: what the next frame's codes may be, float32 [4, codes]."""
        decoder, done, drawing = self.decoder, len(self.codes), self.drawing
        self._make_room(done)
        x = decoder.embed_codes(self.codes[-1][None]) if done else self._bos()
        here = decoder.bos + done  # the input's position
        text = visible_text(done, self.text_length, decoder.reserved)
        kept = slice(max(here - 1, decoder.bos), here)
        hidden = decoder.run(x, slice(here, here + 1), self._cache, kept, slice(decoder.bos - text, here))
        self.logits = decoder.logits(hidden[0])
        logits = self.logits / self._temperatures
        if done:
            if drawing.repetition_penalty != 1.0:
                recent = torch.stack(self.codes[-drawing.penalty_frames :]).to(logits.device)
                logits = penalize(logits, recent, drawing.repetition_penalty)
            nothing = torch.empty(0)  # the ids that transformers' warpers do not look at
            logits = TopPLogitsWarper(drawing.top_p, min_tokens_to_keep=drawing.keep)(nothing, logits)  # pyright: ignore
            logits = TopKLogitsWarper(drawing.top_k, min_tokens_to_keep=drawing.keep)(nothing, logits)  # pyright: ignore
        if not may_end:
            logits[:, decoder.end] = -torch.inf
        return logits.softmax(-1)

    def _bos(self) -> Tensor:
        return self.decoder.embed_text([self.decoder.config.audio_bos_token_id])

    def _zeros(self, frames: int) -> Tensor:
        decoder, config = self.decoder, self.decoder.config
        size = config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, 2, config.num_attention_heads, decoder.bos + frames, size)
        return torch.zeros(shape, dtype=decoder.dtype, device=decoder.device)

    def _make_room(self, frames: int) -> None:
        """Let the cache have slots for so many frames of sound."""
        have = self._cache.shape[-2]
        if self.decoder.bos + frames > have:
            larger = self._zeros(frames + GROWTH)
            larger[..., :have, :] = self._cache
            self._cache = larger
