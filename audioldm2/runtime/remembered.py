"""What a request computes once: the denoiser's attention to prompts, as far as it does not see the sound.

Prompts are the same at every step. Their keys and values are kept beside the very tensors that they were made
of, context and weights, so whatever else is asked is computed. Where prompts are short and heads are few,
this goes further on a CPU: with the keys k of a prompt, (x Wqᵀ) kᵀ = x (k Wq)ᵀ, and with its values v, (w v)
Woᵀ = w (v Woᵀ), head by head. What is in brackets on the right is made once; then a step has two small
products in place of two projections, and takes 2 to 5 % less time. Results differ by rounding.

In bfloat16 on a CPU, weights that meet many rows are put into the order that oneDNN reads once a request in
place of once a step: 1 to 5 % of the denoiser's time, for 0.1 GB. Results are the same to the bit.

Not here, because it saves too little: the embeddings of all times at once (0.2 to 0.4 % of a step), and the
negative prompt's encoding for the next request (0.3 to 0.7 % of it; but so that equal requests stay equal,
each text would have to be encoded alone, and that takes longer).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from operator import is_

import torch
from torch import Tensor, nn

from audioldm2.models.unet import GPT2, T5, Attention, Layer, Transformer
from audioldm2.ops import onednn
from audioldm2.ops.onednn import is_as_written, is_plain
from audioldm2.runtime.compile import Compiled

KEPT = 2  # contexts: with guidance, and without it where that is off for some of the steps
LONGEST = 1  # tokens times heads, in widths of the layer: from there on folding saves no time


class Remembered:
    """A function of one tensor, and of a network's weights, that knows what it made of the last few."""

    def __init__(self, function: Callable[[Tensor], object], network: nn.Module | None = None):
        self.function, self.network = function, network
        self.made: list[tuple[list[Tensor], list[int], object]] = []  # of what, their versions, output

    def __deepcopy__(self, memo: dict) -> object:
        """The function alone: a copy of a network belongs to no request."""
        return deepcopy(self.function, memo)

    def __getstate__(self) -> dict:
        """Without what it knows, which may be in a layout that PyTorch cannot write."""
        return vars(self) | {"made": []}

    def __call__(self, x: Tensor) -> object:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.function(x)
        given = [x, *(self.network.parameters() if self.network else ())]
        versions = [0 if each.is_inference() else each._version for each in given]  # there, none is counted
        for seen, then, made in self.made:
            if then == versions and all(map(is_, seen, given)):  # the same tensors, not written to since
                return made
        made = self.function(x)
        others = [each for each in self.made if not all(map(is_, each[0], given))]
        self.made = [(given, versions, made), *others[: KEPT - 1]]
        return made


class Packed(Remembered):
    """What a layer multiplies by in place of its weight."""

    def __deepcopy__(self, memo: dict) -> None:
        """A copy takes its weight as it is."""


class Folded:
    """Attention to a prompt, two products a step where the prompt is short."""

    def __init__(self, attention: Attention):
        self.attention = attention
        # Nothing of itself, or it would outlive the request.
        self.fold = Remembered(partial(fold, attention), attention)

    def __deepcopy__(self, memo: dict) -> object:
        """What a copy has without: the `forward` of its class."""
        copied = deepcopy(self.attention, memo)
        return type(copied).forward.__get__(copied)

    def __call__(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """As `Attention.forward`; mask: (batch, 1, 1, tokens) bool."""
        heads, tokens = self.attention.heads, context.shape[1]
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or x.device.type != "cpu"
            or len(context) != len(x)
            or not self._is_as_written()
            or heads * tokens >= LONGEST * x.shape[-1]
        ):
            return type(self.attention).forward(self.attention, x, context, mask)
        reading, writing = self.fold(context)
        bias = x.new_zeros(len(context), heads, tokens, 1)
        if mask is not None:
            bias.masked_fill_(~mask.transpose(2, 3), float("-inf"))
        scores = torch.baddbmm(bias.flatten(1, 2), reading, x.transpose(1, 2))
        scores = scores.unflatten(1, (heads, tokens))  # queries are innermost: so softmax is quick
        weights = scores.softmax(dim=2).flatten(1, 2)  # (batch, heads * tokens, queries)
        return torch.baddbmm(self.attention.out.bias, weights.transpose(1, 2), writing)

    def _is_as_written(self) -> bool:
        """Whether this is the attention that the products stand for: nothing in it replaced or hooked."""
        own = self.attention
        known = type(own) in (Attention, onednn.Attention) and is_as_written(Attention)
        known = known and is_as_written(onednn.Attention)
        plain = known and all(is_plain(layer, but=Remembered) for layer in own.children())
        return plain and own.query.bias is None and own.out.bias is not None


def fold(layer: Attention, context: Tensor) -> tuple[Tensor, Tensor]:
    """What scores are read with, and what writes the output: both (batch, heads * tokens, dim)."""
    key, value = (
        made(context).unflatten(2, (layer.heads, -1)).float() for made in (layer.key, layer.value)
    )  # (batch, tokens, heads, head_dim)
    query = layer.query.weight.unflatten(0, (layer.heads, -1)).float()  # (heads, head_dim, dim)
    out = layer.out.weight.unflatten(1, (layer.heads, -1)).float()  # (dim, heads, head_dim)
    reading = torch.einsum("bthd,hdi->bhti", key, query).flatten(1, 2) * key.shape[-1] ** -0.5
    writing = torch.einsum("bthd,ohd->bhto", value, out).flatten(1, 2)
    return reading.to(context.dtype), writing.to(context.dtype)


@contextmanager
def remembering(unet: nn.Module) -> Iterator[None]:
    """While the block lasts, the denoiser makes what it needs of each context, and packs its weights, once.

    Not where it is compiled: with every change of a layer, all would be compiled anew. Nor what is another
    layer than ours, or has hooks or a `forward` of its own, which may do anything. Weights written to between
    steps count at once, but through `.data`, of which PyTorch keeps no account, with the next request.
    """
    replaced: list[tuple[nn.Module, str]] = []

    def replace(module: nn.Module, name: str, by: object) -> None:  # for this one, in place of its class's
        setattr(module, name, by)
        replaced.append((module, name))

    try:
        if not isinstance(unet.forward, Compiled):
            for module in _packing(unet):
                replace(module, "packed", Packed(type(module).pack))
            for attention in _to_prompts(unet):
                for layer in (attention.key, attention.value):
                    if is_plain(layer, but=Remembered):
                        replace(layer, "forward", Remembered(layer.forward, layer))
                if isinstance(vars(attention).get("forward"), Folded | None):  # one of another thread
                    replace(attention, "forward", Folded(attention))
        yield
    finally:
        for module, name in replaced:
            vars(module).pop(name, None)


def _packing(unet: nn.Module) -> list[nn.Module]:
    """What multiplies by weights that may be worth packing: in float32, they would copy a mapped file."""
    kinds = (onednn.Linear, onednn.FeedForward)
    found = [each for t in unet.modules() if isinstance(t, Transformer) for each in t.modules()]
    found = [each for each in found if type(each) in kinds]
    weight = next(unet.parameters())
    counted = not weight.is_inference()  # whether it is, and so whether a weight was written to
    fits = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and onednn.packs(weight.dtype)
    return found if fits and counted else []


def _to_prompts(unet: nn.Module) -> Iterator[Attention]:
    for layer in unet.modules():
        if isinstance(layer, Layer):
            for role in {GPT2, T5}.intersection(layer.roles):
                for block in getattr(layer, role).blocks:
                    if isinstance(block.context_attn, Attention):  # not what somebody has put in its place
                        yield block.context_attn
