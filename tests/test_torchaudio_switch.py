"""torchaudio, and what stands on it, beside the torch that is installed."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = """
from models import torchaudio_switch
import torch
from vocos.feature_extractors import MelSpectrogramFeatures
from vocos.heads import ISTFTHead
from transformers import WhisperFeatureExtractor

mel = MelSpectrogramFeatures()(torch.zeros(1, 2400))
sound = ISTFTHead(dim=8, n_fft=1024, hop_length=256)(torch.zeros(1, 10, 8))
assert sound.isfinite().all() and sound.shape[1] >= 2304
features = WhisperFeatureExtractor(feature_size=80)([0.0] * 1600, sampling_rate=16000)
print(mel.shape[1], features["input_features"].shape)
"""


def test_torchaudio_vocos_and_transformers_import_beside_this_torch():
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=1)[0] == "100"


def test_a_torch_with_cuda_keeps_torchaudio_as_it_is():
    program = (
        "import sys, torch; torch.version.cuda = '13.0'; from models import torchaudio_switch as switch; "
        "sys.exit(switch.NAME in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
