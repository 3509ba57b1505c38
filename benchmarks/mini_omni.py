"""Mini-Omni's speed and memory at its real size, with random weights: `python -m benchmarks.mini_omni`.

Speed does not depend on what the weights are, so a random checkpoint of the real shapes is written to a temporary
folder (3.2 GB, removed at the end) and loaded as the real one would be. Every figure comes from a process of its own:
CPU time on one thread, wall time on two, and the peak of its resident memory.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as app.py does

import numpy as np

from benchmarks.process import elapsed, in_own_process, main, median_ms
from benchmarks.report import Row

SUITE = "mini_omni"
CLIP_S, SEED = 3.0, 7
COLUMNS = 64  # of an answer
UPSTREAM = {  # the original code at these shapes, float32, on this class of machine
    "step": 376,
    "prefill": 6481,
    "codec": 46,
    "first_audio": 11.6,
    "rtf": 4.7,
    "memory": 4.7,
}
CONFIG = {
    "name": "mini-omni at its real size, random weights",
    "block_size": 2048,
    "n_layer": 24,
    "n_embd": 896,
    "n_head": 14,
    "n_query_groups": 2,
    "head_size": 64,
    "intermediate_size": 4864,
    "padded_vocab_size": 181120,
    "text_vocab_size": 152000,
    "audio_vocab_size": 4160,
    "whisper_adapter_dim": 768,
    "asr_adapter": "llamamlp",
    "post_adapter": False,
    "add_qkv_bias": True,
    "bias": False,
    "lm_head_bias": False,
    "norm_class_name": "RMSNorm",
    "norm_eps": 1e-6,
    "mlp_class_name": "LLaMAMLP",
    "parallel_residual": False,
    "rotary_percentage": 1,
    "rope_base": 1000000,
    "tie_word_embeddings": True,
}
WHISPER = {"n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": 768, "n_audio_head": 12, "n_audio_layer": 12}
WHISPER_TEXT = {"n_vocab": 51865, "n_text_ctx": 448, "n_text_state": 768, "n_text_head": 12, "n_text_layer": 12}
SNAC = {
    "sampling_rate": 24000,
    "encoder_dim": 48,
    "encoder_rates": [2, 4, 8, 8],
    "decoder_dim": 1024,
    "decoder_rates": [8, 8, 4, 2],
    "attn_window_size": None,
    "codebook_size": 4096,
    "codebook_dim": 8,
    "vq_strides": [4, 2, 1],
    "noise": True,
    "depthwise": True,
}


def rows() -> list[Row]:
    """Every figure of Mini-Omni; "upstream" in a note is the original code's."""
    with tempfile.TemporaryDirectory(prefix="parley-bench-") as name:
        folder = Path(name)
        write_checkpoint(folder)
        found = {
            (precision, threads): in_own_process(SUITE, folder, precision, threads)
            for precision, threads in (("fp32", 1), ("fp32", 2), ("int8", 1), ("int8", 2))
        }
    return list(_rows(found))


