"""Modules of version 0.1 under their old names, for one release.

Version 0.1 had flat modules. Each old name is registered as a module that imports nothing until something is
read from it; it then finds it in the modules that hold it now, with a DeprecationWarning.
"""

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

MOVED = {  # old module -> where its contents are now
    "checks": ("checkpoints.validate",),
    "compiled": ("runtime.compile",),
    "conditioning": ("prompt.conditioning",),
    "encoding": ("prompt.encode",),
    "flags": ("cli.arguments",),
    "guidance": ("sampling.guidance",),
    "hub": ("checkpoints.hub",),
    "loading": ("checkpoints.load",),
    "memory": ("runtime.memory",),
    "pieces": ("runtime.tiling",),
    "plot": ("audio.plot",),
    "precision": ("runtime.dtypes",),
    "ranking": ("clap_score",),
    "residence": ("runtime.placement",),
    "samplers": (
        "sampling.samplers",
        "sampling.schedule",
        "sampling.eps_samplers",
        "sampling.x0_samplers",
        "sampling.walk",
    ),
    "text": ("prompt.tokenizers",),
    "weights": ("checkpoints.storage",),
}


class MovedModule(ModuleType):
    """An old module name; its attributes come from the modules that hold them now."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system asks every module
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        package, _, old = self.__name__.rpartition(".")
        homes = [f"{package}.{home}" for home in MOVED[old]]
        for home in homes:
            module = importlib.import_module(home)
            if hasattr(module, name):
                message = (
                    f"{self.__name__} is deprecated: import {name} from {home}. The old name goes in 0.3."
                )
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                return getattr(module, name)
        raise AttributeError(f"{self.__name__}.{name} of version 0.1 is gone; see {' and '.join(homes)}")


def register(package: str) -> None:
    """Make the old names importable: `import audioldm2.samplers`, `from audioldm2.samplers import ...`."""
    for old in MOVED:
        name = f"{package}.{old}"
        sys.modules.setdefault(name, MovedModule(name, f"Deprecated: {MOVED[old][0]}."))
