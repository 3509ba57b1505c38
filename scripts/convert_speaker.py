"""Makes assets/weights/speaker_encoder.safetensors out of Resemblyzer's GE2E speaker encoder.

    pip download --no-deps --only-binary=:all: Resemblyzer==0.1.4
    unzip Resemblyzer-0.1.4-*.whl resemblyzer/pretrained.pt
    python scripts/convert_speaker.py resemblyzer/pretrained.pt

Only the network is kept, in float16, under torch's names of an LSTM and a linear layer.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch
from safetensors.torch import save_file

TARGET = Path(__file__).resolve().parent.parent / "assets" / "weights" / "speaker_encoder.safetensors"
SHA256 = "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e"

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="path of pretrained.pt")
    path = parser.parse_args().checkpoint
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{path}: sha256 {found}, expected {SHA256}")
    state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    kept = {name: tensor.half() for name, tensor in state.items() if name.startswith(("lstm.", "linear."))}
    save_file(kept, TARGET, {"licence": "Apache-2.0", "model": "Resemblyzer GE2E"})
