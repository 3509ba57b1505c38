"""From the files of a Mini-Omni checkpoint to its network: which tensor goes where, at which precision.

A part is read, laid out and let go before the next: a float32 checkpoint of 2.8 GB becomes int8 weights without ever
being whole in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from models.errors import UserError
from models.layers import lay_out
from models.mini_omni.config import MiniOmniConfig
from models.mini_omni.model import MiniOmni

FILE = "lit_model.pth"
DTYPES = {"fp32": torch.float32, "int8": torch.float32, "bf16": torch.bfloat16}
SHOWN = 5  # keys named in an error


def load(folder: Path, precision: str = "fp32", device: str = "cpu") -> MiniOmni:
    """The network of a folder with lit_model.pth and model_config.yaml.

    Precision "fp32" and "int8" are for a CPU, "bf16" for any device. In float32 the weights stay mapped to the file.
    Raises UserError("checkpoint_wrong") that names the file and the first keys or shapes that are off.
    """
    file = folder / FILE
    return build(MiniOmniConfig.read(folder / "model_config.yaml"), lambda: read(file), file.name, precision, device)


def read(file: Path) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint, mapped to the file: bytes are read when they are used."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise ValueError("it holds something else than named tensors")
        return state
    except Exception as error:  # zip, pickle and value errors of all kinds: the file is not what it should be
        why = str(error).split("\n")[0]
        raise UserError("checkpoint_wrong", file=file.name, what=why) from error


def build(config: MiniOmniConfig, state_of, name: str, precision: str = "fp32", device: str = "cpu") -> MiniOmni:
    """The network from `state_of()`, which maps key → tensor and is asked anew for every part."""
    with torch.device("meta"):
        model = MiniOmni(config)
    check(state_of(), expected(model), name)
    dtype = DTYPES[precision]
    _fill(model.transformer.wte, state_of(), "transformer.wte", device, dtype)  # the biggest first
    if config.tied:
        model.lm_head.weight = model.transformer.get_parameter("wte.weight")
    else:
        _fill(model.lm_head, state_of(), "lm_head", device, dtype)
    model.lay_out_heads(precision)
    for part in ("whisper_adapter", *(f"transformer.h.{i}" for i in range(config.transformer.n_layer))):
        _fill(model.get_submodule(part), state_of(), part, device, dtype)
        lay_out(model.get_submodule(part), precision)
    _fill(model.transformer.ln_f, state_of(), "transformer.ln_f", device, dtype)
    model.place_positions(torch.device(device), dtype)
    return model.requires_grad_(False).eval()


def expected(model: MiniOmni) -> dict[str, torch.Size]:
    """The keys of a checkpoint, in the file's own spelling, and their shapes."""
    return {key.replace(".attn.qkv.", ".attn.attn."): tensor.shape for key, tensor in model.state_dict().items()}


def check(state: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], name: str) -> None:
    """Raise UserError("checkpoint_wrong") unless the keys, shapes and kinds are those of the network."""
    trouble = [f"{key} is missing" for key in wanted if key not in state]
    trouble += [f"{key} is not known" for key in state if key not in wanted]
    for key in wanted.keys() & state.keys():
        if state[key].shape != wanted[key]:
            trouble.append(f"{key} is {list(state[key].shape)}, not {list(wanted[key])}")
        elif not state[key].is_floating_point():
            trouble.append(f"{key} holds {state[key].dtype}")
    if trouble:
        more = f" (and {len(trouble) - SHOWN} more)" if len(trouble) > SHOWN else ""
        raise UserError("checkpoint_wrong", file=name, what="; ".join(trouble[:SHOWN]) + more)


def _fill(module: nn.Module, state: Mapping[str, Tensor], prefix: str, device: str, dtype: torch.dtype) -> None:
    """Litgpt's attention brings the old order of query, key and value (by group) into its own as it loads.

    Vectors are copied: one that stays mapped to the file would keep every page in memory that was read beside it.
    """
    own = {key: tensor.to(device, dtype, copy=tensor.ndim == 1) for key, tensor in _below(state, prefix + ".")}
    module.load_state_dict(own, assign=True)


def _below(state: Mapping[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in state.items():
        if key.startswith(prefix):
            yield key.removeprefix(prefix), tensor
