"""A GPU that only pretends: tensors that say they are on `cuda:0`, compute on the CPU, and mix with no other.

What a machine without a GPU can check of one: whether each tensor is moved there, and where a program waits
for a value that was computed there. Tensors of both devices in one operation raise, as they do on CUDA; those
without dimensions, and indices, may stay on the CPU there too. Kernels, speed and memory are not pretended,
and neither are gradients, which need a PyTorch that is built for CUDA.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from audioldm2.runtime import memory

GPU = torch.device("cuda", 0)
aten = torch.ops.aten
COPIES = {aten._to_copy, aten.copy_}  # which may go from one device to another
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
WAITS = (
    *(Tensor.item, Tensor.tolist, Tensor.nonzero),
    *(Tensor.__int__, Tensor.__float__, Tensor.__bool__, Tensor.__index__),
)  # for a value that the device has computed
GUARDED = (
    *(*WAITS, Tensor.contiguous, Tensor.copy_),
    *(Tensor.__getitem__, Tensor.__setitem__, Tensor.__invert__),
)


class OnGPU(Tensor):
    """A tensor on the pretended GPU; `on_cpu` is the tensor that computes."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> "OnGPU":
        found = torch.Tensor._make_wrapper_subclass(
            cls, on_cpu.size(), strides=on_cpu.stride(), storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype, layout=on_cpu.layout, device=GPU, requires_grad=on_cpu.requires_grad,
        )  # fmt: skip
        found.on_cpu = on_cpu
        return found

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnGPU({self.on_cpu!r})"

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(operation, args, kwargs or {})


class Pretending(TorchDispatchMode):
    """While it is on, device "cuda" means the pretended one; `waits` names what waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = run(operation, args, kwargs)
        if operation.overloadpacket is aten._to_copy and isinstance(args[0], OnGPU) and found.is_cpu:
            self.waits.append("copy to the CPU")
        return found


class WithoutGuards(TorchFunctionMode):
    """Does in Python what PyTorch does behind a guard of the device, which a build without CUDA lacks."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in GUARDED and isinstance(args[0], OnGPU):
            if function in WAITS:
                self.waits.append(function.__name__)
            on_cpu, *others = map(_on_cpu, args)
            found = function(on_cpu, *others, **kwargs)
            return args[0] if found is on_cpu else OnGPU(found) if isinstance(found, Tensor) else found
        if function is Tensor.to:
            args = tuple(GPU if _is_unnumbered(each) else each for each in args)
        if _is_unnumbered(kwargs.get("device")):
            kwargs = kwargs | {"device": GPU}
        if function is torch.tensor and kwargs.get("device") == GPU:
            return OnGPU(torch.tensor(*args, **kwargs | {"device": "cpu"}))
        return function(*args, **kwargs)


def run(operation: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """An operator on the CPU, with results on the device where PyTorch would have them."""
    given = list(_tensors((*args, *kwargs.values())))
    there = [each for each in given if isinstance(each, OnGPU)]
    packet, device = operation.overloadpacket, kwargs.get("device")
    if there and len(there) < len(given) and packet not in COPIES | INDEXING:
        strangers = [tuple(each.shape) for each in given if not isinstance(each, OnGPU) and each.ndim]
        if strangers:
            raise RuntimeError(f"expected all tensors on {GPU}, but {operation} got {strangers} on the CPU")
    if device is not None:
        on_gpu, kwargs = torch.device(device).type == "cuda", kwargs | {"device": _really(device)}
    elif packet in INDEXING or packet is aten.copy_:
        on_gpu = isinstance(args[0], OnGPU)
    else:
        on_gpu = bool(there)
    if there:
        args = tuple(map(_on_cpu, args))
        kwargs = {name: _on_cpu(each) for name, each in kwargs.items()}
    found = operation(*args, **kwargs)
    if not on_gpu:
        return found
    known = {id(each.on_cpu): each for each in there}  # what is changed in place stays the tensor that it was

    def placed(each: Any) -> Any:
        if isinstance(each, list | tuple):
            return type(each)(map(placed, each))
        if not isinstance(each, Tensor) or each.device.type == "meta":
            return each
        return known[id(each)] if id(each) in known else OnGPU(each)

    return placed(found)


def _is_unnumbered(device: Any) -> bool:
    """Whether it is "cuda", whose number only a build with CUDA knows."""
    return isinstance(device, torch.device | str) and str(device) == "cuda"


def _tensors(args: Any) -> Iterator[Tensor]:
    for each in args:
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, list | tuple):
            yield from _tensors(each)


def _on_cpu(each: Any) -> Any:
    """An argument with the tensors that compute in place of those on the pretended GPU."""
    if isinstance(each, OnGPU):
        return each.on_cpu
    return type(each)(map(_on_cpu, each)) if type(each) in (list, tuple) else each


def _really(device: Any) -> torch.device:
    device = torch.device(device)
    return torch.device("cpu") if device.type == "cuda" else device


@contextmanager
def pretended_gpu(patch: pytest.MonkeyPatch, free: int = 8 * 10**9) -> Iterator[Pretending]:
    """While the block lasts, this machine has a GPU with so many bytes free."""
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: 1)
    patch.setattr(torch.cuda, "_lazy_init", lambda: None)
    patch.setattr(memory, "available_bytes", lambda device: free)
    with Pretending() as mode, WithoutGuards(mode.waits):
        yield mode
