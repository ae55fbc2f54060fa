"""A checkpoint in three layouts, and the facts of it."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

from audioldm2.verification import Facts, verify
from tests.support import verification


@pytest.fixture(scope="session")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the layouts of `verification.LAYOUTS`; shared, never to be changed."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("right")
    verification.write_layouts(folder)
    return folder


@pytest.fixture(scope="session")
def facts(right: Path) -> Facts:
    """The facts of the right checkpoint, from its converted folder; the sounds are short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[verify.__module__], "FRAMES", 16)
        return verification.facts_from(right / "converted")


@pytest.fixture
def copy(right: Path, tmp_path: Path) -> Path:
    """A copy of all three layouts, to be spoilt."""
    return Path(shutil.copytree(right, tmp_path / "copy"))
