"""The language model: transformers' Qwen2 over embeddings of text and sound, token by token, for many at once.

All state of an answer is in the generator that gives it, all of a conversation in its KVCache; the network holds none.
Whoever drives them may stop, or turn to another, between any two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from models.minicpm_o.cache import growing_cache
from models.minicpm_o.checkpoint import Checkpoint, dtype_of, fill, memory_bytes, shapes
from models.minicpm_o.config import MiniCPMOConfig
from models.minicpm_o.prompts import Prompt
from models.minicpm_o.sampling import Decoding, Sampler

PREFIX = "llm."
SLICE = 256  # positions read at once


class KVCache:
    """What one conversation has been read so far. It grows at its end, and can be cut back.

    `keys` says what stands at each position (see Prompt). `hidden` [width] is the last position's state, after the
    final norm: None where the end was cut off. `speaker` [1, width] is the state at the last speaker token read.
    """

    def __init__(self):
        self.layers = growing_cache()
        self.keys: list[Hashable] = []
        self.hidden: Tensor | None = None
        self.speaker: Tensor | None = None

    @property
    def length(self) -> int:
        return len(self.keys)

    def truncate(self, length: int) -> None:
        """Forget all behind the first `length` positions."""
        if length < self.length:
            self.layers.crop(length)
            self.keys = self.keys[:length]
            self.hidden = None

    def resume(self, prompt: Prompt) -> Prompt:
        """Keep what a whole prompt begins with, forget the rest; gives what of the prompt is still to be read.

        That is never nothing, and holds the speaker token if the prompt does.
        """
        pairs = enumerate(zip(self.keys, prompt.keys, strict=False))
        shared = next((place for place, (ours, its) in pairs if ours != its), min(self.length, len(prompt)))
        start = min(shared, len(prompt) - 1, len(prompt) if prompt.speaker is None else prompt.speaker)
        start = next((begin for begin, end in prompt.spans if begin < start < end), start)
        self.truncate(start)
        return prompt.after(start)

    def memory_bytes(self) -> int:
        """Bytes of keys and values, the room behind them not counted."""
        held = (part for layer in self.layers.layers for part in (layer.keys, layer.values))
        return sum(part.nbytes for part in held if part is not None)


class LanguageModel:
    """The network and its weights."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: MiniCPMOConfig,
        precision: str = "fp32",
        device: str = "cpu",
        attention: str = "sdpa",
    ):
        """Reads what stands under llm.*. Precision "fp32", "bf16", "int8"; "int4" on a GPU (see checkpoint.fill).

        `attention` is one of transformers' names. Raises UserError("checkpoint_wrong"), "library_missing" or
        "precision_unknown".
        """
        network: Any = skeleton(config, attention)
        checkpoint.check(PREFIX, shapes(network))
        fill(network, checkpoint.tensors(PREFIX), precision, device)
        rotary = network.model.rotary_emb
        network.model.rotary_emb = type(rotary)(config=network.config, device=torch.device(device))
        self.network = network.requires_grad_(False).eval()
        self._device, self._dtype = torch.device(device), dtype_of(precision, device)
        self.width, self.most_positions = config.llm_width, config.most_positions

    def memory_bytes(self) -> int:
        """Bytes of the weights in memory."""
        return memory_bytes(self.network)

    @torch.inference_mode()
    def embed(self, prompt: Prompt, heard: Sequence[Tensor] = ()) -> Tensor:
        """A prompt → [positions, width]. `heard` are the vectors of its pieces of sound, in their order.

        There are as many as places, except where clips were joined before they were encoded, as upstream does: one may
        be over, and is left out; where one is missing, ValueError is raised, as upstream fails there.
        """
        x = self.network.model.embed_tokens(torch.tensor(prompt.ids, device=self._device)).to(self._dtype)
        places = [place for start, end in prompt.audio_bounds for place in range(start, end)]
        if len(places) > sum(map(len, heard)):
            raise ValueError(f"{sum(map(len, heard))} vectors of sound for {len(places)} places")
        if places:
            x[places] = torch.cat(list(heard))[: len(places)].to(x)
        return x

    @torch.inference_mode()
    def prefill(self, prompt: Prompt, heard: Sequence[Tensor], cache: KVCache) -> Iterator[int]:
        """Read a prompt behind what the cache holds, a slice at a time; gives how many positions are read so far."""
        x = self.embed(prompt, heard)
        for start in range(0, len(x), SLICE):
            part = x[start : start + SLICE]
            hidden = self._through(part, cache, prompt.keys[start : start + SLICE])
            if prompt.speaker is not None and start <= prompt.speaker < start + SLICE:
                cache.speaker = hidden[prompt.speaker - start : prompt.speaker - start + 1].clone()
            yield start + len(part)

    @torch.inference_mode()
    def read(self, text_id: int, cache: KVCache) -> None:
        """Read one more token behind what the cache holds."""
        ids = torch.tensor([text_id], device=self._device)
        self._through(self.network.model.embed_tokens(ids).to(self._dtype), cache, [text_id])

    @torch.inference_mode()
    def forget(self, cache: KVCache, start: int, end: int) -> None:
        """Take the positions `start` to `end` out of the middle of a cache; what is behind them moves up.

        Keys are turned back to their new positions (rotary embeddings add up), so that nothing is read again. What is
        kept was read with the forgotten in view, and still knows of it.
        """
        if end >= cache.length:
            cache.truncate(start)
            return
        layers: Any = cache.layers.layers
        for layer in layers:
            moved, values = layer.keys[..., end:, :].float(), layer.values[..., end:, :].clone()
            cos, sin = self.network.model.rotary_emb(moved, torch.tensor([[start - end]], device=self._device))
            first, second = moved.chunk(2, -1)
            turned = (moved * cos + torch.cat([-second, first], -1) * sin).to(values.dtype)
            layer.crop(start)
            layer.update(turned, values)
        del cache.keys[start:end]

    @torch.inference_mode()
    def generate(
        self, cache: KVCache, sampler: Sampler, stops: Collection[int], limit: int, seen: Sequence[int] = ()
    ) -> Iterator[int]:
        """The tokens of an answer, up to `limit`, or to one of `stops`, which is the last one given then.

        The repetition penalty counts `seen` and what was drawn since. A token enters the cache when the next one is
        asked for: the last one given never does.
        """
        seen = list(seen)
        limit = min(limit, self.most_positions - cache.length)
        for count in range(limit):
            if count:
                self.read(seen[-1], cache)
            seen.append(sampler(self.logits(cache), seen))
            yield seen[-1]
            if seen[-1] in stops:
                return

    @torch.inference_mode()
    def logits(self, cache: KVCache) -> Tensor:
        """[vocabulary]: for the token behind what the cache holds."""
        assert cache.hidden is not None, "nothing was read"
        return self.network.lm_head(cache.hidden[None])[0]

    @torch.inference_mode()
    def search(
        self,
        prompts: Sequence[Tensor],
        decoding: Decoding,
        stops: Collection[int],
        limit: int,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> list[list[int]]:
        """Whole answers to embedded prompts [positions, width], by transformers' generate(): with beams, or in a batch.

        `cancelled` is asked after each token. Draws from torch's global generator.
        """
        longest = max(map(len, prompts))
        x = torch.stack([torch.nn.functional.pad(each, (0, 0, longest - len(each), 0)) for each in prompts])
        mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts], device=self._device)
        drawn = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
        rows = self.network.generate(
            inputs_embeds=x,
            attention_mask=mask,
            max_new_tokens=limit,
            num_beams=decoding.beams,
            do_sample=not decoding.greedy,
            repetition_penalty=decoding.repetition_penalty,
            pad_token_id=0,
            eos_token_id=list(stops),
            stopping_criteria=[lambda ids, _: torch.full((len(ids),), cancelled(), device=ids.device)],
            **({} if decoding.greedy else drawn),
        )
        return [_ended(row, stops) for row in rows.tolist()]

    def _through(self, x: Tensor, cache: KVCache, keys: Sequence[Hashable]) -> Tensor:
        """Embeddings [positions, width] → hidden states [positions, width]; fills the cache, or leaves it as it was."""
        try:
            read = self.network.model(inputs_embeds=x[None], past_key_values=cache.layers, use_cache=True)
        except BaseException:  # out of memory, half way through the layers
            cache.layers.crop(cache.length)
            raise
        cache.keys.extend(keys)
        cache.hidden = read.last_hidden_state[0, -1]
        return read.last_hidden_state[0]


def skeleton(config: MiniCPMOConfig, attention: str = "sdpa") -> Any:
    """Transformers' Qwen2ForCausalLM of the config's sizes, without weights."""
    from transformers import Qwen2ForCausalLM

    own = deepcopy(config.llm)
    own._attn_implementation = attention
    with torch.device("meta"):
        return Qwen2ForCausalLM(own)


def _ended(ids: list[int], stops: Collection[int]) -> list[int]:
    """Up to the first stop, which is kept; behind it stand pads."""
    return ids[: next((place + 1 for place, each in enumerate(ids) if each in stops), len(ids))]
