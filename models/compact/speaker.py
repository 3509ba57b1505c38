"""Who speaks: the GE2E speaker encoder of Resemblyzer (Apache-2.0), a vector per voice, compared by its angle.

The weights stand in assets/weights, made by scripts/convert_speaker.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.audio import SPEECH_RATE, resample
from models.capabilities import Waveform
from models.compact.activity import trim
from models.compact.spectrum import mel_bank, power_frames

WEIGHTS = Path(__file__).resolve().parents[2] / "assets" / "weights" / "speaker_encoder.safetensors"
MELS, N_FFT, HOP = 40, 400, 160
WINDOW, WINDOW_HOP = 160, 80  # frames of 10 ms: a window of 1.6 s, half overlapping
MOST_SECONDS = 60.0  # of speech; a voice is known long before
LEAST_DBFS = -30.0  # quieter clips are raised to this RMS, louder ones left, as in training


class SpeakerEncoder:
    """Speaker embeddings. Cosine 0.87–0.94 within a speaker, 0.44–0.54 between strangers (measured on clean speech)."""

    def __init__(self) -> None:
        import torch
        from safetensors.torch import load_file

        state = {name: tensor.float() for name, tensor in load_file(WEIGHTS).items()}
        self._lstm = torch.nn.LSTM(MELS, 256, num_layers=3, batch_first=True).eval()
        self._linear = torch.nn.Linear(256, 256).eval()
        for part, module in (("lstm.", self._lstm), ("linear.", self._linear)):
            module.load_state_dict({name[len(part) :]: state[name] for name in state if name.startswith(part)})

    def memory_bytes(self) -> int:
        """Bytes of the weights in memory."""
        return sum(p.nbytes for module in (self._lstm, self._linear) for p in module.parameters())

    def embed(self, waveform: Waveform) -> np.ndarray:
        """The voice of a clip's speech (pauses are taken out): float32 [256], of length 1."""
        import torch
        import torch.nn.functional as F

        speech = trim(resample(waveform, SPEECH_RATE)).samples[: round(MOST_SECONDS * SPEECH_RATE)]
        with torch.inference_mode():
            _, (hidden, _) = self._lstm(torch.from_numpy(voice_windows(speech)))
            voices = F.normalize(F.relu(self._linear(hidden[-1])), dim=1)
            return F.normalize(voices.mean(0), dim=0).numpy().copy()


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two embeddings of length 1."""
    return float(a @ b)


def voice_windows(speech: np.ndarray) -> np.ndarray:
    """float32 [n] at 16 kHz → mel power float32 [windows, 160, 40]; the last window ends with the clip."""
    level = float(np.sqrt(np.mean(speech**2) + 1e-9)) if len(speech) else 1.0
    speech = speech * np.float32(max(1.0, 10 ** (LEAST_DBFS / 20) / level))
    speech = np.pad(speech, (0, max(0, WINDOW * HOP - len(speech))))
    mel = power_frames(speech, N_FFT, HOP) @ mel_bank(SPEECH_RATE, N_FFT, MELS)
    starts = [*range(0, len(mel) - WINDOW, WINDOW_HOP), len(mel) - WINDOW]
    return np.stack([mel[start : start + WINDOW] for start in starts])
