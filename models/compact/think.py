"""Text → text: Qwen2.5-Coder-1.5B-Instruct (GGUF, 4 bit) through llama.cpp.

Several replies may be open at once, each with its own sequence of the KV cache. Finished sequences stay cached until
their place is needed; a new reply copies the longest prefix it has in common with any, and evaluates only the rest.
Knows nothing of characters and tasks (see prompts.py).
"""

from __future__ import annotations

import codecs
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.capabilities import Sampling
from models.errors import UserError

SLICE = 16  # prompt tokens per step: a cancel waits for one slice at most (about 0.5 s)
DROP = 8  # oldest messages dropped at a time from an over-long history: the cached prefix then lasts some turns
SEQUENCES = 6  # open replies and cached conversations together
REPEAT_LAST, REPEAT_PENALTY = 64, 1.05
DEFAULTS = Sampling(temperature=0.7, top_p=0.8, top_k=20, max_new_tokens=256)  # the model card's, and a spoken length


@dataclass(frozen=True)
class Message:
    """`role` is "system", "user" or "assistant". A message to `keep` survives when a history grows too long."""

    role: str
    content: str
    keep: bool = False


@dataclass(eq=False)
class _Sequence:
    """A sequence of the KV cache: `tokens` are those evaluated and cached, in order."""

    id: int
    tokens: list[int] = field(default_factory=list)
    open: bool = False
    used: int = 0  # when, in replies


