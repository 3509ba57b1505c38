"""From the speech decoder's codes to a log-mel spectrogram: the decoding half of ChatTTS's DVAE.

Codes are groups of residual finite scalar quantisation (FSQ, arXiv 2309.15505): an index is four digits to the base 5.
"""

from __future__ import annotations

from collections.abc import Mapping

from models import torchaudio_switch  # noqa: F401  (before vocos, which imports torchaudio)

# isort: split
import torch
from torch import Tensor, nn
from vocos.modules import ConvNeXtBlock

LEVELS = 5  # of a digit
DIGITS = 4  # of an index
RESIDUALS = 2  # indices of a group: the second refines the first
UNUSED = ("encoder.", "downsample_conv.")  # of the encoding half, which never runs
QUANTIZER = "vq_layer.quantizer.rvqs."


class Dvae(nn.Module):
    """Codes → log-mel. Sizes are those of the weights; always float32, for it is small."""

    def __init__(self, state: Mapping[str, Tensor], device: str | torch.device = "cpu"):
        """`state`: the checkpoint's tensors below "tts.dvae." Raises KeyError, RuntimeError where they do not fit."""
        super().__init__()
        own = {_rename(key): state[key] for key in state if not key.startswith(UNUSED) and ".project_in." not in key}
        middle, channels, _ = own["conv_in.0.weight"].shape
        width = len(own["conv_in.2.weight"])
        blocks = len({key.split(".")[1] for key in own if key.startswith("blocks.")})
        groups = len({key.split(".")[1] for key in own if key.startswith("project_out.")})
        mels, inner, _ = own["out_conv.weight"].shape
        with torch.device("meta"):
            self.project_out = nn.ModuleList(nn.Linear(DIGITS, channels) for _ in range(groups))
            self.conv_in = nn.Sequential(
                nn.Conv1d(channels, middle, 3, padding=1), nn.GELU(), nn.Conv1d(middle, width, 3, padding=1)
            )
            self.blocks = nn.ModuleList(_block(width, len(own["blocks.0.pwconv1.weight"])) for _ in range(blocks))
            self.conv_out = nn.Conv1d(width, inner, 1, bias=False)
            self.out_conv = nn.Conv1d(inner, mels, 3, padding=1, bias=False)
            self.coef = nn.Parameter(torch.empty(1, mels, 1))
        self.load_state_dict({key: value.to(device, torch.float32) for key, value in own.items()}, assign=True)
        self.requires_grad_(False).eval()

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


def _rename(key: str) -> str:
    """The checkpoint's name of a tensor → the one it has here."""
    key = key.removeprefix("decoder.").removeprefix(QUANTIZER).replace("decoder_block.", "blocks.")
    if key.endswith(("project_out.weight", "project_out.bias")):
        group, _, kind = key.split(".")
        return f"project_out.{group}.{kind}"
    return key.replace(".coef", ".gamma")
