"""Makes assets/examples/harbour.ogg: a scene of pure arithmetic, so that its rights are clear.

python scripts/make_soundscape.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

TARGET = Path(__file__).resolve().parent.parent / "assets" / "examples" / "harbour.ogg"
RATE, SECONDS = 24_000, 16


def surf(rng: np.random.Generator, n: int) -> np.ndarray:
    """Pink noise that swells and ebbs every five seconds."""
    frequencies = np.fft.rfftfreq(n, 1 / RATE)
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) / np.maximum(frequencies, 200), n)
    swell = 0.6 - 0.4 * np.cos(2 * np.pi * np.arange(n) / RATE / 5)
    return 0.3 * noise / np.abs(noise).max() * swell


def siren(n: int) -> np.ndarray:
    """A rising and falling wail of a few harmonics, that comes near and goes."""
    t = np.arange(n) / RATE
    hertz = 950 + 400 * np.sin(2 * np.pi * t / 2.4)
    phase = 2 * np.pi * np.cumsum(hertz) / RATE
    wail = np.sin(phase) + np.sin(2 * phase) / 2 + np.sin(3 * phase) / 3
    return 0.25 * wail * np.hanning(n)


def bell(n: int) -> np.ndarray:
    """A struck church bell: the partials of its hum, prime, tierce, quint and nominal."""
    t = np.arange(n) / RATE
    scale = ((0.5, 1.0, 3.0), (1.0, 1.0, 2.2), (1.2, 0.8, 1.6), (1.5, 0.5, 1.2), (2.0, 0.9, 1.0), (2.67, 0.4, 0.5))
    ratio, level, decay = np.array(scale).T[:, :, None]
    return 0.14 * (level * np.sin(2 * np.pi * 440 * ratio * t) * np.exp(-t / decay)).sum(0)


if __name__ == "__main__":
    n = RATE * SECONDS
    scene = surf(np.random.default_rng(7), n) * np.interp(
        np.arange(n) / RATE, [0, 1, 5, 6, SECONDS], [0, 1, 1, 0.1, 0.1]
    )
    scene[5 * RATE : 10 * RATE] += siren(5 * RATE)
    for second in (10.5, 12.2, 13.9):
        at = round(second * RATE)
        scene[at:] += bell(n - at)
    soundfile.write(
        TARGET, (scene / np.abs(scene).max() * 0.7).astype(np.float32), RATE, format="OGG", subtype="VORBIS"
    )