class Thinker:
    """The chat model. `context` is the most tokens of one conversation, prompt and answer together.

    Its KV cache takes 28 kB a token for each of SEQUENCES. `evaluated` counts the tokens computed so far: what prefixes
    save shows there.
    """

    def __init__(self, path: Path | str, context: int = 2048, threads: int = 2):
        # Barriers of sleeping threads: spinning ones stall for whole time slices when another thread has the core.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from cyllama.llama import llama_cpp as llama

        self._llama: Any = llama
        llama.disable_logging()
        llama.ggml_backend_load_all()
        params = llama.LlamaModelParams()
        params.n_gpu_layers = 0
        params.use_mmap = False  # the weights are repacked for the CPU; a mapping would hold them twice
        self._model = llama.LlamaModel(str(path), params)
        self._vocab = self._model.get_vocab()
        options = llama.LlamaContextParams()
        options.n_ctx = context * SEQUENCES
        options.n_seq_max = SEQUENCES
        options.n_batch = options.n_ubatch = SLICE
        options.n_threads = options.n_threads_batch = threads
        options.kv_unified = False  # cells of its own for each sequence: the same bits whatever others hold
        options.flash_attn_type = 0  # it splits a long cache by threads: a seed's text would depend on their number
        self._cells = llama.LlamaContext(self._model, options)
        self._batch = llama.LlamaBatch(n_tokens=SLICE, embd=0, n_seq_max=1)
        self._pace = _Pace(self._cells, threads)
        self.context = context
        self.evaluated = 0
        self._replies = 0
        self._sequences = [_Sequence(n) for n in range(SEQUENCES)]
        heads = {role: f"<|im_start|>{role}\n" for role in ("system", "user", "assistant")}
        self._head = {role: self._vocab.tokenize(text, False, True) for role, text in heads.items()}
        self._end = self._vocab.tokenize("<|im_end|>\n", False, True)

    def reply(
        self, messages: Sequence[Message], sampling: Sampling = DEFAULTS, max_tokens: int | None = None
    ) -> Iterator[str | None]:
        """Write the assistant's next message: text, a piece a step; None where a step brings no text.

        Close it to cancel. The same messages, seed and settings give the same text; only where an earlier answer of
        this conversation has left the cache and is read anew may rounding make a difference. `max_tokens` bounds the
        answer where `sampling` does not. Raises UserError("text_too_long") when the newest message alone is too long.
        """
        limit = min(sampling.max_new_tokens or max_tokens or DEFAULTS.max_new_tokens or 256, self.context // 2)
        kept, _ = self.fit(messages, limit)
        tokens = [*self.tokens(kept), *self._head["assistant"]]
        sampler = self._sampler(sampling)
        sequence = self._take(tokens)
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            yield from self._prefill(sequence, tokens)
            for _ in range(limit):
                token = sampler.sample(self._cells, -1)  # at once: the next decode of any reply overwrites the logits
                if self._vocab.is_eog(token):
                    break
                control = self._vocab.is_control(token)
                yield (None if control else utf8.decode(self._bytes(token))) or None
                self._evaluate(sequence, [token], logits=True)
            if rest := utf8.decode(b"", final=True):
                yield rest
        finally:
            sampler.close()
            sequence.open = False

    def warm(self, messages: Sequence[Message]) -> Iterator[None]:
        """Put `messages` into the cache, a slice a step, so that a conversation that begins with them starts sooner."""
        tokens = self.tokens(messages)
        sequence = self._take(tokens)
        try:
            yield from self._prefill(sequence, tokens)
        finally:
            sequence.open = False

    def fit(self, messages: Sequence[Message], max_tokens: int) -> tuple[list[Message], int]:
        """The messages that fit beside an answer of `max_tokens`, and how many of the oldest were left out.

        Those to keep and the last one always stay. Raises UserError("text_too_long") when they alone do not fit.
        """
        room = self.context - max_tokens - len(self._head["assistant"])
        last = len(messages) - 1
        costs = [self.count([message]) for message in messages]
        fixed = [message.keep or n == last for n, message in enumerate(messages)]
        loose = [n for n in range(len(messages)) if not fixed[n]]
        dropped = 0
        while sum(costs) - sum(costs[n] for n in loose[:dropped]) > room:
            if dropped >= len(loose):
                spare = max(0, room - sum(costs[n] for n in range(last) if fixed[n]))
                characters = len(messages[last].content)
                raise UserError("text_too_long", characters=characters, most=characters * spare // costs[last])
            dropped = min(dropped + DROP, len(loose))
        gone = set(loose[:dropped])
        return [message for n, message in enumerate(messages) if n not in gone], dropped

    def count(self, messages: Sequence[Message]) -> int:
        """How many tokens the messages are, with the template's own."""
        return len(self.tokens(messages))

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """Token ids in Qwen's chat template. Only the template's own marks become control tokens, never content."""
        found: list[int] = []
        for message in messages:
            found += self._head[message.role]
            found += self._vocab.tokenize(message.content.strip() or " ", False, False)
            found += self._end
        return found

    def memory_bytes(self) -> int:
        """Bytes of the weights and of the KV cache (float16 keys and values)."""
        model = self._model
        width = model.n_embd // model.n_head * model.n_head_kv
        return int(model.size) + 2 * 2 * width * model.n_layer * self._cells.n_ctx

    def unload(self) -> None:
        """Free the weights and the cache. No reply may be open."""
        self._batch.close()
        self._cells.close()
        self._model.close()

    # --- the cache ----------------------------------------------------------------------------------------------------

    def _take(self, tokens: list[int]) -> _Sequence:
        """A sequence for these tokens that holds as many of them as are cached anywhere.

        Sharing ends at a multiple of SLICE: then a prompt is computed in the same slices, to the same bits, with or
        without a cache.
        """
        free = [sequence for sequence in self._sequences if not sequence.open]
        if not free:
            raise RuntimeError(f"more than {SEQUENCES} replies are open")
        shared = {s.id: _common(s.tokens, tokens) for s in self._sequences}
        best = max(self._sequences, key=lambda s: shared[s.id])
        length = min(shared[best.id], len(tokens) - 1) // SLICE * SLICE
        # What continues a cached conversation goes on in its place; anything else takes the place used least recently.
        continues = not best.open and shared[best.id] == len(best.tokens)
        chosen = best if continues and best.tokens else min(free, key=lambda s: s.used)
        if chosen is best:
            self._truncate(best, length)
        else:
            self._truncate(chosen, 0)
            if length:
                self._cells.memory_seq_cp(best.id, chosen.id, -1, -1)  # whole sequences only
                chosen.tokens = list(best.tokens)
                self._truncate(chosen, length)
        self._replies += 1
        chosen.open, chosen.used = True, self._replies
        return chosen

    def _truncate(self, sequence: _Sequence, length: int) -> None:
        self._cells.memory_seq_rm(sequence.id, length, -1)
        del sequence.tokens[length:]

    def _prefill(self, sequence: _Sequence, tokens: list[int]) -> Iterator[None]:
        for start in range(len(sequence.tokens), len(tokens), SLICE):
            end = min(start + SLICE, len(tokens))
            self._evaluate(sequence, tokens[start:end], logits=end == len(tokens))
            if end < len(tokens):
                yield None

    def _evaluate(self, sequence: _Sequence, tokens: list[int], *, logits: bool) -> None:
        """Compute `tokens` as the next of the sequence; `logits` of the last are wanted."""
        start = len(sequence.tokens)
        self._batch.clear()
        for n, token in enumerate(tokens):
            self._batch.add(token, start + n, [sequence.id], logits and n == len(tokens) - 1)
        with self._pace.step(len(tokens)):
            self._cells.decode(self._batch)
        sequence.tokens += tokens
        self.evaluated += len(tokens)

    # --- small parts --------------------------------------------------------------------------------------------------

    def _sampler(self, sampling: Sampling) -> Any:
        chosen = {
            name: getattr(DEFAULTS, name) if getattr(sampling, name) is None else getattr(sampling, name)
            for name in ("temperature", "top_p", "top_k")
        }
        seed = sampling.seed if sampling.seed >= 0 else secrets.randbits(31)
        sampler = self._llama.LlamaSampler(self._llama.LlamaSamplerChainParams())
        sampler.add_penalties(REPEAT_LAST, REPEAT_PENALTY, 0.0, 0.0)
        if chosen["temperature"] <= 0:
            sampler.add_greedy()
            return sampler
        sampler.add_top_k(chosen["top_k"])
        sampler.add_top_p(chosen["top_p"], 1)
        sampler.add_temp(chosen["temperature"])
        sampler.add_dist(seed % 2**32)
        return sampler

    def _bytes(self, token: int) -> bytes:
        """The token's bytes, which may be a part of a character."""
        return bytes(BYTES[character] for character in self._vocab.get_text(token))


class _Pace:
    """How many threads compute a step.

    Two threads halve the time on idle cores. Where something else runs on them, each of some 300 barriers a token waits
    for a time slice, and two threads are 20 times slower than one: then one thread goes on alone for a while.
    """

    SLOWER = 3.0  # than the best step of this kind so far
    LONGEST = 512  # steps alone before two threads are tried again

    def __init__(self, cells: Any, threads: int):
        self._cells, self._threads = cells, threads
        self._best: dict[int, float] = {}
        self._alone = 0  # steps left
        self._penalty = 16
        self._tokens = 1
        self._start = 0.0

    def step(self, tokens: int) -> _Pace:
        self._tokens = tokens
        threads = 1 if self._alone else self._threads
        self._cells.set_n_threads(threads, threads)
        return self

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._start
        best = self._best.get(self._tokens, seconds)
        self._best[self._tokens] = min(best, seconds)
        if self._alone:
            self._alone -= 1
        elif self._threads > 1 and seconds > self.SLOWER * best:
            self._alone, self._penalty = self._penalty, min(2 * self._penalty, self.LONGEST)
        else:
            self._penalty = 16


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first items two sequences share."""
    for n, (x, y) in enumerate(zip(a, b)):  # noqa: B905 (the shorter decides)
        if x != y:
            return n
    return min(len(a), len(b))


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as a visible character (GPT-2): printable as itself, others from U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


BYTES = _byte_alphabet()
