"""Speak with every voice of the library and measure it: assets/voices/samples/*.ogg and assets/voices/measured.npz.

Run: python -m scripts.measure_voices KOKORO.onnx [--blends]   (3 CPU minutes; with blends 12 more)
measured.npz holds, for each voice (and each even blend of two voices of one language and gender), the GE2E speaker
embedding, the median f0 and the level; and a logistic regression that tells female from male voices by the embedding.
"""

from __future__ import annotations

import argparse
from itertools import combinations

import numpy as np
import soundfile

from models.capabilities import Waveform
from models.compact.pitch import median_pitch
from models.compact.speak import RATE, Speaker
from models.compact.speaker import SpeakerEncoder
from models.compact.voices import FOLDER, Voice, VoiceStyle, library, pack

SAMPLE = {
    "en": "Hello, I'm {name}. Tell me what you would like to hear, and I will read it for you.",
    "zh": "你好，我是{name}。告诉我你想听什么，我来读给你听。",
}
SENTENCE = {
    "en": "The old bridge over the river was closed for two weeks after the storm.",
    "zh": "昨天下午我们一起去河边散步，看见很多孩子在放风筝。",
}
SAMPLE_LEVEL_DB = -20.0
Row = tuple[str, np.ndarray, float, float]  # name, embedding, median f0 in Hz, level in dBFS
PENALTY = 1e-2  # of the logistic regression, on weights for unit-length embeddings


def say(speaker: Speaker, style: VoiceStyle, text: str) -> np.ndarray:
    """float32 [n] at RATE."""
    return np.concatenate(list(speaker.speak(text, style))).astype(np.float32) / 32768


def level_db(sound: np.ndarray) -> float:
    """RMS in dBFS over the 20 ms frames within 30 dB of the loudest."""
    frames = sound[: len(sound) // 480 * 480].reshape(-1, 480)
    power = (frames**2).mean(1)
    return float(10 * np.log10(power[power > power.max() * 1e-3].mean()))


def fit_gender(embeddings: np.ndarray, female: np.ndarray) -> np.ndarray:
    """Logistic regression by gradient descent → [257]: weights, then the bias. Positive means female."""
    inputs = np.c_[embeddings, np.ones(len(embeddings))]
    weights = np.zeros(inputs.shape[1])
    for _ in range(5000):
        error = 1 / (1 + np.exp(-inputs @ weights)) - female
        weights -= 2.0 * (inputs.T @ error / len(inputs) + PENALTY * np.r_[weights[:-1], 0] / 10)
    return weights.astype(np.float32)


def styles(blends: bool) -> list[tuple[Voice, ...]]:
    """Every voice alone, then, if asked for, every pair of one language and gender."""
    pairs = [pair for pair in combinations(library(), 2) if len({(v.language, v.gender) for v in pair}) == 1]
    return [(voice,) for voice in library()] + (pairs if blends else [])


def save(rows: list[Row]) -> None:
    """Write measured.npz; the library's voices come first in `rows`."""
    names, embeddings, f0, level = (np.array(column) for column in zip(*rows, strict=True))
    singles = embeddings[: len(library())]
    female = np.array([voice.gender == "female" for voice in library()], float)
    right = 0
    for left_out in range(len(singles)):
        rest = np.arange(len(singles)) != left_out
        weights = fit_gender(singles[rest], female[rest])
        right += int((singles[left_out] @ weights[:-1] + weights[-1] > 0) == female[left_out])
    print(f"gender, each voice left out in turn: {right}/{len(singles)}")
    np.savez_compressed(
        FOLDER / "measured.npz",
        names=names,
        embeddings=embeddings.astype(np.float16),
        f0_hz=f0.astype(np.float32),
        level_db=level.astype(np.float32),
        gender=fit_gender(singles, female),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the library's voices and make their samples.")
    parser.add_argument("model", help="kokoro-v1.0.int8.onnx")
    parser.add_argument("--blends", action="store_true", help="measure blends of two voices too")
    asked = parser.parse_args()
    speaker = Speaker(asked.model, threads=1)
    encoder = SpeakerEncoder()
    rows: list[Row] = []
    for voices in styles(asked.blends):
        blend = np.mean([pack(voice.id) for voice in voices], axis=0)
        style = VoiceStyle("+".join(voice.id for voice in voices), blend, voices[0].accent)
        language = voices[0].language
        if len(voices) == 1:
            sound = say(speaker, style, SAMPLE[language].format(name=voices[0].name[language]))
            gained = np.clip(sound * 10 ** ((SAMPLE_LEVEL_DB - level_db(sound)) / 20), -0.99, 0.99)
            soundfile.write(voices[0].sample, gained, RATE, format="OGG", subtype="OPUS")
        else:
            sound = say(speaker, style, SENTENCE[language])
        waveform = Waveform(sound, RATE)
        rows.append((style.name, encoder.embed(waveform), median_pitch(waveform) or 0.0, level_db(sound)))
        print(f"{style.name}: {rows[-1][2]:.0f} Hz, {rows[-1][3]:.1f} dBFS", flush=True)
        if len(rows) == len(library()):
            save(rows)
    save(rows)


if __name__ == "__main__":
    main()
