"""Networks compiled by PyTorch, and on CUDA captured as graphs: `load(..., compile=True)`.

The first sound then takes longer, minutes where nothing is in PyTorch's cache on disk, and later ones less
time: kernels are fused, and on CUDA a step costs the processor one call. A second length is compiled for any
length; a graph is captured for each. So that prompts have few lengths, the denoiser is given T5's context
filled up to whole multiples of 32 tokens, with what the mask hides.

What a captured graph has made lies in the graph's own memory, where its next run writes too; so it is copied
out. Nothing in these networks may depend on values of tensors, or a graph would be wrong: `fullgraph` makes
PyTorch refuse. Nor may anything about them change between calls, or they are compiled anew: see `remembered`.
Hooks are heard if they are there before the first sound: PyTorch does not look for later ones.
What PyTorch cannot compile, for want of a C++ compiler or for having compiled too many kinds of request, runs
as written.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WHOLE = 32  # tokens of T5


@dataclass(frozen=True)
class Part:
    """What of a network takes the time, and how it is compiled."""

    module: str = ""  # the module in it; "": itself
    method: str = "forward"
    any_length: bool = False  # from the first length on: nearly every call has another
    on_cpu: bool = False  # there too
    prepare: Callable[..., dict[str, Any]] = dict  # of what it is given by name


def few_lengths(
    text_context: Tensor | None = None, t5_mask: Tensor | None = None, **others: Any
) -> dict[str, Any]:
    """What the denoiser is given; of T5, (batch, seq, t5_dim) and (batch, seq), with seq filled up."""
    if text_context is not None and t5_mask is not None:
        more = -t5_mask.shape[1] % WHOLE
        text_context, t5_mask = F.pad(text_context, (0, 0, 0, more)), F.pad(t5_mask, (0, more))
    return {"text_context": text_context, "t5_mask": t5_mask, **others}


# On a CPU, GPT-2 takes minutes to compile and then 0.3 s in place of 0.35; the decoder takes as long as
# before, and the vocoder longer, without what `onednn` makes of its convolutions. The denoiser in bfloat16
# takes a twentieth less on a processor with AMX, and a fifth more on one without, where `onednn` does more.
PARTS = {
    "gpt2": Part(method="generate", any_length=True),  # its eight steps as one graph
    "unet": Part(on_cpu=True, prepare=few_lengths),
    "vae": Part(module="decoder"),
    "hifigan": Part(),
}


class Compiled:
    """A method of a network, compiled at its first call."""

    def __init__(self, module: nn.Module, part: Part, name: str, device: torch.device, backend: str):
        self.module, self.part, self.name, self.device, self.backend = module, part, name, device, backend
        self.warned = False
        self._begin()

    def _begin(self) -> None:
        graphs = "reduce-overhead" if self.device.type == "cuda" and self.backend == "inductor" else None
        dynamic = True if self.part.any_length else None  # None: for any from the second length on
        self.as_written = getattr(type(self.module), self.part.method).__get__(self.module)
        self.run = torch.compile(
            self.as_written, fullgraph=True, dynamic=dynamic, mode=graphs, backend=self.backend
        )
        self.has_run = False

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this very network: a copy compiles anew."""
        return {key: value for key, value in vars(self).items() if key not in ("as_written", "run")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def __call__(self, *given: Tensor, **named: Tensor) -> Tensor:
        named = self.part.prepare(**named)
        torch.compiler.cudagraph_mark_step_begin()
        try:
            made = self.run(*given, **named).clone()
        except Exception as error:  # PyTorch's versions raise many kinds
            made = self.as_written(*given, **named)  # what is wrong with the arguments is raised here
            if not self.has_run:  # nor will it another time
                self.run = self.as_written
            self._warn(error)
            return made
        self.has_run = True
        return made

    def _warn(self, error: Exception) -> None:
        if not self.warned:
            reason = " ".join(str(error).split("\n")[:2]) or type(error).__name__
            warnings.warn(
                f"'{self.name}' could not be compiled, so it runs as written, with the same result: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )
        self.warned = True


def compiled(network: nn.Module, name: str, device: torch.device, backend: str = "inductor") -> nn.Module:
    """The same network; what takes the time in it will be compiled at its first call."""
    part = PARTS.get(name)
    if part is not None and (device.type != "cpu" or part.on_cpu):
        module = network.get_submodule(part.module)
        setattr(module, part.method, Compiled(module, part, name, device, backend))
    return network
