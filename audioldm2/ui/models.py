"""The models that a page offers: what each costs, and the one that is loaded."""

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from audioldm2.checkpoints import hub
from audioldm2.convert.report import licence_of
from audioldm2.errors import ArgumentError
from audioldm2.pipeline import AudioLDM2
from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.sound_shape import SoundShape

IN_PACKAGE = {hub.DEMO: "knows simple sounds", hub.SPEECH_DEMO: "says digits and 100 words in three voices"}
# Hub id -> what it is and the GB to fetch, by the number of its weights in float32 and its tokenizers.
PUBLISHED = {
    "cvssp/audioldm2": ("sound effects and music", 4.5),
    "cvssp/audioldm2-music": ("music", 4.5),
    "cvssp/audioldm2-large": ("sound effects and music, the larger network", 6.0),
}


@dataclass(frozen=True)
class Known:
    """What the page knows of a model that has been loaded once, and needs to check a request."""

    sound: SoundShape
    schedule: NoiseSchedule
    speaks: bool
    hears: bool = False  # reads a sound as a prompt


def cost(name: str) -> str:
    """What a model costs whoever chooses it: its size, and its licence."""
    if name in IN_PACKAGE:
        return f"Comes with the package: 12 MB, nothing to fetch. It {IN_PACKAGE[name]}. MIT licence."
    if name in PUBLISHED:
        content, size = PUBLISHED[name]
        return f"{content.capitalize()}. About {size:g} GB to fetch, once. Licence: {licence_of(name)}"
    if Path(name).expanduser().exists():
        return f"On this computer: nothing to fetch. Licence: {licence_of(name)}"
    return f"Fetched from the Hugging Face Hub, once; its size is not known. Licence: {licence_of(name)}"


class Models:
    """Loads models by name, and keeps the last one; `get` is for the worker's thread alone.

    Args:
        names: those that are offered, the first to begin with. No other name is ever looked for.
        load: `audioldm2.load` with the settings of the server.
    """

    def __init__(self, names: Iterable[str], load: Callable[[str], AudioLDM2]):
        self.names = list(dict.fromkeys(names))
        self._load = load
        self._known: dict[str, Known] = {}
        self._loaded: tuple[str, AudioLDM2] | None = None

    def known(self, name: str) -> Known:
        """What is known of a model; ArgumentError where it is not offered, or has not been loaded yet."""
        if name not in self.names:
            raise ArgumentError("model", name, f"be one of {', '.join(self.names)}")
        if name not in self._known:
            allowed = "be loaded first: choose it on the page, and press Load"
            raise ArgumentError("model", name, allowed, given=f"is {name}, which is not loaded")
        return self._known[name]

    def get(self, name: str) -> AudioLDM2:
        """The model; loaded, and fetched, if need be.

        Raises:
            ArgumentError: it is not offered.
            WeightsError: it cannot be fetched or loaded.
        """
        if self._loaded is not None and self._loaded[0] == name:
            return self._loaded[1]
        if name not in self.names:
            self.known(name)  # which raises
        self._loaded = None
        gc.collect()  # the old model goes before the new one comes
        model = self._load(name)
        self._loaded = name, model
        speaks, hears = getattr(model, "speaks", False), getattr(model, "hears", False)
        self._known[name] = Known(model.sound, model.schedule, speaks, hears)
        return model
