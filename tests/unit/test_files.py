"""Atomic writes of files and folders, recovery after a kill, file names, failed downloads."""

import os
import signal
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audioldm2 import files
from audioldm2.errors import ArgumentError
from audioldm2.files import atomic_folder, atomic_write, failed_download, recover_folder, safe_name

# Files ------------------------------------------------------------------------------------------------------


def test_atomic_write_replaces_the_file_at_the_end(tmp_path):
    path = tmp_path / "sound.wav"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".wav"
        assert temporary.name.startswith(".")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["sound.wav"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("written", [True, False])
def test_atomic_write_leaves_the_old_file_after_an_error(tmp_path, error, written):
    path = tmp_path / "sound.wav"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as temporary:
        if written:
            temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["sound.wav"]


def test_two_atomic_writes_use_different_temporary_files(tmp_path):
    path = tmp_path / "sound.wav"
    with atomic_write(path) as first, atomic_write(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"


@pytest.mark.skipif(sys.platform == "win32", reason="permissions and links of POSIX")
def test_atomic_write_keeps_permissions_and_follows_links(tmp_path):
    (tmp_path / "there").mkdir()
    path = tmp_path / "there" / "sound.wav"
    path.write_text("old")
    path.chmod(0o640)
    link = tmp_path / "link.wav"
    link.symlink_to(path)
    with atomic_write(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640


def test_atomic_write_passes_on_errors_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "nowhere" / "sound.wav") as temporary:
        temporary.write_text("new")
    with pytest.raises(OSError, match="is not a file"), atomic_write(tmp_path):
        pass
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "sound.wav"):
        pass  # a block that writes nothing
    assert os.listdir(tmp_path) == []


# Folders ----------------------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with its text, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()
    }


def test_atomic_folder_appears_at_the_end(tmp_path):
    with atomic_folder(tmp_path / "out") as draft:
        (draft / "a.txt").write_text("new")
        assert not (tmp_path / "out").exists()
    assert tree(tmp_path) == {"out/a.txt": "new"}
    with pytest.raises(FileExistsError, match="exists already"), atomic_folder(tmp_path / "out"):
        pass
    with atomic_folder(tmp_path / "out", force=True) as draft:
        (draft / "b.txt").write_text("newer")
        assert tree(tmp_path / "out") == {"a.txt": "new"}
    assert tree(tmp_path) == {"out/b.txt": "newer"}
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [True, False])
def test_atomic_folder_leaves_the_old_folder_after_an_error(tmp_path, error, exists):
    if exists:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "a.txt").write_text("old")
    with pytest.raises(error), atomic_folder(tmp_path / "out", force=True) as draft:
        (draft / "a.txt").write_text("half")
        raise error
    assert tree(tmp_path) == ({"out/a.txt": "old"} if exists else {})
    assert os.listdir(tmp_path) == (["out"] if exists else [])


def kill_writer(path: Path, where: str) -> None:
    """Fork a process that replaces a folder and is killed at some point."""
    pid = os.fork()
    if pid == 0:
        try:
            replace_until_killed(path, where)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def replace_until_killed(path: Path, where: str) -> None:
    def kill(*_, **__) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if where == "between the renames":
        files._take_place = kill
    if where == "after the renames":
        files.shutil.rmtree = kill
    with atomic_folder(path, force=True) as draft:
        (draft / "a.txt").write_text("new")
        if where == "while writing":
            kill()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("where", "visible", "recovered"),
    [
        ("while writing", "old", "old"),
        ("between the renames", None, "new"),
        ("after the renames", "new", "new"),
    ],
)
def test_recovers_a_folder_after_a_kill(tmp_path, where, visible, recovered):
    out, other = tmp_path / "out", tmp_path / ".audioldm2-1-other"
    for folder in (out, other):
        folder.mkdir()
        (folder / "a.txt").write_text("old")
    kill_writer(out, where)
    assert tree(out) == ({"a.txt": visible} if visible else {})
    assert len(os.listdir(tmp_path)) == 3
    assert recover_folder(out) == (visible is None)
    assert tree(tmp_path) == {"out/a.txt": recovered, ".audioldm2-1-other/a.txt": "old"}
    assert sorted(os.listdir(tmp_path)) == [".audioldm2-1-other", "out"]
    assert not recover_folder(out)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_recovers_the_old_folder_without_a_draft(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt").write_text("old")
    kill_writer(tmp_path / "out", "between the renames")
    (draft,) = (path for path in tmp_path.iterdir() if not path.name.endswith("-old"))
    (draft / "a.txt").unlink()
    draft.rmdir()
    assert recover_folder(tmp_path / "out")
    assert tree(tmp_path) == {"out/a.txt": "old"}


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_atomic_folder_recovers_what_a_killed_process_left(tmp_path):
    out = tmp_path / "out"
    kill_writer(out, "while writing")
    assert len(os.listdir(tmp_path)) == 1  # gigabytes, for a checkpoint
    with atomic_folder(out) as draft:
        assert os.listdir(tmp_path) == [draft.name]
        (draft / "a.txt").write_text("old")
    kill_writer(out, "between the renames")
    with pytest.raises(FileExistsError), atomic_folder(out):
        pass
    assert tree(tmp_path) == {"out/a.txt": "new"}


def test_folder_survives_when_both_renames_fail(tmp_path, monkeypatch):
    """The old folder has moved aside; the new one may neither take its place nor may the old one return."""
    target = tmp_path / "model"
    with atomic_folder(target) as draft:
        (draft / "weights").write_text("old")
    rename = Path.rename

    def refuse_second(self, to):
        if Path(to) == target:
            raise OSError(28, "No space left on device")
        return rename(self, to)

    with pytest.raises(OSError), atomic_folder(target, force=True) as draft:
        (draft / "weights").write_text("new")
        monkeypatch.setattr(Path, "rename", refuse_second)
    monkeypatch.undo()
    assert recover_folder(target, sole_owner=True)
    assert (target / "weights").read_text() == "new" and os.listdir(tmp_path) == ["model"]


def test_recovery_spares_running_processes_and_other_folders(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with atomic_folder(out) as draft:
        assert not recover_folder(out)
        assert draft.exists()
        monkeypatch.setattr(files, "_is_running", lambda pid: pid != os.getpid())  # as if killed
        assert not recover_folder(tmp_path / "another")
        assert draft.exists()
        assert not recover_folder(out)
        assert not draft.exists()
        draft.mkdir()
    assert not recover_folder(tmp_path / "nowhere" / "out")


# Names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Techno music with a strong beat", "Techno_music_with_a_strong_beat"),
        ("  a dog?  barks: loud/soft ", "a_dog_barks_loud_soft"),
        ("two\nlines\tand\x00 more", "two_lines_and_more"),
        ("", "sound"),
        ("...", "sound"),
        ("???", "sound"),
        ("../../etc/passwd", "etc_passwd"),
        ("-rf", "rf"),
        (".hidden", "hidden"),
        ("ends in a dot.", "ends_in_a_dot"),
        ("CON", "_CON"),
        ("nul.wav", "_nul.wav"),
        ("com1", "_com1"),
        ("LPT².txt", "_LPT².txt"),
        ("console", "console"),
        ("cafe\u0301", "caf\u00e9"),  # e and an accent become one character
        ("\u202egnp.exe", "gnp.exe"),  # a mark that turns the writing direction
        ("half a \ud83d pair", "half_a_pair"),
        ("雷雨の音", "雷雨の音"),
    ],
)
def test_safe_name_examples(text, name):
    assert safe_name(text) == name


