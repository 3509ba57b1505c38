"""Golden data of Mini-Omni: what the original code answered with tiny random weights, case by case.

A variant's folder holds model_config.yaml, weights, a tokenizer, cases.json and an npz a case; `wav`, `whisper` and
`snac` lie in it or beside it. golden/mini_omni/README.md says what each array is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.mini_omni import checkpoint
from models.mini_omni.codec import Codec, to_pcm
from models.mini_omni.config import LAYERS, MiniOmniConfig
from models.mini_omni.encoder import AudioEncoder
from models.mini_omni.generate import Column, Sampler, columns
from models.mini_omni.model import MiniOmni
from models.mini_omni.prompts import Prompt, Task, speech_prompt, text_prompt
from models.mini_omni.tokenizer import Tokenizer
from tests.parity.report import Case

CLOSE, LSB = 1e-4, 2
LAYER_OF_CODE = ((0,), (1, 4), (2, 3, 5, 6))  # which layers each of the codec's codebooks gets, in time order
COMPARED = r"input_ids$|audio_features$|prefill_|logits_|snac_codes_|audio_noise_(off|seed\d+)_"
SEAMED = (1, 2, 4)  # frames pushed at once where the streamed wave is compared with the whole


@dataclass
class Golden:
    """One variant's folder, loaded."""

    folder: Path
    model: MiniOmni
    encoder: AudioEncoder
    codec: Codec
    tokenizer: Tokenizer
    cases: dict[str, Any]

    def beside(self, name: str) -> Path:
        return beside(self.folder, name)


def beside(folder: Path, name: str) -> Path:
    """A shared part, in the variant's folder or next to it."""
    return folder / name if (folder / name).exists() else folder.parent / name


def run(folder: Path) -> Iterator[Case]:
    """Every case of a variant's folder, or of the variants in it. Raises FileNotFoundError where there is none."""
    variants = [folder] if (folder / "cases.json").exists() else sorted(p.parent for p in folder.glob("*/cases.json"))
    if not variants:
        raise FileNotFoundError(f"{folder} holds no cases.json")
    for variant in variants:
        golden = load(variant)
        yield tokenizer_case(golden)
        for name, case in golden.cases.items():
            yield (stream_case if case["task"] == "stream" else answer_case)(golden, name, case)


def load(folder: Path, precision: str = "fp32") -> Golden:
    config = MiniOmniConfig.read(folder / "model_config.yaml")
    state = weights(folder, config)
    return Golden(
        folder=folder,
        model=checkpoint.build(config, lambda: state, folder.name, precision),
        encoder=AudioEncoder.load(beside(folder, "whisper"), "fp32", "cpu"),
        codec=Codec.load(beside(folder, "snac"), "cpu"),
        tokenizer=Tokenizer(folder / "tokenizer.json"),
        cases=json.loads((folder / "cases.json").read_text())["cases"],
    )


def weights(folder: Path, config: MiniOmniConfig) -> Mapping[str, Tensor]:
    """The variant's state dict; the one big table of a real vocabulary is made by its recipe."""
    if (folder / "model.safetensors").exists():
        return load_file(folder / "model.safetensors")
    state, recipe = (
        load_file(folder / "model_without_wte.safetensors"),
        json.loads((folder / "wte_recipe.json").read_text()),
    )
    words = config.vocabulary
    random = np.random.RandomState(recipe["seed"])
    random.standard_normal(recipe["skip"])
    table = random.standard_normal((recipe["rows"], recipe["cols"])).astype("float32")
    table[words.text_end : words.text] *= recipe["special"]
    for layer in range(LAYERS):
        table[words.row(layer, words.codes) : words.row(layer, words.audio)] *= recipe["special"]
    table[words.text_end] *= recipe["eos_t"] / recipe["special"]
    table[words.row(LAYERS - 1, words.audio_end)] *= recipe["eos_a"] / recipe["special"]
    if hashlib.sha256(table.tobytes()).hexdigest() != recipe["sha256"]:
        raise ValueError(f"the table of {folder} came out different from its recipe")
    state["transformer.wte.weight"] = torch.from_numpy(table)
    state.setdefault("lm_head.weight", state["transformer.wte.weight"])
    return state


# --- cases ------------------------------------------------------------------------------------------------------------


