"""From a log-mel spectrogram to sound: Vocos (the vocos package's own parts), whole or piece by piece."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from models import torchaudio_switch  # noqa: F401  (before vocos, which imports torchaudio)

# isort: split
import torch
from torch import Tensor, nn
from vocos.heads import ISTFTHead
from vocos.models import VocosBackbone

from models.errors import UserError
from models.minicpm_o.dvae import Dvae

SAMPLE_RATE = 24_000
UNUSED = "feature_extractor."  # analyses sound; nothing here does
OVERLAP_FRAMES = 4  # code frames that are decoded again with the next piece, so that the pieces blend


class Vocoder(nn.Module):
    """Log-mel → samples at 24 kHz. Sizes are those of the weights; always float32."""

    def __init__(self, state: Mapping[str, Tensor], device: str | torch.device = "cpu"):
        """`state`: the tensors of Vocos.pt. Raises KeyError, RuntimeError where they do not fit."""
        super().__init__()
        own = {key: state[key] for key in state if not key.startswith(UNUSED)}
        width, mels, _ = own["backbone.embed.weight"].shape
        layers = len({key.split(".")[2] for key in own if key.startswith("backbone.convnext.")})
        bins = len(own["head.out.weight"])  # magnitude and phase of each
        with torch.device("meta"):
            self.backbone = VocosBackbone(mels, width, len(own["backbone.convnext.0.pwconv1.weight"]), layers)
            self.head = ISTFTHead(width, n_fft=bins - 2, hop_length=(bins - 2) // 4, padding="same")
        self.load_state_dict({key: value.to(device, torch.float32) for key, value in own.items()}, assign=True)
        self.requires_grad_(False).eval()

    @classmethod
    def read(cls, file: Path, device: str | torch.device = "cpu") -> Vocoder:
        """The vocoder of a Vocos.pt. Raises UserError("checkpoint_wrong")."""
        try:
            return cls(torch.load(file, map_location="cpu", weights_only=True), device)
        except Exception as error:  # zip, pickle, key and shape errors of all kinds: the file is not what it should be
            raise UserError("checkpoint_wrong", file=file.name, what=str(error).split("\n")[0]) from error

    @torch.inference_mode()
    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel [1, mels, frames] → samples float32 [256 · frames]."""
        return self.head(self.backbone(mel))[0]


class OverlapAdd:
    """Joins pieces of sound, each of which begins with the stretch that the one before it ended with."""

    def __init__(self, overlap: int):
        """`overlap`: samples that two pieces share."""
        self._overlap = overlap
        self._tail: Tensor | None = None

    def push(self, piece: Tensor) -> Tensor:
        """A piece [n], n ≥ overlap → samples that no later piece changes."""
        if self._tail is not None:
            rise = torch.arange(1, self._overlap + 1, device=piece.device) / (self._overlap + 1)
            blended = torch.lerp(self._tail, piece[: self._overlap], rise)
            piece = torch.cat([blended, piece[self._overlap :]])
        self._tail = piece[-self._overlap :]
        return piece[: -self._overlap]

    def finish(self) -> Tensor:
        """What is left once no piece follows."""
        tail, self._tail = self._tail, None
        return torch.empty(0) if tail is None else tail


class SoundStream:
    """Codes that come piece by piece → sound, a stretch of four frames behind. State of one answer."""

    def __init__(self, dvae: Dvae, vocoder: Vocoder):
        self._dvae, self._vocoder = dvae, vocoder
        self._context: Tensor | None = None
        self._join: OverlapAdd | None = None

    def push(self, codes: Tensor) -> Tensor:
        """Int [frames, 4] → samples [n] that are final. The first piece needs four frames, later ones one."""
        window = codes if self._context is None else torch.cat([self._context, codes])
        self._context = window[-OVERLAP_FRAMES:]
        sound = self._vocoder(self._dvae(window))
        if self._join is None:
            self._join = OverlapAdd(len(sound) // len(window) * OVERLAP_FRAMES)
        return self._join.push(sound)

    def finish(self) -> Tensor:
        """What is left once no codes follow."""
        return torch.empty(0) if self._join is None else self._join.finish()
