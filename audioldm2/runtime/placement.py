"""The networks of a checkpoint, filled, and where their weights are while others run.

Networks are built without memory, and the mapped tensors are put in their place, strictly.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from audioldm2.models import build_on_meta
from audioldm2.ops.onednn import channels_innermost, through_onednn
from audioldm2.runtime.compile import compiled
from audioldm2.runtime.dtypes import cast


class Opened(Protocol):
    """A checkpoint whose networks are described and whose tensors can be opened."""

    configs: dict[str, Any]  # network -> its config dataclass
    states: dict[str, Callable[[], dict[str, Tensor]]]  # network -> opens its tensors, mapped and checked


READ = 2**28  # bytes that are made another dtype of before a network's tensors are opened anew


def materialise(checkpoint: Opened, name: str, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """One network, filled and ready to run, without gradients. No tensor is copied that can stay mapped.

    What opens the tensors has checked that they are the network's (see `demand_fit`).
    """
    network, state = build_on_meta(name, checkpoint.configs[name]), {}
    innermost = device.type == "cuda" or dtype == torch.bfloat16  # what matrix units read, on CPUs too
    for key, tensor in _tensors(checkpoint, name, dtype):
        made = cast(name, key, tensor, dtype).to(device)
        state[key] = channels_innermost(made) if innermost else made
    network.load_state_dict(state, strict=True, assign=True)
    return through_onednn(network.requires_grad_(False))


def _tensors(checkpoint: Opened, name: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Keys and tensors of one network.

    What has been read of a mapped file counts as resident until the last of its tensors is gone. So, where
    another dtype is made of them, and they are not kept, they are opened anew now and then.
    """
    state, read = dict(checkpoint.states[name]()), 0
    for key in list(state):
        if read > READ:
            state, read = dict(checkpoint.states[name]()), 0
        read += state[key].nbytes if state[key].dtype != dtype else 0
        yield key, state.pop(key)


class Networks:
    """The networks of a checkpoint, and where their weights are while others run.

    residence: "device"  all on the device, always (the default);
               "offload" in the computer's memory, on the device only while running;
               "disk"    read for their stage and let go after it.
    dtypes:    of each network (see `precision`).
    compile:   whether those that take the time are compiled (see `compiled`).
    Every network's keys and shapes are checked here, at once, whatever the residence.
    """

    def __init__(
        self,
        checkpoint: Opened,
        device: torch.device,
        dtypes: Mapping[str, torch.dtype],
        residence: str = "device",
        compile: bool = False,
    ) -> None:
        self.configs, self.device, self.dtypes, self.residence = checkpoint.configs, device, dtypes, residence
        self._checkpoint = checkpoint
        home = device if residence == "device" else torch.device("cpu")
        self._loaded = {}
        for name in checkpoint.configs:
            network = materialise(checkpoint, name, device=home, dtype=dtypes[name])
            if compile:
                network = compiled(network, name, device)
            if residence != "disk":
                self._loaded[name] = network

    @contextmanager
    def running(self, name: str) -> Iterator[nn.Module]:
        """The network called `name`, on the device while the block lasts."""
        if self.residence == "device":
            yield self._loaded[name]
        elif self.residence == "disk":
            network = materialise(self._checkpoint, name, device=self.device, dtype=self.dtypes[name])
            try:
                yield network
            finally:
                network.to("meta")  # frees the weights, even while a caller's variable holds the network
        else:
            network = self._loaded[name]
            home = {key: tensor for key, tensor in network.state_dict().items()}
            network.load_state_dict(
                {key: tensor.to(self.device) for key, tensor in home.items()}, assign=True
            )
            try:
                yield network
            finally:
                network.load_state_dict(home, assign=True)
