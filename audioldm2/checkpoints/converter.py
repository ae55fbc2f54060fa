"""Whether the converter is installed: `audioldm2.convert`, in a clone the folder `convert`."""

from importlib.util import find_spec
from pathlib import Path

from audioldm2.errors import WeightsError


def require_converter() -> None:
    """Raise WeightsError where `audioldm2.convert` is missing.

    It is the clone's folder `convert`, and a module of the package only once the package is installed.
    """
    if find_spec("audioldm2.convert") is None:
        raise WeightsError(
            f"the converter is not installed here: Python found the folder {Path(__file__).parents[1]}, "
            "a clone of the repository, before the installed package. "
            "Run 'pip install -e .' in the clone, or run from another folder."
        )
