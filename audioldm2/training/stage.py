"""What all stages share: networks of a checkpoint, some of which learn, and what a run has to remember."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from audioldm2.audio import VAE_MEL, MelSettings, vae_log_mel
from audioldm2.checkpoints.storage import Checkpoint
from audioldm2.errors import some
from audioldm2.models.hifigan import HiFiGANConfig
from audioldm2.pipeline import AudioLDM2
from audioldm2.runtime.placement import Networks
from audioldm2.training.optimizer import Average, Descent
from audioldm2.training.randomness import chance, generator
from audioldm2.training.recipe import Recipe

VAE_MEL_48K = MelSettings(48_000, n_fft=2048, hop=480, mels=256, f_min=20.0, f_max=24_000.0)


class Sample(NamedTuple):
    """Something to hear and to see while training."""

    name: str
    wave: Tensor  # (samples,)
    mel: Tensor  # (frames, mels)


class Stage:
    """One stage of training. It names what it `trains` and `reads`, and has `losses`; the rest is here.

    checkpoint: what training begins with; it stays as it is.
    seed:       of everything that is drawn while training.
    Raises ValueError for a checkpoint without the networks that the stage needs.
    """

    name: ClassVar[str]
    captioned: ClassVar[bool]  # whether it reads the captions
    recipes: ClassVar[dict[str, Recipe]]  # "published", of the paper or upstream; "small", for SMALL networks
    recipe: Recipe

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, device: torch.device, seed: int = 0):
        self.start, self.recipe, self.device, self.seed = checkpoint, recipe, device, seed
        wanted = (*self.trains(), *self.reads())
        absent = [name for name in wanted if name not in checkpoint.configs]
        if absent:
            raise ValueError(
                f"{checkpoint.source} has no {some(absent)}, which the stage '{self.name}' needs."
            )
        self.front_end = front_end(checkpoint.configs["hifigan"])
        self.downsampling = checkpoint.configs["vae"].downsampling
        configs = {name: checkpoint.configs[name] for name in wanted}
        self.networks = Networks(
            replace(checkpoint, configs=configs), device, dict.fromkeys(configs, torch.float32)
        )
        self.trained = {name: self.network(name) for name in self.trains()}
        for network in self.trained.values():
            _make_learn(network)
        self.averages = {name: Average(each, recipe.ema) for name, each in self.trained.items() if recipe.ema}
        self.descent = Descent(self.trained.values(), recipe)
        with chance(torch.device("cpu"), "weights of an adversary", seed):
            adversary = self.make_adversary()
        self.adversary = None if adversary is None else adversary.to(device)
        self.adversary_descent = None if adversary is None else Descent([adversary], recipe)
        self.done = 0  # steps taken

    # What each stage says -----------------------------------------------------------------------------------

    def trains(self) -> tuple[str, ...]:
        """The networks that learn."""
        raise NotImplementedError

    def reads(self) -> tuple[str, ...]:
        """The networks that are used as they are."""
        return ()

    def make_adversary(self) -> nn.Module | None:
        """What judges the trained networks, and learns against them; it is not written out."""
        return None

    def prepare(self, wave: Tensor) -> Tensor:
        """What `losses` reads of clips (batch, samples): what draws nothing and does not learn, done once."""
        return wave.to(self.device)

    def losses(self, clips: Tensor, captions: list[str], drawn: torch.Generator) -> dict[str, Tensor]:
        """One optimisation on prepared clips and their captions; returns "loss" and what made it."""
        raise NotImplementedError

    def measure(self, waves: Iterable[Tensor]) -> None:
        """What has to be known of the trained networks before they are written, off some batches of clips."""

    def configs(self) -> dict[str, Any]:
        """The configs that training has changed."""
        return {}

    def samples(self, model: AudioLDM2, wave: Tensor, captions: list[str]) -> Iterator[Sample]:
        """What the model that was written makes of a few clips (batch, samples) or captions."""
        raise NotImplementedError

    # What they share ----------------------------------------------------------------------------------------

    def step(self, wave: Tensor, captions: list[str]) -> dict[str, float]:
        """One step on clips (batch, samples) and their captions: what the loss was, and of what."""
        return self.learn(self.prepare(wave), captions)

    def learn(self, clips: Tensor, captions: list[str]) -> dict[str, float]:
        """One step on clips that `prepare` has made ready."""
        here = (self.seed, self.done)
        with chance(self.device, "dropout", *here):
            found = self.losses(clips, captions, generator("noise", *here))
        self.done += 1
        for average in self.averages.values():
            average.update(self.done)
        metrics = {name: float(value.detach()) for name, value in found.items()}
        return metrics | {"learning_rate": self.recipe.learning_rate_at(self.done - 1)}

    def network(self, name: str) -> nn.Module:
        with self.networks.running(name) as network:
            return network

    def autocast(self) -> torch.autocast:
        """For the networks alone: spectrograms and losses need float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16)

    def mel(self, wave: Tensor) -> Tensor:
        """Log-mel (batch, frames, mels) of clips (batch, samples), cut to whole frames of the latent."""
        mel = vae_log_mel(wave, self.front_end)
        return mel[:, : mel.shape[1] // self.downsampling * self.downsampling]

    def randn_like(self, x: Tensor, drawn: torch.Generator) -> Tensor:
        """Noise in the shape of x, drawn on the CPU."""
        return torch.randn(x.shape, generator=drawn).to(x.device)

    # What is written and read back --------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """The whole model as it is now: what was trained (its average, where one is kept), and the rest."""
        states = {
            name: partial(
                _detached, self.averages[name].state if name in self.averages else each.state_dict()
            )
            for name, each in self.trained.items()
        }
        configs = self.start.configs | self.configs()
        return replace(self.start, configs=configs, states=self.start.states | states)

    def state_dict(self) -> dict[str, Any]:
        """All that a run has to remember to go on as if it had not been stopped."""
        return {
            "done": self.done,
            "networks": {name: network.state_dict() for name, network in self.trained.items()},
            "averages": {name: average.state for name, average in self.averages.items()},
            "descent": self.descent.state_dict(),
            "adversary": self.adversary and self.adversary.state_dict(),
            "adversary_descent": self.adversary_descent and self.adversary_descent.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of the same stage and recipe."""
        self.done = state["done"]
        for name, network in self.trained.items():
            network.load_state_dict(state["networks"][name])
        for name, average in self.averages.items():
            for key, tensor in average.state.items():
                tensor.copy_(state["averages"][name][key])
        self.descent.load_state_dict(state["descent"])
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])
            self.adversary_descent.load_state_dict(state["adversary_descent"])


def front_end(vocoder: HiFiGANConfig) -> MelSettings:
    """The log-mel front end of a model, which its checkpoint does not tell: that of AudioLDM at its rate.

    Source: the preprocessing of upstream's configs, `audioldm2-full` at 16 kHz and `audioldm_48k` at 48 kHz.
    """
    for settings in (VAE_MEL, VAE_MEL_48K):
        if vocoder.sample_rate == settings.sample_rate:
            return replace(settings, hop=vocoder.hop, mels=vocoder.mels)
    raise ValueError(
        f"the vocoder makes {vocoder.sample_rate} Hz; training knows the mel bands of 16 and 48 kHz."
    )


def _make_learn(network: nn.Module) -> None:
    """Weights of its own, with gradients: those of a checkpoint lie mapped in its file."""
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()
    network.requires_grad_(True).train()


def _detached(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().cpu() for key, tensor in state.items()}
