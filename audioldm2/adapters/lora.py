"""Low-rank adapters: a layer computes base(x) + scale * B(A(x)), where only A and B are trained.

Source: Hu et al. 2021, "LoRA" (arXiv 2106.09685), section 4.1. A has `rank` rows and B `rank` columns. With
B = 0, as an untrained adapter has it, the layer computes what its base computes, bit for bit.

An adapted layer holds the layer that it adapts, so several adapters on one layer are nested.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2 import ops
from audioldm2.models.layers import Conv2d, Linear, UpsamplingConv

NETWORKS = ("unet", "gpt2", "projection")  # those that may be adapted
# Which layers of a network each set names, by the ends of their paths. The projection has no attention.
ATTENTION = {
    "unet": r"_attn\.(query|key|value|out)",
    "gpt2": r"\.attn\.(qkv|out)",
    "projection": r"(clap|t5)_linear",
}
FEED_FORWARD = {"unet": r"\.ff\.(value_and_gate|out)", "gpt2": r"\.ff_(in|out)", "projection": r"(?!)"}
LAYER_SETS = ("attention", "attention+ff", "all")


class LowRank(NamedTuple):
    """The two matrices of one layer, and the factor of their product."""

    A: Tensor  # (rank, in), or (rank, in, rows, columns) beside a convolution
    B: Tensor  # (out, rank), or (out, rank, 1, 1)
    scale: float  # alpha / rank

    @property
    def rank(self) -> int:
        return len(self.A)

    @property
    def product(self) -> Tensor:
        """What merging adds to the weight, in its shape, float32."""
        delta = self.B.float().flatten(1) @ self.A.float().flatten(1)  # (out, in * rows * columns)
        return self.scale * delta.view(len(self.B), *self.A.shape[1:])


class LoRALinear(nn.Module):
    """A linear layer and its adapter. A and B may have another dtype than the base, such as float32."""

    def __init__(self, base: nn.Module, A: Tensor, B: Tensor, scale: float):
        super().__init__()
        self.base, self.scale = base, scale
        self.A = nn.Parameter(A)  # (rank, in)
        self.B = nn.Parameter(B)  # (out, rank)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        low = ops.linear(x.to(self.A.dtype), self.A, None)  # (..., rank)
        return y + (self.scale * ops.linear(low, self.B, None)).to(y.dtype)


class LoRAConv2d(nn.Module):
    """A convolution and its adapter: A convolves as the base does, B mixes the channels."""

    def __init__(self, base: nn.Module, A: Tensor, B: Tensor, scale: float):
        super().__init__()
        self.base, self.scale = base, scale
        self.A = nn.Parameter(A)  # (rank, in, rows, columns)
        self.B = nn.Parameter(B)  # (out, rank, 1, 1)

    @property
    def convolution(self) -> Conv2d:
        """The layer below all adapters."""
        base: nn.Module = self.base
        while isinstance(base, LoRAConv2d):
            base = base.base
        assert isinstance(base, Conv2d)
        return base

    def forward(self, x: Tensor, *size: tuple[int, int]) -> Tensor:
        """size: what the base takes besides x, if it is a convolution that resizes."""
        y, convolution = self.base(x, *size), self.convolution
        if isinstance(convolution, UpsamplingConv):
            x = convolution.resized(x, *size)
        low = F.conv2d(x.to(self.A.dtype), self.A, None, convolution.stride, convolution.padding)
        return y + (self.scale * F.conv2d(low, self.B)).to(y.dtype)


def layers_of(network: nn.Module, name: str, which: str) -> list[str]:
    """The paths of the layers that a set of LAYER_SETS names in the network called `name`."""
    wanted = ATTENTION[name] if which == "attention" else f"{ATTENTION[name]}|{FEED_FORWARD[name]}"
    ends = re.compile(rf"(.*)({wanted})")
    return [
        path
        for path, layer in network.named_modules()
        if isinstance(layer, (Linear, Conv2d)) and (which == "all" or ends.fullmatch(path))
    ]


def add(network: nn.Module, path: str, low: LowRank, weight: float = 1.0) -> nn.Module:
    """Put an adapter on the layer at `path`, and return the adapted layer.

    Args:
        network: one that nobody runs meanwhile.
        path: of the layer; it may be adapted already.
        low: of the shapes that the layer needs, where and in the dtype in which they are to be used.
        weight: multiplies the scale.
    """
    base = network.get_submodule(path)
    kind = LoRAConv2d if isinstance(base, (Conv2d, LoRAConv2d)) else LoRALinear
    layer = kind(base, low.A, low.B, weight * low.scale)
    parent, _, child = path.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)
    return layer


def add_all(adapters: Iterable[tuple[Mapping[str, LowRank], float]], network: nn.Module) -> nn.Module:
    """Put several adapters on a network, for inference: in the dtype of each layer, without gradients.

    Args:
        adapters: of each, the matrices by the paths of their layers, and its weight.
        network: one that nobody runs meanwhile.

    Returns:
        The network.
    """
    weights = dict(network.named_parameters())  # of the layers as they are now
    for layers, weight in adapters:
        for path, low in layers.items():
            like = weights[f"{path}.weight"]
            add(network, path, LowRank(low.A.to(like), low.B.to(like), low.scale), weight)
    return network.requires_grad_(False)


@contextmanager
def switched_off(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Lets networks compute what their bases compute inside the block; nobody else may run them meanwhile."""
    layers = [
        layer
        for network in networks
        for layer in network.modules()
        if isinstance(layer, (LoRALinear, LoRAConv2d))
    ]
    scales = [layer.scale for layer in layers]
    try:
        for layer in layers:
            layer.scale = 0.0
        yield
    finally:
        for layer, scale in zip(layers, scales, strict=True):
            layer.scale = scale


