"""What a recording sounds like: YAMNet (Google, Apache-2.0), 521 classes of AudioSet, by torch.

The weights stand in assets/weights, made by scripts/convert_yamnet.py; its classes in English and Chinese beside them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.audio import SPEECH_RATE, resample
from models.capabilities import Waveform

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = Path(__file__).resolve().parents[2] / "assets" / "weights"
HOP_S = 0.48  # from one window of 0.96 s to the next
FRAME, HOP, N_FFT, MELS = 400, 160, 512, 64  # of the log-mel: 25 ms every 10 ms
WINDOW, WINDOW_HOP = 96, 48  # frames a window, frames from one to the next
SHORTEST = 15600  # samples that fill the first window
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)  # of the 13 depthwise convolutions; the very first has stride 2
WINDOWS_AT_ONCE = 32  # 15 s: bounds the memory that a long clip takes


class Tagger:
    """Scores of sounds along a clip. Keeps nothing of a clip."""

    def __init__(self) -> None:
        from safetensors.torch import load_file

        self._weights = {name: tensor.float() for name, tensor in load_file(WEIGHTS / "yamnet.safetensors").items()}

    def memory_bytes(self) -> int:
        """Bytes of the weights in memory."""
        return sum(tensor.nbytes for tensor in self._weights.values())

    def names(self, language: str = "en") -> list[str]:
        """The 521 classes' names in "en" or "zh"."""
        return class_names("zh" if language == "zh" else "en")

    def scores(self, waveform: Waveform) -> np.ndarray:
        """float32 [windows, 521], each 0…1 and on its own; a window is 0.96 s, the next begins 0.48 s later."""
        return np.concatenate([*self.score_blocks(waveform)])

    def score_blocks(self, waveform: Waveform) -> Iterator[np.ndarray]:
        """`scores` in blocks of 15 s, for who must not be long away."""
        import torch

        features = log_mel_windows(resample(waveform, SPEECH_RATE).samples)
        for start in range(0, len(features), WINDOWS_AT_ONCE):
            batch = torch.from_numpy(features[start : start + WINDOWS_AT_ONCE].copy())
            yield self._network(batch[:, None]).numpy()

    def top(self, scores: np.ndarray, k: int = 5, language: str = "en") -> list[tuple[str, float]]:
        """The k likeliest sounds of a clip: (name, score), best first.

        A sound need not last to be heard: a class counts by the mean of its three best windows.
        """
        best = np.sort(scores, axis=0)[-3:].mean(axis=0)
        names = self.names(language)
        return [(names[i], float(best[i])) for i in np.argsort(-best)[:k]]

    def _network(self, x: Tensor) -> Tensor:
        """Log-mel [batch, 1, 96, 64] → scores [batch, 521]."""
        import torch.nn.functional as F

        weights = self._weights

        def convolve(x: Tensor, name: str, stride: int, groups: int = 1) -> Tensor:
            weight = weights[f"{name}.weight"]
            if weight.shape[-1] == 3:  # TensorFlow's "same" padding: what is odd goes to the end
                height, width = (max((-(-n // stride) - 1) * stride + 3 - n, 0) for n in x.shape[-2:])
                x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
            return F.relu(F.conv2d(x, weight, weights[f"{name}.bias"], stride, groups=groups))

        x = convolve(x, "conv.0", 2)
        for i, stride in enumerate(STRIDES):
            x = convolve(x, f"conv.{2 * i + 1}", stride, groups=x.shape[1])
            x = convolve(x, f"conv.{2 * i + 2}", 1)
        return F.linear(x.mean((2, 3)), weights["classes.weight"], weights["classes.bias"]).sigmoid()


@lru_cache(maxsize=2)
def class_names(language: str) -> list[str]:
    """The 521 classes' names in "en" or "zh", in the order of the scores."""
    with (WEIGHTS / "yamnet_classes.csv").open(encoding="utf-8", newline="") as file:
        return [row[language] for row in csv.DictReader(file)]


def log_mel_windows(samples: np.ndarray) -> np.ndarray:
    """float32 [n] at 16 kHz → float32 [windows, 96, 64], a view of the log-mel whose windows overlap by half."""
    samples = np.pad(samples, (0, max(0, SHORTEST - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[::HOP]
    window = np.hanning(FRAME + 1)[:-1].astype(np.float32)
    log_mel = np.empty((len(frames), MELS), np.float32)
    for start in range(0, len(frames), 4096):
        magnitude = np.abs(np.fft.rfft(frames[start : start + 4096] * window, N_FFT, axis=1))
        log_mel[start : start + 4096] = np.log(magnitude @ _mel_bank() + 0.001)
    windows = np.lib.stride_tricks.sliding_window_view(log_mel, WINDOW, axis=0)[::WINDOW_HOP]
    return windows.transpose(0, 2, 1)


@lru_cache(maxsize=1)
def _mel_bank() -> np.ndarray:
    """YAMNet's own filters, 125 to 7500 Hz on the HTK mel scale, triangles in mel, peak 1 → float32 [257, 64]."""

    def mel(hertz: np.ndarray | float) -> np.ndarray:
        return 1127 * np.log1p(np.asarray(hertz) / 700)

    bins = mel(np.linspace(0, SPEECH_RATE / 2, N_FFT // 2 + 1))[:, None]
    edges = np.linspace(mel(125.0), mel(7500.0), MELS + 2)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    bank = np.maximum(0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    bank[0] = 0  # no direct current
    return bank.astype(np.float32)
