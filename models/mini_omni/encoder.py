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
from whisper.audio import N_SAMPLES, SAMPLE_RATE, log_mel_spectrogram, pad_or_trim

from models.errors import UserError
from models.layers import Int8Linear
from models.mini_omni.checkpoint import DTYPES, check

# In a trimmed window the padding after the clip is thinned out: at a distance of d positions, one stands for
# d / THINNING of them, at most for MOST_MERGED, and attention counts it that often: 134 more than the clip's. Of the
# features that Whisper base makes of 24 clips of speech (2.7 to 8 s, English and Chinese), half have a cosine
# similarity to those of the full window of at least 0.999, and 95 % of 0.994; the few others stand in pauses. With a
# window that is simply cut, 95 % have 0.965 with 150 positions of silence after the clip, and 0.983 with 400.
THINNING, MOST_MERGED = 16, 16
ROWS = 256  # go through the wide middle of a layer together: few enough to stay in the CPU's cache


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

        `trimmed`: the silence that pads the clip to 30 s is thinned out, which changes the features a little.
        """
        net, end = self._network, self._positions - 1
        if trimmed:
            end = min(length + 2, end)  # the padding looks the same from there on, seen through the convolutions
        frames = torch.as_tensor(mel)[None, :, : 2 * end + 3].to(self._device, self._dtype)
        x = F.gelu(net.conv2(F.gelu(net.conv1(frames)))).transpose(1, 2)
        places, weights = net.get_buffer("positional_embedding"), None
        if trimmed:
            positions, counts = _thinned(length, self._positions)
            x, places = x[:, positions.clamp(max=end)], places[positions]
            weights = counts.log().to(x)
        x = x + places
        *blocks, last = net.blocks
        for block in blocks:
            x = _through(block, x, weights, x.shape[1])
        x = _through(last, x, weights, length)  # what follows the clip is not asked for
        return net.ln_post(x)[0]


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
    copy = precision == "int8"  # what stays mapped to the file keeps in memory all that was read of it
    own = {key: state[path + key].to(device, dtype, copy=copy) for key in module.state_dict() if "." not in key}
    module.load_state_dict(own, strict=False, assign=True)  # not strict: what is below has its own already


def _thinned(length: int, positions: int) -> tuple[Tensor, Tensor]:
    """The positions of a trimmed window of `positions`, all of the clip's first, and how many each stands for."""
    kept, counts, start = [*range(length)], [1] * length, length
    while start < positions:
        count = min(max(1, (start - length) // THINNING), MOST_MERGED, positions - start)
        kept.append(start + (count - 1) // 2)
        counts.append(count)
        start += count
    return torch.tensor(kept), torch.tensor(counts)


def _through(block: whisper.model.ResidualAttentionBlock, x: Tensor, weights: Tensor | None, wanted: int) -> Tensor:
    """A layer: x [1, n, width] → its first `wanted` positions [1, wanted, width], which attend to all n.

    `weights` [n]: the logarithm of how many times a position counts; None: once each.
    """
    attention, normed = block.attn, block.attn_ln(x)
    parts = attention.query(normed[:, :wanted]), attention.key(normed), attention.value(normed)
    query, key, value = (part.unflatten(-1, (attention.n_head, -1)).transpose(1, 2) for part in parts)
    mask = None if weights is None else weights.expand(1, 1, wanted, -1)
    heard = F.scaled_dot_product_attention(query, key, value, mask)
    x = x[:, :wanted] + attention.out(heard.transpose(1, 2).flatten(2))
    return torch.cat([rows + block.mlp(block.mlp_ln(rows)) for rows in x.split(ROWS, 1)], 1)
