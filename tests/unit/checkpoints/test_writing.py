"""Folders are written whole or not at all, whatever interrupts the writer."""

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import audioldm2
from audioldm2 import files
from audioldm2.checkpoints import storage, tensor_files
from audioldm2.errors import WeightsError
from tests.support import checkpoints
from tests.support.checkpoints import assert_same_states, change_state, load_error, loaded_states


def left(folder: Path) -> list[str]:
    """Return the names of everything in a folder, hidden drafts too."""
    return sorted(os.listdir(folder))


def test_converted_folder_has_exactly_its_files(converted: Path):
    networks = [f"{name}.safetensors" for name in checkpoints.networks()]
    assert left(converted) == sorted(["config.json", "clap_tokenizer", "t5_tokenizer", *networks])
    modes = {path.stat().st_mode & 0o777 for path in converted.iterdir() if path.is_file()}
    assert len(modes) == 1  # one reader can read all


def test_converted_folder_can_be_converted_again(converted: Path, states, tmp_path: Path):
    storage.write(storage.read(converted), tmp_path / "again")
    assert_same_states(loaded_states(tmp_path / "again"), states)
    assert (tmp_path / "again" / "config.json").read_text() == (converted / "config.json").read_text()


def test_damaged_folder_is_not_written_again(converted: Path, tmp_path: Path):
    change_state(converted / "vae.safetensors", lambda state: state | {"extra": torch.ones(1)})
    with pytest.raises(WeightsError, match="not expected 'extra'"):
        storage.write(storage.read(converted), tmp_path / "again")
    assert left(tmp_path) == ["converted"]


def test_existing_folder_is_rejected_before_reading(converted: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    seen = []
    with pytest.raises(FileExistsError, match=r"out exists already"):
        storage.write(storage.read(converted), tmp_path / "out", on_network=lambda *_: seen.append(1))
    assert left(tmp_path) == ["converted", "out"] and not seen


def test_force_replaces_folder(converted: Path, states, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("")
    (tmp_path / "out" / "config.json").write_text('{"audioldm2_format": 1}')
    storage.write(storage.read(converted), tmp_path / "out", force=True)
    assert left(tmp_path) == ["converted", "out"]
    assert not (tmp_path / "out" / "old.txt").exists()
    assert_same_states(loaded_states(tmp_path / "out"), states)


def test_force_replaces_the_source_itself(converted: Path, states):
    storage.write(storage.read(converted), converted, force=True)
    assert_same_states(loaded_states(converted), states)


def test_force_follows_link_and_rejects_file(converted: Path, tmp_path: Path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    storage.write(storage.read(converted), tmp_path / "link", force=True)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "config.json").is_file()
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OSError, match="file is not a folder, and cannot be replaced by one"):
        storage.write(storage.read(converted), tmp_path / "file", force=True)
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError()]
)
def test_failed_write_leaves_nothing(
    converted: Path, tmp_path: Path, monkeypatch, force: bool, error: BaseException
):
    if force:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "model_index.json").write_text("")
    written = []

    def save(state: dict, path: Path, metadata: dict) -> None:
        if len(written) == 3:
            raise error
        written.append(path)
        save_file(state, path, metadata)

    monkeypatch.setattr(tensor_files, "save_file", save)
    with pytest.raises(type(error)):
        storage.write(storage.read(converted), tmp_path / "out", force=force)
    assert len(written) == 3
    assert left(tmp_path) == ["converted", "out"] if force else ["converted"]
    assert not force or left(tmp_path / "out") == ["model_index.json"]


def forked(run: Callable[[], object]) -> int:
    """Run a function in a fork of this process, which has imported all that it needs; returns its id."""
    child = os.fork()
    if not child:
        try:
            run()
        finally:
            os._exit(0)
    return child


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_full_disk_raises_os_error_naming_the_folder(converted: Path, tmp_path: Path):
    """Safetensors raises an error of its own, which becomes an OSError with the folder's name."""
    import resource

    out, (reading, writing) = tmp_path / "out", os.pipe()

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # Python ignores SIGXFSZ
        try:
            storage.write(storage.read(converted), out)
        except OSError as error:
            os.write(writing, str(error).encode())

    os.waitpid(forked(write), 0)
    os.close(writing)
    with open(reading) as pipe:
        message = pipe.read()
    assert message.startswith(f"{out} cannot be written: ") and "File too large" in message
    assert left(tmp_path) == ["converted"]


