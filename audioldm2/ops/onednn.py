"""Layers on CPUs as oneDNN likes them: what a network file says, in less time.

Linear layers. In float32 PyTorch gives them to MKL, which uses the vector units of other makers' processors
only in part: 100 GFLOP/s on two cores of an AMD EPYC, where oneDNN, which PyTorch has too and uses for
convolutions, comes to 230. In bfloat16 PyTorch asks oneDNN itself, but writes the bias beforehand: 10 to 20 %
of the time. oneDNN also gates the denoiser's feed-forward layers while it multiplies: GELU and product are
done before a result leaves the cache. And it puts a weight into another order at every call, unless it is
given one in that order: so some of the denoiser's are kept, in bfloat16, while a request lasts
(`remembered`). These operators are internal to PyTorch, so each is tried once against the public ones, and
left alone where it is absent or differs.

Attention of many tokens. PyTorch's kernel takes its products from MKL too, and at 512 tokens and more two
products of oneDNN a head and a softmax between them take 0.5 to 0.85 of its time. They are in float32, in
bfloat16 networks as well: there, large scores would be rounded by several percent. Processors with AMX keep
PyTorch's kernel where heads are narrow: it uses AMX in bfloat16, and MKL is fast on them in float32. Which
way is the faster one there has not been measured.

Convolutions of narrow maps. At the denoiser's coarsest level maps are 2 wide, which leaves oneDNN's blocks
mostly empty; as one product of all patches they take 0.25 to 0.4 of the time. In bfloat16 alone: it needs
weights with channels innermost, and those of float32 stay as they are in their file.

Convolutions over time. They are faster with channels innermost in memory, by a quarter in float32 and up to
five times in bfloat16. PyTorch has that layout for images only, so they run over an image one row high.

Convolutions of a doubled map. It has each value four times, so a transposed convolution by 4 x 4 of the map
itself, with sums of the weights, gives the same for 4/9 of the products: a fifth of the VAE's decoding in
float32 and a tenth in bfloat16, but by AMX, which is not faster for it.

Memory. Where maps change their size, for a stage of the vocoder or by doubling, the holes that earlier ones
left in the C library's heap are too small: given back there, the peak in float32 is 0.2 to 0.3 GB lower. In
bfloat16 holes are half as large, and getting the memory anew would be a tenth of the vocoder's time.

Results differ by rounding. Who edits the `forward` of a class in AS_WRITTEN edits its twin here too, or
deletes the twin. The file is long because its classes share one set of rules, of when they may stand in.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2.models import hifigan, layers, unet, vae
from audioldm2.models.layers import doubled
from audioldm2.runtime import memory

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}  # of one product, where an operator is tried
TOLERANCE_GATED = {torch.float32: 1e-4, torch.bfloat16: 0.05}  # of the product of two, one through GELU
OF_LINEAR = (3, 5, 16), (8, 16), (8,)  # shapes of what they are tried with
OF_GATED = *OF_LINEAR, (8, 16), (8,)

MANY = 512  # keys, from which attention by two products of oneDNN is the faster one
WIDE = 128  # heads, for which it is on processors with AMX too
PACKED = 256  # rows of a product from which packing its weight takes less time than it saves in a few steps
SCORES = 2**20  # of a head at once: 4 MB, which stay in the cache from one product to the next
NARROW = 2  # maps, of which a convolution is a product of patches

LARGE_MAP = 16_000_000  # bytes of a doubled map from which it is worth giving memory back: 3 ms

# What classes here (and, for attention to prompts, `remembered.Folded`) stand in for, as written. One that
# has been changed while Python runs is heard: then it runs itself.
AS_WRITTEN = {
    stood_for: stood_for.forward
    for stood_for in (
        unet.Attention,
        unet.FeedForward,
        vae.SelfAttention,
        hifigan.Upsampling,
        layers.UpsamplingConv,
        nn.Conv2d,
    )
}
CONVOLVE, ATTEND = nn.Conv2d._conv_forward, F.scaled_dot_product_attention  # what those call, so too


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, asked of oneDNN where it may: on a CPU, without gradients."""
    if _alone(x, weight) and is_here(x.dtype):
        return _linear(x, weight, bias)
    return F.linear(x, weight, bias)


# Twins with a `pack` multiply by what it makes of their weight, where `packed` is set: to a function that
# does it once and keeps it, while a request lasts (see `remembered`).
Packing = Callable[[Tensor], list[Tensor]]


