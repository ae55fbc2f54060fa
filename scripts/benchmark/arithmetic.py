"""Floating-point operations: how many a network performs, and how many per second this machine can do.

Only matrix products, convolutions and attention are counted; a multiplication with its addition is 2 FLOP.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


def flop_counter() -> FlopCounterMode:
    """Returns torch's FlopCounterMode, extended by operators that it does not count.

    These are attention on CPUs and oneDNN's linear layers. They are private operators of PyTorch and looked
    up by name, since a version may lack them. The counts follow from the shapes of inputs and outputs.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def of_linear(x: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        # Holds for all overloads: the one that multiplies the result by another tensor has that tensor in
        # second place, where the others have the weight.
        return 2 * prod(x) * out_shape[-1]

    def of_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        *batch, queries, dim = query
        return 2 * prod(batch) * queries * key[-2] * (dim + value[-1])

    formulas: dict[tuple[str, str], Callable[..., int]] = {
        ("mkldnn", "_linear_pointwise"): of_linear,
        ("mkl", "_mkl_linear"): of_linear,
        ("aten", "_scaled_dot_product_flash_attention_for_cpu"): of_attention,
        ("aten", "_scaled_dot_product_fused_attention_overrideable"): of_attention,
        ("aten", "_scaled_dot_product_attention_math_for_mps"): of_attention,
    }
    known = {
        getattr(getattr(torch.ops, namespace), name): formula
        for (namespace, name), formula in formulas.items()
        if hasattr(getattr(torch.ops, namespace), name)
    }
    return FlopCounterMode(display=False, custom_mapping=known)


def ceiling(device: str, dtype_name: str, synchronize: Callable[[], None]) -> dict[str, float]:
    """Measures what this machine achieves at best: the speed of some large products and convolutions.

    Args:
        device: "cpu", "cuda", ...
        dtype_name: such as "bfloat16".
        synchronize: waits for the device.

    Returns:
        GFLOP/s of each operation.
    """
    import torch
    import torch.nn.functional as F

    dtype, generator = getattr(torch, dtype_name), torch.Generator().manual_seed(0)
    large = device.startswith("cuda")
    side, rows, channels = (8192, 16, 512) if large else (2048, 1, 256)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    a, b = normal(side, side), normal(side, side)
    x, kernel = normal(rows, channels, 256, 32), normal(channels, channels, 3, 3)
    tall, half_kernel = normal(rows, channels // 2, 512, 64), normal(channels // 2, channels // 2, 3, 3)
    candidates: dict[str, Callable[[], torch.Tensor]] = {
        "matmul": lambda: a @ b,
        "linear": lambda: F.linear(a, b),
        "convolution 3x3": lambda: F.conv2d(x, kernel, padding=1),
        "convolution 3x3, half the channels": lambda: F.conv2d(tall, half_kernel, padding=1),
    }
    onednn_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if device == "cpu" and onednn_linear is not None and torch.backends.mkldnn.is_available():
        # PyTorch's own linear layer may use MKL, which is slower on processors of other makers.
        candidates["linear, oneDNN"] = lambda: onednn_linear(a, b, None, "none", [], "")
    speeds = {}
    with torch.no_grad():
        for name, run in candidates.items():
            counter = flop_counter()
            try:
                with counter:
                    run()
            except RuntimeError:
                if name != "linear, oneDNN":
                    raise
                continue  # this processor or dtype has no oneDNN kernel
            speeds[name] = counter.get_total_flops() / 1e9 / fastest(run, synchronize)
    return speeds


def fastest(run: Callable[[], object], synchronize: Callable[[], None], budget: float = 0.5) -> float:
    """Times a function repeatedly: at least twice, until `budget` seconds have passed, at most 50 times.

    Returns:
        Seconds of the fastest run.
    """
    times: list[float] = []
    while len(times) < 2 or (sum(times) < budget and len(times) < 50):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
