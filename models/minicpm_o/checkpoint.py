"""A MiniCPM-o 2.6 checkpoint on disk: its shards of safetensors, and how a network gets its weights from them.

Nothing is read before it is asked for, and what is read goes straight to its device and precision: weights are never
in memory twice, and in the file's own precision on a CPU they stay mapped to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from models.errors import UserError
from models.layers import Int8Embedding, Int8Linear

INDEX = "model.safetensors.index.json"
SHARD_OF = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")
DTYPES = {"fp32": torch.float32, "int8": torch.float32, "bf16": torch.bfloat16}
SHOWN = 5  # keys named in an error

# Every key of a checkpoint is one of a part that speaks, or is passed over by name.
PARTS = ("llm.", "apm.", "audio_projection_layer.", "tts.")
VISION = ("vpm.", "resampler.")
UNUSED = re.compile(
    r"tts\.model\.embed_tokens\.weight$"  # the speech decoder is fed embeddings; this table exists and is never read
    r"|tts\.dvae\.(encoder|downsample_conv)\."  # from sound to codes: only training goes that way
    r"|tts\.dvae\.vq_layer\..*\.project_in\."
)


class Checkpoint:
    """The tensors of a folder, by key. Iterating a part reads its tensors one by one."""

    def __init__(self, shards: Mapping[str, Path], shapes: Mapping[str, tuple[int, ...]]):
        """`shards` maps every key that is used to its file."""
        self._shards, self.shapes = shards, shapes

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Look at the headers of all shards; of those an index names, or else of every *.safetensors in the folder.

        Raises UserError("checkpoint_wrong") naming a shard that is missing or cut short, or keys that no part has.
        """
        where: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for path in _shards(Path(folder)):
            for key, shape in _header(path):
                if key in where:
                    raise UserError("checkpoint_wrong", file=path.name, what=f"{key} is also in {where[key].name}")
                where[key], shapes[key] = path, shape
        used = used_keys(where)
        return cls({key: where[key] for key in used}, {key: shapes[key] for key in used})

    def tensors(self, prefix: str) -> Tensors:
        """The tensors whose keys start with `prefix`, under what follows it."""
        own = {key.removeprefix(prefix): key for key in self._shards if key.startswith(prefix)}
        return Tensors(own, self._shards)

    def check(self, prefix: str, expected: Mapping[str, Sequence[int]]) -> None:
        """Raise UserError("checkpoint_wrong") unless below `prefix` stand exactly these keys, of these shapes.

        The error names the first keys at fault: those missing, those unknown, those of another shape.
        """
        found = {key.removeprefix(prefix): shape for key, shape in self.shapes.items() if key.startswith(prefix)}
        trouble = [f"{prefix}{key} is missing" for key in expected if key not in found]
        trouble += [f"{prefix}{key} is not known" for key in found if key not in expected]
        for key in expected.keys() & found.keys():
            if tuple(found[key]) != tuple(expected[key]):
                trouble.append(f"{prefix}{key} is {list(found[key])}, not {list(expected[key])}")
        if trouble:
            files = sorted({self._shards[prefix + key].name for key in found})
            raise UserError("checkpoint_wrong", file=", ".join(files[:2]) or "the checkpoint", what=shown(trouble))


class Tensors(Mapping[str, Tensor]):
    """A part's tensors, each read from its shard when it is asked for."""

    def __init__(self, keys: Mapping[str, str], shards: Mapping[str, Path]):
        self._keys, self._shards = keys, shards
        self._open: tuple[Path, safe_open] | None = None

    def __getitem__(self, name: str) -> Tensor:
        key = self._keys[name]
        path = self._shards[key]
        try:
            if self._open is None or self._open[0] != path:
                self._open = path, safe_open(path, "pt")
            return self._open[1].get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise UserError("checkpoint_wrong", file=path.name, what=str(error)) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def used_keys(keys: Iterable[str]) -> list[str]:
    """The keys that speech needs: without vision's, and without those that nothing reads.

    Raises UserError("checkpoint_wrong") where there are others.
    """
    keys = list(keys)
    stray = [f"{key} is not known" for key in keys if not key.startswith((*PARTS, *VISION))]
    if stray:
        raise UserError("checkpoint_wrong", file="the checkpoint", what=shown(stray))
    return [key for key in keys if not key.startswith(VISION) and not UNUSED.match(key)]


