"""The CLAP that judges: vectors of texts and sounds, and the hash that says which CLAP it is."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from audioldm2 import clap_score
from audioldm2.errors import ArgumentError
from audioldm2.pipeline import AudioLDM2
from audioldm2.runtime.placement import Networks


@dataclass(frozen=True)
class Prompt:
    """A prompt of an evaluation."""

    text: str
    family: str = ""  # the kind of sound, where that is known
    category: str = ""  # the heading under which its scores are averaged


class Judge:
    """The CLAP of a model, which turns texts and sounds into vectors of one space."""

    def __init__(self, model: AudioLDM2):
        """Raises ArgumentError for a model without CLAP."""
        if model.clap_tokenizer is None or "clap_audio" not in model.networks.configs:
            raise ArgumentError("judge", model, "be a model with CLAP", given=f"is {model}, without CLAP")
        self.model, self.networks = model, model.networks
        self.front_end, self.tokenizer = model.clap_mel, model.clap_tokenizer

    @cached_property
    def digest(self) -> str:
        """16 hex digits that stand for CLAP's weights and its front end."""
        return weights_digest(self.networks, ("clap_audio", "clap_text"), repr(self.front_end))

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """Vectors of texts: float32 (texts, clap_dim)."""
        return clap_score.embed_texts(self.networks, self.tokenizer, texts)

    def of_sounds(self, sounds: Sequence[Tensor], rate: int) -> Tensor:
        """Vectors of sounds, each (samples,) at `rate` Hz: float32 (sounds, clap_dim)."""
        return clap_score.embed_sounds(self.networks, self.front_end, sounds, rate)

    def families(self, sounds: Tensor, texts: Mapping[str, Sequence[str]]) -> list[str]:
        """The family whose texts are nearest to each sound.

        Args:
            sounds: vectors (sounds, clap_dim).
            texts: family -> texts that describe it.
        """
        names = list(texts)
        centres = torch.stack([self.of_texts(texts[name]).mean(dim=0) for name in names])
        return [names[i] for i in (sounds @ centres.T).argmax(dim=1)]


def weights_digest(networks: Networks, names: Iterable[str], *also: str) -> str:
    """16 hex digits of a SHA-256 over networks: the names, shapes and float32 values of their tensors.

    also: settings that belong to them.
    """
    found = hashlib.sha256("\0".join(also).encode())
    for name in names:
        with networks.running(name) as network:
            for key, tensor in sorted(network.state_dict().items()):
                found.update(f"\0{name}.{key}{tuple(tensor.shape)}".encode())
                found.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return found.hexdigest()[:16]
