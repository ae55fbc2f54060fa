"""Two operations that look beyond a row of the batch in training: batch norm and dropout.

Where processes share a batch, each has some of its rows. Inside `share_of_batch` both operations compute what
one process with all rows would: batch norm averages its moments over the processes, and dropout draws a mask
for the whole batch, of which each process uses its rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Share(Protocol):
    """One process's equal share of the rows of a batch."""

    count: int  # processes

    def rows(self, whole: Tensor) -> Tensor:
        """Returns this process's rows of a tensor with the rows of the whole batch."""
        ...

    def mean(self, tensor: Tensor) -> Tensor:
        """Returns the mean of a tensor over all processes, without gradient."""
        ...


_share: ContextVar[Share | None] = ContextVar("share_of_batch", default=None)


@contextmanager
def share_of_batch(share: Share) -> Iterator[None]:
    """Makes the inputs of `batch_norm` and `dropout` this process's share of a batch inside the block."""
    token = _share.set(share if share.count > 1 else None)
    try:
        yield
    finally:
        _share.reset(token)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zeroes elements with probability p in training and scales the others; x: (batch, ...)."""
    share = _share.get()
    if share is None or not training:
        return F.dropout(x, p, training)
    whole = x.new_ones((share.count * len(x), *x.shape[1:]))
    return x * share.rows(F.dropout(whole, p))


def batch_norm(
    x: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor, bias: Tensor, training: bool,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Normalizes each channel of x, (batch, channels, ...), by its moments over the batch in training.

    Args:
        x: the input.
        running_mean: (channels,), updated in training and used otherwise.
        running_var: (channels,), the same.
        weight: (channels,).
        bias: (channels,).
        training: whether moments are those of the batch.
        momentum: weight of the batch in the running moments.
        eps: added to the variance.

    Source: Ioffe & Szegedy 2015 (arXiv 1502.03167), as `torch.nn.functional.batch_norm`.
    """
    share = _share.get()
    if share is None or not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    dims = [0, *range(2, x.ndim)]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    values = x.float()
    mean = _Mean.apply(values.mean(dims), share)
    centred = values - mean.view(shape)
    var = _Mean.apply(centred.square().mean(dims), share)
    count = share.count * x.numel() // x.shape[1]
    with torch.no_grad():
        running_mean.lerp_(mean.to(running_mean), momentum)
        running_var.lerp_((var * count / (count - 1)).to(running_var), momentum)
    scaled = centred * (var + eps).rsqrt().view(shape)
    return (scaled * weight.view(shape) + bias.view(shape)).to(x.dtype)


class _Mean(torch.autograd.Function):
    """The mean over processes; its gradient is the mean of the processes' gradients, which are averaged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: Share) -> Tensor:
        ctx.share = share
        return share.mean(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.share.mean(gradients[0]), None
