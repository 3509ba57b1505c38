"""From the speech decoder's codes to a log-mel spectrogram: the decoding half of ChatTTS's DVAE.

Codes are groups of residual finite scalar quantisation (FSQ, arXiv 2309.15505): an index is four digits to the base 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from models import torchaudio_switch  # noqa: F401  (before vocos, which imports torchaudio)

# isort: split
import torch
from torch import Tensor, nn
from vocos.modules import ConvNeXtBlock

LEVELS = 5  # of a digit
DIGITS = 4  # of an index
RESIDUALS = 2  # indices of a group: the second refines the first


class Dvae(nn.Module):
    """Codes → log-mel. Sizes are those of the weights; always float32, for it is small."""

    def __init__(self, state: Mapping[str, Tensor], device: str | torch.device = "cpu"):
        """`state`: the checkpoint's tensors below "tts.dvae." Raises KeyError, RuntimeError where they do not fit."""
        super().__init__()
        self._build({key: state[key].shape for key in state})
        own = {key: state[_spelt(key)].to(device, torch.float32) for key in self.state_dict()}
        self.load_state_dict(own, assign=True)
        self.requires_grad_(False).eval()

    @classmethod
    def expected(cls, shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Size]:
        """The tensors below "tts.dvae." and their shapes, for the sizes that some of `shapes` tell. Raises KeyError."""
        empty = cls.__new__(cls)
        nn.Module.__init__(empty)
        empty._build(shapes)
        return {_spelt(key): tensor.shape for key, tensor in empty.state_dict().items()}

    def _build(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """The parts, without their weights."""
        middle, channels, _ = shapes["decoder.conv_in.0.weight"]
        width, *_ = shapes["decoder.conv_in.2.weight"]
        block_inner, *_ = shapes["decoder.decoder_block.0.pwconv1.weight"]
        mels, inner, _ = shapes["out_conv.weight"]
        blocks = sum(key.startswith("decoder.decoder_block.") and key.endswith(".coef") for key in shapes)
        groups = sum(key.endswith(".project_out.weight") for key in shapes)
        with torch.device("meta"):
            self.project_out = nn.ModuleList(nn.Linear(DIGITS, channels) for _ in range(groups))
            self.conv_in = nn.Sequential(
                nn.Conv1d(channels, middle, 3, padding=1), nn.GELU(), nn.Conv1d(middle, width, 3, padding=1)
            )
            self.blocks = nn.ModuleList(_block(width, block_inner) for _ in range(blocks))
            self.conv_out = nn.Conv1d(width, inner, 1, bias=False)
            self.out_conv = nn.Conv1d(inner, mels, 3, padding=1, bias=False)
            self.coef = nn.Parameter(torch.empty(1, mels, 1))

    @torch.inference_mode()
    def forward(self, codes: Tensor) -> Tensor:
        """Int [frames, 4], each below 625 → log-mel [1, mels, 2 · frames]."""
        codes = codes.to(self.coef.device).long()
        groups = codes.split(RESIDUALS, 1)
        features = [project(_scalars(part)) for part, project in zip(groups, self.project_out, strict=True)]
        x = torch.cat(features, -1)  # the first half of the channels is the earlier of two mel frames
        x = x.view(len(codes) * 2, -1).t()[None]
        x = self.conv_in(x)
        for block in self.blocks:
            x = block(x)
        return self.out_conv(self.conv_out(x)) * self.coef


def _scalars(indices: Tensor) -> Tensor:
    """A group's indices int64 [frames, residuals] → what they stand for, float [frames, digits] within ±1.25."""
    places = LEVELS ** torch.arange(DIGITS, device=indices.device)
    digits = indices[..., None] // places % LEVELS
    half = LEVELS // 2
    scale = (LEVELS - 1.0) ** -torch.arange(indices.shape[1], device=indices.device)
    return ((digits - half) / half * scale[:, None]).sum(1)


def _block(width: int, inner: int) -> ConvNeXtBlock:
    """ConvNeXt as in Vocos, with gaps in the depthwise convolution."""
    block = ConvNeXtBlock(width, inner, layer_scale_init_value=1.0)
    block.dwconv = nn.Conv1d(width, width, 7, padding=6, dilation=2, groups=width)
    return block


def _spelt(key: str) -> str:
    """A tensor's name here → its name in the checkpoint."""
    part, _, rest = key.partition(".")
    if part == "project_out":
        group, kind = rest.split(".")
        return f"vq_layer.quantizer.rvqs.{group}.project_out.{kind}"
    if part == "blocks":
        return f"decoder.decoder_block.{rest.replace('gamma', 'coef')}"
    return f"decoder.{key}" if part in ("conv_in", "conv_out") else key
