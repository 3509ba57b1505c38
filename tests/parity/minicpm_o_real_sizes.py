"""MiniCPM-o's DVAE and vocoder at their real sizes, with weights made by a recipe instead of stored."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.minicpm_o.dvae import Dvae
from models.minicpm_o.vocoder import Vocoder
from tests.parity.minicpm_o_golden import CLOSE
from tests.parity.recorded import compare
from tests.parity.report import Case

OWN = Path(__file__).resolve().parents[1] / "golden" / "minicpm_o"
SEED = re.compile(r"\bseed (\d+);")


def real_sizes(folder: Path) -> Iterator[Case]:
    """DVAE and vocoder at their real sizes, with weights made by the recipe of the golden data's README."""
    file = folder / "realdims_dvae_vocos.safetensors"
    if not file.exists():
        return
    golden = load_file(file)
    manifest = folder / "real_state_dict_manifest.json"
    shapes = json.loads((manifest if manifest.exists() else OWN / manifest.name).read_text())
    readme = folder / "README.md"
    told = SEED.search(readme.read_text(encoding="utf-8") if readme.exists() else "")
    seed = int(told[1]) if told else 515
    dvae = {k.removeprefix("tts.dvae."): s for k, s in shapes["speech_only"].items() if k.startswith("tts.dvae.")}
    mel = Dvae(_recipe("dvae", dvae, seed))(golden["codes"][0])
    vocoder = Vocoder(_recipe("vocos", shapes["Vocos.pt"], seed))
    case = Case("component/realdims_dvae_vocos")
    compare(case, {"mel": golden["mel"], "wav": golden["wav"]}, {"mel": mel, "wav": vocoder(mel)}, CLOSE)
    yield case


def _recipe(part: str, shapes: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    state = {}
    for key, shape in shapes.items():
        name = f"{part}.{key}"
        mean, std = _moments(name, shape)
        random = np.random.default_rng([seed, zlib.crc32(name.encode())])
        state[key] = torch.from_numpy(
            random.standard_normal(shape).astype(np.float32) * np.float32(std) + np.float32(mean)
        )
        if name == "vocos.head.out.weight":
            state[key] *= 0.6
        if name.endswith("istft.window"):
            state[key] = torch.hann_window(shape[0])
    return state


def _moments(name: str, shape: list[int]) -> tuple[float, float]:
    if name.endswith("norm.weight"):
        return 1, 0.1
    if name.endswith(".bias"):
        return 0, 0.1
    if name.endswith("dvae.coef"):
        return 1, 0.2
    if name.endswith((".coef", ".gamma")):
        return 0.5, 0.2
    return 0, float(1 / np.sqrt(np.prod(shape[1:])))
