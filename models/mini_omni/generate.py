"""From a prompt to columns of tokens, one network step a column, and from columns to the codec's frames.

A column is a text token and seven audio tokens. Text leads: the codec frame f is made of the audio layer j of column
f + 1 + j (the delay pattern), so that the first frame needs eight columns. All state of an answer is in its generator.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.capabilities import Sampling
from models.mini_omni.config import LAYERS, PAD, Vocabulary
from models.mini_omni.model import MiniOmni
from models.mini_omni.prompts import Prompt

TEMPERATURE = 0.9  # upstream's; it counts only where more than one token may be drawn
UPSTREAM = Sampling()


@dataclass(frozen=True)
class Column:
    """`text` is an id of the text vocabulary, `audio` seven ids of the audio layers (None in tasks without sound)."""

    text: int
    audio: tuple[int, ...] | None = None


class Sampler:
    """Draws ids from logits. Greedy unless a setting says otherwise, as upstream's default (top-k 1) is."""

    def __init__(self, sampling: Sampling = UPSTREAM):
        given = (sampling.temperature, sampling.top_p)
        top_k = sampling.top_k if sampling.top_k is not None else (1 if given == (None, None) else 0)
        self.temperature = TEMPERATURE if sampling.temperature is None else sampling.temperature
        self.top_p = 1.0 if sampling.top_p is None else sampling.top_p
        self.top_k = 1 if self.temperature == 0 or self.top_p == 0 else top_k  # 0: all tokens
        self._generator = torch.Generator().manual_seed(max(sampling.seed, 0))

    def __call__(self, logits: Tensor) -> list[int]:
        """Float [n, vocabulary] → n ids."""
        if self.top_k == 1:
            return logits.argmax(-1).tolist()
        count = min(self.top_k or logits.shape[-1], logits.shape[-1])
        best, ids = logits.float().cpu().topk(count)
        chances = (best / self.temperature).softmax(-1)
        chances[chances.cumsum(-1) - chances >= self.top_p] = 0  # what comes before has the share already
        drawn = torch.multinomial(chances, 1, generator=self._generator)
        return ids.gather(-1, drawn)[:, 0].tolist()


@torch.inference_mode()
def columns(
    model: MiniOmni, prompt: Prompt, features: Tensor | None, sampler: Sampler, limit: int
) -> Iterator[Column | None]:
    """Answer a prompt: None once it is read, then a column a step, until the end token, at most `limit`.

    `features` [prompt.features, width] belong to a prompt of speech. The first column is not tested for an end (as
    upstream). With sound, the end is layer 6's end token; the text's end token is kept, and pads follow it. In two rows
    the second is left once the text has ended. The block's size bounds the answer too.
    """
    vocabulary, device = model.config.vocabulary, model.cos.device
    rows = prompt.last.shape[1]
    cache = model.cache(rows, prompt.length + limit)
    model.prefill(model.embed(prompt.columns.to(device), features), cache)
    cache.share()
    yield None
    ids, text_ended = prompt.last, False
    for count in range(min(limit, cache.capacity - prompt.length)):
        hidden = _step(model, ids.to(device), cache)
        audio = sampler(model.audio_logits(hidden[0])) if prompt.task.speaks else None
        text = vocabulary.text_special(PAD) if text_ended else sampler(model.text_logits(hidden[-1])[None])[0]
        ends = text == vocabulary.text_end if audio is None else audio[-1] == vocabulary.audio_end
        if ends and count > 0:
            return
        yield Column(text, None if audio is None else tuple(audio))
        text_ended = text_ended or (audio is not None and text == vocabulary.text_end)
        ids = _next_ids(vocabulary, text, audio, rows=1 if text_ended else rows)


def _step(model: MiniOmni, ids: Tensor, cache) -> Tensor:
    x = model.embed(ids)
    return model.static_step(x, cache) if x.is_cuda else model.step(x, cache)


def _next_ids(vocabulary: Vocabulary, text: int, audio: list[int] | None, rows: int) -> Tensor:
    """Int64 [8, rows]: the column to feed back. Audio goes to the first row; text, and pads elsewhere, to both."""
    pads = [vocabulary.row(layer, vocabulary.audio_special(PAD)) for layer in range(LAYERS)]
    first = pads if audio is None else [vocabulary.row(layer, each) for layer, each in enumerate(audio)]
    return torch.tensor([[*first, text], [*pads, text]][:rows]).t()


class Frames:
    """Gathers the codec's frames from columns, and ends where a frame holds a special token."""

    def __init__(self, vocabulary: Vocabulary):
        self._codes = vocabulary.codes
        self._recent: deque[tuple[int, ...]] = deque(maxlen=LAYERS)
        self._columns = 0
        self.ended = False

    def push(self, audio: tuple[int, ...]) -> tuple[int, ...] | None:
        """A column's seven ids → the seven codes of the frame that is now whole, if one is."""
        self._recent.append(audio)
        self._columns += 1
        if self._columns <= LAYERS or self.ended:  # the first column belongs to no frame
            return None
        frame = tuple(column[layer] for layer, column in enumerate(self._recent))
        self.ended = any(code >= self._codes for code in frame)
        return None if self.ended else frame
