"""A folder with tiny original files that every test of the converter's command runs in."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from audioldm2 import convert
from audioldm2.checkpoints import storage
from audioldm2.cli.main import main
from tests.support import checkpoints, originals
from tests.support.commands import (
    BASE,
    Run,
)


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """A file of each kind, and tokenizers in a folder of their own."""
    folder = tmp_path_factory.mktemp("files")
    for kind in originals.CONFIGS:
        originals.save(folder / f"{kind}.pth", originals.make(kind).table)
    for name in ("clap_tokenizer", "t5_tokenizer"):
        (folder / "tokenizers" / name).mkdir(parents=True)
    checkpoints.write_tokenizers(*(folder / "tokenizers" / f"{name}_tokenizer" for name in ("clap", "t5")))
    return folder


@pytest.fixture(autouse=True)
def folder(files, tmp_path, monkeypatch) -> Path:
    """The folder that each test runs in: the files, tokenizers beside them, no network, an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    here = tmp_path / "here"
    here.mkdir()
    for kind in originals.CONFIGS:
        (here / f"{kind}.pth").symlink_to(files / f"{kind}.pth")
    for name in ("clap_tokenizer", "t5_tokenizer"):
        (here / name).symlink_to(files / "tokenizers" / name)
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def run(capsys) -> Run:
    """Returns a function that runs a command as typed: its exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(each) for each in arguments])
        except SystemExit as end:  # --help
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture(scope="session")
def ready(files, tmp_path_factory) -> dict[str, Path]:
    """The base model converted, and exported, never to be changed."""
    made = tmp_path_factory.mktemp("ready")
    tokenizers = {name: files / "tokenizers" / name for name in storage.TOKENIZERS}
    storage.write(convert.read_original(files / BASE, tokenizers=tokenizers), made / "converted")
    convert.write_diffusers(storage.read(made / "converted"), made / "diffusers")
    return {name: made / name for name in ("converted", "diffusers")}
