"""FSDP2: every rank keeps a share of the denoiser's weights, gradients and optimizer states.

A layer's weights are gathered while it runs. Files are not sharded: `gathered` returns whole tensors, so that
a run resumes with or without sharding, on any number of ranks.

Source: Zhao et al. 2023, "PyTorch FSDP" (arXiv 2304.11277); `torch.distributed.fsdp.fully_shard`.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from audioldm2.models.unet import UNet


def shard(unet: UNet, device: torch.device) -> None:
    """Shards a denoiser over all ranks, layer by layer.

    The networks of the text stay whole: they run once for each length of the captions on a rank, and all
    ranks have to gather weights equally often.
    """
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    except ImportError as error:
        raise ValueError(f"sharding needs PyTorch 2.6 or newer; this is {torch.__version__}.") from error
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in unet.layers():
        fully_shard(layer, mesh=mesh)
        register_fsdp_forward_method(layer, "keys_values")
    fully_shard(unet, mesh=mesh)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is this rank's share: a `DTensor`, which old versions of PyTorch do not export."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor whole; all ranks have to call it if it is sharded."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


@torch.no_grad()
def gathered(value: Any) -> Any:
    """Returns a state dict with whole tensors on the CPU in place of shards; all ranks have to call it."""
    if isinstance(value, Tensor):
        return whole(value).cpu()
    if isinstance(value, dict):
        return {key: gathered(each) for key, each in value.items()}
    return [gathered(each) for each in value] if isinstance(value, list | tuple) else value


def sharded_as(tensor: Tensor, like: Tensor) -> Tensor:
    """Returns a whole tensor, which every rank has, sharded as another one is."""
    if not is_sharded(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    on_device = tensor.to(like.device)
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)
