"""The golden MiniCPM-o in parts, loaded once for all tests that look at one of them."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.minicpm_o.audio_encoder import (
    AudioEncoder,
)
from models.minicpm_o.checkpoint import Checkpoint
from models.minicpm_o.config import MiniCPMOConfig
from models.minicpm_o.language import KVCache, LanguageModel
from models.minicpm_o.prompts import Prompt, Prompts
from models.minicpm_o.sampling import Decoding, Sampler
from models.minicpm_o.tokenizer import Tokenizer
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "minicpm_o"
FOLDER = GOLDEN / "checkpoint"
CLOSE_TO = 1e-4
CASES: dict[str, Any] = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))
CHATS = [name for name, case in CASES.items() if "events" not in case]
SESSIONS = [name for name, case in CASES.items() if "events" in case]
UNITS: dict[str, Any] = json.loads((GOLDEN / "components.json").read_text(encoding="utf-8"))


@lru_cache
def config() -> MiniCPMOConfig:
    return MiniCPMOConfig.read(FOLDER)


@lru_cache
def ears() -> AudioEncoder:
    return AudioEncoder(Checkpoint.open(FOLDER), config())


@lru_cache
def prompts() -> Prompts:
    return Prompts(Tokenizer(FOLDER), config())


@lru_cache
def model(precision: str = "fp32") -> LanguageModel:
    return LanguageModel(Checkpoint.open(FOLDER), config(), precision)


@lru_cache
def clips() -> dict[str, np.ndarray]:
    stored = np.load(GOLDEN / "audio.npz")
    found = {name: stored[name].astype(np.float32) / 32768 for name in stored.files}
    return {**found, "long_33s7": np.tile(found["b_4s0"], 20)[:539200]}


@lru_cache
def units() -> dict[str, Tensor]:
    return load_file(GOLDEN / "components.safetensors")


def sound(part: dict[str, Any]) -> np.ndarray:
    start, end = part.get("samples", (0, None))
    return clips()[part["audio"]][start:end]


def messages(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**m, "content": [sound(p) if isinstance(p, dict) else p for p in m["content"]]} for m in given]


def say(text: str, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": [text]}


def read(prompt: Prompt, cache: KVCache | None = None, precision: str = "fp32") -> KVCache:
    cache = cache or KVCache()
    for _ in model(precision).prefill(prompt, ears().encode(prompt.pieces()), cache):
        pass
    return cache


def greedy(penalty: float = 1.2) -> Sampler:
    return Sampler(Decoding(sample=False, repetition_penalty=penalty))


def answer(cache: KVCache, sampler: Sampler | None = None, limit: int = 24) -> list[int]:
    return list(model().generate(cache, sampler or greedy(), prompts().tokenizer.stops, limit))


def close(ours: Tensor, golden: Tensor) -> bool:
    return ours.shape == golden.shape and torch.allclose(ours, golden, atol=CLOSE_TO, rtol=0)
