"""How the language model's tokens are drawn: transformers' own penalty and warpers, and a seed for each answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from models.errors import UserError

LIMITS = {
    "temperature": (0.0, 10.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 100_000),
    "repetition_penalty": (0.1, 10.0),
    "beams": (1, 16),
}
SAMPLED, SEARCHED = {"temperature", "top_p", "top_k", "repetition_penalty"}, {"beams", "repetition_penalty"}


@dataclass(frozen=True)
class Decoding:
    """`sample`: draw at random; otherwise take the best, or the best of a search with several `beams`.

    The defaults are upstream's for drawing. `top_k` 0 means all tokens; a temperature or top_p of 0 means the best.
    Raises UserError("setting_out_of_range").
    """

    sample: bool = True
    temperature: float = 0.7
    top_p: float = 0.8
    top_k: int = 100
    repetition_penalty: float = 1.05
    beams: int = 1

    def __post_init__(self):
        for name, (low, high) in LIMITS.items():
            if not low <= getattr(self, name) <= high:  # so that NaN is refused
                raise UserError("setting_out_of_range", setting=name, low=low, high=high)

    @classmethod
    def upstream(cls, sampling: bool, **given: Any) -> Decoding:
        """As upstream's chat(sampling=…, …): drawn, or a search with three beams and more penalty.

        A setting that does not belong to the kind is ignored, as there. None means the default.
        """
        own = cls() if sampling else cls(sample=False, repetition_penalty=1.2, beams=3)
        given["beams"] = given.pop("num_beams", given.get("beams"))
        known = {field.name for field in fields(cls)} & (SAMPLED if sampling else SEARCHED)
        return replace(own, **{key: value for key, value in given.items() if key in known and value is not None})

    @property
    def greedy(self) -> bool:
        return not self.sample or self.temperature == 0 or self.top_p == 0 or self.top_k == 1

    def warpers(self) -> LogitsProcessorList:
        """What changes the logits before one is drawn, in transformers' order; the penalty is not among them."""
        warpers = LogitsProcessorList()
        if self.temperature != 1:
            warpers.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            warpers.append(TopPLogitsWarper(self.top_p))
        return warpers


class Sampler:
    """Draws the tokens of one answer."""

    def __init__(self, decoding: Decoding, seed: int | None = None, upstream: bool = False):
        """`seed` None: a fresh one. `upstream`: torch's global generator, drawn from all tokens, as transformers does.

        Raises ValueError for beams: LanguageModel.search() has these.
        """
        if decoding.beams != 1:
            raise ValueError("a search is not drawn token by token")
        self._decoding, self._upstream = decoding, upstream
        self._generator = torch.Generator()
        self.seed = self._generator.seed() if seed is None else self._generator.manual_seed(seed).initial_seed()
        self._warpers = LogitsProcessorList() if decoding.greedy else decoding.warpers()
        self._penalty = RepetitionPenaltyLogitsProcessor(float(decoding.repetition_penalty))

    def __call__(self, logits: Tensor, seen: Sequence[int]) -> int:
        """Float [vocabulary] → an id. `seen` are the ids that the penalty counts."""
        scores: Any = logits.float()[None]
        none: Any = None  # warpers look at no ids
        if self._decoding.repetition_penalty != 1 and seen:
            past: Any = torch.tensor([list(dict.fromkeys(seen))], device=scores.device)
            scores = self._penalty(past, scores)
        if self._decoding.greedy:
            return int(scores.argmax())
        if self._upstream:
            return int(torch.multinomial(self._warpers(none, scores).softmax(-1), 1))
        ids = None
        if 0 < self._decoding.top_k < scores.shape[-1]:  # what cannot be drawn need not be sorted
            scores, ids = scores.topk(self._decoding.top_k)
        drawn = torch.multinomial(self._warpers(none, scores).softmax(-1).cpu(), 1, generator=self._generator)
        return int(drawn if ids is None else ids[0, int(drawn)])