@pytest.mark.parametrize("what", ["tokenizer", "config"])
def test_full_disk_beside_the_weights_names_the_folder(
    converted: Path, tmp_path: Path, monkeypatch, what: str
):
    def fail(*_, **__) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if what == "tokenizer":
        monkeypatch.setattr(storage.shutil, "copyfile", fail)
    else:
        monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="No space left on device") as caught:
        storage.write(storage.read(converted), tmp_path / "out")
    assert str(caught.value).startswith(f"{tmp_path / 'out'} cannot be written: ")
    assert left(tmp_path) == ["converted"]


def test_old_folder_returns_if_renaming_fails(tmp_path: Path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("")

    def fail(folder: Path, path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "_take_place", fail)
    with pytest.raises(PermissionError), files.atomic_folder(tmp_path / "out", force=True):
        pass
    assert left(tmp_path) == ["out"] and left(tmp_path / "out") == ["old.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_killed_writer_leaves_no_checkpoint(converted: Path, tmp_path: Path):
    out, (reading, writing) = tmp_path / "out", os.pipe()

    def wait(name: str, *_: object) -> None:
        if name == "unet":
            os.write(writing, b"half")
            time.sleep(60)

    writer = forked(lambda: storage.write(storage.read(converted), out, on_network=wait))
    os.close(writing)
    assert os.read(reading, 4) == b"half"
    os.close(reading)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    assert not out.exists()
    (draft,) = (name for name in left(tmp_path) if name != "converted")
    assert draft.startswith(".audioldm2-")
    assert "is not a checkpoint" in load_error(tmp_path / draft)  # config.json is written last


def test_one_of_two_concurrent_writers_wins(converted: Path, states, tmp_path: Path):
    both_are_writing, outcomes = threading.Barrier(2), []

    def write() -> None:
        first = True

        def wait(*_) -> None:
            nonlocal first
            if first:
                both_are_writing.wait(timeout=20)
            first = False

        try:
            storage.write(storage.read(converted), tmp_path / "out", on_network=wait)
            outcomes.append("wrote")
        except FileExistsError as error:
            outcomes.append(str(error))

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    expected = f"{tmp_path / 'out'} exists already: another process wrote it meanwhile"
    assert sorted(outcomes) == sorted(["wrote", expected])
    assert left(tmp_path) == ["converted", "out"]
    assert_same_states(loaded_states(tmp_path / "out"), states)


def test_folder_that_appears_while_writing_is_reported(tmp_path: Path, monkeypatch):
    """It appears between the last check and the renaming: ENOTEMPTY, ENOTDIR or EEXIST."""
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        target.mkdir()
        (target / "theirs.txt").write_text("")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    with (
        pytest.raises(FileExistsError, match="another process wrote it meanwhile"),
        files.atomic_folder(tmp_path / "out"),
    ):
        pass
    assert left(tmp_path) == ["out"] and left(tmp_path / "out") == ["theirs.txt"]


def test_missing_parent_is_reported_before_reading(converted: Path, tmp_path: Path):
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError):
        storage.write(storage.read(converted), tmp_path / "no" / "out")
    assert time.perf_counter() - start < 5


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["converted", "diffusers"])
def test_saving_replaces_models_only(tiny_folder, tmp_path, layout):
    """A folder of something else stays as it is, with `force` too."""
    model = audioldm2.load(tiny_folder, device="cpu")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="is not the folder of a model"):
        model.save(tmp_path / "thesis", layout=layout, force=True)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]
    (tmp_path / "empty").mkdir()
    model.save(tmp_path / "empty", layout=layout, force=True)
    model.save(tmp_path / "empty", layout=layout, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "thesis"]


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_current_folder_is_never_replaced(tiny_folder, tmp_path, monkeypatch, name):
    """Even if it holds a model: "" may be a variable without a value."""
    model = audioldm2.load(tiny_folder, device="cpu")
    folder = tmp_path / "model"
    model.save(folder)
    (folder / "notes").mkdir()
    monkeypatch.chdir(folder / "notes" if name == ".." else folder)
    with pytest.raises(FileExistsError, match="is or contains the current folder"):
        model.save(name, force=True)
    assert (folder / "notes").is_dir() and (folder / "unet.safetensors").exists()
