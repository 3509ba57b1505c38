"""From text to codes of sound: ConditionalChatTTS, a Llama that reads wordpieces and writes four codes a frame.

Positions: 0 [Stts], 1 the speaker, 2…301 text, 302 [Ptts], 303… sound, one position a frame. Text and sound are two
streams on one clock: 50 frames more let the decoder see 10 wordpieces more, whatever has been read by then.

The network met its oddities while it was trained, so they are kept, each in one place: the mask of a step
(`visible_text`; position 302 is seen by nobody, not even by itself; text slots that are visible and not yet read count
as zeros), the carried frames that all see each other (`Utterance.carry`), the first frame drawn from the whole
distribution, and the end that no stretch may have among its first ten frames (`Utterance.frames`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, TopKLogitsWarper, TopPLogitsWarper
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from models.layers import linear
from models.minicpm_o.checkpoint import DTYPES
from models.minicpm_o.config import SpeechConfig

CODEBOOKS = 4
HEAD = "head_code.{}.parametrizations.weight.original{}"  # 0: the length of each row, 1: its direction
FIRST_TEXT = 2  # the slots before: [Stts] and the speaker
TEXT_STEP = 10  # wordpieces that are read, and come into view, together
FRAMES_STEP = 25  # frames of a stretch of speech
FRAMES_PER_TEXT_STEP = 50  # after so many frames the next wordpieces come into view
MOST_FRAMES = 2048  # of an utterance, 44 s; seen to only between stretches
NO_END = 10  # frames of a stretch in which speech cannot end
EPS = 1e-6  # of the norms: LlamaConfig's own
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
