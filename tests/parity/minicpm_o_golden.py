"""A folder of MiniCPM-o's golden data, loaded, and how its recordings were made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.minicpm_o import chat, model
from models.minicpm_o.audio_encoder import log_mel
from models.minicpm_o.chat import Options
from models.minicpm_o.sampling import Decoding

CLOSE = 1e-4
TILED = re.compile(r"np\.tile\((\w+), (\d+)\)\[:n\]")
DECODING = ("temperature", "top_p", "top_k", "repetition_penalty", "num_beams")


@dataclass
class Golden:
    """The folder, loaded."""

    folder: Path
    parts: model.Parts
    clips: dict[str, np.ndarray]
    cases: dict[str, Any]

    def clip(self, name: str, samples: list[int] | None = None) -> np.ndarray:
        return self.clips[name][slice(*samples) if samples else slice(None)]

    def mel(self, clip: np.ndarray) -> Tensor:
        """[mels, frames]."""
        return log_mel(clip, self.parts.config.audio.num_mel_bins)

    def message(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """A recorded message, with its sound in place of the sound's name."""
        content = told["content"] if isinstance(told["content"], list) else [told["content"]]
        parts = [self.clip(part["audio"], part.get("samples")) if isinstance(part, dict) else part for part in content]
        return {"role": told["role"], "content": parts}

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"case_{name}.safetensors")


def clips(folder: Path) -> dict[str, np.ndarray]:
    """Float32 samples at 16 kHz by name; some are made of others by a recipe."""
    archive = np.load(folder / "audio.npz")
    found = {name: archive[name].astype(np.float32) / 32768 for name in archive.files}
    for name, told in json.loads((folder / "audio.json").read_text()).items():
        if isinstance(told, dict) and "recipe" in told:
            recipe = TILED.fullmatch(told["recipe"])
            if recipe is None:
                raise ValueError(f"{name}: a recipe that is not known: {told['recipe']}")
            found[name] = np.tile(found[recipe[1]], int(recipe[2]))[: told["n"]]
    return found


@contextmanager
def drawing(told: str) -> Iterator[None]:
    """How a recording drew: "seeded:7" from torch's global generator, "greedy" the likeliest in place of any draw."""
    kind, _, seed = told.partition(":")
    if kind == "seeded":
        torch.manual_seed(int(seed))
        yield
    elif kind == "greedy":
        with patch.object(torch, "multinomial", lambda chances, *_, **__: chances.argmax(-1, keepdim=True)):
            yield
    else:
        raise ValueError(f"a way to draw that is not known: {told}")


def options(args: Mapping[str, Any], speak: bool = False, limit: int = chat.MOST_TOKENS) -> Options:
    """As upstream's arguments say, or else its defaults, of which `speak` and `limit` differ between its functions."""
    decoding = Decoding.upstream(args.get("sampling", True), **{key: args[key] for key in DECODING if key in args})
    return Options(decoding, args.get("max_new_tokens", limit), args.get("generate_audio", speak))


def text_mask(known: int, bos: int) -> np.ndarray:
    """Which of the first slots are text, with its start and end; the last one is [Ptts]."""
    mask = np.zeros(bos + 1, np.uint8)
    mask[: known + 3], mask[bos] = 1, 1
    return mask
