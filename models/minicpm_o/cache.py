"""Keys and values of attention that grow in place, in the form that transformers' layers take."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

LEAST = 256  # positions


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, with room behind them: a step writes its own position and copies no other.

    `keys` and `values` [rows, heads, length, size] are views of what is filled. Room doubles when it is full.
    """

    _room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_, **__) -> tuple[Tensor, Tensor]:
        start, added = self.get_seq_length(), key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._room is None or start + added > self._room[0].shape[-2]:
            self._room = self._grown(key_states, start, start + added), self._grown(value_states, start, start + added)
            if start and self.keys is not None and self.values is not None:
                for room, filled in zip(self._room, (self.keys, self.values), strict=True):
                    room[..., :start, :] = filled
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[..., start : start + added, :] = new
        self.keys, self.values = (room[..., : start + added, :] for room in self._room)
        return self.keys, self.values

    def _grown(self, like: Tensor, filled: int, needed: int) -> Tensor:
        rows, heads, _, size = like.shape
        return torch.empty(rows, heads, max(LEAST, needed, 2 * filled), size, dtype=like.dtype, device=like.device)

    def reset(self) -> None:
        self.crop(0)


def growing_cache() -> Cache:
    """An empty cache; it finds out by itself how many layers there are. cache.crop(n) forgets all after n positions."""
    return Cache(layer_class_to_replicate=GrowingLayer)
