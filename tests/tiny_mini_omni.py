"""Mini-Omni's golden random weights, laid out as the files that the hubs have: what `--model-folder` takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from models.mini_omni.config import MiniOmniConfig
from tests.conftest import ROOT
from tests.parity.mini_omni import weights

GOLDEN = ROOT / "tests" / "golden" / "mini_omni"


def write(folder: Path, variant: str) -> list[str]:
    """Write the three folders for "tiny" or "truevocab"; gives the options that name them.

    "tiny" answers within seconds and takes clips of up to 5 s; "truevocab" has the real vocabulary and context, and
    never ends an answer of its own accord.
    """
    source = GOLDEN / variant
    model, whisper, snac = (folder / name for name in ("mini-omni", "whisper-small", "snac-24khz"))
    for made in (model, whisper, snac):
        made.mkdir(parents=True)
    torch.save(dict(weights(source, MiniOmniConfig.read(source / "model_config.yaml"))), model / "lit_model.pth")
    for name in ("model_config.yaml", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, model)
    dims = json.loads((GOLDEN / "whisper" / "dims.json").read_text())
    state = load_file(GOLDEN / "whisper" / "whisper.safetensors")
    torch.save({"dims": dims, "model_state_dict": state}, whisper / "small.pt")
    torch.save(load_file(GOLDEN / "snac" / "snac.safetensors"), snac / "pytorch_model.bin")
    shutil.copy(GOLDEN / "snac" / "config.json", snac)
    return [option for made in (model, whisper, snac) for option in ("--model-folder", f"{made.name}={made}")]
