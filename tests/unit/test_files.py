"""Files appear whole or not at all, and names are valid on every system."""

import os
import sys
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audioldm2.files import atomic_write, safe_name


def test_written_whole_replaces_at_the_end(tmp_path):
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
def test_written_whole_leaves_nothing_after_an_error(tmp_path, error, written):
    path = tmp_path / "sound.wav"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as temporary:
        if written:
            temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["sound.wav"]


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "sound.wav"
    with atomic_write(path) as first, atomic_write(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"


@pytest.mark.skipif(sys.platform == "win32", reason="permissions and links of POSIX")
def test_written_whole_keeps_permissions_and_follows_links(tmp_path):
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


def test_written_whole_gives_the_systems_errors(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "nowhere" / "sound.wav") as temporary:
        temporary.write_text("new")
    with pytest.raises(OSError, match="is not a file"), atomic_write(tmp_path):
        pass
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "sound.wav"):
        pass  # a block that writes nothing
    assert os.listdir(tmp_path) == []


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


@pytest.mark.parametrize("max_length", [0, -1, 241])
def test_safe_name_refuses_lengths(max_length):
    with pytest.raises(ValueError, match="max_length"):
        safe_name("dog", max_length)


TEXT = st.text(st.characters(exclude_categories=())) | st.text('conCONaux. -_"?é\u0301雷\x00', max_size=100)


@given(TEXT, st.integers(1, 240))
@example("CON", 1)
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
