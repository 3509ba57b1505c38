"""Mini-Omni's network: litgpt's Qwen2 blocks, driven with embeddings of our own and a KV cache that the request holds.

Eight streams of tokens (seven audio layers and text) are one embedding a position: their mean. Sound enters as features
in place of the audio embeddings. Knows nothing of tasks, sampling, or what a token means.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from litgpt.model import Block, apply_rope, build_rope_cache
from torch import Tensor, nn

from models.layers import Int8Embedding, linear
from models.mini_omni.config import LAYERS, MiniOmniConfig

STREAMS = LAYERS + 1


class KVCache:
    """Keys and values of one request, for so many rows and up to `capacity` positions; `length` are filled.

    Memory is taken as it is filled (the system gives pages when they are written), so capacity costs nothing by itself.
    """

    def __init__(self, config: Any, rows: int, capacity: int, like: Tensor):
        shape = (config.n_layer, 2, rows, config.n_query_groups, capacity, config.head_size)
        self._held = like.new_zeros(shape)  # zeros, for what a mask hides still counts where it is NaN
        self._rows, self.capacity, self.length = rows, capacity, 0

    def layer(self, index: int, rows: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each [rows, groups, capacity, head size]: views to write to."""
        return self._held[index, 0, :rows], self._held[index, 1, :rows]

    def share(self) -> None:
        """Give every row what the first one has."""
        if self._rows > 1:
            filled = self._held[..., : self.length, :]
            filled[:, :, 1:] = filled[:, :, :1]


class AudioAdapter(nn.Module):
    """A gated MLP from the sound's features to the width of the language model."""

    def __init__(self, features: int, inner: int, width: int):
        super().__init__()
        self.fc_1 = nn.Linear(features, inner, bias=False)
        self.fc_2 = nn.Linear(features, inner, bias=False)
        self.proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[…, features] → […, width]."""
        return self.proj(F.silu(self.fc_1(x)) * self.fc_2(x))


class Transformer(nn.Module):
    """The language model's parts, under the names that they have in the checkpoint."""

    def __init__(self, gpt: Any, rows: int):
        super().__init__()
        self.wte: nn.Module = nn.Embedding(rows, gpt.n_embd)
        self.h = nn.ModuleList(Block(gpt, index) for index in range(gpt.n_layer))
        self.ln_f = gpt.norm_class(gpt.n_embd, eps=gpt.norm_eps)


