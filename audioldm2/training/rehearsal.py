"""How much memory a stage takes, found without taking it: its own code runs on tensors that have no data.

PyTorch's `FakeTensorMode` computes shapes, dtypes and which tensors autograd keeps, and nothing else. A
`Ledger` beside it counts the bytes of every storage that is alive. So the figures follow the code of the
networks and of the stage, whatever is edited there, and take seconds and no memory for models of any size.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.models import expected_shapes
from audioldm2.prompt.encode import Row
from audioldm2.training.ldm import Draws, LDMStage
from audioldm2.training.ldm_recipe import LDMRecipe

SCALAR, NONZERO = torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default


@dataclass(frozen=True)
class Growth:
    """Bytes that a step takes for some clips: `fixed`, and `each` for every clip."""

    fixed: int
    each: int

    def of(self, clips: int) -> int:
        """Returns the bytes for a number of clips."""
        return self.fixed + clips * self.each


@dataclass(frozen=True)
class Rehearsal:
    """What a stage holds, in bytes."""

    trainable: tuple[str, ...]  # networks that learn, or that adapters or new words are for
    weights: dict[str, int]  # of each network, adapters and new words included
    learning: int  # parameters that learn
    averages: int  # of these
    latent: int  # what `prepare` returns for a clip
    text: int  # what T5 and CLAP return for the caption
    encoding: int  # for each clip, while clips are encoded to latents
    step: Growth  # while a loss and its gradient are computed, beside the gradients of what learns
    validation: int  # for each clip, while a loss is computed without gradients


class Ledger(TorchDispatchMode):
    """Counts the bytes of storages that operations create inside the block, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._storages: dict[int, weakref.ref] = {}  # by address

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is SCALAR and args[0].dtype == torch.bool and getattr(args[0], "constant", None) is None:
            return True  # `Conditioning` asks whether each row has a token; there is no data to read
        if func is NONZERO:  # GPT-2 asks which columns hold a real token: all of them
            return torch.arange(args[0].numel()).unsqueeze(1)
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                self._add(each.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self._storages:
            return

        def remove(_: object) -> None:
            del self._storages[address]
            self.now -= size

        self._storages[address] = weakref.ref(storage, remove)
        self.now += size
        self.peak = max(self.peak, self.now)

    def peak_of(self, run: Callable[[], object]) -> int:
        """Returns how many bytes more than now are alive at once while `run` runs."""
        before = self.peak = self.now
        run()
        return self.peak - before


def rehearse(kind: type[LDMStage], checkpoint: Checkpoint, recipe: LDMRecipe, caption: str) -> Rehearsal:
    """Measures a stage on one clip and on two.

    Args:
        kind: `LDMStage`, or a subclass.
        checkpoint: its configs and tokenizers; no weight is read.
        recipe: of the stage.
        caption: of each clip; a long one takes more.
    """
    # On a CPU whatever the device: the same tensors are kept there. What has its own place in the plan, or
    # touches the disk, is left out.
    plain = replace(recipe, fp16=False, bf16=recipe.bf16 or recipe.fp16, cache_gb=0.0, pool=0, accumulate=1)
    with FakeTensorMode(allow_non_fake_inputs=True), Ledger() as ledger:
        states: dict[str, Callable[[], dict[str, Tensor]]] = {
            name: partial(_empty, name, config) for name, config in checkpoint.configs.items()
        }
        stage = kind(replace(checkpoint, states=states), plain, torch.device("cpu"))
        latents: Tensor = stage.encode_clips(_wave(stage, 1))
        encoding = ledger.peak_of(lambda: stage.encode_clips(_wave(stage, 1)))
        _make_gradients(stage)  # which the plan counts apart
        peaks = [ledger.peak_of(partial(_learn, stage, latents, caption, clips)) for clips in (1, 2)]
        with torch.no_grad():
            validation = ledger.peak_of(lambda: _loss(stage, latents, caption, 1))
        texts = stage.encoders.read([Row(caption, caption, stage.encoders.length(caption))])
        names = (*stage.trainable(), *stage.frozen())
        return Rehearsal(
            trainable=stage.trainable(),
            weights={name: _bytes(stage.network(name)) + _besides(stage, name) for name in names},
            learning=sum(_bytes(each) for each in stage.trained.values()),
            averages=sum(each.nbytes for ema in stage.ema.values() for each in ema.state.values()),
            latent=latents.nbytes,
            text=sum(each.nbytes for each in texts if each is not None),
            encoding=encoding,
            step=Growth(2 * peaks[0] - peaks[1], peaks[1] - peaks[0]),
            validation=validation,
        )


def _empty(name: str, config: Any) -> dict[str, Tensor]:
    return {key: torch.empty(shape) for key, shape in expected_shapes(name, config).items()}


def _wave(stage: LDMStage, clips: int) -> Tensor:
    return torch.zeros(clips, round(stage.recipe.seconds * stage.front_end.sample_rate))


def _make_gradients(stage: LDMStage) -> None:
    for network in stage.trained.values():
        for parameter in network.parameters():
            parameter.grad = torch.empty_like(parameter)


def _learn(stage: LDMStage, latents: Tensor, caption: str, clips: int) -> None:
    """A loss and its gradient, which is added to gradients that are there already."""
    _loss(stage, latents, caption, clips).backward()


def _loss(stage: LDMStage, latents: Tensor, caption: str, clips: int) -> Tensor:
    x0 = torch.zeros(clips, *latents.shape[2:])
    dropped = torch.tensor([False] * clips)
    t = torch.zeros(clips, dtype=torch.long)
    loa = heard = None
    if stage.reads_loa:
        gpt2 = stage.initial.configs["gpt2"]
        loa, heard = torch.zeros(clips, gpt2.new_vectors, gpt2.dim), ~dropped if stage.only_loa else dropped
    draws = Draws(x0, x0.clone(), x0.clone(), t, dropped, dropped, 0, loa, heard)
    return stage.loss([caption] * clips, draws)


def _bytes(network: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))


def _besides(stage: LDMStage, name: str) -> int:
    """Bytes of what learns beside a network and is not on it, such as a new word's vectors."""
    on_it = {id(parameter) for parameter in stage.network(name).parameters()}
    trained: nn.Module | None = stage.trained.get(name)
    beside = [] if trained is None else [each for each in trained.parameters() if id(each) not in on_it]
    return sum(each.nbytes for each in beside)
