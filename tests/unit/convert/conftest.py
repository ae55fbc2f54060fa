"""A tiny original file of each kind for every test of this folder."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import audioldm2
from audioldm2 import convert
from audioldm2.convert.original import Original
from tests.support import checkpoints, originals


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A folder with a file of each kind, and tokenizers beside them. It is shared: copy it to change it."""
    folder = tmp_path_factory.mktemp("originals")
    for name in ("tokenizer", "tokenizer_2"):
        (folder / name).mkdir()
    checkpoints.write_tokenizers(folder / "tokenizer", folder / "tokenizer_2")
    for kind in originals.CONFIGS:
        originals.save(folder / f"{kind}.pth", originals.make(kind).table)
    return folder


@pytest.fixture(scope="session")
def read(folder) -> Callable[[str], Original]:
    """Returns the checkpoint of a kind, read from its file once, never to be changed."""
    return cache(lambda kind: convert.read_original(folder / f"{kind}.pth"))


@pytest.fixture(scope="session")
def models(folder) -> Callable[[str], audioldm2.AudioLDM2]:
    """Returns the model of a kind, loaded from its file once."""
    return cache(lambda kind: audioldm2.load(folder / f"{kind}.pth", device="cpu"))
