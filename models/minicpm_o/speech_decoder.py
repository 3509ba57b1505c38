"""ConditionalChatTTS's network: a Llama that reads wordpieces and writes four codes a frame. Knows no utterance.

Positions: 0 [Stts], 1 the speaker, 2…301 text, 302 [Ptts], 303… sound, one position a frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from models.layers import linear
from models.minicpm_o.checkpoint import DTYPES
from models.minicpm_o.config import SpeechConfig

CODEBOOKS = 4
HEAD = "head_code.{}.parametrizations.weight.original{}"  # 0: the length of each row, 1: its direction
FIRST_TEXT = 2  # the slots before: [Stts] and the speaker
FRAMES_STEP = 25  # frames of a stretch of speech
MOST_FRAMES = 2048  # of an utterance, 44 s; seen to only between stretches
EPS = 1e-6  # of the norms: LlamaConfig's own


def expected(config: SpeechConfig) -> dict[str, torch.Size]:
    """The tensors below "tts.", without the DVAE's, and their shapes."""
    with torch.device("meta"):
        llama = LlamaModel(_llama(config)).state_dict()
    width, codes = config.hidden_size, config.num_audio_tokens
    shapes = {f"model.{key}": tuple(tensor.shape) for key, tensor in llama.items() if key != "embed_tokens.weight"}
    shapes["emb_text.weight"] = (config.num_text_tokens, width)
    shapes |= {"projector.linear1.weight": (width, config.llm_dim), "projector.linear2.weight": (width, width)}
    shapes |= {"projector.linear1.bias": (width,), "projector.linear2.bias": (width,)}
    for book in range(CODEBOOKS):
        shapes |= {f"emb_code.{book}.weight": (codes, width)}
        shapes |= {HEAD.format(book, 0): (codes, 1), HEAD.format(book, 1): (codes, width)}
    return {key: torch.Size(shape) for key, shape in shapes.items()}


def _llama(config: SpeechConfig) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_hidden_layers=config.num_hidden_layers,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=EPS,  # pyright: ignore[reportArgumentType]  (declared as int)
    )


