"""Caption tables: the formats that people have, and a sentence that names the row for every mistake."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audioldm2.training.tables import LEFT_OUT, TRAIN, VALIDATION, Columns, Item, read_table
from tests.support.sizes import full_or

IN_A_FOLDER = settings(max_examples=full_or(60, 25), deadline=None, suppress_health_check=list(HealthCheck))


def table(folder: Path, text: str, name: str = "captions.csv", sounds: str = "a.wav b.wav") -> Path:
    """Writes a table, and an empty file for each sound."""
    for sound in sounds.split():
        (folder / sound).parent.mkdir(parents=True, exist_ok=True)
        (folder / sound).touch()
    (folder / name).write_bytes(text.encode())
    return folder / name


def captions(items: list[Item]) -> dict[str, tuple[str, ...]]:
    return {item.file.name: item.captions for item in items}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("file,caption\na.wav,a tone\nb.wav,\"a bell, far\"\n", "t.csv"),
        ("\ufefffile,caption\r\na.wav,a tone\r\n\r\nb.wav,\"a bell, far\"\r\n,\r\n", "t.csv"),
        ("File;Caption\na.wav;a tone\nb.wav;a bell, far\n", "t.CSV"),
        ("file\tcaption\na.wav\ta tone\nb.wav\ta bell, far\n", "t.csv"),
        ("FILE\tCaption\textra, more\na.wav\ta tone\t1\nb.wav\ta bell, far\t2\n", "t.tsv"),
        (" file_name , text \na.wav,a tone\nb.wav,\"a bell, far\"\n", "t.csv"),
        ('{"file_name": "a.wav", "text": "a tone", "x": 1}\n\n'
         '{"file_name": "b.wav", "text": "a bell, far"}\n', "metadata.jsonl"),
        ('\ufeff{"data": [{"wav": "a.wav", "caption": "a tone", "labels": "/m/1"}, '
         '{"wav": "b.wav", "caption": "a bell, far"}]}', "t.json"),
        ('[{"audio": {"path": "a.wav"}, "caption": "a tone"}, '
         '{"audio": "b.wav", "caption": ["a bell, far"]}]', "t.json"),
    ],
    ids=["csv", "bom and blank rows", "semicolons", "tabs in csv", "tsv", "audiofolder", "audiofolder jsonl",
         "upstream", "list"],
)  # fmt: skip
def test_formats(tmp_path, text, name):
    items = read_table(table(tmp_path, text, name))
    assert items == [
        Item(tmp_path / "a.wav", ("a tone",)), Item(tmp_path / "b.wav", ("a bell, far",))
    ]  # fmt: skip


def test_clotho_has_five_captions_a_sound(tmp_path):
    header = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"
    text = f'{header}\nA bell.wav,one,two,"three, 3",four,five\n'
    path = table(tmp_path, text, sounds="")
    (tmp_path / "development").mkdir()
    (tmp_path / "development" / "A bell.wav").touch()  # the dataset keeps sounds in a folder beside the table
    items = read_table(path)
    assert items == [
        Item(tmp_path / "development" / "A bell.wav", ("one", "two", "three, 3", "four", "five"))
    ]


@pytest.mark.parametrize("names", ["-x1.wav y2.flac", "Y-x1.wav Yy2.wav", "Y-x1.mp3 y2.ogg"])
def test_audiocaps_by_youtube_id(tmp_path, names):
    text = "audiocap_id,youtube_id,start_time,caption\n7,-x1,30,rain\n8,-x1,30,it rains\n9,y2,0,a dog\n"
    items = read_table(table(tmp_path, text, "val.csv", sounds=names))
    assert [item.captions for item in items] == [("rain", "it rains"), ("a dog",)]
    assert [item.file.name for item in items] == names.split()


def test_audiocaps_by_its_own_id(tmp_path):
    text = "audiocap_id,youtube_id,start_time,caption\n7,x1,30,rain\n8,x1,30,it rains\n"
    assert captions(read_table(table(tmp_path, text, sounds="7.wav wavs/8.wav"))) == {
        "7.wav": ("rain",),
        "8.wav": ("it rains",),
    }
    missing = read_table(table(tmp_path, "youtube_id,caption\nzz,rain\n", sounds=""))
    assert missing[0].file == tmp_path / "zz.wav"  # whoever opens it reports it


def test_rows_of_one_sound_are_one_item(tmp_path):
    items = read_table(table(tmp_path, "file,caption\na.wav,one\nb.wav,x\na.wav,two\na.wav,one\n"))
    assert captions(items) == {"a.wav": ("one", "two"), "b.wav": ("x",)}


def test_absolute_paths_and_paths_to_other_folders(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "c.wav").touch()
    path = table(tmp_path / "elsewhere", f"file,caption\n{tmp_path / 'c.wav'},one\n../c.wav,two\n", sounds="")
    assert [item.file.resolve() for item in read_table(path)] == [tmp_path / "c.wav"] * 2


def test_columns_by_name(tmp_path):
    text = "sound,title,caption\na.wav,a tone,no\nb.wav,a bell,no\n"
    items = read_table(table(tmp_path, text), Columns("Sound", "TITLE"))
    assert captions(items) == {"a.wav": ("a tone",), "b.wav": ("a bell",)}


def test_table_without_captions_where_none_are_needed(tmp_path):
    path = table(tmp_path, "file,genre\na.wav,x\n")
    assert read_table(path, captioned=False) == [Item(tmp_path / "a.wav", ())]


def test_split_column(tmp_path):
    rows = "a.wav,x,Train\nb.wav,y, val\nc.wav,z,test\n"
    items = read_table(table(tmp_path, f"file,caption,Split\n{rows}", sounds="a.wav b.wav c.wav"))
    assert [item.split for item in items] == [TRAIN, VALIDATION, LEFT_OUT]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("file,caption\na.wav,a dog, loud, barks\n", "t.csv",
         r"line 2: 4 fields where the header has 2: 'a\.wav,a dog, loud, barks'; a text with a comma has to "
         "be in double quotes"),
        ("file,caption\nb.wav,x\n\na.wav\n", "t.csv", r"line 4: 1 field where the header has 2: 'a\.wav'\.$"),
        ("file\tcaption\na.wav\ta\tdog\n", "t.tsv", r"line 2: 3 fields .* a text with a tab has to be"),
        ("file;caption\na.wav;a;dog\n", "t.csv", "line 2: 3 fields .* a text with a semicolon has to be"),
        ('file,caption\na.wav,"two\nlines"\nb.wav,a,b\n', "t.csv", "line 4: 3 fields"),
        ('file,caption\na.wav,"a "dog" barks"\n', "t.csv", "line 2: the quotation marks .* do not fit"),
        ('file,caption\na.wav,x\nb.wav,"never closed\n', "t.csv", "line 3: the quotation marks"),
        ("file,caption\na.wav,\n", "t.csv", "line 2: 'caption' has to be a non-empty text"),
        ("file,caption\n ,x\n", "t.csv", "line 2: 'file' has to be the name of a sound file"),
        ("file,caption\n", "t.csv", "lists no sounds"),
        ("", "t.csv", "is empty; its first line has to name the columns"),
        ("a.wav,a bell\nb.wav,a\n", "t.csv", "no column of sound files; its columns are 'a.wav', 'a bell'"),
        ("file,title\na.wav,a bell\n", "t.csv",
         "no column of captions; its columns are 'file', 'title'. Name theirs with --caption-column"),
        ("file,caption,text\na.wav,x,y\n", "t.csv", "has the columns 'caption', 'text'; choose one with --c"),
        ("file,File,caption\na.wav,x,y\n", "t.csv", "has more than one column 'file'"),
        ("file,caption,split\na.wav,x,half\n", "t.csv", "line 2: 'split' is 'half'; it has to be one of"),
        ("file,caption,split\na.wav,x,train\na.wav,y,val\n", "t.csv", "line 3: 'a.wav' is in the splits"),
        ('{"file": "a.wav"}\n', "t.jsonl", "no column of captions; its columns are 'file'"),
        ('{"file": "a.wav", "caption": "x"}\n{"file": "b.wav"}\n', "t.jsonl", "line 2: 'caption' has to be"),
        ('{"file": "a.wav", "caption": 3}\n', "t.jsonl", "line 1: 'caption' has to be a text"),
        ('{"file": 3, "caption": "x"}\n', "t.jsonl", "line 1: 'file' has to be the name"),
        ('{"file": "\\ud800", "caption": "x"}\n', "t.jsonl", "line 1: 'file' has to be the name"),
        ('["a.wav", "a tone"]\n', "t.jsonl", "line 1 has to be an object such as"),
        ("{file}\n", "t.jsonl", "line 1 is not JSON"),
        ('{"data": 3}', "t.json", "holds no table"),
        ("[1]", "t.json", "entry 1 has to be an object"),
        ("[" * 100_000, "t.json", "is not JSON"),
        ("youtube_id,caption\n ,rain\n", "t.csv", "line 2: the row has no id"),
    ],
)  # fmt: skip
def test_mistake_is_a_sentence_with_its_row(tmp_path, text, name, message):
    path = table(tmp_path, text, name)
    with pytest.raises(ValueError, match=message) as error:
        read_table(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_latin_1_is_a_sentence(tmp_path):
    (tmp_path / "t.csv").write_bytes("file,caption\na.wav,caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"t\.csv is not UTF-8 text; save it as UTF-8"):
        read_table(tmp_path / "t.csv")


def test_unknown_column_is_a_sentence(tmp_path):
    path = table(tmp_path, "file,caption\na.wav,x\n")
    with pytest.raises(
        ValueError, match=r"has no column 'title' \(--caption-column\); its columns are 'file'"
    ):
        read_table(path, Columns(caption="title"))


def test_one_name_in_two_folders_is_a_sentence(tmp_path):
    path = table(tmp_path, "file,caption\nc.wav,x\n", sounds="one/c.wav two/c.wav")
    with pytest.raises(ValueError, match=r"line 2: 'c\.wav' may be 'one/c\.wav', 'two/c\.wav'; keep one"):
        read_table(path)


# Any captions -----------------------------------------------------------------------------------------------

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)
texts = texts.filter(lambda text: text.strip())


@IN_A_FOLDER
@given(st.lists(texts, min_size=1, max_size=4), st.sampled_from([",", ";", "\t"]), st.booleans())
def test_any_captions_that_a_csv_writer_writes_are_read_back(tmp_path, captions, delimiter, quoted):
    written = io.StringIO()
    quoting = csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL
    writer = csv.writer(written, delimiter=delimiter, quoting=quoting)
    writer.writerows([["file", "caption"], *([f"{i}.wav", each] for i, each in enumerate(captions))])
    items = read_table(table(tmp_path, written.getvalue(), sounds=""))
    assert [item.captions for item in items] == [(each.strip(),) for each in captions]


@IN_A_FOLDER
@given(st.lists(texts, min_size=1, max_size=4), st.booleans())
def test_any_captions_in_json_are_read_back(tmp_path, captions, escaped):
    rows = [{"wav": f"{i}.wav", "caption": each} for i, each in enumerate(captions)]
    path = table(tmp_path, json.dumps({"data": rows}, ensure_ascii=escaped), "t.json", sounds="")
    assert [item.captions for item in read_table(path)] == [(each.strip(),) for each in captions]


@IN_A_FOLDER
@given(
    st.text(st.characters(codec="utf-8"), max_size=60),
    st.sampled_from(["t.csv", "t.tsv", "t.jsonl", "t.json"]),
)
def test_any_text_is_a_table_or_a_sentence(tmp_path, text, name):
    header = "file,caption\na.wav," if name == "t.csv" else ""
    try:
        items = read_table(table(tmp_path, header + text, name, sounds=""))
    except ValueError as error:
        assert str(tmp_path / name) in str(error)
    else:
        assert items and all(item.captions for item in items)


plain = st.text(st.characters(codec="utf-8", exclude_characters='\0\r\n"'), min_size=1, max_size=10)


@IN_A_FOLDER
@given(st.lists(st.tuples(plain, plain).map(",".join), min_size=1, max_size=3))
def test_unquoted_commas_never_cut_a_caption(tmp_path, captions):
    rows = "".join(f"{i}.wav,{each}\n" for i, each in enumerate(captions))
    with pytest.raises(ValueError, match=r"line 2: \d+ fields where the header has 2"):
        read_table(table(tmp_path, f"file,caption\n{rows}", sounds=""))
