"""From Mini-Omni's codes to sound: the decoder of SNAC (Siuzdak et al. 2024, https://github.com/hubertsiuzdak/snac, MIT).

A stream is decoded without seams: each convolution keeps the end of its input for the next push and each residual
branch waits for its convolution, so that the pushes together are the decode of the whole, up to rounding.

The network is that of the `snac` package, laid out for speed. Everything is [time, channels], where a transposed
convolution is two matrix products whose result needs no reordering. Snake, x + sin²(αx)/α, is computed as u + sin²(u)
of u = αx, with α and 1/α moved into the convolutions before and after it. Work goes on in tiles that fit the cache.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from snac import SNAC
from snac.layers import DecoderBlock, NoiseBlock, ResidualUnit, Snake1d
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from models.errors import UserError
from models.mini_omni.checkpoint import check, read

RATE = 24_000  # Hz
TILE = 131_072  # values of one layer computed together: 0.5 MB in float32, about half of a core's cache
SMALLEST = 1e-6  # |α| below it is taken for it: x + sin²(αx)/α is then x to the last bit
Noise = Callable[[int], Tensor]


class Conv:
    """A convolution of stride 1 that keeps the size, dense or depthwise."""

    def __init__(self, conv: nn.Conv1d, before: Tensor | float = 1.0, after: Tensor | float = 1.0):
        """`before` is divided out of its input channels, `after` multiplied into its outputs."""
        (kernel,), (self.dilation,) = conv.kernel_size, conv.dilation
        self.tail = (kernel - 1) * self.dilation  # rows needed besides the one computed
        self.pad = self.tail // 2
        self.depthwise = conv.groups > 1
        if conv.stride != (1,) or 2 * self.pad != self.tail or conv.padding != (self.pad,):
            raise ValueError(f"{conv} changes the length")
        if self.depthwise and not conv.groups == conv.in_channels == conv.out_channels:
            raise ValueError(f"{conv} has groups of several channels")
        after = torch.as_tensor(after, dtype=torch.float64).reshape(-1, 1)
        weight = conv.weight.double() * after[..., None]
        self.bias = _bias(conv).double() * after[:, 0]
        before = torch.as_tensor(before, dtype=torch.float64)
        if self.depthwise:
            self.weight = (weight / before.reshape(-1, 1, 1))[:, :, None]  # [channels, 1, 1, kernel]
        else:
            self.weight = (weight / before.reshape(-1, 1)).permute(2, 1, 0)  # [kernel, in, out]

    def start(self) -> list[Tensor]:
        return [self.bias.new_zeros(self.pad, self.channels)]

    @property
    def channels(self) -> int:
        return self.weight.shape[0] if self.depthwise else self.weight.shape[1]

    def run(self, rows: Tensor) -> Tensor:
        """[n + tail, in] → [n, out], n ≥ 0."""
        n = max(len(rows) - self.tail, 0)
        if self.depthwise and n:
            image = rows[None, None].permute(0, 3, 1, 2)  # channels last: oneDNN reads it as it lies
            y = F.conv2d(image, self.weight, self.bias, dilation=(1, self.dilation), groups=self.channels)
            return y.permute(0, 2, 3, 1).reshape(n, self.channels)
        y = torch.addmm(self.bias, rows[:n], self.weight[0])
        for k in range(1, len(self.weight)):
            y.addmm_(rows[k * self.dilation :][:n], self.weight[k])
        return y

    def step(self, x: Tensor, kept: list[Tensor], last: bool, noise: Noise | None) -> Tensor:
        rows = _joined(kept[0], x, self.pad * last)
        rows[len(kept[0]) :][: len(x)] = x
        kept[0] = rows[max(len(rows) - self.tail, 0) :].clone()
        return self.run(rows)