class Trained(nn.Module):
    """The matrices of a network's adapters alone, under the paths of their layers: what an optimizer trains.

    The parameters are those of the network, not copies. (A name of PyTorch has no dots, so paths have "/".)
    """

    def __init__(self, layers: Mapping[str, LoRALinear | LoRAConv2d]):
        super().__init__()
        self.scales = {path: layer.scale for path, layer in layers.items()}
        for path, layer in layers.items():
            for matrix in ("A", "B"):
                self.register_parameter(f"{path}.{matrix}".replace(".", "/"), getattr(layer, matrix))

    def low_ranks(self, state: Mapping[str, Tensor] | None = None) -> dict[str, LowRank]:
        """The matrices by path, copied to the CPU; `state` may replace the present ones."""
        state = self.state_dict() if state is None else state

        def matrix(path: str, letter: str) -> Tensor:
            return state[f"{path}.{letter}".replace(".", "/")].detach().float().cpu().clone()

        return {
            path: LowRank(matrix(path, "A"), matrix(path, "B"), scale) for path, scale in self.scales.items()
        }


def add_trainable(
    network: nn.Module,
    name: str,
    rank: int,
    *,
    which: str = "attention",
    alpha: float | None = None,
    generator: torch.Generator | None = None,
) -> Trained:
    """Put new float32 adapters on a frozen network, of any dtype, and return what is to be trained.

    A is drawn as PEFT draws it, uniformly within 1 / sqrt(inputs); B is 0.

    Args:
        network: its weights lose their gradients.
        name: which network it is, such as "unet".
        rank: of every adapter, at most.
        which: one of LAYER_SETS.
        alpha: the scale times the rank; by default the rank.
        generator: on the CPU.
    """
    network.requires_grad_(False)
    scale = (rank if alpha is None else alpha) / rank
    layers: dict[str, LoRALinear | LoRAConv2d] = {}
    for path in layers_of(network, name, which):
        weight = network.get_parameter(f"{path}.weight")
        outputs, inputs, *kernel = weight.shape
        A = torch.empty(rank, inputs, *kernel, device="cpu", dtype=torch.float32)
        bound = 1 / math.sqrt(A[0].numel())
        A.uniform_(-bound, bound, generator=generator)
        B = torch.zeros(outputs, rank, *[1] * len(kernel), device=weight.device, dtype=torch.float32)
        layers[path] = add(network, path, LowRank(A.to(weight.device), B, scale))  # type: ignore[assignment]
    return Trained(layers)
