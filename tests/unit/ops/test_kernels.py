"""Every kernel against its reference, and against float64, over shapes of the networks and odd ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2 import ops
from audioldm2.ops import attention_kernels, convolution_kernels, linear_kernels

NEAR = {torch.float32: 1e-5, torch.bfloat16: 0.01}  # relative
DTYPES = pytest.mark.parametrize("dtype", NEAR, ids=str)


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.shape == expected.shape and found.dtype == dtype
    error = torch.linalg.vector_norm(found.double() - expected.double())
    assert error <= NEAR[dtype] * torch.linalg.vector_norm(expected.double())


def available(run, *args) -> bool:
    try:
        run(*args)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("shape", [(3, 5, 16), (1, 7), (2, 300, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_onednn(dtype, shape: tuple[int, ...], bias: bool):
    x, weight = torch.randn(shape), torch.randn(24, shape[-1])
    given = [each.to(dtype) for each in (x, weight)] + [torch.randn(24).to(dtype) if bias else None]
    if not available(linear_kernels.onednn, *given):
        pytest.skip("this PyTorch has no oneDNN linear layer")
    expected = F.linear(*(None if each is None else each.double() for each in given))
    assert_near(linear_kernels.onednn(*given), expected, dtype)


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize(
    ("heads", "queries", "keys", "head_dim"), [(1, 300, 300, 16), (4, 70, 600, 8), (3, 2, 257, 5)]
)
def test_attention_by_products(dtype, heads: int, queries: int, keys: int, head_dim: int, monkeypatch):
    monkeypatch.setattr(attention_kernels, "SCORES", 2**16)  # several blocks of queries
    query, key, value = (torch.randn(2, seq, heads * head_dim).to(dtype) for seq in (queries, keys, keys))
    if not available(linear_kernels.onednn, query[0].float(), key[0].float()):
        pytest.skip("this PyTorch has no oneDNN linear layer")
    expected = attention_kernels.reference(query.double(), key.double(), value.double(), heads)
    assert_near(attention_kernels.by_products(query, key, value, heads), expected, dtype)


@torch.no_grad()
@pytest.mark.parametrize("scale", [30.0, 100.0])
def test_attention_by_products_keeps_large_scores_exact_in_bfloat16(scale: float):
    query, key, value = (torch.randn(1, 512, 64).bfloat16() for _ in range(3))
    if not available(linear_kernels.onednn, query[0].float(), key[0].float()):
        pytest.skip("this PyTorch has no oneDNN linear layer")
    query = query * (scale / 8)
    expected = attention_kernels.reference(query.double(), key.double(), value.double(), 1)
    assert_near(attention_kernels.by_products(query, key, value, 1), expected, torch.bfloat16)


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 1, 1), (11, 1, 5), (1, 1, 1), (5, 3, 2)])
def test_conv1d_as_image(dtype, channels_last: bool, kernel: int, stride: int, dilation: int):
    x, weight, bias = torch.randn(2, 24, 50), torch.randn(40, 24, kernel), torch.randn(40)
    if channels_last:
        x, weight = (each.transpose(1, 2).contiguous().transpose(1, 2) for each in (x, weight))
    x, weight, bias = (each.to(dtype) for each in (x, weight, bias))
    options = (stride, dilation * (kernel - 1) // 2, dilation, 1)
    expected = F.conv1d(x.double(), weight.double(), bias.double(), *options)
    assert_near(convolution_kernels.conv1d_as_image(x, weight, bias, *options), expected, dtype)


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(2, 24, 50, 2), (1, 8, 3, 1)])
def test_conv2d_as_product(dtype, channels_last: bool, shape: tuple[int, ...]):
    x, weight, bias = torch.randn(shape), torch.randn(40, shape[1], 3, 3), torch.randn(40)
    if channels_last:
        x, weight = (each.contiguous(memory_format=torch.channels_last) for each in (x, weight))
    x, weight, bias = (each.to(dtype) for each in (x, weight, bias))
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert_near(convolution_kernels.conv2d_as_product(x, weight, bias, (1, 1)), expected, dtype)


OF_48_KHZ = (768, 384, 10, 5)  # where PyTorch's own is wrong on a CPU with several threads
SHAPES = [OF_48_KHZ, (64, 32, 16, 5), (16, 8, 4, 2), (8, 4, 7, 3), (4, 2, 3, 3), (2, 1, 5, 1), (2, 2, 12, 6)]


@torch.no_grad()
@DTYPES
@pytest.mark.parametrize("time", [1, 2, 7, 120])
@pytest.mark.parametrize("shape", SHAPES)
def test_conv_transpose1d_equals_pytorchs_in_float64(dtype, shape: tuple[int, int, int, int], time: int):
    channels_in, channels, kernel, stride = shape
    padding = (kernel - stride) // 2
    x, weight, bias = (
        torch.randn(2, channels_in, time),
        torch.randn(channels_in, channels, kernel),
        torch.randn(channels),
    )
    x, weight, bias = (each.to(dtype) for each in (x, weight, bias))
    expected = F.conv_transpose1d(  # in float64, which oneDNN leaves to PyTorch
        x.double(), weight.double(), bias.double(), stride=stride, padding=padding
    )
    assert_near(ops.conv_transpose1d(x, weight, bias, stride=stride, padding=padding), expected, dtype)


@torch.no_grad()
def test_conv_transpose1d_gives_the_same_samples_each_time():
    channels_in, channels, kernel, stride = OF_48_KHZ
    x, weight, bias = (
        torch.randn(2, channels_in, 120),
        torch.randn(channels_in, channels, kernel),
        torch.randn(channels),
    )
    first, *others = (ops.conv_transpose1d(x, weight, bias, stride=stride, padding=2) for _ in range(10))
    assert all(torch.equal(each, first) for each in others)


def test_layers_learn_through_the_reference():
    x, weight = torch.randn(1, 8, 9), torch.randn(8, 8, 4, requires_grad=True)
    ops.conv_transpose1d(x, weight, torch.zeros(8), stride=2, padding=1).sum().backward()
    assert weight.grad is not None
    weight = torch.randn(8, 8, 3, requires_grad=True)
    ops.conv1d(x, weight, padding=1).sum().backward()
    assert weight.grad is not None