class Linear(nn.Linear):
    """An `nn.Linear` that asks oneDNN where it may."""

    packed: Packing | None = None

    @staticmethod
    def pack(weight: Tensor) -> list[Tensor]:
        return [_packed(weight)]

    def forward(self, x: Tensor) -> Tensor:
        packed = self.packed  # of one request, which may end in another thread
        if packed is not None and _alone(x, self.weight) and _has_many_rows(x):
            return _linear(x, *packed(self.weight), self.bias)
        return linear(x, self.weight, self.bias)


class FeedForward(unet.FeedForward):
    """The denoiser's feed-forward layer, gated by oneDNN where it may."""

    packed: Packing | None = None

    @staticmethod
    def pack(weight: Tensor) -> list[Tensor]:
        return [_packed(half) for half in weight.chunk(2)]

    def forward(self, x: Tensor) -> Tensor:
        layer = self.value_and_gate
        mirrored = is_as_written(unet.FeedForward) and is_plain(layer)
        if not (mirrored and _alone(x, layer.weight) and gates(x.dtype)):
            return super().forward(x)
        packed = self.packed
        value, gate = packed(layer.weight) if packed and _has_many_rows(x) else layer.weight.chunk(2)
        value_bias, gate_bias = layer.bias.chunk(2)
        return self.out(_gated(x, value, value_bias, gate, gate_bias))


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """`layers.attention` without a mask, a head at a time: softmax of one product of oneDNN, and another.

    query: (batch, queries, dim); key and value: (batch, keys, dim). Returns (batch, queries, dim).
    """
    queries, keys = query.shape[1], key.shape[1]
    # (batch * heads, seq, head_dim), each head's in one piece: slices take oneDNN a thousand times as long.
    q, k, v = (
        x.unflatten(2, (heads, -1)).transpose(1, 2).contiguous().flatten(0, 1).float()
        for x in (query, key, value)
    )
    q = q * q.shape[-1] ** -0.5
    mixed, rows = torch.empty_like(q), max(SCORES // keys, 128)
    for head in range(len(q)):
        for start in range(0, queries, rows):
            block = slice(start, start + rows)
            scores = _linear(q[head, block], k[head], None)  # (queries of the block, keys)
            torch.softmax(scores, dim=-1, out=scores)  # a second 4 MB would come anew from the system
            mixed[head, block] = _linear(scores, v[head].T, None)
    return mixed.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2).to(query.dtype)


class Attention(unet.Attention):
    """The denoiser's attention, by products of oneDNN where that is the faster way."""

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        if (
            mask is not None
            or len(context) != len(x)
            or not (is_as_written(unet.Attention) and all(map(is_plain, self.children())))
            or not _by_products(x, self.query.weight, context.shape[1], x.shape[2] // self.heads)
        ):
            return super().forward(x, context, mask)
        return self.out(attention(self.query(x), self.key(context), self.value(context), self.heads))


AS_WRITTEN[Attention] = Attention.forward  # for which `remembered.Folded` stands in, in its turn


class SelfAttention(vae.SelfAttention):
    """The VAE's attention, so too."""

    def forward(self, x: Tensor) -> Tensor:
        positions, channels = x.shape[2] * x.shape[3], x.shape[1]
        plain = all(map(is_plain, (self.query, self.key, self.value, self.out)))
        if not (plain and is_as_written(vae.SelfAttention)) or not _by_products(
            x, self.query.weight, positions, channels
        ):
            return super().forward(x)
        seq = self.norm(x).flatten(2).transpose(1, 2)  # (batch, time * mel, channels)
        seq = self.out(attention(self.query(seq), self.key(seq), self.value(seq), heads=1))
        return x + seq.transpose(1, 2).unflatten(2, x.shape[2:])


class Conv2d(nn.Conv2d):
    """A convolution over an image; of a narrow one, as a product of all its patches."""

    def forward(self, x: Tensor) -> Tensor:
        if (
            not _alone(x, self.weight)
            or x.ndim != 4
            or x.shape[3] > NARROW
            or x.dtype != torch.bfloat16
            or not (is_as_written(nn.Conv2d) and is_here(x.dtype) and self._keeps_size())
            or not self.weight.is_contiguous(memory_format=torch.channels_last)
        ):
            return super().forward(x)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # (batch, time + 2, mel + 2, channels_in)
        patches = padded.unfold(1, 3, 1).unfold(2, 3, 1)  # (batch, time, mel, channels_in, 3, 3)
        patches = patches.movedim(3, 5).flatten(3)  # (batch, time, mel, 9 * channels_in)
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)  # (channels_out, 9 * channels_in), as in memory
        return _linear(patches, weight, self.bias).permute(0, 3, 1, 2)

    def _keeps_size(self) -> bool:
        """Whether it is a plain convolution of 3 x 3 that makes a map of the same size."""
        if getattr(self._conv_forward, "__func__", None) is not CONVOLVE:  # as those have it who make tiles
            return False
        ones = self.stride == self.padding == self.dilation == (1, 1)
        return ones and self.kernel_size == (3, 3) and self.groups == 1 and self.padding_mode == "zeros"


