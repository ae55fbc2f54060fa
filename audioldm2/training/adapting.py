"""What the stages share that make an adapter for a model, which stays as it is."""

from pathlib import Path
from typing import Any, ClassVar

from audioldm2.adapters import writing
from audioldm2.checkpoints.load import load
from audioldm2.pipeline import AudioLDM2
from audioldm2.result import package_version
from audioldm2.training.ldm import LDMStage
from audioldm2.training.stage import NOTES


class AdaptingStage(LDMStage):
    """A stage that trains an adapter for the model called `base`, of which nothing else changes."""

    adapts = True
    flag: ClassVar[str]  # of `audioldm2 generate`, with which it is used

    def metadata(self) -> dict[str, str]:
        """Returns what the adapter's file says of its origin."""
        return {
            "base_model": self.base or self.initial.source,
            "base_sha256": self.base_hash,  # of the networks that it adapts, see `writing.hash_of`
            "license": writing.license_of(self.initial.source),
            "audioldm2": package_version(),
            "steps": str(self.done),
        }

    def notes(self) -> dict[str, Any]:
        """Returns the JSON file that lies beside the adapter."""
        return {NOTES: {"stage": self.name, "step": self.done}}

    def load_model(self, folder: Path) -> AudioLDM2:
        """Loads the model and the adapter that was saved."""
        model = load(self.base, device=self.device, dtype="float32")
        self.load_into(model, folder / self.product)
        return model

    def load_into(self, model: AudioLDM2, folder: Path) -> None:
        """Loads the adapter that was saved into a model."""
        raise NotImplementedError

    def noun(self) -> str:
        """What the adapter is called in a sentence."""
        raise NotImplementedError

    def outcome(self, folder: Path) -> str:
        """Says what the run has made, and how to use it."""
        path = folder / self.product
        return f"{path} is {self.noun()}; use it with --model {self.base} {self.flag} {path}"
