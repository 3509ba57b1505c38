"""A whole conversation in, one answer out: streamed as it is made, or, as upstream's chat() does it, all at once."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from models.errors import UserError
from models.minicpm_o.language import KVCache
from models.minicpm_o.model import Parts
from models.minicpm_o.prompts import Prompt
from models.minicpm_o.sampling import Decoding
from models.minicpm_o.sampling import Sampler as TextSampler
from models.minicpm_o.speaking import Speaking, SpeechParts
from models.minicpm_o.speech_decoder import FIRST_TEXT, FRAMES_STEP
from models.minicpm_o.tokenizer import SPEECH_CLOSE, SPEECH_OPEN, Writing
from models.minicpm_o.utterance import TEXT_STEP, Sampler, Utterance, seeded, upstream_draw

MOST_TOKENS = 2048  # of an answer, as upstream


@dataclass(frozen=True)
class Options:
    """How an answer is made. `limit`: tokens of text. `speak`: with sound. `seed`: of both; None: a fresh one."""

    decoding: Decoding = field(default_factory=Decoding)
    limit: int = MOST_TOKENS
    speak: bool = True
    seed: int | None = None

    def text_sampler(self) -> TextSampler:
        """What draws the text, and holds the seed that was chosen."""
        return TextSampler(replace(self.decoding, beams=1), self.seed)

    def speech_sampler(self, seed: int) -> Sampler:
        """What draws the speech; by the text's seed, so that a given one gives the whole answer again."""
        return seeded(seed)


@dataclass(frozen=True, eq=False)
class Piece:
    """The next of an answer: text, or samples float32 [n] at 24 kHz, or both where upstream pairs them."""

    text: str = ""
    sound: Tensor | None = None


Steps = Generator["Piece | None", None, None]
"""None after each step of a network between two pieces: there a driver may stop, or turn to somebody else."""


def stream(parts: Parts, prompt: Prompt, cache: KVCache, options: Options, whole: bool = False) -> Steps:
    """Answer a prompt, text as it is written and sound as it is spoken.

    What of the prompt is in the cache already is not read again; the cache then holds the prompt and the answer.
    `whole`: the sound in one piece at the end. With several beams nothing is known before the whole text is found.
    """
    searches = options.decoding.beams > 1
    left = prompt if searches else cache.resume(prompt)
    if searches:
        cache.truncate(0)
    heard = yield from read(parts, left, cache)
    sampler = options.text_sampler()
    speaking = None
    if options.speak:
        assert cache.speaker is not None
        speaking = Speaking(voice(parts), cache.speaker[0], options.speech_sampler(sampler.seed), whole=whole)
    if searches:
        embedded = parts.language.embed(prompt, heard)
        tokens = iter(parts.language.search([embedded], options.decoding, parts.tokenizer.stops, options.limit)[0])
    else:
        tokens = parts.language.generate(cache, sampler, parts.tokenizer.stops, options.limit)
    yield from write(parts, tokens, speaking)


def read(parts: Parts, prompt: Prompt, cache: KVCache) -> Generator[None, None, list[Tensor]]:
    """Hear and read what a prompt adds to the cache; gives what was heard."""
    heard: list[Tensor] = []
    if prompt.clips:
        for vectors in ears(parts).steps(prompt.pieces()):
            heard += [] if vectors is None else [vectors]
            yield None
    for _ in parts.language.prefill(prompt, heard, cache):
        yield None
    return heard


def write(parts: Parts, tokens: Iterator[int], speaking: Speaking | None) -> Generator[Piece | None, None, bool]:
    """An answer from its tokens, which are asked for one by one. Gives whether it ended of its own accord."""
    writing, token = Writing(parts.tokenizer), None
    for token in tokens:
        text = writing.push(token)
        yield Piece(text) if text else None
        if text and speaking:
            yield from _sounding(speaking.write(text))
        if writing.ended:
            break
    text = writing.finish()
    if text:
        yield Piece(text)
    if speaking:
        if text:
            yield from _sounding(speaking.write(text))
        yield from _sounding(speaking.finish())
    return token in parts.tokenizer.stops