class MiniOmni(nn.Module):
    """The network. Built on the meta device and filled by checkpoint.py; inference only, no state of any request."""

    def __init__(self, config: MiniOmniConfig):
        super().__init__()
        gpt, self.config = config.transformer, config
        self.whisper_adapter = AudioAdapter(config.adapter_width, gpt.intermediate_size, gpt.n_embd)
        self.lm_head = nn.Linear(gpt.n_embd, config.vocabulary.rows, bias=gpt.lm_head_bias)
        self.transformer = Transformer(gpt, config.vocabulary.rows)
        self.text_head: nn.Module | None = None  # the head in two, once lay_out_heads() has cut it
        self.audio_head: nn.Module | None = None

    def cache(self, rows: int, capacity: int) -> KVCache:
        """An empty cache for a request."""
        return KVCache(self.config.transformer, rows, min(capacity, self.config.transformer.block_size), self.cos)

    # --- embeddings ---------------------------------------------------------------------------------------------------

    def embed(self, ids: Tensor, features: Tensor | None = None) -> Tensor:
        """Ids int64 [8, …] → the mean of their embeddings, […, width].

        `features` [n, feature width], of a prompt of sound [8, positions], stand at 1…n in place of the audio's part.
        """
        parts = self.transformer.wte(ids)
        if features is not None:
            heard = self.whisper_adapter(features.to(parts.dtype))
            parts[:LAYERS, 1 : 1 + len(features)] = heard
        return parts.sum(0) / STREAMS

    # --- layers -------------------------------------------------------------------------------------------------------

    def prefill(self, x: Tensor, cache: KVCache, trace: list[Tensor] | None = None) -> Tensor:
        """Embeddings [positions, width] at the start of an empty cache → hidden states [positions, width].

        Fills the cache's first row; call cache.share() for the others. `trace` collects every block's output.
        """
        where = torch.arange(len(x), device=x.device)
        x = self._blocks(x[None], where, cache, cache_end=len(x), mask=None, trace=trace)[0]
        cache.length = len(x)
        return x

    def step(self, x: Tensor, cache: KVCache, trace: list[Tensor] | None = None) -> Tensor:
        """Embeddings [rows, width] of the next position → hidden states [rows, width]. Reads what is filled, no more.

        Fewer rows than the cache has leave the last ones behind for good. Raises IndexError where the cache is full.
        """
        if cache.length >= cache.capacity:
            raise IndexError("the KV cache is full")
        where = torch.tensor([cache.length], device=x.device)
        cache.length += 1
        return self._blocks(x[:, None], where, cache, cache_end=cache.length, mask=None, trace=trace)[:, 0]

    def static_step(self, x: Tensor, cache: KVCache) -> Tensor:
        """step() in the shape that a GPU likes: every shape is fixed and the position is data, so that a CUDA graph can
        hold the kernels. Reads the whole capacity behind a mask.
        """
        if cache.length >= cache.capacity:
            raise IndexError("the KV cache is full")
        hidden = self.step_at(x, torch.tensor([cache.length], device=x.device), cache)
        cache.length += 1
        return hidden

    def step_at(self, x: Tensor, where: Tensor, cache: KVCache) -> Tensor:
        """What static_step() captures: embeddings [rows, width] at position `where` int64 [1] → hidden states."""
        mask = (torch.arange(cache.capacity, device=x.device) <= where)[None]
        return self._blocks(x[:, None], where, cache, cache_end=cache.capacity, mask=mask, trace=None)[:, 0]

    def _blocks(
        self, x: Tensor, where: Tensor, cache: KVCache, cache_end: int, mask: Tensor | None, trace: list[Tensor] | None
    ) -> Tensor:
        cos, sin = self.cos[None, where], self.sin[None, where]
        block: Any
        for index, block in enumerate(self.transformer.h):
            keys, values = cache.layer(index, len(x))
            x = x + self._attend(block.attn, block.norm_1(x), cos, sin, keys, values, where, cache_end, mask)
            x = x + block.mlp(block.norm_2(x))
            if trace is not None:
                trace.append(x)
        return self.transformer.ln_f(x)

    def _attend(
        self,
        attention: Any,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        keys: Tensor,
        values: Tensor,
        where: Tensor,
        cache_end: int,
        mask: Tensor | None,
    ) -> Tensor:
        gpt = self.config.transformer
        rows, positions, _ = x.shape
        heads, groups, size = gpt.n_head, gpt.n_query_groups, gpt.head_size
        query, key, value = (
            part.view(rows, positions, -1, size).transpose(1, 2)
            for part in attention.qkv(x).split((heads * size, groups * size, groups * size), -1)
        )
        query, key = apply_rope(query, cos, sin), apply_rope(key, cos, sin)
        keys.index_copy_(2, where, key)
        values.index_copy_(2, where, value)
        keys, values = keys[:, :, :cache_end], values[:, :, :cache_end]
        if positions == 1:  # the heads of a group are queries of the same keys: nothing is repeated
            query = query.reshape(rows, groups, heads // groups, size)
            y = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        else:
            y = F.scaled_dot_product_attention(query, keys, values, is_causal=True, enable_gqa=heads != groups)
            y = y.transpose(1, 2)
        return attention.proj(y.reshape(rows, positions, heads * size))

    # --- heads --------------------------------------------------------------------------------------------------------

    def text_logits(self, hidden: Tensor) -> Tensor:
        """[width] → [text vocabulary]."""
        assert self.text_head
        return self.text_head(hidden[None])[0]

    def audio_logits(self, hidden: Tensor) -> Tensor:
        """[width] → [7, audio vocabulary]."""
        assert self.audio_head
        return self.audio_head(hidden[None])[0].view(LAYERS, self.config.vocabulary.audio)

    # --- making it ready ----------------------------------------------------------------------------------------------

    def lay_out_heads(self, precision: str) -> None:
        """Cut the filled head in two, its text part and its audio part, and lay both out (see layers.lay_out)."""
        weight, text = self.lm_head.weight.data, self.config.vocabulary.text
        self.text_head, self.audio_head = linear(precision, weight[:text]), linear(precision, weight[text:])
        if precision == "int8":
            self.transformer.wte = Int8Embedding(self.transformer.get_parameter("wte.weight").data)
        del self.lm_head

    def place_positions(self, device: torch.device, dtype: torch.dtype) -> None:
        """Make the table of rotary positions."""
        gpt = self.config.transformer
        ratio = gpt.rope_condense_ratio
        cos, sin = build_rope_cache(gpt.block_size, gpt.rope_n_elem, device, gpt.rope_base, ratio)
        self.cos, self.sin = cos.to(dtype), sin.to(dtype)

    def memory_bytes(self) -> int:
        """Bytes of the weights, each counted once."""
        stored = (tensor.untyped_storage() for tensor in self.parameters())
        plain = {storage.data_ptr(): storage.nbytes() for storage in stored}
        return sum(plain.values()) + sum(getattr(module, "bytes", 0) for module in self.modules())
