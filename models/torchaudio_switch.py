"""Lets torchaudio be imported beside a CPU-only torch; import this before anything that may import torchaudio.

torchaudio's PyPI wheel for Linux links CUDA, so beside a CPU build of torch its native part cannot load, and
takes vocos, encodec and transformers' Whisper features with it. That part is optional: a stub says it is not there.
Nothing of Parley calls torchaudio.
"""

import sys
from types import ModuleType

import torch

NAME = "torchaudio._extension"

if sys.platform == "linux" and torch.version.cuda is None and "torchaudio" not in sys.modules:
    stub = ModuleType(NAME)
    stub._IS_TORCHAUDIO_EXT_AVAILABLE = False  # type: ignore[attr-defined]
    stub._IS_ALIGN_AVAILABLE = False  # type: ignore[attr-defined]
    stub.fail_if_no_align = lambda function: function  # type: ignore[attr-defined]
    stub._check_cuda_version = lambda: None  # type: ignore[attr-defined]
    sys.modules[NAME] = stub
