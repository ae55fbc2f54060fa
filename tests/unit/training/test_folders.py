"""The sounds of a folder: which table counts, tables of two splits, text files beside sounds."""

import json
from pathlib import Path

import pytest

from audioldm2.training.folders import list_items, read_items, tables_in
from audioldm2.training.tables import TRAIN, VALIDATION


def files(folder: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def rows(*names: str) -> str:
    return "file,caption\n" + "".join(f"{name},a sound\n" for name in names)


def by_split(folder: Path) -> dict[str, list[str]]:
    items = read_items(folder)
    return {split: [item.file.name for item in items if item.split == split] for split in (TRAIN, VALIDATION)}


def test_text_files_beside_the_sounds(tmp_path):
    texts = {"a.txt": "a dog barks\n\n twice \n", "deep/b.flac.txt": "rain"}
    files(tmp_path, {"a.wav": "", "deep/b.flac": "", "notes.txt": "not a caption", **texts})
    assert [(item.file.name, item.captions) for item in read_items(tmp_path)] == [
        ("a.wav", ("a dog barks", "twice")), ("b.flac", ("rain",))
    ]  # fmt: skip


def test_every_sound_where_no_captions_are_needed(tmp_path):
    files(tmp_path, {"deep/a.flac": "", "b.WAV": "", ".hidden.wav": "", "notes.txt": ""})
    items = read_items(tmp_path, captioned=False)
    assert [item.file.name for item in items] == ["b.WAV", "a.flac"]
    assert all(item.captions == () for item in items)


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "validation.csv", "test.csv"),
        ("train.tsv", "val.jsonl"),
        ("clotho_captions_development.csv", "clotho_captions_validation.csv",
         "clotho_captions_evaluation.csv"),
        ("train/metadata.csv", "validation/metadata.csv", "test/metadata.csv"),
    ],
)  # fmt: skip
def test_tables_for_training_and_validation(tmp_path, names):
    for index, name in enumerate(names):
        text = rows(f"{index}.wav")
        if name.endswith(".jsonl"):
            text = json.dumps({"file": f"{index}.wav", "caption": "a sound"})
        files(tmp_path, {name: text.replace(",", "\t") if name.endswith(".tsv") else text})
    assert by_split(tmp_path) == {TRAIN: ["0.wav"], VALIDATION: ["1.wav"]}


def test_one_table_is_for_training_whatever_its_name(tmp_path):
    files(tmp_path, {"test.csv": rows("a.wav")})
    assert by_split(tmp_path) == {TRAIN: ["a.wav"], VALIDATION: []}
    assert by_split(tmp_path / "test.csv") == {TRAIN: ["a.wav"], VALIDATION: []}


def test_records_and_hidden_files_are_not_tables(tmp_path):
    record = json.dumps({"prompt": "a dog"})
    files(tmp_path, {"dog.wav.json": "[]", "settings.json": record, "._captions.csv": "\0", "a.wav": ""})
    assert tables_in(tmp_path) == []
    files(tmp_path, {"upstream.json": '\n{"data": []}'})
    assert tables_in(tmp_path) == [tmp_path / "upstream.json"]
    files(tmp_path, {"captions.csv": rows("a.wav")})
    assert tables_in(tmp_path) == [tmp_path / "captions.csv"]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({}, "has no captions: it needs a .csv"),
        ({"a.wav": ""}, "has no captions: it needs a .csv"),
        ({"a.wav": "", "b.wav": "", "a.txt": "x"}, "'b.wav' has no text file beside it"),
        ({"a.wav": "", "a.txt": " \n"}, "a.txt is empty"),
        ({"a.csv": rows("a.wav"), "b.jsonl": ""}, "keep only one table, or one with 'train'"),
        ({"train.csv": "", "train2.csv": "", "val.csv": ""}, "keep only one table"),
        ({"val.csv": rows("a.wav"), "test.csv": rows("b.wav")}, "keep only one table"),
        ({"train.csv": rows("a.wav"), "val.csv": rows("a.wav")}, "val.csv names 'a.wav', which is for"),
    ],
)  # fmt: skip
def test_unusable_folder_is_one_sentence(tmp_path, contents, message):
    with pytest.raises(ValueError, match=message) as error:
        read_items(files(tmp_path, contents))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_sources_that_are_no_folder_and_no_table(tmp_path):
    files(tmp_path, {"a.wav": "", "empty/notes.md": ""})
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        read_items(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"a\.wav is not a folder or a table \(\.csv, \.tsv"):
        read_items(tmp_path / "a.wav")
    with pytest.raises(ValueError, match="empty lists no sounds"):
        read_items(tmp_path / "empty", captioned=False)


def test_listed_sounds_have_to_exist(tmp_path):
    files(tmp_path, {"captions.csv": rows("a.wav", "b.wav"), "a.wav": ""})
    with pytest.raises(ValueError, match=r"names 'b\.wav', which cannot be found"):
        list_items(tmp_path)
    assert [item.caption for item in read_items(tmp_path)] == ["a sound", "a sound"]