def shown(trouble: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = f" (and {len(trouble) - SHOWN} more)" if len(trouble) > SHOWN else ""
    return "; ".join(trouble[:SHOWN]) + more


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    """The keys and shapes that a network (on any device, meta too) wants of its part."""
    return {key: tensor.shape for key, tensor in module.state_dict().items()}


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], precision: str, device: str | torch.device, path: str = ""
) -> None:
    """Give a module on the meta device, and all below it, their weights, a tensor at a time.

    Precision "fp32" and "bf16" for any device. On a CPU "int8" means int8 linear layers and tables, all else float32;
    on a GPU "int8" and "int4" mean such weights of linear layers by torchao, all else bf16. Buffers that no checkpoint
    holds stay where they were made. Raises UserError where the precision is not for the device, or torchao missing.
    """
    dtype = dtype_of(precision, device)
    small = precision in ("int8", "int4")
    for name, child in module.named_children():
        below = f"{path}{name}."
        if small and dtype == torch.float32 and type(child) is nn.Linear:
            setattr(module, name, Int8Linear(tensors[f"{below}weight"], tensors.get(f"{below}bias")))
        elif small and dtype == torch.float32 and name == "embed_tokens":
            setattr(module, name, Int8Embedding(tensors[f"{below}weight"]))
        else:
            fill(child, tensors, precision, device, below)
            if small and type(child) is nn.Linear:
                weight_only(child, "int8" if name == "lm_head" else precision)
    own = {key: tensors[path + key] for key in module.state_dict() if "." not in key}
    # A vector is copied: one that stays mapped to the file keeps every page in memory that was read beside it.
    own = {key: tensor.to(device, dtype, copy=tensor.ndim == 1) for key, tensor in own.items()}
    module.load_state_dict(own, strict=False, assign=True)  # not strict: what is below has its own already


def dtype_of(precision: str, device: str | torch.device) -> torch.dtype:
    """The type that a network of this precision computes in on a device. Raises UserError where there is none."""
    cpu = torch.device(device).type == "cpu"
    if precision not in DTYPES and (cpu or precision != "int4"):
        raise UserError(
            "precision_unknown", precision=precision, known=", ".join([*DTYPES, *([] if cpu else ["int4"])])
        )
    return torch.bfloat16 if not cpu and precision in ("int8", "int4") else DTYPES[precision]


def weight_only(layer: nn.Linear, precision: str) -> None:
    """Give a linear layer int8 (a scale a row) or int4 (a scale for 128 inputs) weights, by torchao, in place."""
    try:
        from torchao.quantization import (  # pyright: ignore[reportMissingImports]
            Int4WeightOnlyConfig,
            Int8WeightOnlyConfig,
            quantize_,
        )
    except ImportError as error:
        raise UserError("library_missing", library="torchao", what=f"{precision} on a GPU") from error
    tiled = "tile_packed_to_4d"  # the layout of torch's own int4 kernel; others need more libraries
    quantize_(
        layer, Int8WeightOnlyConfig() if precision == "int8" else Int4WeightOnlyConfig(128, int4_packing_format=tiled)
    )


def memory_bytes(module: nn.Module) -> int:
    """Bytes of a network's weights, each counted once."""
    stored = (tensor for tensor in [*module.parameters(), *module.buffers()] if tensor.device.type != "meta")
    plain = {part.data_ptr(): part.nbytes for tensor in stored for part in _parts(tensor)}
    return sum(plain.values()) + sum(getattr(layer, "bytes", 0) for layer in module.modules())


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """A plain tensor itself; of a quantized one, the tensors that it is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:  # pyright: ignore[reportAttributeAccessIssue]
        yield from _parts(getattr(tensor, name))


def _shards(folder: Path) -> list[Path]:
    """The files to read. Raises UserError where one that should be there is not."""
    index = folder / INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            paths = [folder / Path(str(name)).name for name in names]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError("checkpoint_wrong", file=INDEX, what=f"{type(error).__name__}: {error}") from error
    else:
        paths = sorted(folder.glob("*.safetensors"))
        for path in list(paths):  # a shard tells how many there are
            if numbered := SHARD_OF.search(path.name):
                stem, count = path.name[: numbered.start()], numbered[2]
                paths += [
                    folder / f"{stem}-{number:0{len(count)}}-of-{count}.safetensors"
                    for number in range(1, int(count) + 1)
                ]
        paths = sorted(set(paths))
    for path in paths:
        if not path.exists():
            raise UserError("checkpoint_wrong", file=path.name, what="the file is missing")
    if not paths:
        raise UserError("checkpoint_wrong", file=folder.name, what="it holds no *.safetensors")
    return paths


def _header(path: Path) -> list[tuple[str, tuple[int, ...]]]:
    """Keys and shapes of a shard; the library compares the header with the file's length."""
    try:
        with safe_open(path, "pt") as file:
            slices = ((key, file.get_slice(key)) for key in file.keys())  # noqa: SIM118
            found = [(key, tuple(part.get_shape()), part.get_dtype()) for key, part in slices]
    except (SafetensorError, OSError) as error:
        raise UserError("checkpoint_wrong", file=path.name, what=str(error)) from error
    trouble = [f"{key} holds {dtype}" for key, _, dtype in found if dtype not in ("F32", "F16", "BF16")]
    if trouble:
        raise UserError("checkpoint_wrong", file=path.name, what=shown(trouble))
    return [(key, shape) for key, shape, _ in found]
