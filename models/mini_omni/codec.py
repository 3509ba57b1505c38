"""From Mini-Omni's codes to sound, whole or as a stream without seams, by the decoder of SNAC."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from snac import SNAC
from snac.vq import VectorQuantize
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from models.errors import UserError
from models.mini_omni.checkpoint import check, read
from models.mini_omni.snac_steps import AddNoise, Draw, Filter, Kept, steps

RATE = 24_000  # Hz
TOGETHER = 8  # frames decoded together: more are no faster, and would take memory


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
                remove_parametrizations(module, "weight")  # the norm of weight norm, once and for all
        strides, self.codebook, self.width = network.vq_strides, network.codebook_size, 0
        self.times = strides[0]  # rows of the decoder's input in a frame
        newest = [[0] * len(strides) for _ in range(self.times)]
        for time in range(self.times):  # a frame lists its codes as they begin, the coarse before the fine
            for level, stride in enumerate(strides):
                if time % stride == 0:
                    for row in newest[time:]:
                        row[level] = self.width
                    self.width += 1
        self._newest = torch.tensor(newest, device=device)  # [time, level] → place in the frame
        self._first = torch.arange(len(strides), device=device) * self.codebook
        levels = cast(list[VectorQuantize], list(network.quantizer.to(device, dtype).quantizers))
        projections = [Filter.of(level.out_proj) for level in levels]
        self._codes = torch.cat([level.codebook.weight.detach() for level in levels])
        self._project = torch.cat([projection.weight[0] for projection in projections])
        self._bias = torch.stack([projection.bias for projection in projections]).sum(0)
        self._steps = list(steps(network.decoder.to(device, dtype).model))
        self.frame, self.lookahead, self._noisy = self.times, 0, []
        for step in self._steps:
            self.frame, self.lookahead = self.frame * step.up, self.lookahead * step.up + step.delay
            if isinstance(step, AddNoise):
                self._noisy.append(self.frame)  # values of noise in a frame

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

    def decode(self, frames: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """The sound of frames [n, width]: float32 [n · frame] within ±1.

        With a generator, the noise is what `snac` itself would draw from it; without one there is none.
        Raises ValueError on a code that is none.
        """
        drawn = iter([] if noise is None else [_hand_out(_normal(noise, count * len(frames))) for count in self._noisy])
        return CodecStream(self, lambda: next(drawn, None)).run(frames, last=True)

    def stream(self, noise: torch.Generator | None = None) -> CodecStream:
        """The sound of frames that come bit by bit; with a generator, with noise drawn from it."""
        return CodecStream(self, lambda: None if noise is None else partial(_normal, noise))

    def memory_bytes(self) -> int:
        """Bytes of the weights."""
        parts = [self, *self._steps]
        parts += [part for step in self._steps for part in vars(step).values() if isinstance(part, Filter)]
        return sum(value.nbytes for part in parts for value in vars(part).values() if isinstance(value, Tensor))

    def embed(self, frames: Tensor) -> Tensor:
        """[n, width] → the decoder's input [n · times, channels]."""
        if frames.ndim != 2 or frames.shape[1] != self.width or frames.is_floating_point():
            raise ValueError(f"frames are whole numbers [n, {self.width}], not {frames.dtype} {list(frames.shape)}")
        if len(frames) and (frames.min() < 0 or frames.max() >= self.codebook):
            raise ValueError(f"codes are 0 to {self.codebook - 1}, not {int(frames.min())} to {int(frames.max())}")
        ids = frames.to(self._first)[:, self._newest] + self._first
        return torch.addmm(self._bias, self._codes[ids].flatten(2).flatten(0, 1), self._project)

    def start(self, draw: Callable[[], Draw | None]) -> list[Kept]:
        """A stream's state before its first frame; `draw` is asked for the noise of each step that has some."""
        kept = [step.start() for step in self._steps]
        for step, state in zip(self._steps, kept, strict=True):
            state.draw = draw() if isinstance(step, AddNoise) else None
        return kept

    def run(self, x: Tensor, kept: list[Kept], last: bool) -> Tensor:
        """The samples [m] that are final after x (see `embed`); with `last`, all the rest."""
        for step, state in zip(self._steps, kept, strict=True):
            x = step.step(x, state, last)
            if not len(x) and not last:
                break
        return x.flatten().tanh_().float()


class CodecStream:
    """One stream's state. All its pushes and its finish together are Codec.decode of all its frames (without noise)."""

    def __init__(self, codec: Codec, draw: Callable[[], Draw | None]):
        self._codec, self._kept = codec, codec.start(draw)
        self._begun = self._ended = False

    def push(self, frames: Tensor) -> np.ndarray:
        """float32 [m]: the samples that are final now, Codec.lookahead fewer than the frames [n, width] so far have.

        Raises ValueError on a code that is none, and after `finish`; the stream then stays as it was.
        """
        return self.run(frames).cpu().numpy()

    def finish(self) -> np.ndarray:
        """float32 [m]: the rest."""
        return self.run(torch.empty(0, self._codec.width, dtype=torch.long), last=True).cpu().numpy()

    @torch.inference_mode()
    def run(self, frames: Tensor, last: bool = False) -> Tensor:
        """As `push`; with `last` these are the last frames, and the rest follows."""
        if self._ended:
            raise ValueError("the stream has been finished")
        x = self._codec.embed(frames)
        self._begun, self._ended = self._begun or len(frames) > 0, last
        sound = [self._codec.run(part, self._kept, False) for part in x.split(TOGETHER * self._codec.times)]
        if last and self._begun:
            sound.append(self._codec.run(x[:0], self._kept, True))
        return torch.cat(sound)


def to_pcm(samples: np.ndarray | Tensor) -> np.ndarray:
    """±1 → int16, cut towards zero; what is too loud is clipped."""
    return np.clip(np.asarray(samples, np.float64) * 32768, -32768, 32767).astype(np.int16)


def _normal(generator: torch.Generator, count: int) -> Tensor:
    return torch.randn(1, 1, count, generator=generator, device=generator.device).flatten()


def _hand_out(values: Tensor) -> Draw:
    """`values` from the first on."""
    begin = 0

    def take(count: int) -> Tensor:
        nonlocal begin
        begin += count
        return values[begin - count : begin]

    return take


def _read(file: Path) -> Mapping[str, Tensor]:
    if file.suffix != ".safetensors":  # and weight norm is spelt as torch does today, or as it did before 2.0
        spelt = (("weight_g", "parametrizations.weight.original0"), ("weight_v", "parametrizations.weight.original1"))
        return {key.replace(*spelt[0]).replace(*spelt[1]): tensor for key, tensor in read(file).items()}
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError("checkpoint_wrong", file=file.name, what=str(error)) from error
