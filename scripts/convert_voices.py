"""Kokoro's voice packs (npm package kokoro-js 1.2.1, Apache-2.0) → assets/voices/kokoro-{en,zh}.safetensors, float16.

Run: npm pack kokoro-js@1.2.1 && python scripts/convert_voices.py kokoro-js-1.2.1.tgz
Each pack is float32 [510, 256]: the style of an utterance of n tokens is row n. Halving the precision moves no value by
more than 0.001 and keeps every file under 10 MB.
"""

from __future__ import annotations

import argparse
import hashlib
import tarfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

VOICES = Path(__file__).resolve().parent.parent / "assets" / "voices"
PACKAGE_SHA256 = "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860"
FAMILIES = {"en": ("af_", "am_", "bf_", "bm_"), "zh": ("zf_", "zm_")}


def packs(archive: Path) -> dict[str, np.ndarray]:
    """The voice packs {id: float32 [510, 256]} of the npm archive; ValueError if its bytes are not the known ones."""
    if hashlib.sha256(archive.read_bytes()).hexdigest() != PACKAGE_SHA256:
        raise ValueError(f"{archive} is not kokoro-js 1.2.1: its sha256 differs")
    found = {}
    with tarfile.open(archive) as package:
        for member in package:
            if member.name.startswith("package/voices/") and (file := package.extractfile(member)):
                found[Path(member.name).stem] = np.frombuffer(file.read(), "<f4").reshape(510, 256)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert Kokoro's voice packs to committed assets.")
    parser.add_argument("archive", type=Path)
    every = packs(parser.parse_args().archive)
    for language, prefixes in FAMILIES.items():
        chosen = {name: pack.astype(np.float16) for name, pack in sorted(every.items()) if name.startswith(prefixes)}
        path = VOICES / f"kokoro-{language}.safetensors"
        save_file(chosen, path, {"source": "kokoro-js 1.2.1", "licence": "Apache-2.0"})
        print(f"{path.name}: {len(chosen)} voices, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
