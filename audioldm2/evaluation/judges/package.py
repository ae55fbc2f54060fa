"""Importing a package that may not be there."""

from importlib import import_module
from typing import Any


def import_judge(module: str, judge: str, package: str) -> Any:
    """Import a module of a judge's package; ValueError with the command that installs an absent one."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(
            f"the judge {judge} needs the package {package}, which cannot be imported ({error}); install it "
            f"with pip install {package}, or all judges with pip install -e '.[judges]' in the clone."
        ) from error