def _rows(found: dict[tuple[str, int], dict[str, float]]):
    exact, exact_2, small, small_2 = (found[key] for key in (("fp32", 1), ("fp32", 2), ("int8", 1), ("int8", 2)))

    def row(what: str, value: float, target: float | None, unit: str, note: str) -> Row:
        return Row(f"Mini-Omni: {what}", value, target, unit, note)

    cpu = "CPU ms"
    for name, title in (("encoder", "the whole 30 s window"), ("encoder_fast", "the fast one")):
        note = (
            f"{small_2[name]:.0f} ms on two threads; fp32 {exact[name]:.0f} CPU ms, {exact_2[name]:.0f} on two threads"
        )
        yield row(f"encoder, {title}, 3 s clip, int8", small[name], None, cpu, note)
    wall = f"{exact_2['step']:.0f} ms on two threads"
    yield row("step, fp32", exact["step"], 240, cpu, f"upstream {UPSTREAM['step']}; {wall}; floor {floor_ms(4):.0f}")
    wall = f"{small_2['step']:.0f} ms on two threads"
    yield row("step, int8", small["step"], 85, cpu, f"{wall}; floor {floor_ms(1):.0f}")
    wall = f"{small_2['step_alone']:.0f} ms on two threads"
    yield row("step after the text ended, int8", small["step_alone"], 45, cpu, wall)
    wall = f"{exact_2['prefill']:.0f} ms on two threads"
    yield row("prefill of 154 positions, fp32", exact["prefill"], 2000, cpu, f"upstream {UPSTREAM['prefill']}; {wall}")
    wall = f"{small_2['prefill']:.0f} ms on two threads"
    yield row("prefill of 154 positions, int8", small["prefill"], 2000, cpu, wall)
    wall = f"{small_2['codec']:.0f} ms on two threads"
    yield row("SNAC a frame, seamless", exact["codec"], 40, cpu, f"upstream {UPSTREAM['codec']}, with seams; {wall}")
    for name, target in (("first_audio", 3.0), ("first_audio_fast", 1.5)):
        window = "the whole 30 s window" if name == "first_audio" else "the fast encoder"
        encoder = f"encoder {small_2['encoder' if name == 'first_audio' else 'encoder_fast'] / 1000:.2f} s of it"
        note = f"{encoder}; upstream {UPSTREAM['first_audio']} s"
        yield row(f"3 s question → first sound, int8, {window}", small_2[name], target, "s", note)
    yield row(
        "RTF after that, int8", small_2["rtf"], 0.75, "", f"upstream {UPSTREAM['rtf']}; text never ends: the worst"
    )
    note = f"upstream {UPSTREAM['memory']}; fp32 {exact_2['memory']:.2f} GB, its file mapped"
    yield row("peak memory, int8", small_2["memory"], 2.0, "GB", note)


def floor_ms(bytes_a_weight: int, gigabytes_a_second: float = 18.6) -> float:
    """What reading every weight of a two-row step once takes a core (blocks, audio head, text head)."""
    width, inner, layers = CONFIG["n_embd"], CONFIG["intermediate_size"], CONFIG["n_layer"]
    attention = width * (width + 2 * 128) + width * width
    weights = layers * (attention + 3 * width * inner) + CONFIG["padded_vocab_size"] * width
    return weights * bytes_a_weight / gigabytes_a_second / 1e6


# --- the random checkpoint --------------------------------------------------------------------------------------------