class Conv1d(nn.Conv1d):
    """A convolution over time, as one over an image where that is the faster one."""

    def forward(self, x: Tensor) -> Tensor:
        if not _as_image(x, self.weight):
            return super().forward(x)
        (stride,), (padding,), (dilation,) = self.stride, self.padding, self.dilation
        y = F.conv2d(
            x.unsqueeze(2), self.weight.unsqueeze(2), self.bias,
            (1, stride), (0, padding), (1, dilation), self.groups,
        )  # fmt: skip
        return y.squeeze(2)


class Upsampling(hifigan.Upsampling):
    """The vocoder's upsampling, so too: what is innermost then is phases and channels, in their order."""

    def forward(self, x: Tensor) -> Tensor:
        if not (is_as_written(hifigan.Upsampling) and _as_image(x, self.weight)):
            return super().forward(x)
        (rate,), (padding,), weight = self.stride, self.padding, self.phases()
        bias = self.bias.repeat(rate)
        y = F.conv2d(x.unsqueeze(2), weight.unsqueeze(2), bias, padding=(0, weight.shape[2] - 1))
        y = y.squeeze(2).transpose(1, 2)  # (batch, time + taps - 1, rate * channels)
        y = y.reshape(len(x), y.shape[1] * rate, -1)  # (batch, samples and some, channels)
        return y[:, padding : padding + self.samples(x)].transpose(1, 2)


class UpsamplingConv(layers.UpsamplingConv):
    """The convolution of a doubled map, as a transposed one of the map itself where that is faster."""

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if (
            not is_as_written(layers.UpsamplingConv)
            or not _alone(x, self.weight)
            or x.dtype not in TOLERANCE
            or (x.dtype == torch.bfloat16 and (has_amx() or not is_here(x.dtype)))  # no faster
            or x.numel() < x.shape[1] ** 2  # fewer positions than channels: making the sums would take longer
            or (size or doubled(x)) != doubled(x)
        ):
            return super().forward(x, size)
        x = x.contiguous(memory_format=torch.channels_last)
        weight = sums_of_taps(self.weight.float()).to(x.dtype)
        y = F.conv_transpose2d(x, weight, self.bias, stride=2, padding=1)
        if y.nbytes > LARGE_MAP and x.dtype == torch.float32:
            memory.give_back()
        return y


class Stage(hifigan.Stage):
    """A stage of the vocoder that, in float32, gives back what it has freed."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if x.dtype == torch.float32 and _alone(x, self.upsample.weight):
            memory.give_back()
        return y


def sums_of_taps(weight: Tensor) -> Tensor:
    """The weight (out, in, 3, 3) of a doubled map's convolution as that of a transposed one (in, out, 4, 4).

    A value stands in the doubled map at 2i and 2i + 1, so what it gives to place 2i - 1 + n is its product
    with these taps, in time as in mel:  n = 0: third;  1: second and third;  2: first and second;  3: first.
    """
    sums = weight.new_tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
    taps = weight.permute(1, 2, 3, 0).flatten(1, 2)  # (in, 9, out)
    return (torch.kron(sums, sums) @ taps).unflatten(1, (4, 4)).permute(0, 3, 1, 2)  # out is innermost


def is_as_written(stood_for: type[nn.Module]) -> bool:
    """Whether the class, and the attention that it may call, are what they were when this was imported."""
    called = unet.attention is vae.attention is layers.attention and F.scaled_dot_product_attention is ATTEND
    return called and stood_for.forward is AS_WRITTEN[stood_for]


def is_plain(layer: nn.Module, but: type | None = None) -> bool:
    """Whether a linear layer is its weights and nothing else: neither replaced, as LoRA does, nor hooked.

    but: what its `forward` may be beside that of its class.
    """
    own = vars(layer).get("forward")
    allowed = own is None or (but is not None and isinstance(own, but))
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    return type(layer) in (nn.Linear, Linear) and allowed and not hooked


def _alone(x: Tensor, weight: Tensor) -> bool:
    """Whether nobody but the processor has a say: neither a compiler, which chooses for itself, nor autocast,
    which knows public operators only, nor gradients."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def _has_many_rows(x: Tensor) -> bool:
    return x.numel() >= PACKED * x.shape[-1]