def tokenizer_case(golden: Golden) -> Case:
    found = Case(f"{golden.folder.name}/tokenizer")
    for sample in json.loads((golden.folder / "tokenizer_samples.json").read_text()):
        found.tokens(sample["text"], golden.tokenizer.encode(sample["text"]), sample["ids"])
    return found


def answer_case(golden: Golden, name: str, case: dict[str, Any]) -> Case:
    """Tokens of the whole answer, and every tensor that was recorded on the way."""
    found, task = Case(f"{golden.folder.name}/{name}"), Task(case["task"])
    arrays = np.load(golden.folder / f"{name}.npz")
    prompt, features = ask(golden, task, case, found, arrays)
    found.tokens("input_ids", prompt.ids.flatten().tolist(), arrays["input_ids"].flatten().tolist())
    network_tensors(golden.model, prompt, case, arrays, found)
    made = answer(golden, prompt, features, case)
    compare_tokens(made, case, found)
    words = golden.model.config.vocabulary
    text = [column.text for column in made]
    ids = text[: text.index(words.text_end)] if words.text_end in text else text
    if golden.tokenizer.decode(ids).strip() != case["text_decoded"]:
        found.wrong.append(f"text_decoded: {golden.tokenizer.decode(ids)!r}, golden {case['text_decoded']!r}")
    if "snac_codes_0" in arrays:
        sound(golden, frames_of(made), arrays, found)
    found.wrong += [f"{name}: nothing here compares it" for name in arrays if not re.match(COMPARED, name)]
    return found


def stream_case(golden: Golden, name: str, case: dict[str, Any]) -> Case:
    """The chunks that the original streams: which codes, and each chunk's own wave."""
    found, stride = Case(f"{golden.folder.name}/{name}"), case.get("stride", 4)
    prompt, features = ask(golden, Task.A1A2_BATCH, case, found, {})
    made = answer(golden, prompt, features, case)
    compare_tokens(made, case, found)
    frames = frames_of(made)
    chunks = [frames[start : start + stride] for start in range(0, len(frames) - stride + 1, stride)]
    found.tokens("chunks", [len(chunks)], [case["n_chunks"]])
    if (golden.folder / f"{name}.npz").exists():
        arrays = np.load(golden.folder / f"{name}.npz")
        codes = torch.stack(chunks) if chunks else torch.zeros(0, stride, LAYERS, dtype=torch.int64)
        found.tokens("chunk_codes", codes.flatten().tolist(), arrays["chunk_codes"].flatten().tolist())
        for chunk, wave in zip(chunks, arrays["pcm_int16"], strict=False):
            found.pcm("pcm_int16", to_pcm(golden.codec.decode(chunk, None).numpy()), wave, LSB)
    return found


def ask(golden: Golden, task: Task, case: dict[str, Any], found: Case, arrays) -> tuple[Prompt, Tensor | None]:
    """The prompt of a case, and the sound's features; compares log-mel and features on the way."""
    words = golden.model.config.vocabulary
    if not task.hears:
        return text_prompt(task, words, golden.tokenizer.encode(case["text"])), None
    path = golden.beside(case["wav"]) if (golden.folder / case["wav"]).exists() else golden.folder.parent / case["wav"]
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == 16_000
    mel, length = golden.encoder.log_mel(samples)
    recorded = np.load(path.with_name(path.stem + "_mel.npz"))
    found.floats("mel", mel, recorded["mel"], CLOSE)
    found.tokens("leng", [length], [int(recorded["leng"])])
    features = golden.encoder.encode(mel, length)
    if "audio_features" in arrays:
        rows = len(arrays["audio_features"])
        found.floats("audio_features", features.expand(rows, -1, -1), arrays["audio_features"], CLOSE)
    return speech_prompt(task, words, length), features


def answer(golden: Golden, prompt: Prompt, features: Tensor | None, case: dict[str, Any]) -> list[Column]:
    limit = case["max_returned_tokens"] - prompt.length
    return [column for column in columns(golden.model, prompt, features, Sampler(), limit) if column]


def compare_tokens(made: list[Column], case: dict[str, Any], found: Case) -> None:
    found.tokens("text", [column.text for column in made], case["tokens"]["text"])
    for layer, ids in enumerate(case["tokens"].get("audio", ())):
        found.tokens(f"audio layer {layer}", [column.audio[layer] for column in made if column.audio], ids)


