"""From Mini-Omni's codes to sound: the decoder of SNAC (Siuzdak et al. 2024, github.com/hubertsiuzdak/snac, MIT).

A stream has no seams: each convolution keeps the end of its input for the next push, and each residual branch waits
for its convolution. All pushes together are the decode of the whole, up to rounding.

The network is that of the `snac` package, laid out for speed. Everything is [time, channels]: a transposed convolution
is then two matrix products whose result needs no reordering. Snake, x + sin²(αx)/α, is computed as u + sin²(u) with
u = αx, where 1/α, and α within a residual unit, is part of a convolution's weights. Tiles of time stay in the cache.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from snac import SNAC
from snac.layers import DecoderBlock, NoiseBlock, ResidualUnit, Snake1d
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from models.errors import UserError
from models.mini_omni.checkpoint import check, read

RATE = 24_000  # Hz
TILE = 131_072  # values of a layer that are computed together: with their temporaries they fit a core's cache
LEAST = 1e-6  # a smaller |α| is raised to it, where sin²(αx)/α is nothing beside x
Draw = Callable[[int], Tensor]  # how many values of noise → those values


@dataclass
class Kept:
    """What one step of the decoder keeps for a stream from push to push."""

    rows: Tensor  # the end of the convolution's input
    waiting: Tensor  # rows of a residual branch that its convolution has not reached
    skip: int  # output rows still to be left out at the start
    draw: Draw | None  # the noise, if there is any


class Filter:
    """Snake, if there is an α, and a convolution over rows [n, channels] that come bit by bit."""

    up = 1  # output rows for an input row

    def __init__(self, weight: Tensor, bias: Tensor, alpha: Tensor | None = None, dilation: int = 1):
        """`weight` is [kernel, in, out] or, for a depthwise convolution, [channels, 1, 1, kernel]; 1/α is in it."""
        self.weight, self.bias = weight.contiguous(), bias.contiguous()
        self.alpha = None if alpha is None else alpha.flatten()
        self.depthwise = weight.ndim == 4
        self.width = weight.shape[0 if self.depthwise else 1]  # input channels
        self.dilation = dilation
        self.tail = (weight.shape[3 if self.depthwise else 0] - 1) * dilation  # input rows needed besides the newest
        self.pad = self.delay = self.tail // 2  # rows of zeros at either end; output rows by which it lags

    @classmethod
    def of(cls, conv: nn.Conv1d, alpha: Tensor | None = None, scale: Tensor | None = None) -> Filter:
        """`alpha` is that of the Snake before, `scale` multiplies the result (both [channels])."""
        (kernel,), (dilation,), depthwise = conv.kernel_size, conv.dilation, conv.groups > 1
        same = conv.stride == (1,) and kernel % 2 and conv.padding == ((kernel - 1) * dilation // 2,)
        if not same or (depthwise and not conv.groups == conv.in_channels == conv.out_channels):
            raise ValueError(f"{conv} cannot be streamed")
        weight, bias = _weights(conv)
        if alpha is not None:
            weight = weight / (alpha[:, None, None] if depthwise else alpha[:, None])
        if scale is not None:
            weight, bias = weight * scale[:, None, None], bias * scale
        return cls(weight[:, :, None] if depthwise else weight.permute(2, 1, 0), bias, alpha, dilation)

    def start(self, draw: Draw | None) -> Kept:
        return Kept(self.weight.new_zeros(self.pad, self.width), self.weight.new_empty(0, self.width), 0, draw)

    def step(self, x: Tensor, kept: Kept, last: bool) -> Tensor:
        """The rows that are final after x; with `last` nothing follows x, and the rest comes too."""
        old, pad = len(kept.rows), self.pad * last
        rows = x.new_empty(old + len(x) + pad, self.width)
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
    """Snake and a transposed convolution with a kernel of two strides: each input row makes `up` rows with the next."""

    def __init__(self, conv: nn.ConvTranspose1d, alpha: Tensor):
        (up,), (crop,) = conv.stride, conv.padding
        if conv.kernel_size != (2 * up,) or conv.output_padding != (2 * crop - up,) or conv.groups > 1 or crop > up:
            raise ValueError(f"{conv} cannot be streamed")
        weight, bias = _weights(conv)  # [in, out, kernel]
        now, later = (weight / alpha[:, None, None]).permute(2, 0, 1).split(up)
        super().__init__(torch.stack([later, now]).transpose(1, 2).flatten(2), bias.repeat(up), alpha)
        self.up, self.delay, self.pad = up, crop, 1

    def start(self, draw: Draw | None) -> Kept:
        kept = super().start(draw)
        kept.skip = self.delay
        return kept

    def step(self, x: Tensor, kept: Kept, last: bool) -> Tensor:
        y = super().step(x, kept, last)
        y = y.view(len(y) * self.up, -1)
        y = y[kept.skip : len(y) - (self.up - self.delay) * last]
        kept.skip = 0
        return y


class Residual:
    """A ResidualUnit: Snake, a wide convolution, Snake and one of kernel 1, added to the input."""

    up = 1

    def __init__(self, unit: ResidualUnit):
        before, wide, between, narrow = unit.block
        self.wide = Filter.of(wide, _alpha(before), scale=_alpha(between))
        self.narrow = Filter.of(narrow, _alpha(between))
        self.delay = self.wide.delay

    def start(self, draw: Draw | None) -> Kept:
        return self.wide.start(draw)

    def step(self, x: Tensor, kept: Kept, last: bool) -> Tensor:
        y = _add_sin2(self.wide.step(x, kept, last))
        old = len(kept.waiting)
        branch = x.new_empty(old + len(x), x.shape[1])
        branch[:old] = kept.waiting
        torch.add(x, self.narrow.bias, out=branch[old:])
        kept.waiting = branch[len(y) :].clone()
        return branch[: len(y)].addmm_(y, self.narrow.weight[0])


class AddNoise:
    """A NoiseBlock: normal noise, one value for all channels, each as loud as a linear layer of the input says."""

    up, delay = 1, 0

    def __init__(self, block: NoiseBlock):
        self.linear = Filter.of(block.linear)

    def start(self, draw: Draw | None) -> Kept:
        return self.linear.start(draw)

    def step(self, x: Tensor, kept: Kept, last: bool) -> Tensor:
        if kept.draw is None:
            return x
        return x.addcmul_(torch.mm(x, self.linear.weight[0]), kept.draw(len(x)).to(x)[:, None])


Step = Filter | Residual | AddNoise


class Codec:
    """The decoder of a SNAC. It holds nothing of a request: any number of streams may run side by side.

    frame: samples in a frame.   width: codes in a frame.   codebook: valid codes are 0 .. codebook - 1.
    lookahead: samples by which a stream lags behind the frames pushed (snac_24khz: 4757, which is 198 ms).
    """

    @torch.no_grad()
    def __init__(self, network: SNAC, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32):
        """Takes `network` apart: it is of no use after. Raises ValueError if it cannot be streamed."""
        if network.attn_window_size is not None:
            raise ValueError("its attention (attn_window_size) looks at whole windows and cannot be streamed")
        for module in (*network.decoder.modules(), *network.quantizer.modules()):
            if is_parametrized(module, "weight"):
                remove_parametrizations(module, "weight")
        levels, strides = network.quantizer.to(device, dtype).quantizers, network.vq_strides
        self.codebook, self.width = network.codebook_size, 0
        newest = [[0] * len(strides) for _ in range(strides[0])]
        for time in range(strides[0]):  # a frame lists its codes as they begin, the coarse before the fine
            for level, stride in enumerate(strides):
                if time % stride == 0:
                    for row in newest[time:]:
                        row[level] = self.width
                    self.width += 1
        self._newest = torch.tensor(newest, device=device)  # [time in a frame, level] → place in the frame
        self._first = torch.arange(len(strides), device=device) * self.codebook
        self._codes = torch.cat([level.codebook.weight for level in levels])
        self._embed = torch.cat([level.out_proj.weight[:, :, 0].t() for level in levels])
        self._embed_bias = torch.stack([level.out_proj.bias for level in levels]).sum(0)
        self._steps = list(_steps(network.decoder.to(device, dtype).model))
        self.frame, self.lookahead, self._noisy = len(newest), 0, []
        for step in self._steps:
            self.frame, self.lookahead = self.frame * step.up, self.lookahead * step.up + step.delay
            if isinstance(step, AddNoise):
                self._noisy.append(self.frame)  # values in a frame

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Codec:
        """From a folder with config.json and pytorch_model.bin or a .safetensors file.

        Raises UserError("checkpoint_wrong") that names the file and what is off in it.
        """
        try:
            with torch.device("meta"):
                network = SNAC(**json.loads((folder / "config.json").read_text("utf-8")))
            if network.sampling_rate != RATE:
                raise ValueError(f"sampling_rate is {network.sampling_rate}, not {RATE}")
        except Exception as error:  # of the file, of JSON, of unknown keys, of sizes that make no network
            raise UserError("checkpoint_wrong", file="config.json", what=str(error)) from error
        file = next(iter(sorted(folder.glob("*.safetensors"))), folder / "pytorch_model.bin")
        state = _read(file)
        check(state, {key: tensor.shape for key, tensor in network.state_dict().items()}, file.name)
        del network.encoder  # its weights stay in the file, which is mapped
        network.load_state_dict({key: state[key] for key in network.state_dict()}, assign=True)
        try:
            return cls(network, device, dtype)
        except ValueError as error:
            raise UserError("checkpoint_wrong", file="config.json", what=str(error)) from error

    @torch.inference_mode()
    def decode(self, frames: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """The sound of frames [n, width], decoded at once: float32 [n · frame] within ±1.

        With a generator, the noise is what `snac` itself would draw from it; without one there is none.
        Raises ValueError on a code that is none.
        """
        x = self.embed(frames)
        if noise is None:
            kept = self.start(lambda: None)
        else:
            drawn = iter([_portions(_normal(noise, count * len(frames))) for count in self._noisy])
            kept = self.start(lambda: next(drawn))
        return _joined(self.run(x, kept, True)) if len(x) else x.new_empty(0, dtype=torch.float32)

    def stream(self, noise: torch.Generator | None = None) -> CodecStream:
        """The sound of frames that come bit by bit; with a generator, with noise drawn from it."""
        return CodecStream(self, noise)

    def embed(self, frames: Tensor) -> Tensor:
        """[n, width] → the decoder's input [n · times in a frame, channels]."""
        if frames.ndim != 2 or frames.shape[1] != self.width or frames.is_floating_point():
            raise ValueError(f"frames are whole numbers [n, {self.width}], not {frames.dtype} {list(frames.shape)}")
        if len(frames) and (frames.min() < 0 or frames.max() >= self.codebook):
            raise ValueError(f"codes are 0 to {self.codebook - 1}, not {int(frames.min())} to {int(frames.max())}")
        ids = frames.to(self._first)[:, self._newest] + self._first
        return torch.addmm(self._embed_bias, self._codes[ids].flatten(2).flatten(0, 1), self._embed)

    def start(self, draw: Callable[[], Draw | None]) -> list[Kept]:
        return [step.start(draw() if isinstance(step, AddNoise) else None) for step in self._steps]

    def run(self, x: Tensor, kept: list[Kept], last: bool, begin: int = 0) -> Iterator[Tensor]:
        """The samples that are final after x, in pieces [m, 1]: each tile goes to the end before the next begins."""
        if begin == len(self._steps):
            yield x.tanh_()
            return
        step, size = self._steps[begin], max(len(x), 1)
        if isinstance(step, Upsample) and x.device.type == "cpu":
            size = max(TILE // step.weight.shape[2], 1)
        tiles = x.split(size)
        for i, tile in enumerate(tiles):
            end = last and i == len(tiles) - 1
            y = step.step(tile, kept[begin], end)
            if len(y) or end:
                yield from self.run(y, kept, end, begin + 1)


class CodecStream:
    """One stream's state. All its pushes and its finish together are Codec.decode of all its frames (without noise)."""

    def __init__(self, codec: Codec, noise: torch.Generator | None):
        self._codec, self._begun, self._ended = codec, False, False
        self._kept = codec.start(lambda: None if noise is None else partial(_normal, noise))

    @torch.inference_mode()
    def push(self, frames: Tensor) -> np.ndarray:
        """float32 [m]: the samples that are final now, Codec.lookahead fewer than the frames pushed so far have.

        Raises ValueError on a code that is none, and after `finish`; the stream then stays as it was.
        """
        if self._ended:
            raise ValueError("the stream has been finished")
        x = self._codec.embed(frames)
        self._begun = self._begun or len(x) > 0
        return _joined(self._codec.run(x, self._kept, False)).cpu().numpy() if len(x) else np.empty(0, np.float32)

    @torch.inference_mode()
    def finish(self) -> np.ndarray:
        """float32 [m]: the rest. A second time, nothing."""
        due, self._ended = self._begun and not self._ended, True
        if not due:
            return np.empty(0, np.float32)
        nothing = self._codec.embed(torch.empty(0, self._codec.width, dtype=torch.long))
        return _joined(self._codec.run(nothing, self._kept, True)).cpu().numpy()


def to_pcm(samples: np.ndarray | Tensor) -> np.ndarray:
    """±1 → int16, cut towards zero; what is too loud is clipped."""
    return np.clip(np.asarray(samples, np.float64) * 32768, -32768, 32767).astype(np.int16)


def _steps(layers: Iterable[nn.Module]) -> Iterator[Step]:
    """The decoder's layers as steps, but for the Tanh that ends it. Raises ValueError on a layer it does not know."""
    alpha = None
    for layer in layers:
        if isinstance(layer, DecoderBlock):
            yield from _steps(layer.block)
        elif isinstance(layer, Snake1d):
            alpha = _alpha(layer)
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


def _read(file: Path) -> Mapping[str, Tensor]:
    if file.suffix != ".safetensors":
        return read(file)
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError("checkpoint_wrong", file=file.name, what=str(error)) from error


def _alpha(snake: Snake1d) -> Tensor:
    """[channels]"""
    alpha = snake.alpha.detach().flatten()
    return torch.where(alpha.abs() < LEAST, torch.full_like(alpha, LEAST), alpha)


def _weights(conv: nn.Conv1d | nn.ConvTranspose1d) -> tuple[Tensor, Tensor]:
    weight = conv.weight.detach()
    return weight, weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()


def _add_sin2(u: Tensor) -> Tensor:
    """u + sin²(u), in place."""
    plain = u.device.type == "cpu" and u.dtype == torch.float32
    sine = torch.from_numpy(np.sin(u.numpy())) if plain else u.sin()  # NumPy's takes less than half of torch's time
    return u.addcmul_(sine, sine)


def _normal(generator: torch.Generator, count: int) -> Tensor:
    return torch.randn(1, 1, count, generator=generator, device=generator.device).flatten()


def _portions(values: Tensor) -> Draw:
    """Hands `values` out from the first on."""
    place = 0

    def take(count: int) -> Tensor:
        nonlocal place
        place += count
        return values[place - count : place]

    return take


def _joined(pieces: Iterable[Tensor]) -> Tensor:
    """Pieces [m, 1] → float32 [samples]."""
    pieces = list(pieces)
    return torch.cat(pieces).flatten().float() if pieces else torch.empty(0)
