"""How high a voice is: the fundamental frequency along a clip, by WORLD's DIO and StoneMask (pyworld)."""

from __future__ import annotations

import numpy as np

from models.audio import SPEECH_RATE, resample
from models.capabilities import Waveform

STEP_S = 0.01
LOWEST_HZ, HIGHEST_HZ = 65.0, 600.0  # from a deep bass to a child's voice
SHORTEST_S = 0.1
BLOCK_S = 30.0  # bounds the memory that a long clip takes


def pitch_contour(waveform: Waveform) -> tuple[np.ndarray, np.ndarray]:
    """times float32 [n] in seconds, every 10 ms, and F0 float32 [n] in Hz, NaN where nothing is voiced."""
    import pyworld

    samples = resample(waveform, SPEECH_RATE).samples.astype(np.float64)
    block = round(BLOCK_S * SPEECH_RATE)
    found = []
    for start in range(0, len(samples), block):
        piece = samples[start : start + block]
        if len(piece) < SHORTEST_S * SPEECH_RATE:
            break
        f0, times = pyworld.dio(piece, SPEECH_RATE, LOWEST_HZ, HIGHEST_HZ, frame_period=STEP_S * 1000)
        whole = round(len(piece) / SPEECH_RATE / STEP_S)  # the frame at a block's end is the next block's first
        found.append(pyworld.stonemask(piece, f0, times, SPEECH_RATE)[:whole])
    hertz = np.concatenate(found).astype(np.float32) if found else np.zeros(0, np.float32)
    hertz[hertz <= 0] = np.nan
    return np.arange(len(hertz), dtype=np.float32) * np.float32(STEP_S), hertz


def median_pitch(waveform: Waveform) -> float | None:
    """The median F0 of the voiced parts in Hz; None where nothing is voiced."""
    _, hertz = pitch_contour(waveform)
    voiced = hertz[~np.isnan(hertz)]
    return float(np.median(voiced)) if len(voiced) else None
