"""The sounds of a folder: from the table inside, from tables for training and validation, or from text files.

captions.csv                              one table of any kind (tables.py)
train.csv, validation.csv, test.csv       a word of the name says the split; test is left out
train/metadata.csv, validation/...        Hugging Face's audiofolder
dog.wav, dog.txt                          one caption a line
any sounds                                where no captions are needed
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from audioldm2.audio import READABLE_SUFFIXES, find_sounds
from audioldm2.errors import some
from audioldm2.table_files import TABLES
from audioldm2.training.tables import LEFT_OUT, SPLITS, TRAIN, VALIDATION, Columns, Item, read_table

_JSON_TABLE = re.compile(r'\s*(\[|\{\s*"data"\s*:\s*\[)')


def list_items(folder: Path, captioned: bool = True) -> list[Item]:
    """List the sounds of a folder or table in its order, and require that all of them exist.

    Raises:
        ValueError: there is no table, the table is unusable, or it names files that cannot be found.
    """
    items = read_items(folder, captioned=captioned)
    missing = [item.file.name for item in items if not item.file.is_file()]
    if missing:
        raise ValueError(f"{folder} names {some(missing)}, which cannot be found.")
    return items


def read_items(source: Path, columns: Columns | None = None, captioned: bool = True) -> list[Item]:
    """List the sounds of a folder or table, whether they exist or not.

    Args:
        source: a folder, or a table.
        columns: names of columns.
        captioned: whether captions are required.

    Raises:
        ValueError: there is no table, it is not clear which one is meant, or the table is unusable.
    """
    if source.is_file() and source.suffix.lower() in TABLES:
        return read_table(source, columns, captioned)
    if not source.is_dir():
        wanted = f"is not a folder or a table ({', '.join(TABLES)})" if source.exists() else "is not a folder"
        raise ValueError(f"{source} {wanted}.")
    tables = _tables_by_split(source)
    if not tables:
        return _items_without_table(source, captioned)
    items: dict[Path, Item] = {}
    for split, table in tables.items():
        for item in read_table(table, columns, captioned):
            if item.file in items:
                raise ValueError(f"{table} names '{item.file.name}', which is for training too.")
            items[item.file] = replace(item, split=split) if split == VALIDATION else item
    return list(items.values())


def tables_in(folder: Path) -> list[Path]:
    """Find the caption tables in a folder, but not in the folders inside.

    A .json file counts where there is no other table and its content begins as a table's, because records
    of generated sounds and settings end in .json too.
    """
    files = sorted(
        file for file in _visible(folder) if file.suffix.lower() in TABLES and file.is_file()
    )  # fmt: skip
    tables = [file for file in files if file.suffix.lower() != ".json"]
    return tables or [file for file in files if _is_json_table(file)]


def _visible(folder: Path) -> Iterable[Path]:
    return (file for file in folder.iterdir() if not file.name.startswith("."))


def _is_json_table(file: Path) -> bool:
    if Path(file.stem).suffix.lower() in READABLE_SUFFIXES:  # dog.wav.json, the record of a generated sound
        return False
    with open(file, encoding="utf-8-sig", errors="replace") as text:
        return _JSON_TABLE.match(text.read(200)) is not None


def _tables_by_split(folder: Path) -> dict[str, Path]:
    """The table for training, and the one for validation if there is one; {} without tables."""
    tables = tables_in(folder)
    if len(tables) == 1:
        return {TRAIN: tables[0]}
    if not tables:
        inside = {
            split: folder / name for name, split in reversed(SPLITS.items()) if (folder / name).is_dir()
        }
        found = {split: tables_in(each) for split, each in inside.items() if split != LEFT_OUT}
        if len(found.get(TRAIN, [])) != 1 or len(found.get(VALIDATION, [])) > 1:
            return {}
        return {split: found[split][0] for split in (TRAIN, VALIDATION) if found.get(split)}
    by_split: dict[str, list[Path]] = {}
    for table in tables:
        by_split.setdefault(_split_of_name(table), []).append(table)
    usable = {split: found for split, found in by_split.items() if split != LEFT_OUT}
    if "" in usable or TRAIN not in usable or any(len(found) > 1 for found in usable.values()):
        raise ValueError(
            f"{folder} holds {some([table.name for table in tables])}; keep only one table, or one with "
            "'train' and one with 'validation' in its name, or choose one with --data and --validation."
        )
    return {split: usable[split][0] for split in (TRAIN, VALIDATION) if split in usable}


def _split_of_name(table: Path) -> str:
    """The split that a word of a table's name says; "" where none does."""
    splits = {SPLITS[word] for word in re.split(r"[^a-z]+", table.stem.lower()) if word in SPLITS}
    return splits.pop() if len(splits) == 1 else ""


def _items_without_table(folder: Path, captioned: bool) -> list[Item]:
    sounds, others = find_sounds(folder)
    if not captioned:
        if not sounds:
            raise ValueError(f"{folder} lists no sounds.")
        return [Item(file, ()) for file in sounds]
    texts = {file for file in others if file.suffix.lower() == ".txt"}
    found = {sound: _text_beside(sound, texts) for sound in sounds}
    if not any(found.values()):
        raise ValueError(
            f"{folder} has no captions: it needs a .csv with the columns 'file' and 'caption', a .jsonl "
            'with lines such as {"file": "dog.wav", "caption": "a dog barks"}, or dog.txt beside dog.wav.'
        )
    bare = [sound.name for sound, text in found.items() if text is None]
    if bare:
        raise ValueError(f"{folder}: {some(bare)} has no text file beside it, such as dog.txt for dog.wav.")
    return [Item(sound, _lines(text)) for sound, text in found.items() if text is not None]


def _text_beside(sound: Path, texts: set[Path]) -> Path | None:
    names = (f"{sound.stem}.txt", f"{sound.name}.txt", f"{sound.stem}.TXT")
    return next((sound.with_name(name) for name in names if sound.with_name(name) in texts), None)


def _lines(text: Path) -> tuple[str, ...]:
    try:
        lines = tuple(filter(None, map(str.strip, text.read_text(encoding="utf-8-sig").splitlines())))
    except UnicodeDecodeError as error:
        raise ValueError(f"{text} is not UTF-8 text; save it as UTF-8.") from error
    if not lines:
        raise ValueError(f"{text} is empty; it has to hold a caption a line.")
    return lines
