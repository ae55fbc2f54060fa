"""The base class of all stages: networks, training steps, saving and restoring state.

The file is long because all that a stage can override, and all that stages share, is one class.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from audioldm2 import ops
from audioldm2.audio import vae_front_end, vae_log_mel
from audioldm2.checkpoints import storage
from audioldm2.checkpoints.load import load
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.errors import ArgumentError, some
from audioldm2.pipeline import AudioLDM2
from audioldm2.runtime.placement import Networks
from audioldm2.training.data import Captioned
from audioldm2.training.distributed import ALONE, Ranks
from audioldm2.training.optimizer import EMA, Optimizer
from audioldm2.training.randomness import forked_rng, generator
from audioldm2.training.recipe import Recipe
from audioldm2.training.sharding import gathered, shard, sharded_as

NOTES = "training.json"  # in the model's folder: the stage and the step that it is of

# Keys of state.pt in version 0.1, which `load_state_dict` still reads.
OLD_KEYS = {"ema": "averages", "optimizer": "descent", "adversary_optimizer": "adversary_descent"}


class Sample(NamedTuple):
    """A sound that is written during training."""

    name: str
    wave: Tensor  # (samples,)
    mel: Tensor  # (frames, mels)


SomeRecipe = TypeVar("SomeRecipe", bound=Recipe)


class Stage(Generic[SomeRecipe]):
    """One stage of training. A subclass names its networks and implements `training_step` and `samples`.

    Args:
        checkpoint: what training starts from; it stays unchanged.
        recipe: the settings.
        device: where the networks are trained.
        seed: of everything that training draws.

    Raises:
        ValueError: the checkpoint lacks a network that the stage needs.
    """

    name: ClassVar[str]
    captioned: ClassVar[bool]  # whether the stage reads captions
    generates: ClassVar[bool] = False  # whether its samples are sounds for captions
    product: ClassVar[str] = "model"  # the folder in the run's that the stage writes
    adapts: ClassVar[bool] = False  # whether the model stays as it is, and the run makes an adapter for it
    base, base_hash = "", ""  # of a stage that adapts: how others find that model, and which weights it has
    # "published": of the paper or upstream; "small": for SMALL networks; "finetune": for a trained model
    recipes: ClassVar[dict[str, Recipe]]
    ranks = ALONE  # the processes that share each batch
    _whole: dict[str, Any] | None = None  # of a sharded stage, inside `whole_weights`: its state

    def __init__(
        self, checkpoint: Checkpoint, recipe: SomeRecipe, device: torch.device, seed: int = 0
    ) -> None:
        self.initial, self.recipe, self.device, self.seed = checkpoint, recipe, device, seed
        if recipe.fp16 and device.type != "cuda":
            raise ArgumentError("fp16", recipe.fp16, f"be false on {device.type}; bf16 may be true")
        needed = (*self.trainable(), *self.frozen())
        missing = [name for name in needed if name not in checkpoint.configs]
        if missing:
            way = " The stage 'audiomae' adds it." if missing == ["audiomae"] else ""
            raise ValueError(
                f"{checkpoint.source} has no {some(missing)}, which the stage '{self.name}' needs.{way}"
            )
        vocoder = checkpoint.configs["hifigan"]
        self.front_end = vae_front_end(vocoder.sample_rate, vocoder.hop, vocoder.mels)
        self.downsampling = checkpoint.configs["vae"].downsampling
        self.require_length("seconds", recipe.seconds)
        configs = {name: checkpoint.configs[name] for name in needed}
        self.networks = Networks(
            replace(checkpoint, configs=configs), device, {name: self.dtype_of(name) for name in configs}
        )
        self.trained: dict[str, Any] = {name: self.make_trainable(name) for name in self.trainable()}
        self.ema = {name: EMA(network, recipe.ema) for name, network in self.trained.items() if recipe.ema}
        with forked_rng(torch.device("cpu"), "weights of helpers", seed):
            self.helpers: dict[str, Any] = {
                name: helper.to(device) for name, helper in self.make_helpers().items()
            }
        self.optimizer = self.make_optimizer()
        with forked_rng(torch.device("cpu"), "weights of an adversary", seed):
            adversary = self.make_adversary()
        self.adversary: Any = None if adversary is None else adversary.to(device)
        self.adversary_optimizer: Any = None if adversary is None else Optimizer([adversary], recipe)
        self.done = 0  # steps taken
        self.torn = False  # a step failed half-way, after it had changed weights: not a state to save
        self.sharded = False

    def join(self, ranks: Ranks, *, sharded: bool = False) -> None:
        """Makes this stage one of several that share each batch, before its first step and before it resumes.

        Args:
            ranks: the processes.
            sharded: keep a share of the trained weights and optimizer states on each rank; only the stage
                'ldm' can.

        Raises:
            ArgumentError: the batch cannot be shared equally, or what is trained cannot be sharded.
        """
        ranks.require_shares(self.recipe.batch)
        self.ranks, self.sharded = ranks, sharded
        if sharded:
            if self.name != "ldm":
                raise ArgumentError("shard", True, f"be left out for the stage '{self.name}': it is small")
            if self.recipe.optimizer == "muon":
                raise ArgumentError(
                    "shard", True, "be left out for the optimizer muon: it needs whole matrices"
                )
            shard(self.trained["unet"], self.device)
            self.ema = {name: EMA(self.trained[name], self.recipe.ema) for name in self.ema}
            self.optimizer = self.make_optimizer()
        self.optimizer.ranks = ranks
        if self.adversary_optimizer is not None:
            self.adversary_optimizer.ranks = ranks

    @classmethod
    def usual_recipe(cls, checkpoint: Checkpoint) -> str:
        """Names the recipe that suits a trained model."""
        return "finetune"

    @classmethod
    def recipe_for(cls, checkpoint: Checkpoint) -> Recipe:
        """Returns that recipe with what depends on the model: clips are as long as its sounds."""
        recipe = cls.recipes["finetune"]
        return replace(
            recipe, seconds=checkpoint.seconds, normalize=recipe.normalize and checkpoint.normalized
        )

    @classmethod
    def reads_captions(cls, recipe: Recipe) -> bool:
        """Whether the data has to have captions."""
        return cls.captioned

    # What each stage defines --------------------------------------------------------------------------------

    def trainable(self) -> tuple[str, ...]:
        """Names the networks that are trained."""
        raise NotImplementedError

    def frozen(self) -> tuple[str, ...]:
        """Names the networks that are used but not trained."""
        return ()

    def dtype_of(self, name: str) -> torch.dtype:
        """Returns the dtype in which a network's weights are held."""
        return torch.float32

    def make_trainable(self, name: str) -> nn.Module:
        """Returns what is trained of a network: by default all of it."""
        network = self.network(name)
        _make_trainable(network)
        return network

    def require_captions(self, captions: Sequence[str]) -> None:
        """Raises ArgumentError where the captions of the data do not suit the stage."""

    def make_adversary(self) -> nn.Module | None:
        """Builds the discriminator, if the stage has one; it is trained but not part of the model."""
        return None

    def make_helpers(self) -> dict[str, nn.Module]:
        """Builds what is trained with the networks by their loss but is not part of the model."""
        return {}

    def least_samples(self) -> int:
        """Counts the samples of the shortest clip that every part of a step accepts: here, a latent frame."""
        return self.downsampling * self.front_end.hop

    def prepare(self, wave: Tensor) -> Tensor:
        """Computes what `training_step` reads from clips (batch, samples), as far as it is deterministic and
        does not depend on trained weights."""
        return wave.to(self.device)

    def compute_ahead(
        self, data: Captioned, validation: Captioned | None, report: Callable[[str], object],
        should_stop: Callable[[], object],
    ) -> None:  # fmt: skip
        """Computes what the recipe wants before the first step; the arguments are those of `loop.train`."""

    def training_step(
        self, clips: Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes the losses of prepared clips and updates the networks.

        Returns:
            Metrics: "loss", its parts and "grad_norm".
        """
        raise NotImplementedError

    def validation_step(
        self, clips: Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes losses of prepared clips and changes nothing.

        Args:
            clips: (batch, ...), from `prepare`.
            captions: one per clip.
            generator: of noise and times; the same one gives the same losses.

        Returns:
            "loss", by which the best model is chosen, and its parts.
        """
        raise NotImplementedError

    def measure(self, waves: Iterable[Tensor]) -> None:
        """Measures what the saved model has to know about the trained networks, on batches of clips."""

    def warnings(self) -> list[str]:
        """Returns sentences about what this recipe does to other networks of the model."""
        return []

    def trained_configs(self) -> dict[str, Any]:
        """Returns the configs that training has changed."""
        return {}

    def samples(self, model: AudioLDM2, wave: Tensor, captions: list[str]) -> Iterator[Sample]:
        """Yields sounds that show the state of training, from the saved model.

        Args:
            model: the model as it was just saved.
            wave: a few clips (batch, samples).
            captions: of these clips.
        """
        raise NotImplementedError

    # What all stages share ----------------------------------------------------------------------------------

    def step(self, wave: Tensor, captions: list[str]) -> dict[str, float]:
        """Takes one training step on clips (batch, samples) and their captions; returns the metrics."""
        return self.step_prepared(self.prepare(wave), captions)

    def step_prepared(self, clips: Tensor, captions: list[str]) -> dict[str, float]:
        """Takes one training step on clips that `prepare` has returned; returns the metrics.

        Of several ranks, each gives the clips at its places in the batch; metrics are of the whole batch.
        """
        position, updates, buffers = (self.seed, self.done), self._updates(), self._buffers()
        try:
            with forked_rng(self.device, "dropout", *position), ops.share_of_batch(self.ranks):
                metrics = self.training_step(clips, captions, generator("noise", *position))
            values = {name: float(value.detach()) for name, value in metrics.items()}
            for ema in self.ema.values():
                ema.update(self.done + 1)
        except BaseException:
            self.torn = self._updates() != updates
            for buffer, before in buffers:
                buffer.copy_(before)
            raise
        self.done += 1
        values = self.ranks.means(values)
        return values | {"learning_rate": self.recipe.learning_rate_at(self.done - 1)}

    def require_length(self, name: str, seconds: float) -> None:
        """Raises ArgumentError where clips would be too short for this stage.

        Args:
            name: of the recipe's field.
            seconds: its value.
        """
        latent_frame = self.downsampling * self.front_end.hop
        least = -(-self.least_samples() // latent_frame) * latent_frame / self.front_end.sample_rate
        if round(seconds * self.front_end.sample_rate) < round(least * self.front_end.sample_rate):
            raise ArgumentError(name, seconds, f"be at least {least:g} for the stage '{self.name}'")

    def _updates(self) -> int:
        """Counts the updates that the optimizers have begun."""
        return self.optimizer.updates + (self.adversary_optimizer.updates if self.adversary_optimizer else 0)

    def _buffers(self) -> list[tuple[Tensor, Tensor]]:
        """Returns each running statistic, which a forward pass already changes, with a copy of it."""
        networks = [*self.trained.values(), *([] if self.adversary is None else [self.adversary])]
        buffers = [buffer for network in networks for buffer in network.buffers()]
        return [(buffer, buffer.clone()) for buffer in buffers]

    @contextmanager
    def as_saved(self) -> Iterator[None]:
        """Gives the trained networks the weights that `checkpoint` saves, and eval mode, inside the block."""
        with ExitStack() as stack:
            for ema in self.ema.values():
                stack.enter_context(ema.in_place())
            for network in self.trained.values():
                network.eval()
                stack.callback(network.train)
            yield

    def make_optimizer(self) -> Optimizer:
        """Returns an optimizer of all that the stage's own loss trains."""
        return Optimizer([*self.trained.values(), *self.helpers.values()], self.recipe)

    def network(self, name: str) -> Any:
        """Returns a network of this stage, loaded."""
        with self.networks.running(name) as network:
            return network

    def autocast(self) -> torch.autocast:
        """Returns the autocast context for networks; spectrograms and losses need float32."""
        dtype = self.recipe.precision
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def mel(self, wave: Tensor) -> Tensor:
        """Computes log-mels (batch, frames, mels) of clips (batch, samples), cut to whole latent frames."""
        mel = vae_log_mel(wave, self.front_end)
        return mel[:, : mel.shape[1] // self.downsampling * self.downsampling]

    def randn_like(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draws Gaussian noise in the shape of x on the CPU and moves it to x's device.

        Where ranks share a batch, it draws for all rows of the batch and returns those of x.
        """
        whole = torch.randn((self.whole_batch(x), *x.shape[1:]), generator=generator)
        return self.ranks.rows(whole).to(x.device)

    def whole_batch(self, clips: Tensor) -> int:
        """Counts the clips of the whole batch, of which these are this rank's."""
        return len(clips) * self.ranks.count

    # Saving and restoring -----------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """Returns the whole model: trained networks (their averages if there are any) and all others."""
        whole = self._whole or {"ema": {name: ema.state for name, ema in self.ema.items()}}
        states = {
            name: partial(_detached, whole["ema"][name] if name in self.ema else self.weights(name))
            for name in self.trained
        }
        configs = self.initial.configs | self.trained_configs()
        return replace(self.initial, configs=configs, states=self.initial.states | states)

    def weights(self, name: str) -> dict[str, Tensor]:
        """Returns the state dict of a trained network."""
        return self._whole["networks"][name] if self._whole else self.trained[name].state_dict()

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Makes the state of a sharded stage whole inside the block, to be saved; all ranks have to enter it.

        Without sharding it does nothing.
        """
        self._whole = gathered(self.state_dict()) if self.sharded else None
        try:
            yield
        finally:
            self._whole = None

    def save_model(self, folder: Path) -> None:
        """Writes what the run makes, the whole model, into the run's folder, with the step that it is of."""
        notes = {NOTES: {"stage": self.name, "step": self.done}}
        storage.write(self.checkpoint(), folder / self.product, force=True, durable=True, notes=notes)

    def load_model(self, folder: Path) -> AudioLDM2:
        """Loads what `save_model` has written, to generate with it."""
        return load(folder / self.product, device=self.device, dtype="float32")

    def outcome(self, folder: Path) -> str:
        """Says what the run has made."""
        return f"{folder / self.product} is the model"

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that a resumed run needs to continue exactly."""
        return self._whole or {
            "done": self.done,
            "networks": {name: network.state_dict() for name, network in self.trained.items()},
            "helpers": {name: helper.state_dict() for name, helper in self.helpers.items()},
            "ema": {name: ema.state for name, ema in self.ema.items()},
            "optimizer": self.optimizer.state_dict(),
            "adversary": self.adversary and self.adversary.state_dict(),
            "adversary_optimizer": self.adversary_optimizer and self.adversary_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of a run of the same stage and recipe; states of version 0.1 load too."""
        state = state | {new: state[old] for new, old in OLD_KEYS.items() if old in state}
        self.done = state["done"]
        for name, network in self.trained.items():
            own, weights = network.state_dict(), state["networks"][name]
            network.load_state_dict(
                {key: sharded_as(x, own[key]) if key in own else x for key, x in weights.items()}
            )
        for name, helper in self.helpers.items():
            helper.load_state_dict(state["helpers"][name])
        for name, ema in self.ema.items():
            for key, tensor in ema.state.items():
                tensor.copy_(sharded_as(state["ema"][name][key], tensor))
        self.optimizer.load_state_dict(state["optimizer"])
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])
            self.adversary_optimizer.load_state_dict(state["adversary_optimizer"])


def _make_trainable(network: nn.Module) -> None:
    """Copies the weights, which are mapped from the checkpoint's file, and enables gradients."""
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()
    network.requires_grad_(True).train()


def _detached(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().cpu() for key, tensor in state.items()}
