"""`audioldm2 convert` of the diffusers layout: the folder that it writes, and what it never replaces."""

import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audioldm2.checkpoints import tensor_files
from audioldm2.models import NETWORKS, OPTIONAL
from tests.support.checkpoints import write_diffusers
from tests.support.command_line import CODE, QUICK, assert_refused, assert_same_sound, fail_at

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture(scope="session")
def diffusers_folder(tmp_path_factory) -> Path:
    """A tiny checkpoint in the diffusers layout."""
    folder = tmp_path_factory.mktemp("diffusers") / "tiny"
    write_diffusers(folder)
    return folder


def test_converted_folder_gives_the_same_sound(run, diffusers_folder):
    code, out, err = run("convert", diffusers_folder, "converted")
    assert (code, out) == (0, "converted\n")
    networks = [name for name in NETWORKS if name not in OPTIONAL]
    read, written = (
        [line.split()[place] for line in err.splitlines() if line.startswith("writing") == bool(place)]
        for place in (0, 1)
    )
    assert read[: len(networks)] == written == networks  # a line each; what was dropped stands between
    run("dog", "-o", "a.wav", "--model", diffusers_folder, *QUICK)
    assert run("dog", "-o", "b.wav", "--model", "converted", *QUICK)[CODE] == 0
    assert_same_sound("a.wav", "b.wav")


def test_convert_casts(run, diffusers_folder):
    run("convert", diffusers_folder, "half", "--dtype", "float16")
    state = load_file("half/unet.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}


def test_convert_replaces_only_with_force_and_only_a_converted_folder(run, folder, diffusers_folder):
    run("convert", diffusers_folder, "out")
    (folder / "out" / "config.json").touch()
    assert_refused(run("convert", diffusers_folder, "out"), "out exists already", "--force")
    assert run("convert", diffusers_folder, "out", "--force")[CODE] == 0

    (folder / "precious").mkdir()
    (folder / "precious" / "thesis.txt").write_text("years of work")
    refused = run("convert", diffusers_folder, "precious", "--force")
    assert_refused(refused, "precious is not a converted folder")
    assert (folder / "precious" / "thesis.txt").exists()


def test_broken_source_leaves_nothing(run, folder, diffusers_folder):
    shutil.copytree(diffusers_folder, folder / "broken")
    (folder / "broken" / "unet" / "config.json").write_text("{")
    assert_refused(run("convert", "broken", "out"), "config.json", "JSON")
    assert not (folder / "out").exists()


def test_interrupted_conversion_leaves_nothing(run, folder, diffusers_folder, monkeypatch):
    fail_at(monkeypatch, tensor_files, "save_file", 3, KeyboardInterrupt())
    code, out, _ = run("convert", diffusers_folder, "out")
    assert (code, out) == (130, "")
    assert list(folder.iterdir()) == []


def test_python_m_convert_is_the_same_program(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["convert", "./nowhere", "out"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("convert", run_name="__main__", alter_sys=True)
    printed = capsys.readouterr()
    assert_refused((end.value.code, printed.out, printed.err), "no folder './nowhere'")