def test_cut_names_end_in_a_hash_of_the_whole_text():
    start = "A hammer hitting a wooden surface again and again while the rain falls on the tin roof of a"
    names = {safe_name(f"{start} {end}") for end in ("barn", "house", "house.", "")}
    assert len(names) == 4
    for name in names:
        assert 70 <= len(name) <= 80
        assert name.startswith("A_hammer_hitting_a_wooden_surface_again_and_again_while_the_rain_falls-")
        assert set(name[-8:]) <= set("0123456789abcdef")
    assert safe_name("x" * 80) == "x" * 80
    assert safe_name("x" * 80 + "...") == "x" * 80
    assert safe_name("x" * 81) == "x" * 71 + "-" + safe_name("x" * 81)[-8:]
    assert safe_name("cafe\u0301" * 40) == safe_name("caf\u00e9" * 40)
    assert len({safe_name("a hammer", 5), safe_name("a hammock", 5)}) == 2


@pytest.mark.parametrize("max_length", [0, -1, 241, "80"])
def test_safe_name_rejects_lengths_out_of_range(max_length):
    with pytest.raises(ArgumentError, match=r"max_length is .* from 1 to 240"):
        safe_name("dog", max_length)


TEXT = st.text(st.characters(exclude_categories=())) | st.text('conCONaux. -_"?é\u0301雷\x00', max_size=100)


@given(TEXT, st.integers(1, 240))
@example("CON", 1)
@example("con." + "x" * 80, 13)
@example("con." + "x" * 80, 14)
@example("con.-_x" + "x" * 80, 17)
@example("雷" * 100, 10)
@example("con." + "x" * 80, 80)
@example("é", 1)
@example("雷" * 100, 80)
@example("a" * 79 + "é", 80)
@example("a" * 79 + ".b", 80)
def test_safe_name_is_valid_everywhere(text, max_length):
    name = safe_name(text, max_length)
    assert 1 <= len(name.encode("utf-8")) <= max_length
    assert not set(name) & set('<>:"/\\|?*')
    assert all(unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Cn") for character in name)
    assert not any(character.isspace() for character in name)
    assert not name.startswith((".", "-"))
    assert not name.endswith((".", "-"))
    assert name.split(".")[0].upper() not in {"CON", "PRN", "AUX", "NUL", "COM1", "COM9", "LPT1", "LPT¹"}
    assert unicodedata.is_normalized("NFC", name)
    assert safe_name(name, max_length) == name


# Failed downloads -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n", "a Git LFS pointer"),
        (b"\xef\xbb\xbf\n <!DOCTYPE html><html>", "a web page"),
        (b"<html><body>404", "a web page"),
        (b"RIFF$\0\0\0WAVE", None),
        (b"version 3 of a text", None),
    ],
)
def test_failed_downloads_are_recognised(tmp_path, content, what):
    (tmp_path / "file").write_bytes(content)
    found = failed_download(tmp_path / "file")
    assert found is None if what is None else found[0].startswith(what)