def ears(parts: Parts):
    """What hears. Raises UserError where it was not loaded."""
    if parts.ears is None:
        raise UserError("part_not_loaded", part="init_audio")
    return parts.ears


def voice(parts: Parts) -> SpeechParts:
    """What speaks. Raises UserError where it was not loaded."""
    if parts.speech is None:
        raise UserError("part_not_loaded", part="init_tts")
    return parts.speech


def _sounding(sounds: Iterator[Tensor | None]) -> Steps:
    for sound in sounds:
        yield Piece(sound=sound) if sound is not None and len(sound) else None


# --- upstream's chat() ------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """What upstream's chat() makes, and on the way: the vectors heard, the speaker's state, the speech."""

    prompt: Prompt
    heard: list[Tensor]
    ids: list[int]
    text: str
    speaker: Tensor | None = None
    speech: Utterance | None = None
    sound: Tensor | None = None


def upstream_chat(
    parts: Parts, prompts: Sequence[Prompt], options: Options, draw: Sampler = upstream_draw
) -> list[Answer]:
    """Several conversations in a batch, or one, which alone may be spoken. Draws from torch's global generator."""
    pieces = [prompt.pieces(upstream=True) for prompt in prompts]
    vectors = iter(ears(parts).encode([piece for own in pieces for piece in own]) if any(pieces) else [])
    heard = [[next(vectors) for _ in own] for own in pieces]
    stops = parts.tokenizer.stops
    cache = KVCache()
    if len(prompts) == 1:
        for _ in parts.language.prefill(prompts[0], heard[0], cache):
            pass
    if len(prompts) == 1 and options.decoding.beams == 1:
        sampler = TextSampler(options.decoding, upstream=True)
        rows = [list(parts.language.generate(cache, sampler, stops, options.limit))]
    else:
        embedded = [parts.language.embed(prompt, own) for prompt, own in zip(prompts, heard, strict=True)]
        rows = parts.language.search(embedded, options.decoding, stops, options.limit)
    answers = [
        Answer(prompt, own, ids, parts.tokenizer.answer(ids, upstream=True))
        for prompt, own, ids in zip(prompts, heard, rows, strict=True)
    ]
    if options.speak and len(answers) == 1:
        [answer] = answers
        answer.speaker = cache.speaker
        assert answer.speaker is not None
        answer.speech = upstream_speech(voice(parts), spoken_part(parts, answer.ids), answer.speaker[0], draw)
        answer.sound = voice(parts).sound(answer.speech.codes)
    return answers


def spoken_part(parts: Parts, ids: list[int]) -> str:
    """What stands behind the last <|tts_bos|> and before the first <|tts_eos|> after it."""
    opening, closing = parts.tokenizer.id(SPEECH_OPEN), parts.tokenizer.id(SPEECH_CLOSE)
    if opening in ids:
        ids = ids[len(ids) - ids[::-1].index(opening) :]
    return parts.tokenizer.answer(ids[: ids.index(closing)] if closing in ids else ids, upstream=True)


def upstream_speech(speech: SpeechParts, text: str, speaker: Tensor, draw: Sampler) -> Utterance:
    """Ten slots of text, 25 frames, and so on: through all slots reserved, padding too; then frames alone."""
    ids, known = speech.text.layout(text)
    utterance, bos = Utterance(speech.decoder, speaker), speech.decoder.bos
    while not utterance.ended and not (utterance.slots == bos and utterance.full):
        end = min(max(utterance.slots, FIRST_TEXT) + TEXT_STEP, bos)
        utterance.feed(ids[utterance.slots : end])
        utterance.text_length = known
        for _ in utterance.frames(FRAMES_STEP, draw):
            pass
    return utterance