class SpeechDecoder(nn.Module):
    """The network, without state of any utterance: many may be spoken in turns on one.

    Precision "fp32" and "int8" (weights of the Llama; all else float32) are for a CPU, "bf16" for any device.
    """

    text_table: Tensor
    code_tables: Tensor
    code_rows: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(self, config: SpeechConfig, state: Mapping[str, Tensor], precision: str = "fp32", device: str = "cpu"):
        """`state`: the tensors of the checkpoint below "tts."; the DVAE's among them are not touched.

        Raises KeyError where one is missing; see expected().
        """
        super().__init__()
        self.config, self.dtype = config, DTYPES[precision]
        self.reserved = config.streaming_text_reserved_len
        self.bos = FIRST_TEXT + self.reserved  # the position of [Ptts]
        self.end = config.num_audio_tokens - 1

        def take(key: str) -> Tensor:
            return state[key].to(device, self.dtype, copy=state[key].ndim == 1)

        keys = expected(config)
        self.layers = nn.ModuleList()
        for index in range(config.num_hidden_layers):
            prefix = f"model.layers.{index}."
            own = {key.removeprefix(prefix): take(key) for key in keys if key.startswith(prefix)}
            self.layers.append(Layer(own, config.num_attention_heads, precision))
        self.norm = RMSNorm(take("model.norm.weight"))
        self.register_buffer("text_table", take("emb_text.weight"))
        tables = [take(f"emb_code.{book}.weight") for book in range(CODEBOOKS)]
        self.register_buffer("code_tables", torch.cat(tables))
        self.register_buffer("code_rows", torch.arange(CODEBOOKS, device=device) * config.num_audio_tokens)
        plain = "bf16" if precision == "bf16" else "fp32"  # the small parts are not quantised
        self.projector = nn.ModuleList(
            linear(plain, take(f"projector.{name}.weight"), take(f"projector.{name}.bias"))
            for name in ("linear1", "linear2")
        )
        heads = [(take(HEAD.format(book, 0)), take(HEAD.format(book, 1))) for book in range(CODEBOOKS)]
        folded = torch.cat([size * F.normalize(direction, dim=1) for size, direction in heads])  # weight norm
        self.head = linear(plain, folded)
        self._place_positions(device)
        self.requires_grad_(False).eval()

    def _place_positions(self, device: str) -> None:
        """Rotary tables [positions, 1, head size] for the longest utterance, by transformers' own module."""
        count = self.bos + 1 + MOST_FRAMES + FRAMES_STEP
        where = torch.arange(count, device=device)[None]
        cos, sin = LlamaRotaryEmbedding(_llama(self.config), device=torch.device(device))(self.text_table[:1], where)
        lower, upper = sin[0, :, None].chunk(2, -1)
        self.register_buffer("cos", cos[0, :, None])
        self.register_buffer("sin", torch.cat([-lower, upper], -1))  # with the sign of the rotation

    @property
    def device(self) -> torch.device:
        return self.text_table.device

    def speaker(self, hidden: Tensor) -> Tensor:
        """The language model's state at <|spk|>, [width of the LLM] → the speaker's embedding [width], of length 1."""
        first, second = self.projector
        projected = second(F.relu(first(hidden.reshape(1, -1).to(self.device, self.dtype))))
        return F.normalize(projected, dim=-1)[0]

    def embed_text(self, ids: Sequence[int], speaker: Tensor | None = None) -> Tensor:
        """Wordpieces → [n, width]; [spk_emb] becomes the speaker."""
        index = torch.tensor(ids, device=self.device)
        embedded = F.embedding(index, self.text_table)
        if speaker is not None:
            embedded[index == self.config.spk_emb_token_id] = speaker
        return embedded

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Codes int64 [n, 4] → the sum of their embeddings, [n, width]."""
        return F.embedding(codes.to(self.device) + self.code_rows, self.code_tables).sum(1)

    def run(
        self, x: Tensor, where: Tensor | slice, cache: Tensor, kept: slice, seen: slice, mask: Tensor | None = None
    ) -> Tensor:
        """Embeddings [rows, width] at the positions `where` → hidden states [rows, width].

        Keys and values of the last rows go to `kept` of the cache [layers, 2, heads, slots, head size]; then the
        slots `seen` are attended to, by every row unless a mask (bool [rows, seen]) says otherwise.
        """
        cos, sin = self.cos[where], self.sin[where]
        for layer, (keys, values) in zip(self.layers, cache.unbind(), strict=True):
            x = layer(x, cos, sin, keys, values, kept, seen, mask)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """[width] → float32 [4, codes]."""
        return self.head(hidden[None]).float().view(CODEBOOKS, -1)


class RMSNorm(nn.Module):
    """Llama's, in one call."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, width] → [rows, width]."""
        return F.rms_norm(x, self.weight.shape, self.weight, EPS)


class Layer(nn.Module):
    """A Llama layer whose products are few: query, key and value in one, gate and up in one."""

    def __init__(self, state: Mapping[str, Tensor], heads: int, precision: str):
        super().__init__()

        def fused(*names: str) -> nn.Module:
            parts = [state[f"{name}_proj.weight"] for name in names]
            return linear(precision, torch.cat(parts) if len(parts) > 1 else parts[0])

        self.heads = heads
        self.norm_1 = RMSNorm(state["input_layernorm.weight"])
        self.norm_2 = RMSNorm(state["post_attention_layernorm.weight"])
        self.qkv = fused("self_attn.q", "self_attn.k", "self_attn.v")
        self.proj = fused("self_attn.o")
        self.gate_up, self.down = fused("mlp.gate", "mlp.up"), fused("mlp.down")

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, kept: slice, seen: slice, mask: Any
    ) -> Tensor:
        """See SpeechDecoder.run; keys and values are this layer's [heads, slots, head size]."""
        rows, width = x.shape
        parts = self.qkv(self.norm_1(x)).view(rows, 3 * self.heads, -1)
        turned = parts[:, : 2 * self.heads]
        turned = turned * cos + turned.roll(turned.shape[-1] // 2, -1) * sin
        skipped = rows - (kept.stop - kept.start)
        keys[:, kept] = turned[skipped:, self.heads :].transpose(0, 1)
        values[:, kept] = parts[skipped:, 2 * self.heads :].transpose(0, 1)
        y = F.scaled_dot_product_attention(
            turned[:, : self.heads].transpose(0, 1)[None], keys[None, :, seen], values[None, :, seen], attn_mask=mask
        )
        x = x + self.proj(y[0].transpose(0, 1).reshape(rows, width))
        gate, up = self.gate_up(self.norm_2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)