def frames_of(made: list[Column]) -> Tensor:
    """Int64 [frames, 7] by the delay pattern, special tokens and all."""
    audio = torch.tensor([column.audio for column in made])
    count = max(len(made) - LAYERS, 0)
    return torch.stack([audio[1 + layer : 1 + layer + count, layer] for layer in range(LAYERS)], 1)


@torch.inference_mode()
def network_tensors(model: MiniOmni, prompt: Prompt, case: dict[str, Any], arrays, found: Case) -> None:
    """Hidden states of the prompt, then logits of the first columns, fed with the recorded features and tokens.

    A random network makes ten times more of a difference in its input: with the encoder's rounding (1e-6) in it,
    nothing could be said about the network's own.
    """
    rows = prompt.last.shape[1]
    features = torch.from_numpy(arrays["audio_features"][0]) if "audio_features" in arrays else None
    if features is not None:
        adapted = model.whisper_adapter(features)
        found.floats("prefill_adapter", adapted.expand(rows, -1, -1), arrays["prefill_adapter"], CLOSE)
    cache, first, last = model.cache(rows, prompt.length + 8), [], []
    head, end = model.embed(prompt.columns, features), model.embed(prompt.last)
    hidden = model.prefill(head, cache, first)
    cache.share()
    hidden_end = model.step(end, cache, last)

    def whole(before: Tensor, after: Tensor) -> Tensor:
        return torch.cat([before.reshape(1, -1, before.shape[-1]).expand(rows, -1, -1), after.reshape(rows, 1, -1)], 1)

    found.floats("prefill_embed", whole(head, end), arrays["prefill_embed"], CLOSE)
    for index, (before, after) in enumerate(zip(first, last, strict=True)):
        found.floats("prefill_block", whole(before, after), arrays[f"prefill_block_{index}"], CLOSE)
    found.floats("prefill_ln_f", whole(hidden, hidden_end), arrays["prefill_ln_f"], CLOSE)
    golden = arrays["logits_first5" if "logits_first5" in arrays else "logits_first5_at_idx"]
    chosen = torch.from_numpy(arrays["logits_idx"]) if "logits_idx" in arrays else slice(None)
    for column in range(len(golden)):
        logits = torch.stack(
            [torch.cat([model.text_logits(row), model.audio_logits(row).flatten()]) for row in hidden_end]
        )
        found.floats("logits", logits[:, chosen], golden[column], CLOSE)
        if column + 1 < len(golden):
            hidden_end = model.step(model.embed(fed_back(model, case, column, rows)), cache)


def fed_back(model: MiniOmni, case: dict[str, Any], column: int, rows: int) -> Tensor:
    """Int64 [8, rows]: the recorded tokens of a column as the next input, by the original's rules."""
    words, tokens = model.config.vocabulary, case["tokens"]
    pads = [words.row(layer, words.codes + 1) for layer in range(LAYERS)]
    first = [words.row(layer, ids[column]) for layer, ids in enumerate(tokens["audio"])] if "audio" in tokens else pads
    return torch.tensor([[*first, tokens["text"][column]], [*pads, tokens["text"][column]]][:rows]).t()


def sound(golden: Golden, frames: Tensor, arrays, found: Case) -> None:
    """Codes as the codec wants them, the wave of the whole answer, and the same wave streamed."""
    for book, layers in enumerate(LAYER_OF_CODE):
        found.tokens(
            f"snac_codes_{book}", frames[:, list(layers)].flatten().tolist(), arrays[f"snac_codes_{book}"][0].tolist()
        )
    whole = golden.codec.decode(frames, None).numpy()
    for name in arrays:
        if name == "audio_noise_off_int16":
            found.pcm(name, to_pcm(whole), arrays[name], LSB)
        elif re.fullmatch(r"audio_noise_off_first\d+frames", name):
            found.pcm(name, to_pcm(whole[: len(arrays[name])]), to_pcm(arrays[name]), LSB)
        elif seeded := re.fullmatch(r"audio_noise_seed(\d+)_first(\d+)frames", name):
            noise = torch.Generator().manual_seed(int(seeded[1]))
            noisy = golden.codec.decode(frames[: int(seeded[2])], noise).numpy()
            found.pcm(name, to_pcm(noisy), to_pcm(arrays[name]), LSB)
    for size in SEAMED:
        stream = golden.codec.stream(None)
        parts = [stream.push(frames[start : start + size]) for start in range(0, len(frames), size)]
        found.pcm("streamed wave", to_pcm(np.concatenate([*parts, stream.finish()])), to_pcm(whole), LSB)
