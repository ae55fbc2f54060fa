"""Checkpoints that the tests of training share."""

from pathlib import Path

import pytest

from audioldm2.checkpoints import storage
from audioldm2.checkpoints.storage import Checkpoint
from tests.support.training import few_samples, untrained  # noqa: F401


@pytest.fixture(scope="session")
def initial(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny untrained model."""
    return untrained(tmp_path_factory.mktemp("vocabularies"))


@pytest.fixture(scope="session")
def random_weights(tiny_folder: Path) -> Checkpoint:
    """A tiny model with all parameters random, so that the first gradient reaches each of them."""
    return storage.read(tiny_folder)
