"""The networks of a checkpoint: built, filled, and placed where they run.

Networks are built without memory, and the mapped tensors are assigned to them, strictly. With additions, such
as adapters, there are other networks, which share the weights of those without.
"""

import copy
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from audioldm2 import ops
from audioldm2.models import build_on_meta
from audioldm2.runtime.compile import compile_network
from audioldm2.runtime.dtypes import cast

Addition = Callable[[nn.Module], nn.Module]  # puts more layers on a network that nobody runs yet
ON_DEMAND = ("audiomae",)  # networks that few requests run: read when they first do
REOPEN_BYTES = 2**28  # of tensors cast to another dtype, after which a network's file is opened anew


class Opened(Protocol):
    """A checkpoint whose networks are described and whose tensors can be opened."""

    configs: dict[str, Any]  # network -> its config dataclass
    states: dict[str, Callable[[], dict[str, Tensor]]]  # network -> opens its tensors, mapped and checked


class Networks:
    """The networks of a checkpoint, which several threads may run at once.

    Args:
        checkpoint: every network's keys and shapes are checked here, whatever the residence.
        device: where networks run.
        dtypes: of each network (see `dtypes`).
        residence: where weights wait. "device": on the device, always. "offload": in the computer's memory,
            on the device only while in use. "disk": read for each stage, and freed after it.
        compile: compile the networks that take the time (see `compile`).
        ops: "reference" for reference kernels only, "auto" to choose, None for what the environment says.
    """

    def __init__(
        self,
        checkpoint: Opened,
        device: torch.device,
        dtypes: Mapping[str, torch.dtype],
        residence: str = "device",
        compile: bool = False,
        ops: str | None = None,
    ) -> None:
        self.configs, self.device, self.dtypes, self.residence = checkpoint.configs, device, dtypes, residence
        self.ops = ops
        self.checkpoint, self._compile = checkpoint, compile
        self._base: Networks | None = None  # of networks with additions: those without
        self._additions: dict[str, Addition] = {}
        self._users: Counter[str] = Counter()  # of networks that are not on the device for good
        self._lock = threading.Lock()
        home = device if residence == "device" else torch.device("cpu")
        self._loaded: dict[str, nn.Module] = {}
        for name in checkpoint.configs:
            if name in ON_DEMAND:
                checkpoint.states[name]()  # checked like the others
                continue
            network = materialise(checkpoint, name, device=home, dtype=dtypes[name])
            if compile:
                compile_network(network, name, device)
            if residence != "disk":
                self._loaded[name] = network
        self._home: dict[str, dict[str, Tensor]] = {}  # weights in the computer's memory, while on the device

    @contextmanager
    def running(self, name: str) -> Iterator[Any]:
        """The network called `name` (see `models.NETWORKS`), on the device while the block lasts."""
        if self._base is not None and name not in self._additions:
            with self._base.running(name) as network:
                yield network
            return
        with ops.using(self.ops):
            if self.residence == "device":
                if name not in self._loaded:  # it was released, or runs for the first time
                    with self._lock:
                        self._load(name, self.device)
                yield self._loaded[name]
                return
            with self._lock:
                if not self._users[name]:
                    self._bring(name)
                self._users[name] += 1
                network = self._loaded[name]
            try:
                yield network
            finally:
                with self._lock:
                    self._users[name] -= 1
                    if not self._users[name]:
                        self._remove(name)

    def release(self, name: str) -> None:
        """Free the weights of a network, which is read again if it runs once more; nobody runs it now."""
        network = self._loaded.pop(name, None)
        if network is not None:
            network.to("meta")

    def _load(self, name: str, device: torch.device) -> nn.Module:
        """A network where it waits, read now if it is not there."""
        if name not in self._loaded:
            self._loaded[name] = materialise(self.checkpoint, name, device=device, dtype=self.dtypes[name])
        return self._loaded[name]

    def _bring(self, name: str) -> None:
        if self.residence == "disk":
            network = materialise(self.checkpoint, name, device=self.device, dtype=self.dtypes[name])
            self._loaded[name] = self._additions[name](network) if self._base else network
            return
        network = self._load(name, torch.device("cpu"))
        self._home[name] = dict(network.state_dict())
        on_device = {key: tensor.to(self.device) for key, tensor in self._home[name].items()}
        network.load_state_dict(on_device, assign=True)

    def _remove(self, name: str) -> None:
        if self.residence == "disk":
            self._loaded.pop(name).to("meta")  # frees the weights, even while a variable holds the network
        else:
            self._loaded[name].load_state_dict(self._home.pop(name), assign=True)

    def without_additions(self) -> "Networks":
        """These networks as their checkpoint has them."""
        return self._base or self

    def with_additions(self, additions: Mapping[str, Addition]) -> "Networks":
        """The same networks, some of them with additions in place of those that they have.

        Weights are shared, and these networks go on running as they are. An addition keeps the device and the
        dtype of the layers to which it adds.
        """
        base = self.without_additions()
        if not additions:
            return base
        found = copy.copy(base)
        found._base, found._additions = base, dict(additions)
        found._users, found._home = Counter(), {}
        found._add()
        return found

    def reloaded(self, checkpoint: Opened) -> "Networks":
        """The networks of another checkpoint of the same architecture, placed as these are."""
        return Networks(checkpoint, self.device, self.dtypes, self.residence, self._compile, self.ops)

    def _add(self) -> None:
        """Build the networks with additions, on weights of those without."""
        self._loaded = {}
        if self._base is None or self.residence == "disk":  # where they are built for each stage
            return
        for name, add in self._additions.items():
            self._loaded[name] = add(self._base._twin(name))
            if self._compile:
                compile_network(self._loaded[name], name, self.device)

    def _twin(self, name: str) -> nn.Module:
        """A second network on the same weights, where they wait."""
        twin = build_on_meta(name, self.configs[name])
        with self._lock:
            state = self._home.get(name) or self._loaded[name].state_dict()
        twin.load_state_dict(state, assign=True)
        return twin.requires_grad_(False)

    def __getstate__(self) -> dict[str, Any]:
        built_anew = {"_lock"} | ({"_loaded"} if self._base else set())
        return {key: value for key, value in vars(self).items() if key not in built_anew}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()
        if self._base is not None:
            self._add()


