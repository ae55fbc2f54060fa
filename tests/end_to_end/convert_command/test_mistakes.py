"""Every mistake with `convert` and `info` is one sentence and exit code 2, and leaves nothing behind."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support import originals
from tests.support.commands import (
    BASE,
    assert_failed,
    assert_failed_later,
    created,
)
from tests.support.originals import table_of


class Trap:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return (Path.write_text, (Path("marker"), "code was run"))


def cut(file: Path, share: float) -> None:
    file.write_bytes(Path("t5.pth").read_bytes()[: int(share * Path("t5.pth").stat().st_size)])


OUT_BIAS = "model.diffusion_model.out.2.bias"
WRONG_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda file: file.write_bytes(b""), "truncated or damaged"),
    "a page": (lambda file: file.write_text("<html>404</html>"), "is a web page"),
    "cut": (lambda file: cut(file, 0.5), "truncated or damaged"),
    "cut at its end": (lambda file: cut(file, 0.9999), "truncated or damaged"),
    "running code": (lambda file: torch.save({"state_dict": {"a": Trap()}}, file), "would run code"),
    "a pickle": (lambda file: file.write_bytes(pickle.dumps({"a": Trap()})), "would run code"),
    "a list": (lambda file: torch.save([torch.ones(1)], file), "table of tensors"),
    "numbers": (lambda file: torch.save({"state_dict": {"a": 1}}, file), "table of tensors"),
    "a resnet": (
        lambda file: torch.save({"conv1.weight": torch.ones(3)}, file),
        "not an original AudioLDM 2",
    ),
    "a key too many": (
        lambda file: originals.save(file, table_of("t5", **{"fc.weight": torch.ones(2)})),
        "'fc.weight', not part of this architecture",
    ),
    "a wrong shape": (
        lambda file: originals.save(file, table_of("t5", **{OUT_BIAS: torch.ones(4)})),
        "is (4,) and should be (3,)",
    ),
}


@pytest.mark.parametrize("command", [("convert", "out"), ("convert", "out", "--dry-run"), ("info",)])
@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_wrong_file_is_reported_in_one_sentence(run, wrong, command):
    write, words = WRONG_FILES[wrong]
    write(Path("file.pth"))
    deed, *rest = command
    assert_failed_later(run(deed, "file.pth", *rest), "file.pth", words)
    assert created() == ["file.pth"]
    assert not Path("marker").exists()


MISTAKES = {
    "from nowhere": (("convert", "nowhere.pth", "out"), "no folder 'nowhere.pth'"),
    "a file of another sort": (("convert", "notes.txt", "out"), "'notes.txt' is a file"),
    "several originals": (("convert", ".", "out"), "several original checkpoints", "base.pth"),
    "no folder to write in": (("convert", BASE, "nowhere/out"), "nowhere does not exist"),
    "onto a file": (("convert", BASE, "notes.txt", "--force"), "notes.txt is not a converted folder"),
    "two deeds": (("convert", BASE, "out", "--dry-run", "--check"), "--dry-run and --check exclude"),
    "a check of an export": (("convert", BASE, "out", "--check", "--to", "diffusers"), "is not checked"),
    "a check of nothing": (("convert", BASE, "nowhere", "--check"), "nowhere"),
    "the average of a folder": (("convert", "folder", "out", "--ema"), "--ema", "original file"),
    "a config for a folder": (("convert", "folder", "out", "--config", "ok.json"), "--ema, --config and"),
    "tokenizers for a folder": (("convert", "folder", "out", "--tokenizers", "folder"), "tokenizers is"),
    "no config": (("convert", BASE, "out", "--config", "no.json"), "--config no.json", "no such file"),
    "a config that is no JSON": (("convert", BASE, "out", "--config", "notes.txt"), "notes.txt", "JSON"),
    "a config of a list": (("convert", BASE, "out", "--config", "list.json"), "list.json holds a list"),
    "a config of a number": (("convert", BASE, "out", "--config", "number.json"), "in number.json is 3"),
    "an unknown network": (("convert", BASE, "out", "--config", "unit.json"), "'unit'", "unet"),
    "an unknown field": (("convert", BASE, "out", "--config", "head.json"), "differ in head"),
    "no tokenizers there": (("convert", BASE, "out", "--tokenizers", "nowhere"), "--tokenizers nowhere"),
    "heads by number": (("convert", BASE, "out", "--heads", "8"), "--heads", "config", "trained"),
    "an unknown dtype": (("convert", BASE, "out", "--dtype", "int8"), "--dtype", "bfloat16"),
    "an unknown layout": (("convert", BASE, "out", "--to", "pth"), "--to", "diffusers"),
    "an unknown flag": (("convert", BASE, "out", "--check-it"), "did you mean --check"),
    "nothing to convert": (("convert",), "SOURCE, OUT", "audioldm2 convert --help"),
    "nothing to tell of": (("info",), "SOURCE", "audioldm2 info --help"),
    "info of nothing": (("info", "nowhere"), "no folder 'nowhere'"),
    "info of an empty folder": (("info", "empty"), "empty is not a checkpoint"),
    "info of a folder of text": (("info", "notes.txt"), "'notes.txt' is a file"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_reported_in_one_sentence(run, ready, mistake):
    Path("folder").symlink_to(ready["converted"])
    Path("empty").mkdir()
    Path("notes.txt").write_text("a dog")
    contents = {
        "ok": {"unet": {"eps": 1e-5}},
        "list": [1],
        "number": {"unet": 3},
        "unit": {"unit": {}},
        "head": {"unet": {"head": 1}},
    }
    for name, content in contents.items():
        Path(f"{name}.json").write_text(json.dumps(content))
    before = created()
    arguments, *words = MISTAKES[mistake]
    assert_failed(run(*arguments), *words)
    assert created() == before


@pytest.mark.parametrize("command", ["convert", "info"])
def test_help_lists_every_flag_within_the_screen(run, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    flags = [
        "--to",
        "--dtype",
        "--heads",
        "--ema",
        "--config",
        "--tokenizers",
        "--force",
        "--dry-run",
        "--check",
    ]
    assert all(flag in out for flag in ["--revision", *(flags if command == "convert" else [])])
    assert max(map(len, out.splitlines())) <= 110
