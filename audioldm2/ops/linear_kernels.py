"""Linear layers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2.ops.dispatch import Kernel, Operation

FEW_ROWS = 64  # below, reading the weight takes the time
EXCERPT = 2048  # rows


def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same through oneDNN.

    PyTorch gives float32 products to MKL, which uses the vector units of AMD's processors only in part; in
    bfloat16 it asks oneDNN but writes the bias beforehand. The operator is internal to PyTorch.
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _shape_class(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple:
    return (
        *weight.shape,
        bias is not None,
        "few rows" if x.numel() < FEW_ROWS * x.shape[-1] else "many rows",
    )


def _excerpt(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple:
    return x.reshape(-1, x.shape[-1])[:EXCERPT], weight, bias


linear = Operation("linear", reference, [Kernel("onednn", onednn, lambda *_: True)], _shape_class, _excerpt)
