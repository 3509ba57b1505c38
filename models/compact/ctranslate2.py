"""Reads the weights of a CTranslate2 model.bin, with numpy alone. Knows nothing of what the weights are for."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import numpy as np

KINDS = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
VERSION = 6  # of the binary layout


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a model.bin by name, e.g. "encoder/conv1/weight": float16 [512, 80, 3].

    The arrays are views of the file (memory-mapped, read-only): copy what shall outlive it.
    Layout: https://github.com/OpenNMT/CTranslate2, `python/ctranslate2/specs/model_spec.py`, `_serialize`.
    Raises ValueError if the file is something else.
    """
    with Path(path).open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return _tensors(data)
    except (struct.error, KeyError, UnicodeDecodeError, IndexError) as error:
        raise ValueError(f"not a CTranslate2 model: {path}") from error


def _tensors(data: mmap.mmap) -> dict[str, np.ndarray]:
    at = 0

    def number(layout: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(layout, data, at)
        at += struct.calcsize(layout)
        return value

    def text() -> str:
        nonlocal at
        size = number("<H")
        at += size
        return data[at - size : at].rstrip(b"\0").decode()

    version = number("<I")
    if version != VERSION:
        raise ValueError(f"CTranslate2 layout {version}, {VERSION} is known")
    text()  # the name of the specification
    number("<I")  # its revision
    tensors = {}
    for _ in range(number("<I")):
        name = text()
        shape = [number("<I") for _ in range(number("<B"))]
        kind = np.dtype(KINDS[number("<B")])
        size = number("<I")
        tensors[name] = np.frombuffer(data, kind, size // kind.itemsize, at).reshape(shape)
        at += size
    return tensors
