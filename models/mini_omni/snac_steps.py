"""The decoder of SNAC (Siuzdak et al. 2024, github.com/hubertsiuzdak/snac, MIT) in steps that take sound as it comes.

Each convolution keeps the end of its input for what comes next, and each residual branch waits for its convolution:
all outputs together are those of the whole input, up to rounding.

The weights are those of the `snac` package, laid out for speed. Everything is [time, channels]: a transposed
convolution is then two matrix products whose result needs no reordering. Snake, x + sin²(αx)/α, is computed as
u + sin²(u) with u = αx, where 1/α, and α within a residual unit, is part of a convolution's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from snac.layers import DecoderBlock, NoiseBlock, ResidualUnit, Snake1d
from torch import Tensor, nn

LEAST = 1e-6  # a smaller |α| is raised to it, where sin²(αx)/α is nothing beside x
Draw = Callable[[int], Tensor]  # how many values of noise → those values


@dataclass
class Kept:
    """What a step keeps for one stream."""

    rows: Tensor  # the end of the convolution's input
    waiting: Tensor  # rows of a residual branch that its convolution has not reached
    skip: int = 0  # output rows still to be left out at the start
    draw: Draw | None = None  # the noise, if there is any


class Filter:
    """Snake, if there is an α, and a convolution.

    up: output rows for an input row.   delay: output rows by which it lags behind its input.
    """

    up = 1

    def __init__(self, weight: Tensor, bias: Tensor, alpha: Tensor | None = None, dilation: int = 1):
        """`weight` is [kernel, in, out] or, for a depthwise convolution, [channels, 1, 1, kernel]; 1/α is in it."""
        self.weight, self.alpha, self.dilation = weight.contiguous(), alpha, dilation
        self.bias = bias.clone()  # else it would keep the file mapped that it came from
        self.depthwise = weight.ndim == 4
        self.width = weight.shape[0 if self.depthwise else 1]  # input channels
        self.tail = (weight.shape[3 if self.depthwise else 0] - 1) * dilation  # input rows needed besides the newest
        self.pad = self.delay = self.tail // 2  # pad: rows of zeros before the first and after the last

    @classmethod
    def of(cls, conv: nn.Module, alpha: Tensor | None = None, scale: Tensor | None = None) -> Filter:
        """`alpha` is that of the Snake before, `scale` multiplies the result (both [channels])."""
        if not isinstance(conv, nn.Conv1d):
            raise ValueError(f"{type(conv).__name__} is not a convolution")
        weight, bias = _weights(conv)
        kernel, dilation, depthwise = weight.shape[2], conv.dilation[0], conv.groups > 1
        same = conv.stride == (1,) and kernel % 2 and conv.padding == ((kernel - 1) * dilation // 2,)
        if not same or (depthwise and not conv.groups == conv.in_channels == conv.out_channels):
            raise ValueError(f"{conv} cannot be streamed")
        if alpha is not None:
            weight = weight / (alpha[:, None, None] if depthwise else alpha[:, None])
        if scale is not None:
            weight, bias = weight * scale[:, None, None], bias * scale
        return cls(weight[:, :, None] if depthwise else weight.permute(2, 1, 0), bias, alpha, dilation)

    def start(self) -> Kept:
        return Kept(self.weight.new_zeros(self.pad, self.width), self.weight.new_empty(0, self.width))

    def step(self, x: Tensor, kept: Kept, last: bool) -> Tensor:
        """[n, in] → the rows [m, out] that are final now. With `last` nothing follows x, and all the rest comes."""
        old = len(kept.rows)
        rows = x.new_empty(old + len(x) + self.pad * last, self.width)
        rows[:old] = kept.rows
        rows[old + len(x) :] = 0
        new = rows[old : old + len(x)]
        if self.alpha is None:
            new.copy_(x)
        else:
            _add_sin2(torch.mul(x, self.alpha, out=new))
        n = max(len(rows) - self.tail, 0)
        kept.rows = rows[n:].clone()
        if self.depthwise and n:
            image = rows[None, None].permute(0, 3, 1, 2)  # [1, channels, 1, time] as it lies: channels last
            y = F.conv2d(image, self.weight, self.bias, dilation=(1, self.dilation), groups=self.width)
            return y.permute(0, 2, 3, 1).reshape(n, self.width)
        y = self.bias.expand(n, -1).clone()
        for k in range(0 if self.depthwise else len(self.weight)):
            y.addmm_(rows[k * self.dilation :][:n], self.weight[k])
        return y


class Upsample(Filter):
    """Snake and a transposed convolution with a kernel of two strides: `up` output rows of two neighbours at a time."""

    def __init__(self, conv: nn.ConvTranspose1d, alpha: Tensor):
        """`alpha` [in] is that of the Snake before."""
        weight, bias = _weights(conv)  # [in, out, kernel]
        up, crop = conv.stride[0], int(conv.padding[0])
        if weight.shape[2] != 2 * up or conv.output_padding != (2 * crop - up,) or conv.groups > 1 or crop > up:
            raise ValueError(f"{conv} cannot be streamed")
        newer, older = (weight / alpha[:, None, None]).permute(2, 0, 1).split(up)  # [up, in, out], by which they weigh
        super().__init__(torch.stack([older, newer]).transpose(1, 2).flatten(2), bias.repeat(up), alpha)
        self.up, self.delay, self.pad = up, crop, 1

    def start(self) -> Kept:
        kept = super().start()
        kept.skip = self.delay
        return kept

    def step(self, x: Tensor, kept: Kept, last: bool) -> Tensor:
        y = super().step(x, kept, last).view(-1, self.bias.shape[0] // self.up)
        y = y[kept.skip : len(y) - (self.up - self.delay) * last]
        kept.skip = 0
        return y


class Residual:
    """A ResidualUnit: Snake, a wide convolution, Snake and a convolution of kernel 1, added to the input."""

    up = 1

    def __init__(self, unit: ResidualUnit):
        before, wide, between, narrow = unit.block
        self.wide = Filter.of(wide, _alpha(before), scale=_alpha(between))
        self.narrow = Filter.of(narrow, _alpha(between))
        self.start, self.delay = self.wide.start, self.wide.delay

    def step(self, x: Tensor, kept: Kept, last: bool) -> Tensor:
        """[n, channels] → the rows [m, channels] that are final now."""
        y = _add_sin2(self.wide.step(x, kept, last))
        old = len(kept.waiting)
        branch = x.new_empty(old + len(x), x.shape[1])
        branch[:old] = kept.waiting
        torch.add(x, self.narrow.bias, out=branch[old:])
        kept.waiting = branch[len(y) :].clone()
        return branch[: len(y)].addmm_(y, self.narrow.weight[0])


class AddNoise:
    """A NoiseBlock: noise, one value for all channels, which each takes as loud as a linear layer of the input says."""

    up, delay = 1, 0

    def __init__(self, block: NoiseBlock):
        self.weight = Filter.of(block.linear).weight[0]

    def start(self) -> Kept:
        return Kept(self.weight[:0], self.weight[:0])

    def step(self, x: Tensor, kept: Kept, last: bool) -> Tensor:
        """[n, channels] → the same, in place."""
        if kept.draw is None:
            return x
        return x.addcmul_(torch.mm(x, self.weight), kept.draw(len(x)).to(x)[:, None])


Step = Filter | Residual | AddNoise


def steps(layers: Iterable[nn.Module]) -> Iterator[Step]:
    """A decoder's layers as steps, but for the Tanh that ends it. Raises ValueError on a layer it does not know."""
    alpha = None
    for layer in layers:
        if isinstance(layer, Snake1d):
            alpha = _alpha(layer)
        elif isinstance(layer, DecoderBlock):
            yield from steps(layer.block)
        elif isinstance(layer, nn.Conv1d):
            yield Filter.of(layer, alpha)
            alpha = None
        elif isinstance(layer, nn.ConvTranspose1d) and alpha is not None:
            yield Upsample(layer, alpha)
            alpha = None
        elif isinstance(layer, NoiseBlock):
            yield AddNoise(layer)
        elif isinstance(layer, ResidualUnit):
            yield Residual(layer)
        elif not isinstance(layer, nn.Tanh):
            raise ValueError(f"a decoder with {type(layer).__name__} cannot be streamed")


def _weights(conv: nn.Conv1d | nn.ConvTranspose1d) -> tuple[Tensor, Tensor]:
    """The kernel as the layer has it, and the bias [out], zeros where there is none."""
    weight = conv.weight.detach()
    return weight, weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()


def _alpha(snake: nn.Module) -> Tensor:
    """[channels], none of it zero."""
    if not isinstance(snake, Snake1d):
        raise ValueError(f"{type(snake).__name__} is not a Snake")
    alpha = snake.alpha.detach().flatten()
    return torch.where(alpha.abs() < LEAST, LEAST, alpha)


def _add_sin2(u: Tensor) -> Tensor:
    """u + sin²(u), in place."""
    plain = u.device.type == "cpu" and u.dtype == torch.float32
    sine = torch.from_numpy(np.sin(u.numpy())) if plain else u.sin()  # NumPy's takes less than half of torch's time
    return u.addcmul_(sine, sine)
