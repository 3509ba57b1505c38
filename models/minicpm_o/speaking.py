"""Speech of an answer that is still being written: pieces of text in, sound out, in upstream's order of steps.

Ten wordpieces are read, 25 frames spoken, the next ten read. A text of 120 wordpieces is closed at the end of a
sentence, and a new segment goes on in the same voice, from the last wordpieces and frames of the one before.

Mended, unless `upstream`: two stretches are spoken for ten wordpieces where the decoder needs no more text for them,
so that speech keeps up with the text; sound is given as soon as it is final, not a stretch later; a text without
sentences is closed before the decoder's room ends; where speech ends before its text, the rest opens a new segment.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.minicpm_o.dvae import Dvae
from models.minicpm_o.speech_decoder import FIRST_TEXT, FRAMES_STEP, SpeechDecoder
from models.minicpm_o.speech_text import Reading, SpeechText, sentence_end
from models.minicpm_o.utterance import TEXT_STEP, Sampler, Utterance, visible_text
from models.minicpm_o.vocoder import OVERLAP_FRAMES, SoundStream, Vocoder

SEGMENT = 120  # wordpieces from which on a segment is closed at the end of a sentence,
LONGER, LONGEST = 200, 270  # … of a clause, … anywhere
CARRIED_WORDPIECES, CARRIED_FRAMES = 5, 50  # of a segment, with which the next one begins
WORDS = re.compile(r"\s*(?:[!-\u02ff]{1,24}|\S)\s*|\s+")  # a word, or a character of a script without spaces
WORD = re.compile(r"\w")
CLAUSE = re.compile(r"[,;:，、；：—]")

Sounds = Iterator["Tensor | None"]
"""Samples float32 [n] at 24 kHz as they become final; None after each step of the network between them."""


@dataclass(frozen=True)
class SpeechParts:
    """What speaks. No state of any answer is in it."""

    decoder: SpeechDecoder
    dvae: Dvae
    vocoder: Vocoder
    text: SpeechText

    @property
    def samples_per_frame(self) -> int:
        """A frame of codes is two of the spectrogram."""
        return 2 * self.vocoder.head.istft.hop_length

    def sound(self, codes: list[Tensor]) -> Tensor:
        """Frames int64 [4] → their sound as a whole, float32 [n]."""
        return self.vocoder(self.dvae(torch.stack(codes))) if codes else torch.empty(0)


class Sink(Protocol):
    """Where frames become sound: `push` takes codes [n, 4] and gives samples that are final, `finish` the rest."""

    def push(self, codes: Tensor) -> Tensor: ...

    def finish(self) -> Tensor: ...


class WholeSound:
    """All frames decoded together at the end: for who does not listen meanwhile."""

    def __init__(self, parts: SpeechParts):
        self._parts, self._codes = parts, []

    def push(self, codes: Tensor) -> Tensor:
        self._codes.extend(codes)
        return torch.empty(0)

    def finish(self) -> Tensor:
        return self._parts.sound(self._codes)


class LateSound:
    """A stream cut as upstream cuts it: a stretch is given, with its joint, when the next one is there."""

    def __init__(self, parts: SpeechParts):
        self._stream, self._held = SoundStream(parts.dvae, parts.vocoder), None
        self._overlap = OVERLAP_FRAMES * parts.samples_per_frame

    def push(self, codes: Tensor) -> Tensor:
        new, held = self._stream.push(codes), self._held
        if held is None:
            self._held = new
            return new[:0]
        self._held = new[self._overlap :]
        return torch.cat([held, new[: self._overlap]])

    def finish(self) -> Tensor:
        held, self._held = self._held, None
        rest = self._stream.finish()
        return rest if held is None else torch.cat([held, rest])


class Speaking:
    """One answer's speech. `ended`: it says nothing more, whatever is written (before its text ends: only upstream)."""

    def __init__(
        self,
        parts: SpeechParts,
        speaker: Tensor,
        sampler: Sampler,
        *,
        upstream: bool = False,
        whole: bool = False,
        first: str = "",
    ):
        """`speaker`: the language model's state at <|spk|>. `whole`: all sound in one piece, at the end.

        `first`: upstream's first piece of text, which it neither normalises nor begins to speak.
        """
        self._parts, self._speaker, self._sampler = parts, speaker, sampler
        self._upstream, self._whole, self.ended = upstream, whole, False
        self._reading = Reading(True, first or " ") if upstream else Reading()
        self._sound = self._sink()
        self._lead: list[Tensor] = []  # frames that are decoded once more before the next ones
        self.segments = [Utterance(parts.decoder, speaker)]
        self._text, self._pieces, self._steps = first, 0, 0
        self._new = False  # whether the segment's text is more than what the one before it had said

    def write(self, piece: str) -> Sounds:
        """The next piece of the answer's text, as written."""
        if self.ended:
            return
        if self._upstream and not piece and not self._pieces and len(self.segments) > 1:
            self.ended = True  # upstream takes an empty piece behind a closed segment for the end of the answer
            return
        self._pieces += 1
        read = self._reading.push(piece)
        for part in [read] if self._upstream else WORDS.findall(read):
            yield from self._add(part, piece if self._upstream else part)

    def finish(self) -> Sounds:
        """Say the rest: no text follows."""
        if not self.ended:
            for part in WORDS.findall(self._reading.finish()):
                yield from self._add(part, part)
            # What a closed segment left over is lost upstream where no text follows it.
            if self._pieces if self._upstream else self._new:
                yield from self._close()
            yield self._sound.finish()
        self.ended = True

    def _add(self, part: str, written: str) -> Sounds:
        """A part of the text, which upstream looks through as it was `written`; says what may be said by now."""
        self._text += part
        self._new = self._new or bool(WORD.search(part))
        ids, known = self._parts.text.layout(self._text)
        cut = self._cut(written, known)
        if cut:
            self._text, left = self._text[:cut], self._text[cut:]
            read = yield from self._close()
            if self._upstream:
                yield self._sound.finish()
            if not self.ended:
                self._go_on(read, left)
        elif self._upstream:
            if known >= (self._steps + 1) * TEXT_STEP:
                yield from self._step(ids, known)
        else:
            segment = self.segments[-1]
            while segment is self.segments[-1] and known >= self._in_view():
                yield from self._step(ids, known)

    # --- a segment ----------------------------------------------------------------------------------------------------

    def _cut(self, new: str, known: int) -> int:
        """Where the segment's text is to be closed, 0 if it is not."""
        mark = sentence_end(new) if known >= SEGMENT else ""
        if mark or self._upstream:
            return self._text.rfind(mark) + 1 if mark else 0
        if known >= LONGER and (clauses := [found.end() for found in CLAUSE.finditer(self._text)]):
            return clauses[-1]
        return (self._text.rfind(" ") + 1 or len(self._text)) if known >= LONGEST else 0

    def _in_view(self) -> int:
        """How many wordpieces the next stretch would see, if there were enough."""
        reserved = self._parts.decoder.reserved
        return visible_text(len(self.segments[-1].codes) + FRAMES_STEP - 1, reserved, reserved) - FIRST_TEXT

    def _step(self, ids: list[int], known: int) -> Sounds:
        """Read ten wordpieces (all that are known, unless upstream) and speak a stretch."""
        self._steps += 1
        end = self._steps * TEXT_STEP if self._upstream else known
        self._feed(ids, min(end + FIRST_TEXT, self._parts.decoder.bos), known)
        yield from self._stretch()
        if not self.segments[-1].ended:
            return
        if self._upstream:
            yield self._sound.finish()
            self.ended = True
        else:
            seen = self._seen()
            self._go_on(ids[:seen], " " if self._text[-1:].isspace() else "", ids[seen : known + FIRST_TEXT])

    def _close(self) -> Generator[Tensor | None, None, list[int]]:
        """Read what is left of the segment's text, and its end, and speak until the decoder ends; gives the ids.

        Where it ends before it has seen all of them, the rest is said in further segments, unless upstream.
        """
        while True:
            utterance = self.segments[-1]
            ids, known = self._parts.text.layout(self._text)
            end = known + FIRST_TEXT
            self._feed(ids, min(end + 1, self._parts.decoder.bos), known, closed=True)
            while not utterance.ended and not utterance.full:
                yield from self._stretch()
            seen = self._seen()
            left = WORD.search(self._parts.text.decode(ids[seen:end]))
            if self._upstream or utterance.full or not left:
                self.ended = self._upstream and utterance.full
                return ids[:end]
            self._go_on(ids[:seen], "", ids[seen:end])

    def _seen(self) -> int:
        """How many slots the segment's last step saw."""
        utterance = self.segments[-1]
        return visible_text(len(utterance.codes), utterance.text_length, self._parts.decoder.reserved)

    def _go_on(self, read: list[int], left: str, unread: Sequence[int] = ()) -> None:
        """A new segment: it begins with the end of the last one's ids and frames, and goes on with what is unread."""
        frames = self.segments[-1].codes[-CARRIED_FRAMES:]
        words = read[FIRST_TEXT:][-CARRIED_WORDPIECES:]
        utterance = Utterance(self._parts.decoder, self._speaker)
        utterance.feed([*read[:FIRST_TEXT], *words])
        if frames:
            utterance.carry(frames)
        utterance.rewind()
        text = self._parts.text.decode([*words, *unread])
        self._text = (text if self._upstream else text.removeprefix("##")) + left
        self._new = bool(unread or WORD.search(left))
        if self._upstream:
            self._sound, self._lead = self._sink(), frames[-OVERLAP_FRAMES:]
            self._reading = Reading(True, self._text)
        self.segments.append(utterance)
        self._pieces, self._steps = 0, 0

    def _feed(self, ids: list[int], end: int, known: int, closed: bool = False) -> None:
        """Read up to slot `end`, and let the mask know how many wordpieces there are.

        Upstream's mask goes by all that are known, so that a segment's first steps see slots that are not read yet.
        """
        utterance = self.segments[-1]
        utterance.feed(ids[utterance.slots : end])
        read = utterance.slots - FIRST_TEXT - 1  # the mask shows one slot more than the text
        utterance.text_length = known if self._upstream or closed else min(known, read)

    def _stretch(self) -> Sounds:
        frames, self._lead = self._lead, []
        for frame in self.segments[-1].frames(FRAMES_STEP, self._sampler):
            frames.append(frame)
            yield None
        if frames:
            yield self._sound.push(torch.stack(frames))

    def _sink(self) -> Sink:
        if self._whole:
            return WholeSound(self._parts)
        if self._upstream:
            return LateSound(self._parts)
        return SoundStream(self._parts.dvae, self._parts.vocoder)
