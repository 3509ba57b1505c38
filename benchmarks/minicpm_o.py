"""MiniCPM-o 2.6's speed and memory with random weights: `python -m benchmarks.minicpm_o`.

Speed does not depend on what the weights are, so a random checkpoint (2.5 GB, removed at the end) is written to a
temporary folder and loaded as the real one would be. Ears, speech decoder, DVAE and Vocos have their real sizes; the
language model has the real one's layers, but two of 28, and 8192 of its 151,700 words: as a whole it would not fit this
machine. Every figure comes from a process of its own:
CPU time on one thread, wall time on two, and the peak of its resident memory. A floor is what reading the weights of a
step once takes a core: their bytes by the speed at which it sums a gigabyte, taken at the same time.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as app.py does

import numpy as np

from benchmarks.process import elapsed, in_own_process, main, median_ms
from benchmarks.report import Row

SUITE = "minicpm_o"
GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "minicpm_o"
SEED = 7
CLIP_S = 3.0  # a question
FRAMES = 469  # of the answer: ten seconds of 512 samples at 24 kHz
ANSWER = "The weather is fine today, and the sun is out. You and the audio speak, please."
LLM = {"num_hidden_layers": 2, "vocab_size": 8192}  # the layers as wide as they are: 3584
SPOKEN_FRAME_MS = 21.3  # what a frame sounds
WORK_GB = 1.5  # beside the weights: libraries 0.5, and up to 1 of a mapped file, whose pages count while it is read
RUNS = (("fp32", 1), ("int8", 1), ("int8", 2))


def rows() -> list[Row]:
    """Every figure of MiniCPM-o; the language model is the small one throughout."""
    with tempfile.TemporaryDirectory(prefix="parley-bench-") as name:
        write_checkpoint(Path(name))
        return list(_rows({run: in_own_process(SUITE, Path(name), *run) for run in RUNS}))


def _rows(found: dict[tuple[str, int], dict[str, float]]) -> Iterator[Row]:
    exact, small, two = (found[run] for run in RUNS)

    def row(what: str, value: float, target: float, unit: str, note: str) -> Row:
        return Row(f"MiniCPM-o: {what}", value, target, unit, note)

    note = f"{two['first']:.2f} s, one-shot {two['one_shot']:.2f} s; 3 s question, int8, two threads"
    yield row("first sound of a 10 s answer, streaming : one-shot", two["first"] / two["one_shot"], 1 / 3, "", note)
    for precision, one in (("fp32", exact), ("int8", small)):
        speed = f"floor {{:.0f}} at {one['bandwidth']:.1f} GB/s"
        for part, name in (("llm", "language model (2 layers), a token"), ("frame", "speech decoder, a frame")):
            floor = one[f"{part}_bytes"] / one["bandwidth"] / 1e6
            note = speed.format(floor)
            if precision == "int8":
                note += f"; {two[part]:.0f} ms on two threads"
            if part == "llm":
                note += f"; all 28 layers and words would take {one[part] * whole_of_small():.0f}"
            yield row(f"{name}, {precision}", one[part], 2 * floor, "CPU ms", note)
    note = f"the frame lasts {SPOKEN_FRAME_MS} ms; its DVAE and Vocos {two['vocoder']:.1f} ms more, as they stream"
    yield row("speech decoder, a frame, int8, two threads", two["frame"], SPOKEN_FRAME_MS, "ms", note)
    note = f"int8 {small['ears']:.0f}; on two threads {two['ears']:.0f} ms"
    yield row("ears, a second of sound, fp32", exact["ears"], 1000, "CPU ms", note)
    note = f"{small['kept']:.0f} CPU ms, without it {small['anew']:.0f}; int8, two 3 s questions and a 3 s voice"
    yield row("second question → first word, cache kept : all read again", small["kept"] / small["anew"], 0.5, "", note)
    for precision, run in (("fp32", exact), ("int8", two)):
        note = f"of which weights {run['weights']:.2f}"
        yield row(f"peak memory, {precision}", run["memory"], run["weights"] + WORK_GB, "GB", note)


def whole_of_small() -> float:
    """The weights that a token reads in the real language model, by those of the small one."""
    real = json.loads((GOLDEN / "real_config_reconstructed.json").read_text(encoding="utf-8"))
    width, kept = real["hidden_size"], real["hidden_size"] * real["num_key_value_heads"] // real["num_attention_heads"]
    layer = 2 * width * (width + kept) + 3 * width * real["intermediate_size"]
    whole, small = (each["num_hidden_layers"] * layer + each["vocab_size"] * width for each in (real, LLM))
    return whole / small


# --- the random checkpoint --------------------------------------------------------------------------------------------


def write_checkpoint(folder: Path) -> None:
    """A checkpoint of the real files and keys in bfloat16, with the small tokenizers that the tests have."""
    import torch
    from safetensors.torch import save_file

    from models.minicpm_o.checkpoint import shapes, used_keys
    from models.minicpm_o.config import MiniCPMOConfig
    from models.minicpm_o.language import PREFIX, skeleton

    shutil.copytree(GOLDEN / "checkpoint", folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    config = json.loads((GOLDEN / "real_config_reconstructed.json").read_text(encoding="utf-8"))
    spoken = json.loads((folder / "config.json").read_text(encoding="utf-8"))["tts_config"]
    ids = {key: spoken[key] for key in ("audio_bos_token_id", "text_eos_token_id", "spk_emb_token_id")}
    config |= {**LLM, "tts_config": {**config["tts_config"], **ids}}
    (folder / "config.json").write_text(json.dumps(config))

    manifest = json.loads((GOLDEN / "real_state_dict_manifest.json").read_text(encoding="utf-8"))
    real = manifest["speech_only"]
    wanted = {f"{PREFIX}{key}": tuple(shape) for key, shape in shapes(skeleton(MiniCPMOConfig.of(config))).items()}
    for key in used_keys(real):
        if not key.startswith(PREFIX):
            wanted[key] = tuple(real[key])
    most = max(map(math.prod, [*wanted.values(), *manifest["Vocos.pt"].values()]))
    chance = torch.randn(most, generator=torch.Generator().manual_seed(SEED)).mul_(0.02)
    rough = chance.bfloat16()

    def random(shape: Sequence[int], values: torch.Tensor) -> torch.Tensor:
        return values[: math.prod(shape)].view(*shape).clone()

    for part in (PREFIX, "apm.", "audio_projection_layer.", "tts."):
        own = {key: random(shape, rough) for key, shape in wanted.items() if key.startswith(part)}
        save_file(own, folder / f"{part.rstrip('.')}.safetensors")
    vocos = {key: random(shape, chance) for key, shape in manifest["Vocos.pt"].items()}
    vocos["head.istft.window"] = torch.hann_window(len(vocos["head.istft.window"]))
    torch.save(vocos, folder / "assets" / "Vocos.pt")


# --- measuring, in a process of its own -------------------------------------------------------------------------------


def measure(folder: Path, precision: str, threads: int) -> dict[str, float]:
    """Milliseconds a stage (CPU time on one thread, wall time on more), seconds to sound, GB/s, bytes, GB."""
    import torch

    from models.minicpm_o import model
    from models.minicpm_o.checkpoint import memory_bytes

    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.monotonic
    parts = model.load(folder, precision, "cpu")
    assert parts.ears and parts.speech
    language, decoder = parts.language.network, parts.speech.decoder
    found = {
        "llm_bytes": memory_bytes(language.model.layers) + memory_bytes(language.lm_head),
        "frame_bytes": memory_bytes(decoder.layers) + memory_bytes(decoder.head),
        "weights": parts.memory_bytes() / 1e9,
    }
    ears = parts.ears
    found["ears"] = median_ms(lambda: ears.encode([clip(0)]), clock, 2) / CLIP_S
    found["llm"], found["frame"], found["vocoder"] = steps(parts, clock)
    if threads > 1:
        found["first"], found["one_shot"] = first_sound(parts)
    else:
        found["anew"], found["kept"] = second_turn(parts, clock)
    found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    found["bandwidth"] = bandwidth(clock)
    return found


def bandwidth(clock: Callable[[], float]) -> float:
    """GB/s at which a gigabyte is read."""
    import torch

    gigabyte = torch.ones(2**28)
    return gigabyte.nbytes / 1e6 / min(elapsed(gigabyte.sum, clock) for _ in range(7))


def steps(parts: Any, clock: Callable[[], float]) -> tuple[float, float, float]:
    """Milliseconds of a token, of a frame of speech in the middle of the answer, and of its DVAE and Vocos."""
    import torch

    from models.minicpm_o.language import KVCache
    from models.minicpm_o.sampling import Sampler
    from models.minicpm_o.speech_decoder import FRAMES_STEP
    from models.minicpm_o.utterance import Utterance, seeded
    from models.minicpm_o.vocoder import SoundStream

    cache, options = KVCache(), recite(parts)
    for _ in parts.language.prefill(parts.prompts.chat(question(), aloud=True), parts.ears.encode([clip(0)]), cache):
        pass
    tokens = parts.language.generate(cache, Sampler(options.decoding, SEED), (), 30)
    token = median_ms(lambda: next(tokens), clock, 20)

    speech = parts.speech
    assert cache.speaker is not None
    utterance, draw = Utterance(speech.decoder, cache.speaker[0]), seeded(SEED)
    ids, known = speech.text.layout(ANSWER)
    utterance.feed(ids[: known + 3])
    for _ in utterance.frames(FRAMES // 2, draw):
        pass
    frames = utterance.frames(FRAMES, draw)
    frame = median_ms(lambda: next(frames), clock, 40)

    stream = SoundStream(speech.dvae, speech.vocoder)
    stretch = torch.stack(utterance.codes[:FRAMES_STEP])
    return token, frame, median_ms(lambda: stream.push(stretch), clock, 5) / FRAMES_STEP


def first_sound(parts: Any) -> tuple[float, float]:
    """Seconds until the answer is first heard: streaming, and in one piece."""
    from models.minicpm_o import chat
    from models.minicpm_o.language import KVCache

    prompt, found = parts.prompts.chat(question(), aloud=True), []
    for whole in (False, True):
        start, first, samples = time.monotonic(), 0.0, 0
        for piece in chat.stream(parts, prompt, KVCache(), recite(parts), whole):
            if piece is not None and piece.sound is not None:
                first = first or time.monotonic() - start
                samples += len(piece.sound)
        assert samples == FRAMES * parts.speech.samples_per_frame, samples
        found.append(first)
    return found[0], found[1]


def second_turn(parts: Any, clock: Callable[[], float]) -> tuple[float, float]:
    """Milliseconds from a second question to its first word: a model that did not hear the first, one that did."""
    from models.capabilities import Capability, Sampling, TalkRequest, TextDelta, Turn, Waveform
    from models.minicpm_o.engine import MiniCPMOModel

    def asked(seed: int, *history: Turn) -> TalkRequest:
        return TalkRequest(
            capability=Capability.ASSIST,
            audio=Waveform(clip(seed), 16_000),
            reference=Waveform(clip(2), 16_000),
            history=history,
            language="en",
            speak=False,
            transcribe=False,
            sampling=Sampling(seed=SEED),
        )

    def first_word(model: MiniCPMOModel) -> float:
        recite(parts)
        events = model.stream(asked(1, Turn("user", "", Waveform(clip(0), 16_000)), Turn("assistant", ANSWER)))
        return elapsed(lambda: next(event for event in events if isinstance(event, TextDelta)), clock)

    heard = MiniCPMOModel(parts)
    recite(parts)
    for _ in heard.stream(asked(0)):
        pass
    return first_word(MiniCPMOModel(parts)), first_word(heard)


def clip(seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(int(CLIP_S * 16_000)) * 0.1).astype(np.float32)


def question() -> list[Any]:
    from models.minicpm_o.prompts import Message
    from models.minicpm_o.system_prompts import system_prompt

    return [system_prompt("audio_assistant", "en"), Message("user", (clip(0),))]


def recite(parts: Any) -> Any:
    """Let the next answer be ANSWER, in ten seconds: all is computed and drawn as ever, from likelihoods put right.

    Gives the options for it, the model card's.
    """
    import torch

    from models.minicpm_o.chat import Options
    from models.minicpm_o.language import LanguageModel
    from models.minicpm_o.sampling import Decoding
    from models.minicpm_o.speech_decoder import SpeechDecoder

    tokenizer, decoder = parts.tokenizer, parts.speech.decoder
    script = iter([*tokenizer.encode([ANSWER]), min(tokenizer.stops)])
    frames = iter(range(2 * FRAMES))

    def next_token(cache: Any) -> torch.Tensor:
        logits = LanguageModel.logits(parts.language, cache)
        logits[next(script)] = 1e4
        return logits

    def next_codes(hidden: torch.Tensor) -> torch.Tensor:
        logits = SpeechDecoder.logits(decoder, hidden)
        logits[:, decoder.end] = -1e4 if next(frames) < FRAMES else 1e4
        return logits

    parts.language.logits, decoder.logits = next_token, next_codes
    return Options(Decoding(temperature=0.3), seed=SEED)


if __name__ == "__main__":
    main(SUITE, __doc__, measure, rows)