def materialise(checkpoint: Opened, name: str, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """One network, filled and ready to run, without gradients. No tensor is copied that can stay mapped.

    What opens the tensors has checked their keys and shapes.
    """
    network, state = build_on_meta(name, checkpoint.configs[name]), {}
    channels_last = device.type == "cuda" or dtype == torch.bfloat16  # what matrix units read, on CPUs too
    for key, tensor in _tensors(checkpoint, name, dtype):
        tensor = cast(name, key, tensor, dtype).to(device)
        state[key] = _channels_last(tensor) if channels_last else tensor
    network.load_state_dict(state, strict=True, assign=True)
    return network.requires_grad_(False)


def _tensors(checkpoint: Opened, name: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Keys and tensors of one network.

    What has been read of a mapped file counts as resident until the last of its tensors is gone. Where
    tensors are cast, and so not kept, the file is therefore opened anew now and then.
    """
    state, read = dict(checkpoint.states[name]()), 0
    for key in list(state):
        if read > REOPEN_BYTES:
            state, read = dict(checkpoint.states[name]()), 0
        read += state[key].nbytes if state[key].dtype != dtype else 0
        yield key, state.pop(key)


def _channels_last(weight: Tensor) -> Tensor:
    """The same weight of a convolution over images or time (out, in, ...), with `in` innermost in memory."""
    if weight.ndim == 4:
        return weight.to(memory_format=torch.channels_last)
    return weight.transpose(1, 2).contiguous().transpose(1, 2) if weight.ndim == 3 else weight
