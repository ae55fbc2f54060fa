"""Captioned folders: this package's tables and AudioCaps as it is published."""

import re
from pathlib import Path

import pytest
import torch

from audioldm2.audio import write_wav
from audioldm2.evaluation.captions import Captioned, list_captioned

AUDIOCAPS = """\
audiocap_id,youtube_id,start_time,caption
103549,7fmOlUlwoNg,20,Constant rattling noise and sharp vibrations
103548,6BJ455B1aAs,0,"A rocket flies by, followed by a loud explosion"
103541,6BJ455B1aAs,0,A loud explosion
103550,-gone1234567,30,A dog barks
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path


def write(folder: Path, *names: str) -> list[Path]:
    for name in names:
        Path(folder, name).parent.mkdir(exist_ok=True)
        write_wav(folder / name, torch.zeros(100), 16_000)
    return [folder / name for name in names]


@pytest.mark.parametrize("names", [
    ("7fmOlUlwoNg.wav", "6BJ455B1aAs.wav"),
    ("Y7fmOlUlwoNg.wav", "Y6BJ455B1aAs.flac"),
    ("wav/7fmOlUlwoNg_20.wav", "wav/6BJ455B1aAs_0.wav"),
    ("103549.wav", "103548.wav"),
])  # fmt: skip
def test_audiocaps_finds_sounds_by_their_id(folder, names):
    first, second = write(folder, *names)
    (folder / "test.csv").write_text(AUDIOCAPS)
    notes: list[str] = []
    found = list_captioned(folder, notes.append)
    assert [item.file for item in found] == [first, second]
    assert found[0].captions == ("Constant rattling noise and sharp vibrations",)
    of_second = ("A rocket flies by, followed by a loud explosion", "A loud explosion")
    assert found[1].captions == (of_second if "103548" not in names[1] else of_second[:1])
    assert len(notes) == 1 and "-gone1234567" in notes[0]


def test_table_may_be_named_where_a_folder_has_several(folder):
    write(folder, "7fmOlUlwoNg.wav")
    for name in ("test.csv", "val.csv"):
        (folder / name).write_text(AUDIOCAPS)
    assert len(list_captioned(folder / "val.csv", list)) == 1
    with pytest.raises(ValueError, match=r"'test\.csv', 'val\.csv'; name one of them"):
        list_captioned(folder, list)


def test_own_table_keeps_several_captions_of_a_sound(folder):
    one, two = write(folder, "1.wav", "2.wav")
    (folder / "captions.csv").write_text("file,caption\n1.wav,rain\n2.wav,a dog\n1.wav,heavy rain\n")
    assert list_captioned(folder, list) == [
        Captioned(one, ("rain", "heavy rain")),
        Captioned(two, ("a dog",)),
    ]


def test_folder_without_a_table_has_no_captions(folder):
    (one,) = write(folder, "1.wav")
    (folder / "notes.txt").write_text("notes")
    notes: list[str] = []
    assert list_captioned(folder, notes.append) == [Captioned(one)]
    assert notes == [f"note: {folder}: passed over 1 file (.txt)"]


@pytest.mark.parametrize(("table", "words"), [
    (AUDIOCAPS, "none of its 4 sounds lies in"),
    ("youtube_id,caption\n7fmOlUlwoNg,\n", "row 2: 'youtube_id' and 'caption' have to be non-empty"),
    ("name,text\na,b\n", "has no column 'file' and 1 more|has no column"),
])  # fmt: skip
def test_unusable_table_is_one_sentence(folder, table, words):
    write(folder, "other.wav")
    (folder / "test.csv").write_text(table)
    with pytest.raises(ValueError, match=words):
        list_captioned(folder, list)


def test_folder_without_sounds_and_no_folder_are_refused(folder):
    with pytest.raises(ValueError, match="holds no sound files"):
        list_captioned(folder, list)
    with pytest.raises(ValueError, match=re.escape(f"{folder / 'no'} is not a folder of sounds.")):
        list_captioned(folder / "no", list)