def write_checkpoint(folder: Path) -> None:
    """The three folders of weights that the catalog names, with random values at the real shapes."""
    import torch
    import yaml
    from snac import SNAC as Snac
    from tokenizers import Tokenizer, models
    from whisper.model import AudioEncoder, ModelDimensions

    from models.mini_omni.checkpoint import expected
    from models.mini_omni.config import MiniOmniConfig
    from models.mini_omni.model import MiniOmni

    torch.manual_seed(SEED)
    for name in ("mini-omni", "whisper-small", "snac-24khz"):
        (folder / name).mkdir()
    config = MiniOmniConfig.of(CONFIG)
    with torch.device("meta"):
        shapes = expected(MiniOmni(config))
    state = {key: torch.randn(shape) * 0.02 for key, shape in shapes.items()}
    state |= {key: torch.ones(shape) for key, shape in shapes.items() if len(shape) == 1 and "bias" not in key}
    state["lm_head.weight"] = table = state["transformer.wte.weight"]
    words = config.vocabulary
    table[words.text_end : words.text] = 0  # so that the answer never ends, neither its text nor its sound
    for layer in range(7):
        table[words.row(layer, words.codes) : words.row(layer, words.audio)] = 0
    torch.save(state, folder / "mini-omni" / "lit_model.pth")
    (folder / "mini-omni" / "model_config.yaml").write_text(yaml.safe_dump(CONFIG))
    Tokenizer(models.BPE({chr(97 + n // 26) + chr(97 + n % 26): n for n in range(600)}, [])).save(
        str(folder / "mini-omni" / "tokenizer.json")
    )
    dims = ModelDimensions(**WHISPER, **WHISPER_TEXT)
    encoder = AudioEncoder(dims.n_mels, dims.n_audio_ctx, dims.n_audio_state, dims.n_audio_head, dims.n_audio_layer)
    named = {f"encoder.{key}": tensor for key, tensor in encoder.state_dict().items()}
    torch.save({"dims": dims.__dict__, "model_state_dict": named}, folder / "whisper-small" / "small.pt")
    torch.save(Snac(**SNAC).state_dict(), folder / "snac-24khz" / "pytorch_model.bin")
    (folder / "snac-24khz" / "config.json").write_text(json.dumps(SNAC))


# --- measuring, in a process of its own -------------------------------------------------------------------------------


def measure(folder: Path, precision: str, threads: int) -> dict[str, float]:
    """Milliseconds a stage (CPU time on one thread, wall time on more), seconds to the first sound, RTF, peak GB."""
    import torch

    from models import torchaudio_switch  # noqa: F401
    from models.capabilities import Capability, Sampling, TalkRequest, Waveform
    from models.catalog import MINI_OMNI
    from models.mini_omni import engine
    from models.mini_omni.prompts import Task, speech_prompt

    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.monotonic
    model = engine.load(MINI_OMNI, lambda name: folder / name, "cpu", precision)
    network, encoder, codec = model._network, model._encoder, model._codec
    clip = (np.random.default_rng(SEED).standard_normal(int(CLIP_S * 16_000)) * 0.1).astype(np.float32)
    found: dict[str, float] = {}
    with torch.inference_mode():
        mel, length = encoder.log_mel(clip)
        features = encoder.encode(mel, length, trimmed=True)
        found["encoder_fast"] = median_ms(lambda: encoder.encode(mel, length, trimmed=True), clock, 3)
        found["encoder"] = median_ms(lambda: encoder.encode(mel, length), clock, 2)
        prompt = speech_prompt(Task.A1A2_BATCH, network.config.vocabulary, length)
        cache = network.cache(2, 1024)

        def prefill() -> None:
            cache.length = 0
            network.prefill(network.embed(prompt.columns, features), cache)
            cache.share()
            network.step(network.embed(prompt.last), cache)

        found["prefill"] = median_ms(prefill, clock, 3)

        def step(rows: int) -> None:
            hidden = network.step(network.embed(prompt.last[:, :rows]), cache)
            network.audio_logits(hidden[0]).argmax(-1)
            if rows == 2:
                network.text_logits(hidden[1]).argmax(-1)

        found["step"] = median_ms(lambda: step(2), clock, 20)
        found["step_alone"] = median_ms(lambda: step(1), clock, 20)
        sound, frames = codec.stream(torch.Generator().manual_seed(SEED)), torch.randint(0, 4096, (12, 2, 7))
        found["codec"] = statistics.median(elapsed(lambda pair=pair: sound.push(pair), clock) / 2 for pair in frames)

    def answer(fast: bool) -> tuple[float, float]:
        question = Waveform(clip, 16_000)
        request = TalkRequest(
            capability=Capability.LIVE,
            audio=question,
            fast_encoder=fast,
            transcribe=False,  # with random weights it would never end
            sampling=Sampling(seed=SEED, max_new_tokens=COLUMNS),
        )
        return times_of(model.stream(request))

    if threads > 1:
        answer(fast=True)
        found["first_audio"], _ = answer(fast=False)
        found["first_audio_fast"], found["rtf"] = answer(fast=True)
    found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return found


def times_of(events: Any) -> tuple[float, float]:
    """Seconds to the first sound, and the real-time factor from there on."""
    from models.capabilities import AudioChunk

    start, first, last, sounding = time.monotonic(), 0.0, 0.0, 0.0
    for event in events:
        if isinstance(event, AudioChunk):
            last = time.monotonic()
            if first:
                sounding += len(event.pcm) / event.rate
            first = first or last
    return first - start, (last - first) / sounding


if __name__ == "__main__":
    main(SUITE, __doc__, measure, rows)
