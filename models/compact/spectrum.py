"""Mel spectra with numpy alone: what Whisper and the speaker encoder hear, and what a picture of a sound shows.

Knows nothing of models; no torch, no librosa (numba alone takes longer to import than a short clip to transcribe).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from models.capabilities import Waveform

FRAMES_AT_ONCE = 4096  # of the transform, so that an hour of sound does not stand in memory as complex numbers


def power_frames(samples: np.ndarray, n_fft: int, hop: int) -> np.ndarray:
    """Power of the short-time Fourier transform, centred frames with reflected edges, periodic Hann window.

    samples: float32 [n], n > n_fft / 2 → float32 [1 + n // hop, n_fft // 2 + 1].
    """
    padded = np.pad(samples, n_fft // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]
    window = np.hanning(n_fft + 1)[:-1].astype(np.float32)
    power = np.empty((len(frames), n_fft // 2 + 1), np.float32)
    for start in range(0, len(frames), FRAMES_AT_ONCE):
        spectrum = np.fft.rfft(frames[start : start + FRAMES_AT_ONCE] * window, axis=1)
        power[start : start + FRAMES_AT_ONCE] = spectrum.real**2 + spectrum.imag**2
    return power


@lru_cache(maxsize=8)
def mel_bank(rate: int, n_fft: int, n_mels: int) -> np.ndarray:
    """Triangular filters of equal area on Slaney's mel scale (linear to 1 kHz, logarithmic above).

    → float32 [n_fft // 2 + 1, n_mels], 0 Hz to half the rate. The same as librosa.filters.mel's defaults, transposed.
    """
    linear_step, knee, log_step = 200 / 3, 1000.0, np.log(6.4) / 27
    top = rate / 2
    top_mel = top / linear_step if top < knee else knee / linear_step + np.log(top / knee) / log_step
    mels = np.linspace(0, top_mel, n_mels + 2)
    knee_mel = knee / linear_step
    edges = np.where(mels < knee_mel, mels * linear_step, knee * np.exp((mels - knee_mel) * log_step))
    bins = np.linspace(0, top, n_fft // 2 + 1)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.maximum(0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    return (triangles * 2 / (high - low)).astype(np.float32)


def log_mel(waveform: Waveform, n_mels: int = 80, n_fft: int = 1024, frames: int = 600) -> np.ndarray:
    """A picture of a sound: mel power in dB below its loudest point, floored at -80.

    → float32 [n_mels, at most `frames`]; low frequencies first. The hop grows with the clip, so that the picture's
    size, and the work, stay the same for a second and for an hour.
    """
    samples = waveform.samples.astype(np.float32, copy=False)
    if len(samples) <= n_fft // 2:
        samples = np.pad(samples, (0, n_fft // 2 + 1 - len(samples)))
    hop = max(n_fft // 4, -(-len(samples) // (frames - 1)))
    mel = power_frames(samples, n_fft, hop)[:frames] @ mel_bank(waveform.rate, n_fft, n_mels)
    decibels = 10 * np.log10(np.maximum(mel, 1e-10))
    return np.maximum(decibels - decibels.max(), -80).T.astype(np.float32)
