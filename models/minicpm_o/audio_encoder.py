"""The ears: Whisper's encoder and a projector to the width of the language model; 25 vectors for a second of sound.

A clip is heard whole, in pieces of at most 30 s (`encode`), or second by second as it comes (`stream`). The network's
parts are transformers'; they are driven one by one, since WhisperEncoder takes neither clips shorter than 30 s, nor
masks, nor a cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import torchaudio_switch  # noqa: F401  (the features' module imports torchaudio where it is installed)
from models.errors import UserError
from models.minicpm_o.cache import growing_cache
from models.minicpm_o.checkpoint import Checkpoint, dtype_of, fill, memory_bytes, shapes
from models.minicpm_o.config import PIECE_SECONDS, MiniCPMOConfig

RATE = 16_000  # Hz
HOP, WINDOW = 160, 400  # samples
PIECE = PIECE_SECONDS * RATE
LEAST = 2 * HOP + 1  # samples; anything shorter gives no vector at all
ROWS_AT_ONCE = {"cpu": 1}  # pieces in one pass; elsewhere:
ROWS_ON_A_GPU = 8


def check_clip(samples: np.ndarray) -> np.ndarray:
    """Sound as a person hands it over → float32 [n] within -1…1, n ≥ 321, at 16 kHz.

    Integers are brought to scale, channels mixed (along the shorter axis), a clip under 20 ms padded with silence.
    Raises UserError where it is empty, not finite, or not sound.
    """
    samples = np.asarray(samples)
    if samples.size == 0:
        raise UserError("no_audio")
    if samples.ndim > 2 or samples.dtype.kind not in "iuf":
        raise UserError("audio_not_audio")
    if samples.dtype.kind in "iu":
        limits = np.iinfo(samples.dtype)
        middle = (int(limits.max) + int(limits.min) + 1) // 2
        samples = (samples.astype(np.float64) - middle) / (int(limits.max) - middle + 1)
    if samples.ndim == 2:
        samples = samples.mean(int(np.argmin(samples.shape)))
    samples = samples.astype(np.float32)
    if not np.isfinite(samples).all():
        raise UserError("audio_not_finite")
    peak = float(np.abs(samples).max())
    if peak > 1:
        samples = samples / np.float32(peak)
    return np.pad(samples, (0, max(0, LEAST - len(samples))))


def cut(samples: np.ndarray) -> list[np.ndarray]:
    """A clip in pieces of at most 30 s."""
    return [samples[start : start + PIECE] for start in range(0, len(samples), PIECE)]


def vector_count(samples: int, pool: int = 2) -> int:
    """How many vectors a clip of so many samples becomes: 25 a second, none below 321 samples."""
    return max(0, (_positions(-(-samples // HOP)) - pool) // pool + 1)


def placeholder_counts(samples: int, pool: int = 2, chunked: bool = True) -> list[int]:
    """The vectors of a clip in groups of a second each, as they stand in a prompt; in one group unless `chunked`."""
    count = vector_count(samples, pool)
    if not count:
        return []
    group = vector_count(RATE, pool) if chunked else count
    return [min(group, count - start) for start in range(0, count, group)]


def log_mel(samples: np.ndarray, mels: int = 80) -> Tensor:
    """Float32 [n] at 16 kHz, at most 30 s → Whisper's log-mel, float32 [mels, ⌈n / 160⌉].

    Equal to that of the clip padded to 30 s, of which only the silence is left out: it changes no frame of the clip,
    and is no louder than the least of them.
    """
    if not 0 < len(samples) <= PIECE:
        raise ValueError(f"{len(samples)} samples; the encoder hears up to {PIECE}")
    padded = min(len(samples) + 2 * WINDOW, PIECE)
    features: Any = _features(mels)(
        np.asarray(samples, np.float32),
        sampling_rate=RATE,
        padding="max_length",
        max_length=padded,
        return_tensors="pt",
    )
    return features["input_features"][0, :, : -(-len(samples) // HOP)]


class AudioEncoder:
    """The encoder's weights; no state of any clip. Several may be heard at once."""

    def __init__(self, checkpoint: Checkpoint, config: MiniCPMOConfig, precision: str = "fp32", device: str = "cpu"):
        """Reads what stands under apm.* and audio_projection_layer.*. Precision "fp32", "bf16" or, on a CPU, "int8".

        Raises UserError("checkpoint_wrong").
        """
        self._encoder, self._projector = encoder, projector = _skeleton(config)
        for part, prefix in ((encoder, "apm."), (projector, "audio_projection_layer.")):
            checkpoint.check(prefix, shapes(part))
            fill(part, checkpoint.tensors(prefix), precision, device)
            part.requires_grad_(False).eval()
        for index, layer in enumerate(encoder.layers):
            layer.self_attn.layer_idx = index  # where it stands in the cache of a stream
        self._device, self._dtype = torch.device(device), dtype_of(precision, device)
        self.mels, self._most = config.audio.num_mel_bins, config.audio.max_source_positions
        self._pool, self._chunk = config.audio_pool_step, config.audio_chunk_frames

    def memory_bytes(self) -> int:
        """Bytes of the weights in memory."""
        return memory_bytes(self._encoder) + memory_bytes(self._projector)

    def encode(self, pieces: Sequence[np.ndarray]) -> list[Tensor]:
        """Pieces (float32 [n] at 16 kHz, at most 30 s each) that are heard together → a Tensor [vectors, width] each.

        Together, for a shorter piece is padded to the longest, and its end hears the padding (see `_mask`).
        """
        return [vectors for vectors in self.steps(pieces) if vectors is not None]

    def steps(self, pieces: Sequence[np.ndarray]) -> Iterator[Tensor | None]:
        """`encode`, layer by layer: None after each layer, and every piece's vectors when they are there."""
        yield from self.mel_steps([log_mel(piece, self.mels) for piece in pieces])

    @torch.inference_mode()
    def mel_steps(self, mels: Sequence[Tensor], chunked: bool = True) -> Iterator[Tensor | None]:
        """`steps` from log-mels [mels, frames]. Not `chunked`: every frame hears the whole clip, as no prompt needs."""
        longest = max((mel.shape[-1] for mel in mels), default=0)
        at_once = ROWS_AT_ONCE.get(self._device.type, ROWS_ON_A_GPU)
        for start in range(0, len(mels), at_once):
            rows = mels[start : start + at_once]
            lengths = torch.tensor([mel.shape[-1] for mel in rows], device=self._device)
            x = self._heard(torch.stack([F.pad(mel, (0, longest - mel.shape[-1])) for mel in rows]), 0)
            mask = self._mask(lengths, x.shape[1], chunked).to(x.dtype)
            for layer in self._encoder.layers:
                x = _through(layer, x, mask, None)
                yield None
            x = self._spoken(x)
            for row, mel in zip(x, rows, strict=True):
                yield row[: max(0, (_positions(mel.shape[-1]) - self._pool) // self._pool + 1)].clone()

    def stream(self) -> AudioStream:
        """Ears for one speaker's turn."""
        return AudioStream(self)

    @torch.inference_mode()
    def listen(self, mel: Tensor, cache: Any) -> Tensor:
        """The next log-mel [mels, frames] of a stream → [vectors, width]. What came before is in `cache`, and heard."""
        x = self._heard(mel[None], cache.get_seq_length())
        for layer in self._encoder.layers:
            x = _through(layer, x, None, cache)
        return self._spoken(x)[0]

    def room(self, mel: Tensor, cache: Any) -> bool:
        """Whether a stream's next log-mel still fits behind what came before (30 s in all)."""
        return cache.get_seq_length() + _positions(mel.shape[-1]) < self._most

    def _heard(self, mel: Tensor, start: int) -> Tensor:
        """Log-mel [rows, mels, frames] → [rows, positions, inner width], the first of them at position `start`."""
        net = self._encoder
        x = F.gelu(net.conv1(mel.to(self._device, self._dtype)))
        x = F.gelu(net.conv2(x)).transpose(1, 2)
        return x + net.embed_positions.weight[start : start + x.shape[1]]

    def _spoken(self, x: Tensor) -> Tensor:
        """The last layer's [rows, positions, inner width] → [rows, vectors, width]."""
        x = self._projector(self._encoder.layer_norm(x)).transpose(1, 2)
        if x.shape[-1] < self._pool:
            return x.new_zeros(len(x), 0, x.shape[1])
        return F.avg_pool1d(x, self._pool, self._pool).transpose(1, 2)

    def _mask(self, lengths: Tensor, positions: int, chunked: bool) -> Tensor:
        """Additive [rows, 1, positions, positions]: a position hears its own second and all before, none after.

        ODDITY kept, as the weights met it: `lengths` are in mel frames and are compared with positions, of which there
        is one for two frames. So the padding of a shorter piece is heard, by the piece's last, unfinished second.
        """
        place = torch.arange(positions, device=lengths.device)
        hidden = (place[None, :] >= lengths[:, None])[:, None, None, :]
        if chunked:
            hidden = hidden | (place[None, :] // self._chunk > place[:, None] // self._chunk)
        hidden = hidden.expand(-1, 1, positions, positions)
        return torch.zeros(hidden.shape, device=lengths.device).masked_fill_(hidden, -torch.inf)


class AudioStream:
    """A speaker heard second by second: each piece hears those before it, up to 30 s, and then anew."""

    def __init__(self, encoder: AudioEncoder):
        self._encoder = encoder
        self.reset()

    def reset(self) -> None:
        """Forget what was heard."""
        self._cache = growing_cache()

    @property
    def length(self) -> int:
        """Positions heard and kept, 50 a second."""
        return self._cache.get_seq_length()

    def push(self, samples: np.ndarray) -> Tensor:
        """The next samples (float32 [n] at 16 kHz) → [vectors, width]. Each piece's loudness is scaled on its own.

        When 30 s would be full, what came before is forgotten, as upstream does.
        """
        vectors = []
        for piece in cut(samples):
            mel = log_mel(piece, self._encoder.mels)
            if not self._encoder.room(mel, self._cache):
                self.reset()
            vectors.append(self._encoder.listen(mel, self._cache))
        return torch.cat(vectors)


class Projector(nn.Module):
    """Two layers from the encoder's width to the language model's."""

    def __init__(self, inner: int, width: int):
        super().__init__()
        self.linear1 = nn.Linear(inner, width)
        self.linear2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[…, inner] → […, width]."""
        return self.linear2(F.relu(self.linear1(x)))


@lru_cache
def _features(mels: int) -> Any:
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=mels, sampling_rate=RATE, hop_length=HOP, n_fft=WINDOW)


def _skeleton(config: MiniCPMOConfig) -> tuple[Any, Projector]:
    """Both networks without weights."""
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    with torch.device("meta"):
        return WhisperEncoder(config.audio), Projector(config.audio.d_model, config.llm_width)


def _positions(frames: int) -> int:
    """Mel frames → positions after the convolution of stride two."""
    return (frames - 1) // 2 + 1


def _through(layer: Any, x: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
    """One layer of the encoder. Its own forward() differs between versions of transformers; its parts do not."""
    x = x + layer.self_attn(hidden_states=layer.self_attn_layer_norm(x), attention_mask=mask, past_key_values=cache)[0]
    return x + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x))))
