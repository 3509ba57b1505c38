"""The ears: openai-whisper's audio encoder, without the decoder that its checkpoint also holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import whisper.model
from safetensors import safe_open
from torch import Tensor, nn
from whisper.audio import HOP_LENGTH, N_SAMPLES, SAMPLE_RATE, log_mel_spectrogram, pad_or_trim

from models.errors import UserError
from models.mini_omni.checkpoint import DTYPES, check
from models.mini_omni.layers import Int8Linear

POSITIONS_PER_S = SAMPLE_RATE // HOP_LENGTH // 2  # the second convolution halves the mel frames
SILENCE = 1 * POSITIONS_PER_S  # positions of silence after the clip in a trimmed window


class AudioEncoder:
    """Whisper's encoder: 30 s of log-mel in, a vector for every 20 ms out. Keeps no state between calls."""

    def __init__(self, state: Mapping[str, Tensor], dims: whisper.model.ModelDimensions, precision: str, device: str):
        """`state` has the tensors of whisper.model.Whisper that are its encoder's, of the right shapes."""
        self._device, self._dtype, self._mels = torch.device(device), DTYPES[precision], dims.n_mels
        self._positions, self.width = dims.n_audio_ctx, dims.n_audio_state
        self._network = _skeleton(dims)
        _fill(self._network, state, OURS, precision, self._device)
        self._network.requires_grad_(False).eval()

    @classmethod
    def load(cls, path: Path, precision: str = "fp32", device: str = "cpu") -> AudioEncoder:
        """From openai-whisper's small.pt, or a folder with it, or one with dims.json and whisper.safetensors.

        Precision "fp32" and "int8" (linear layers) are for a CPU, "bf16" for any device; norms are always float32.
        Only what the encoder needs is read. Raises UserError("checkpoint_wrong") naming the keys or shapes at fault.
        """
        if path.is_dir():
            path = next((path / name for name in FILES if (path / name).exists()), path / FILES[0])
        try:
            dims, state = _read(path)
            wanted = {OURS + key: tensor.shape for key, tensor in _skeleton(dims).state_dict().items()}
        except Exception as error:  # of zip, pickle, json and sizes that no network can have
            why = str(error).split("\n")[0]
            raise UserError("checkpoint_wrong", file=path.name, what=why) from error
        check(state, wanted, path.name)
        return cls(state, dims, precision, device)

    def memory_bytes(self) -> int:
        """Bytes of the weights in memory."""
        tensors = [*self._network.parameters(), *self._network.buffers()]
        int8 = sum(layer.bytes for layer in self._network.modules() if isinstance(layer, Int8Linear))
        return sum(tensor.nbytes for tensor in tensors) + int8

    def log_mel(self, samples: np.ndarray) -> tuple[Tensor, int]:
        """float32 [n] at 16 kHz → log-mel float32 [mels, 3000], padded to 30 s, and the positions that the clip takes.

        Raises ValueError beyond 30 s: nothing is cut here.
        """
        if not 0 < len(samples) <= N_SAMPLES:
            raise ValueError(f"{len(samples)} samples; the encoder hears up to 30 s, {N_SAMPLES}")
        length = int(len(samples) / SAMPLE_RATE * 1000 / 20) + 1  # Mini-Omni was trained on this very count
        mel = log_mel_spectrogram(pad_or_trim(samples.astype(np.float32, copy=False)), self._mels)
        return mel, min(length, self._positions)

    @torch.no_grad()
    def encode(self, mel: Tensor | np.ndarray, length: int, trimmed: bool = False) -> Tensor:
        """What log_mel gave → the features [length, width] of the clip, in the encoder's own type.

        `trimmed`: attend to the clip and SILENCE instead of all 30 s.
        """
        net = self._network
        window = min(length + SILENCE, self._positions) if trimmed else self._positions
        frames = torch.as_tensor(mel)[None, :, : 2 * window].to(self._device, self._dtype)
        x = F.gelu(net.conv2(F.gelu(net.conv1(frames))))
        x = x.transpose(1, 2) + net.get_buffer("positional_embedding")[:window]
        *blocks, last = net.blocks
        for block in blocks:
            x = _through(block, x, window)
        return net.ln_post(_through(last, x, length))[0]  # what follows the clip is not asked for


FILES = ("small.pt", "whisper.safetensors")
OURS = "encoder."


def _read(path: Path) -> tuple[whisper.model.ModelDimensions, dict[str, Tensor]]:
    """Sizes, and the encoder's tensors, which are mapped to the file until they are used."""
    if path.suffix == ".safetensors":
        dims = json.loads((path.parent / "dims.json").read_text(encoding="utf-8"))
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys() if key.startswith(OURS)}  # noqa: SIM118
    else:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(checkpoint, dict) or not checkpoint.keys() >= {"dims", "model_state_dict"}:
            raise ValueError("dims and model_state_dict are not in it")
        dims, state = checkpoint["dims"], checkpoint["model_state_dict"]
    return whisper.model.ModelDimensions(**dims), {key: state[key] for key in state if key.startswith(OURS)}


def _skeleton(dims: whisper.model.ModelDimensions) -> whisper.model.AudioEncoder:
    """Openai-whisper's encoder without weights."""
    sizes = {name: size for name, size in asdict(dims).items() if name.startswith(("n_audio", "n_mels"))}
    if not all(isinstance(size, int) and size > 0 for size in sizes.values()) or dims.n_audio_state % dims.n_audio_head:
        raise ValueError(f"sizes {sizes}")
    with torch.device("meta"):
        return whisper.model.AudioEncoder(*sizes.values())


def _fill(module: nn.Module, state: Mapping[str, Tensor], path: str, precision: str, device: torch.device) -> None:
    """Give a module and those below it their weights, a tensor at a time; linear layers become int8 where asked."""
    for name, child in module.named_children():
        below = f"{path}{name}."
        if precision == "int8" and isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(state[f"{below}weight"], state.get(f"{below}bias")))
        else:
            _fill(child, state, below, precision, device)
    dtype = torch.float32 if isinstance(module, nn.LayerNorm) else DTYPES[precision]
    own = {key: state[path + key].to(device, dtype) for key in module.state_dict() if "." not in key}
    module.load_state_dict(own, strict=False, assign=True)  # not strict: what is below has its own already


def _through(block: whisper.model.ResidualAttentionBlock, x: Tensor, wanted: int) -> Tensor:
    """A layer: x [1, n, width] → its first `wanted` positions [1, wanted, width], which attend to all n."""
    attention, normed = block.attn, block.attn_ln(x)
    query = attention.query(normed[:, :wanted])
    heard, _ = attention.qkv_attention(query, attention.key(normed), attention.value(normed))
    x = x[:, :wanted] + attention.out(heard)
    return x + block.mlp(block.mlp_ln(x))