def _by_products(x: Tensor, weight: Tensor, keys: int, head_dim: int) -> bool:
    """Whether `attention` is allowed, and faster than PyTorch's kernel, for what a layer makes of x."""
    wide = x.dtype == torch.float32 and head_dim >= WIDE
    return (
        _alone(x, weight)
        and keys >= MANY
        and x.dtype in TOLERANCE
        and is_here(torch.float32)
        and (wide or not has_amx())
    )


@lru_cache
def has_amx() -> bool:
    """Whether the processor has Intel's matrix units, as far as this PyTorch can tell."""
    tell = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return tell is not None and tell()


def _as_image(x: Tensor, weight: Tensor) -> bool:
    """Where a convolution over an image is the faster one; with gradients, it is in bfloat16 only."""
    if x.dtype == torch.bfloat16:
        return x.device.type == "cpu" and not torch.compiler.is_compiling()
    return x.dtype == torch.float32 and _alone(x, weight) and torch.backends.mkldnn.is_available()


def channels_innermost(weight: Tensor) -> Tensor:
    """The same weight of a convolution over images or time (out, in, ...), with `in` innermost in memory."""
    if weight.ndim == 4:
        return weight.to(memory_format=torch.channels_last)
    return weight.transpose(1, 2).contiguous().transpose(1, 2) if weight.ndim == 3 else weight


def through_onednn(network: nn.Module) -> nn.Module:
    """The same network, whose layers ask oneDNN where this PyTorch can."""
    classes = {
        unet.Attention: Attention,
        unet.FeedForward: FeedForward,
        vae.SelfAttention: SelfAttention,
        nn.Conv2d: Conv2d,
        nn.Conv1d: Conv1d,
        hifigan.Upsampling: Upsampling,
        hifigan.Stage: Stage,
        layers.UpsamplingConv: UpsamplingConv,
    }
    if any(map(is_here, TOLERANCE)):
        classes[nn.Linear] = Linear
    for module in network.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]  # same weights, same keys: only `forward` is another
    return network


@lru_cache
def is_here(dtype: torch.dtype) -> bool:
    """Whether the operator exists here for a dtype and agrees with `torch.nn.functional.linear`."""
    return _agree(_linear, F.linear, TOLERANCE.get(dtype), dtype, *OF_LINEAR)


@lru_cache
def packs(dtype: torch.dtype) -> bool:
    """Whether a packed weight exists here for a dtype, and products with it are those of the weight."""

    def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _linear(x, _packed(weight), bias)

    def gated(x: Tensor, value: Tensor, value_bias: Tensor, gate: Tensor, gate_bias: Tensor) -> Tensor:
        return _gated(x, _packed(value), value_bias, _packed(gate), gate_bias)

    return _agree(linear, F.linear, TOLERANCE.get(dtype), dtype, *OF_LINEAR) and (
        not gates(dtype) or _agree(gated, _publicly_gated, TOLERANCE_GATED.get(dtype), dtype, *OF_GATED)
    )


@lru_cache
def gates(dtype: torch.dtype) -> bool:
    """Whether the operators of a gated layer exist here for a dtype and agree with the public ones."""
    return _agree(_gated, _publicly_gated, TOLERANCE_GATED.get(dtype), dtype, *OF_GATED)


def _agree(
    ours: Callable, public: Callable, near: float | None, dtype: torch.dtype, *shapes: tuple[int, ...]
) -> bool:
    """Whether two functions of tensors of these shapes give nearly the same; not where `near` is unknown."""
    if near is None:
        return False
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=generator, device="cpu").to(dtype) for shape in shapes]
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            found, expected = ours(*given), public(*given)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):  # by the version and the platform
        return False
    return found.shape == expected.shape and torch.allclose(found, expected, atol=near, rtol=near)


def _gated(x: Tensor, value: Tensor, value_bias: Tensor, gate: Tensor, gate_bias: Tensor) -> Tensor:
    """(x value + its bias) * GELU(x gate + its bias)."""
    gate = torch.ops.mkldnn._linear_pointwise(x, gate, gate_bias, "gelu", [], "none")  # none: the exact one
    return torch.ops.mkldnn._linear_pointwise.binary(x, gate, value, value_bias, "mul")


def _publicly_gated(x: Tensor, value: Tensor, value_bias: Tensor, gate: Tensor, gate_bias: Tensor) -> Tensor:
    return F.linear(x, value, value_bias) * F.gelu(F.linear(x, gate, gate_bias))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _packed(weight: Tensor) -> Tensor:
    """A weight (out, in) in the layout that products read, which oneDNN else makes of it at every call."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)
