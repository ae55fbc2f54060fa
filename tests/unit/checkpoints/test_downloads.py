"""Files that a download left in place of a checkpoint's are called what they are, with the remedy."""

from pathlib import Path

import pytest
import torch

import audioldm2
from audioldm2.checkpoints import hub
from tests.support import checkpoints, originals
from tests.support.checkpoints import assert_same_states, load_error, weights_file

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 1387345\n"
)
PAGES = {
    "html": "<!DOCTYPE html>\n<html lang='en'><head><title>audioldm2-full</title></head></html>\n" * 50,
    "lower case": "\n  <html><body>404</body></html>",
    "xml": '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>',
}
ANSWERS = {"missing": "Entry not found", "login": "Invalid username or password.\n"}
NAMES = ["file.pth", "file.ckpt", "FILE.CKPT", "file.pt", "file.safetensors"]


@pytest.fixture(params=["unet.safetensors", "config.json"])
def converted_file(converted: Path, request) -> Path:
    """A file of a converted folder."""
    return converted / request.param


@pytest.fixture(params=["safetensors", "bin", "config.json", "model_index.json"])
def diffusers_file(diffusers: Path, request) -> Path:
    """A file of a folder in the diffusers layout."""
    if request.param == "model_index.json":
        return diffusers / request.param
    if request.param == "config.json":
        return diffusers / "vae" / request.param
    path = weights_file(diffusers / "vae")
    return path.rename(path.with_suffix(f".{request.param}"))


def assert_is_pointer(message: str, path: Path) -> None:
    assert message.startswith(f"{path} is a Git LFS pointer, not the file that it stands for.")
    assert "'git lfs pull'" in message


def assert_is_page(message: str, path: Path) -> None:
    assert message.startswith(f"{path} is a web page (HTML or XML), not a file of a checkpoint.")
    assert "'hf download OWNER/NAME FILE" in message


@pytest.mark.parametrize("name", NAMES)
def test_lfs_pointer_as_original_file(tmp_path, name):
    (tmp_path / name).write_text(POINTER)
    assert_is_pointer(load_error(tmp_path / name), tmp_path / name)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("name", NAMES)
def test_web_page_as_original_file(tmp_path, name, page):
    (tmp_path / name).write_text(PAGES[page])
    assert_is_page(load_error(tmp_path / name), tmp_path / name)


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", NAMES)
def test_answer_of_a_server_as_original_file(tmp_path, name, answer):
    (tmp_path / name).write_text(ANSWERS[answer])
    message = load_error(tmp_path / name)
    assert message.startswith(f"{tmp_path / name} holds text ('{ANSWERS[answer].strip()}'), not tensors.")


def test_lfs_pointer_in_converted_folder(converted_file):
    converted_file.unlink()
    converted_file.write_text(POINTER)
    assert_is_pointer(load_error(converted_file.parent), converted_file)


def test_web_page_in_converted_folder(converted_file):
    converted_file.unlink()
    converted_file.write_text(PAGES["html"])
    assert_is_page(load_error(converted_file.parent), converted_file)


def test_lfs_pointer_in_diffusers_layout(diffusers, diffusers_file):
    diffusers_file.write_text(POINTER)
    assert_is_pointer(load_error(diffusers), diffusers_file)


def test_web_page_in_diffusers_layout(diffusers, diffusers_file):
    diffusers_file.write_text(PAGES["html"])
    assert_is_page(load_error(diffusers), diffusers_file)


def test_empty_file_is_truncated(tmp_path):
    (tmp_path / "file.pth").write_bytes(b"")
    assert "file.pth is truncated or damaged" in load_error(tmp_path / "file.pth")


@pytest.mark.parametrize("name", ["AUDIOLDM2.CKPT", "model.PTH", "Model.Pt"])
def test_suffix_in_capitals_is_an_original_file(pristine, tmp_path, name):
    for tokenizer in ("clap_tokenizer", "t5_tokenizer"):
        (tmp_path / tokenizer).symlink_to(pristine[0] / "converted" / tokenizer)
    originals.save(tmp_path / name, originals.table_of("t5"))
    assert hub.find(tmp_path / name) == tmp_path / name
    assert audioldm2.load(tmp_path / name, device="cpu").sample_rate == 16000
    if not name.endswith("Pt"):  # a folder is searched for the two suffixes that are always originals
        assert hub.find(tmp_path) == tmp_path / name


def test_safetensors_suffix_in_capitals_is_an_original_file(tmp_path):
    table = {key: tensor.clone() for key, tensor in originals.table_of("t5").items()}
    checkpoints.save_file(table, tmp_path / "A.SAFETENSORS")
    found = originals.convert_file(tmp_path / "A.SAFETENSORS")
    assert_same_states(found, originals.make("t5").states)


def test_hub_id_may_name_a_file_in_capitals():
    assert hub.HUB_ID.fullmatch("owner/name/MODEL.CKPT").groups() == ("owner/name", "MODEL.CKPT")


class Settings(dict):
    """An object such as a training framework leaves in its checkpoint: a dict with attributes."""


def test_objects_in_a_checkpoint_are_named_with_a_remedy_that_works(tmp_path, monkeypatch):
    file = tmp_path / "last.ckpt"
    table = originals.table_of("t5")
    torch.save({"state_dict": table, "hyper_parameters": Settings(lr=1e-4), "path": Path("a")}, file)
    message = load_error(file)
    assert message.startswith(f"{file} holds objects beside its tensors, of 'pathlib.")
    assert f"'{__name__}.Settings'" in message
    assert "If you trust the file, run: python -c" in message
    command = message.partition('python -c "')[2].partition('"')[0]
    monkeypatch.chdir(tmp_path)
    exec(command)  # the remedy as the message words it; in this process, which knows the class
    assert_same_states(originals.convert_file(tmp_path / "plain.pth"), originals.make("t5").states)


def test_objects_in_a_bin_file_are_named_with_a_remedy_that_works(diffusers, states, monkeypatch):
    path = weights_file(diffusers / "vae")
    state = dict(checkpoints.load_file(path))
    file = path.with_suffix(".bin")
    torch.save(state | {"settings": Settings()}, file, _use_new_zipfile_serialization=False)
    path.unlink()
    message = load_error(diffusers)
    assert f"of '{__name__}.Settings'" in message and "weights_only=False" in message
    torch.save({"state_dict": state, "settings": Settings()}, file)
    command = load_error(diffusers).partition('python -c "')[2].partition('"')[0]
    monkeypatch.chdir(diffusers)
    exec(command)
    (diffusers / "plain.pth").rename(file)
    model = audioldm2.load(diffusers, device="cpu")
    found = {"vae": model.networks._loaded["vae"].state_dict()}
    assert_same_states(found, {"vae": states["vae"]})
