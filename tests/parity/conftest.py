"""A tiny checkpoint, as the reference saves it, for every comparison of whole models."""

from pathlib import Path

import pytest

from scripts.make_reference_checkpoint import make


@pytest.fixture(scope="session")
def reference_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It is shared: copy it to change it."""
    folder = tmp_path_factory.mktemp("reference") / "tiny"
    make(folder)
    return folder
