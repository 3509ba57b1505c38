"""Looks on while MiniCPM-o speaks: what its speech decoder read, spoke and thought, in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from models.minicpm_o.speaking import SpeechParts
from models.minicpm_o.utterance import Utterance

KEYS_KEPT = 24  # text slots of which golden data holds the first layer's keys


class Watch:
    """What happened. Lists grow with each reading (`read_*`) and each stretch of speech (`totals`, `ends` …)."""

    def __init__(self) -> None:
        self.read: list[list[int]] = []  # ids read at once
        self.places: list[list[int]] = []  # first and last slot of each reading
        self.carried: list[list[int]] = []  # shapes of frames taken over from the segment before
        self.totals: list[int] = []  # frames of the segment so far, after each stretch
        self.known: list[int] = []  # wordpieces known in each stretch
        self.asked: list[int] = []  # frames asked for in each stretch
        self.ends: list[bool] = []
        self.decoded: list[int] = []  # frames given to the DVAE
        self.logits: list[Tensor] = []
        self.codes: list[Tensor] = []  # of the segment so far, after each stretch
        self.keys: Tensor | None = None  # of the first layer, text slots, of the last utterance

    def text_keys(self) -> Tensor:
        """[heads, slots, head size] of the first slots that were read."""
        assert self.keys is not None
        return self.keys

    def text_ids(self) -> list[int]:
        return [each for ids in self.read for each in ids]


@contextmanager
def watching(parts: SpeechParts) -> Iterator[Watch]:
    """Within it, whatever is spoken by `parts` is written down; nothing is changed."""
    watch = Watch()
    feed, carry, frames, logits = Utterance.feed, Utterance.carry, Utterance.frames, parts.decoder.logits

    def feeds(self: Utterance, ids: Any) -> None:
        if ids:
            watch.read.append(list(ids))
            watch.places.append([self.slots, self.slots + len(ids) - 1])
        feed(self, ids)
        count = min(KEYS_KEPT, self.slots)
        bos = self.decoder.bos
        watch.keys = self._cache[0, 0, :, bos - count : bos].flip(1).clone()  # text lies backwards

    def carries(self: Utterance, before: Any) -> None:
        watch.carried.append([1, len(before) - 1, len(before[0])])
        carry(self, before)

    def stretch(self: Utterance, count: int, sampler: Any) -> Iterator[Tensor]:
        watch.known.append(self.text_length)
        watch.asked.append(count)
        yield from frames(self, count, sampler)
        watch.totals.append(len(self.codes))
        watch.ends.append(self.ended)
        watch.codes.append(torch.stack(self.codes))

    def thinks(hidden: Tensor) -> Tensor:
        watch.logits.append(logits(hidden))
        return watch.logits[-1]

    hook = parts.dvae.register_forward_pre_hook(lambda _, given: watch.decoded.append(len(given[0])))
    with (
        patch.object(Utterance, "feed", feeds),
        patch.object(Utterance, "carry", carries),
        patch.object(Utterance, "frames", stretch),
        patch.object(parts.decoder, "logits", thinks),
    ):
        try:
            yield watch
        finally:
            hook.remove()
