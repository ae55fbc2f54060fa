"""`audioldm2 convert --audiomae`: AudioMAE kept, added, left out, and refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import audioldm2
from audioldm2 import convert
from audioldm2.checkpoints import storage
from tests.support import originals
from tests.support.checkpoints import random_state
from tests.support.commands import BASE, CODE, ERR, MADE, OUT, assert_failed, created, folder_states
from tests.support.original_names import PLACES, spread

STATE = MADE.states["audiomae"]


def assert_same_audiomae(folder: str) -> None:
    found = folder_states(folder)["audiomae"]
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in STATE.items())


@pytest.mark.parametrize("donor", ["file", "folder"])
def test_audiomae_is_added_to_the_diffusers_layout(run, ready, donor):
    """The result is what the original itself converts to, and names the donor."""
    source = BASE if donor == "file" else ready["converted"]
    code, out, err = run("convert", ready["diffusers"], "out", "--audiomae", source)
    assert (code, out) == (0, "out\n")
    assert re.search(r"^audiomae +30 tensors", err, flags=re.M)
    assert ("AudioMAE's training" in err) == (donor == "file"), "the decoder is dropped with a reason"
    assert_same_audiomae("out")
    read = storage.read(Path("out"))
    assert read.configs["audiomae"] == MADE.configs["audiomae"] and read.audiomae_source == str(source)
    assert re.search(rf"^AudioMAE +from {re.escape(str(source))}$", run("info", "out")[OUT], flags=re.M)
    checked = run("convert", ready["diffusers"], "out", "--audiomae", source, "--check")
    assert checked[CODE] == 0 and "all" in checked[OUT]
    assert_failed(run("convert", ready["diffusers"], "out", "--check"), "'audiomae'", "--audiomae FILE")


def test_model_with_added_audiomae_hears(run, ready):
    run("convert", ready["diffusers"], "out", "--audiomae", BASE)
    wave = 0.1 * torch.randn(16_000)
    added, own = (audioldm2.load(name, device="cpu").hear(wave) for name in ("out", ready["converted"]))
    assert torch.equal(added, own) and added.shape == (1, 8, 128)


def test_folder_from_before_stays_valid_and_can_be_completed(run, ready):
    """A folder that was converted when AudioMAE was dropped is that of the diffusers layout's twin."""
    assert run("convert", ready["diffusers"], "old")[CODE] == 0
    content = json.loads(Path("old/config.json").read_text())
    assert "audiomae_source" not in content and "audiomae" not in content["networks"]
    assert audioldm2.load("old", device="cpu").sample_rate == 16_000
    assert run("convert", "old", "new", "--audiomae", BASE)[CODE] == 0
    assert_same_audiomae("new")


def test_old_folder_of_an_original_is_explained_by_a_check(run, ready):
    run("convert", BASE, "old")
    config = json.loads(Path("old/config.json").read_text())
    del config["networks"]["audiomae"]
    Path("old/config.json").write_text(json.dumps(config))
    Path("old/audiomae.safetensors").unlink()
    failed = run("convert", BASE, "old", "--check")
    assert failed[CODE] == 2 and "differ in the configs of 'audiomae'" in failed[ERR]
    assert "It was converted before AudioMAE was kept, and loads as ever" in failed[ERR]


def test_export_leaves_audiomae_out_and_says_why(run, ready):
    code, out, err = run("convert", ready["converted"], "out", "--to", "diffusers")
    assert (code, out) == (0, "out\n")
    (warning,) = [line for line in err.splitlines() if "AudioMAE" in line]
    assert "AudioMAE is left out: the diffusers layout has no place for it" in warning
    assert re.search(r"OUT --audiomae \S+base\.pth' adds it again", warning)
    assert not re.search(r"^audiomae", err, flags=re.M)
    assert "audiomae" not in convert.read_diffusers(Path("out")).configs


def test_audiomae_of_a_speech_model_is_pooled_as_the_model_needs_it(run, ready):
    """The network is the same; its 512 patches become 8 vectors in a model whose GPT-2 generates 8."""
    assert run("convert", ready["diffusers"], "out", "--audiomae", "speech.pth")[CODE] == 0
    config = storage.read(Path("out")).configs["audiomae"]
    assert (config.frames, config.pool, config.tokens) == (1024, (8, 8), 8)


MISTAKES = {
    "has one": ((BASE, "--audiomae", BASE), "--audiomae is 'base.pth'; it has to be left out", "already"),
    "no GPT-2": (("t5.pth", "--audiomae", BASE), "has no GPT-2"),
    "donor without": (("DIFFUSERS", "--audiomae", "t5.pth"), "t5.pth has no AudioMAE. Give an original file"),
    "donor of another layout": (("DIFFUSERS", "--audiomae", "DIFFUSERS"), "has no AudioMAE"),
    "nowhere": (("DIFFUSERS", "--audiomae", "nowhere.pth"), "nowhere.pth"),
    "no name": (("DIFFUSERS", "--audiomae", ""), "--audiomae"),
    "to diffusers": (("DIFFUSERS", "--audiomae", BASE, "--to", "diffusers"), "cannot hold"),
    "another width": (("DIFFUSERS", "--audiomae", "narrow.pth"), "dim of 'audiomae' is 64", "'gpt2' is 128"),
    "damaged": (("DIFFUSERS", "--audiomae", "damaged.pth"), "damaged.pth", "norm_out.bias"),
}


def narrow() -> dict[str, torch.Tensor]:
    """A file with nothing but an AudioMAE half as wide."""
    config = replace(MADE.configs["audiomae"], dim=64, heads=1)
    return spread("audiomae", config, random_state("audiomae", config), PLACES["base"])


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_sentence(run, ready, mistake):
    module = PLACES["base"]["audiomae"]
    originals.save(Path("narrow.pth"), narrow())
    damaged = {key: each for key, each in MADE.table.items() if key != f"{module}.norm.bias"}
    originals.save(Path("damaged.pth"), damaged)
    given, *words = MISTAKES[mistake]
    source, *flags = (str(ready["diffusers"]) if each == "DIFFUSERS" else each for each in given)
    before = created()
    code, out, err = run("convert", source, "out", *flags)
    assert (code, out) == (2, "") and "Traceback" not in err
    last = err.splitlines()[-1]
    assert all(word in last for word in words), last
    assert created() == before
