"""Linear layers and an embedding for one or two rows at a time, where reading the weights is all the time there is."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_ROWS = 8
NARROW = 2048  # inputs up to which two rows are quicker together
# Where the CPU lacks VNNI, FBGEMM adds products in 16 bits: inputs of 7 bits cannot overflow them.
SEVEN_BITS = not torch.cpu._is_vnni_supported()


class FewRowsLinear(nn.Linear):
    """nn.Linear for a CPU in float32, quick for a few rows.

    W·xᵀ streams the weights at memory speed from two rows on; for one row, and the other way round (x·Wᵀ), the BLAS is
    up to two times slower. So a lone row is computed twice. Of wide rows each is quicker by itself, one or two. Sums
    are in another order than nn.Linear's.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[…, in] → […, out]."""
        rows = input.reshape(-1, input.shape[-1])
        wide = rows.shape[1] > NARROW
        if len(rows) > FEW_ROWS or (wide and len(rows) == 1):
            return super().forward(input)
        if wide and len(rows) == 2:
            each = torch.cat([super(FewRowsLinear, self).forward(row) for row in rows.split(1)])
            return each.reshape(*input.shape[:-1], each.shape[-1])
        columns = torch.cat([rows, rows]).t() if len(rows) == 1 else rows.t()
        y = torch.mm(self.weight, columns).t()[: len(rows)]
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*input.shape[:-1], y.shape[-1])


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, a scale for each output (symmetric), and inputs made int8 on the way (FBGEMM).

    FBGEMM takes one scale for all of its input, so that one loud position would drown every other. Each row is
    therefore brought to a largest magnitude of 1 before and back after: exact, since the layer is linear. On a real
    network of this family (Qwen2.5-Coder-1.5B, 300 tokens) the divergence from float32 is 0.05 nats a token so, and
    0.24 with one scale for all; the most likely token stays the same for 91 % of them, and for 76 %.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        """`weight` float [out, in], `bias` float [out]; neither is kept."""
        super().__init__()
        int8, scales = quantize_rows(weight)
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch is to drop quantized tensors some day
            make = torch._make_per_channel_quantized_tensor  # pyright: ignore[reportPrivateImportUsage]
            quantized = make(int8, scales.double(), zeros, 0)
        self.packed = torch.ops.quantized.linear_prepack(quantized, None)
        self.bias = None if bias is None else nn.Parameter(bias.detach().float().clone(), requires_grad=False)
        self.bytes = int8.numel() + 4 * len(scales)

    def forward(self, x: Tensor) -> Tensor:
        """float32 […, in] → […, out]."""
        if x.numel() == x.shape[-1]:
            y = torch.ops.quantized.linear_dynamic(x, self.packed, SEVEN_BITS)
        else:
            largest = x.abs().amax(-1, keepdim=True).clamp_min_(1e-30)
            y = torch.ops.quantized.linear_dynamic(x / largest, self.packed, SEVEN_BITS).mul_(largest)
        return y if self.bias is None else y.add_(self.bias)


class Int8Embedding(nn.Module):
    """An embedding with int8 rows, each with its scale."""

    def __init__(self, weight: Tensor):
        """`weight` float [rows, width], not kept."""
        super().__init__()
        self.rows, self.scales = quantize_rows(weight)
        self.bytes = self.rows.numel() + 4 * len(self.scales)

    def forward(self, ids: Tensor) -> Tensor:
        """Int64 […] → float32 […, width]."""
        return F.embedding(ids, self.rows).float() * self.scales[ids].unsqueeze(-1)


def quantize_rows(weight: Tensor, at_once: int = 2**22) -> tuple[Tensor, Tensor]:
    """Float [rows, width] → int8 [rows, width] within ±127, and the float32 scale [rows] of each row.

    About `at_once` weights are worked on at a time, so that a large table on disk is never whole in memory.
    """
    int8 = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(len(weight))
    count = max(1, at_once // weight.shape[1])
    for start in range(0, len(weight), count):
        part = weight[start : start + count].detach().float()
        scale = part.abs().amax(1).clamp_min_(1e-12) / 127
        scales[start : start + count] = scale
        int8[start : start + count] = (part / scale[:, None]).round_().to(torch.int8)
    return int8, scales


def linear(precision: str, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    """A linear layer of these weights, laid out for a precision.

    "fp32": weights as they are, quick for few rows; "int8": int8 weights, all else float32; "bf16": torch's own layer.
    """
    if precision == "int8":
        return Int8Linear(weight, bias)
    kind = FewRowsLinear if precision == "fp32" else nn.Linear
    layer = kind(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def lay_out(module: nn.Module, precision: str) -> None:
    """Replace every nn.Linear below `module` by its like for the precision."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            bias = None if child.bias is None else child.bias.data
            setattr(module, name, linear(precision, child.weight.data, bias))
        else:
            lay_out(child, precision)
