"""The base class of all stages: networks, training steps, saving and restoring state."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from audioldm2.audio import vae_front_end, vae_log_mel
from audioldm2.checkpoints import storage
from audioldm2.checkpoints.load import load
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.errors import some
from audioldm2.pipeline import AudioLDM2
from audioldm2.runtime.placement import Networks
from audioldm2.training.optimizer import EMA, Optimizer
from audioldm2.training.randomness import forked_rng, generator
from audioldm2.training.recipe import Recipe

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
    adapts: ClassVar[bool] = False  # whether the model stays as it is, and the run makes an adapter for it
    base, base_hash = "", ""  # of a stage that adapts: how others find that model, and which weights it has
    recipes: ClassVar[dict[str, Recipe]]  # "published": of the paper or upstream; "small": for SMALL networks

    def __init__(
        self, checkpoint: Checkpoint, recipe: SomeRecipe, device: torch.device, seed: int = 0
    ) -> None:
        self.initial, self.recipe, self.device, self.seed = checkpoint, recipe, device, seed
        needed = (*self.trainable(), *self.frozen())
        missing = [name for name in needed if name not in checkpoint.configs]
        if missing:
            raise ValueError(
                f"{checkpoint.source} has no {some(missing)}, which the stage '{self.name}' needs."
            )
        vocoder = checkpoint.configs["hifigan"]
        self.front_end = vae_front_end(vocoder.sample_rate, vocoder.hop, vocoder.mels)
        self.downsampling = checkpoint.configs["vae"].downsampling
        configs = {name: checkpoint.configs[name] for name in needed}
        self.networks = Networks(
            replace(checkpoint, configs=configs), device, dict.fromkeys(configs, torch.float32)
        )
        self.trained: dict[str, Any] = {name: self.make_trainable(name) for name in self.trainable()}
        self.ema = {name: EMA(network, recipe.ema) for name, network in self.trained.items() if recipe.ema}
        self.optimizer = Optimizer(self.trained.values(), recipe)
        with forked_rng(torch.device("cpu"), "weights of an adversary", seed):
            adversary = self.make_adversary()
        self.adversary: Any = None if adversary is None else adversary.to(device)
        self.adversary_optimizer: Any = None if adversary is None else Optimizer([adversary], recipe)
        self.done = 0  # steps taken

    # What each stage defines --------------------------------------------------------------------------------

    def trainable(self) -> tuple[str, ...]:
        """Names the networks that are trained."""
        raise NotImplementedError

    def frozen(self) -> tuple[str, ...]:
        """Names the networks that are used but not trained."""
        return ()

    def make_trainable(self, name: str) -> nn.Module:
        """Returns what is trained of a network: by default all of it."""
        network = self.network(name)
        _make_trainable(network)
        return network

    def make_adversary(self) -> nn.Module | None:
        """Builds the discriminator, if the stage has one; it is trained but not part of the model."""
        return None

    def prepare(self, wave: Tensor) -> Tensor:
        """Computes what `training_step` reads from clips (batch, samples), as far as it is deterministic and
        does not depend on trained weights."""
        return wave.to(self.device)

    def training_step(
        self, clips: Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes the losses of prepared clips and updates the networks.

        Returns:
            Metrics: "loss", its parts and "grad_norm".
        """
        raise NotImplementedError

    def measure(self, waves: Iterable[Tensor]) -> None:
        """Measures what the saved model has to know about the trained networks, on batches of clips."""

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
        """Takes one training step on clips that `prepare` has returned; returns the metrics."""
        position = (self.seed, self.done)
        with forked_rng(self.device, "dropout", *position):
            metrics = self.training_step(clips, captions, generator("noise", *position))
        self.done += 1
        for ema in self.ema.values():
            ema.update(self.done)
        values = {name: float(value.detach()) for name, value in metrics.items()}
        return values | {"learning_rate": self.recipe.learning_rate_at(self.done - 1)}

    def network(self, name: str) -> Any:
        """Returns a network of this stage, loaded."""
        with self.networks.running(name) as network:
            return network

    def autocast(self) -> torch.autocast:
        """Returns the autocast context for networks; spectrograms and losses need float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16)

    def mel(self, wave: Tensor) -> Tensor:
        """Computes log-mels (batch, frames, mels) of clips (batch, samples), cut to whole latent frames."""
        mel = vae_log_mel(wave, self.front_end)
        return mel[:, : mel.shape[1] // self.downsampling * self.downsampling]

    def randn_like(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draws Gaussian noise in the shape of x on the CPU and moves it to x's device."""
        return torch.randn(x.shape, generator=generator).to(x.device)

    # Saving and restoring -----------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """Returns the whole model: trained networks (their averages if there are any) and all others."""
        states = {
            name: partial(_detached, self.ema[name].state if name in self.ema else network.state_dict())
            for name, network in self.trained.items()
        }
        configs = self.initial.configs | self.trained_configs()
        return replace(self.initial, configs=configs, states=self.initial.states | states)

    def save_model(self, folder: Path) -> None:
        """Writes what the run makes into its folder: the whole model."""
        storage.write(self.checkpoint(), folder / "model", force=True)

    def load_model(self, folder: Path) -> AudioLDM2:
        """Loads what `save_model` has written, to generate with it."""
        return load(folder / "model", device=self.device, dtype="float32")

    def outcome(self, folder: Path) -> str:
        """Says what the run has made."""
        return f"{folder / 'model'} is the model"

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that a resumed run needs to continue exactly."""
        return {
            "done": self.done,
            "networks": {name: network.state_dict() for name, network in self.trained.items()},
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
            network.load_state_dict(state["networks"][name])
        for name, ema in self.ema.items():
            for key, tensor in ema.state.items():
                tensor.copy_(state["ema"][name][key])
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
