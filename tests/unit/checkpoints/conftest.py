"""A whole tiny checkpoint in both layouts for every test of this folder."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.support import checkpoints
from tests.support.checkpoints import State


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, State]]:
    """A folder with `diffusers` and `converted`, never to be changed, and our tensors of each network."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoints")
    states = checkpoints.write_diffusers(folder / "diffusers")
    checkpoints.write_converted(folder / "converted", folder / "diffusers")
    return folder, states


@pytest.fixture(scope="session")
def states(pristine) -> dict[str, State]:
    """Our tensors of each network."""
    return pristine[1]


@pytest.fixture
def diffusers(pristine, tmp_path: Path) -> Path:
    """A copy in the diffusers layout, to be changed at will."""
    return Path(shutil.copytree(pristine[0] / "diffusers", tmp_path / "diffusers"))


@pytest.fixture
def converted(pristine, tmp_path: Path) -> Path:
    """A copy of the converted folder, to be changed at will."""
    return Path(shutil.copytree(pristine[0] / "converted", tmp_path / "converted"))
