"""Rows of tables, strictly read: whatever a row has wrong is a sentence with its place.

.csv .tsv        a header names the columns; fields are separated by commas, semicolons or tabs
.jsonl           an object a line
.json            a list of objects, or {"data": [...]} as upstream's
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeGuard

from audioldm2.errors import some

TABLES = (".csv", ".tsv", ".jsonl", ".json")
DELIMITERS = ",;\t"

Row = tuple[str, dict[str, Any]]  # where it stands, for messages; its values by column


def read_rows(table: Path, example: str) -> Iterator[Row]:
    """Yield the rows of a table, with column names in lower case; fields of CSV and TSV are texts.

    Empty lines are passed over, and the byte order mark of a spreadsheet is no part of a name.

    Args:
        table: its suffix is one of TABLES; any other is read as CSV.
        example: a JSON object as messages show it.

    Raises:
        ValueError: the table is unusable; the message names the file and the row.
        OSError: from the system.
    """
    try:
        with open(table, newline="", encoding="utf-8-sig") as lines:
            if table.suffix.lower() == ".jsonl":
                yield from _jsonl_rows(table, lines, example)
            elif table.suffix.lower() == ".json":
                yield from _json_rows(table, lines, example)
            else:
                yield from _csv_rows(table, lines)
    except UnicodeDecodeError as error:
        raise ValueError(f"{table} is not UTF-8 text; save it as UTF-8.") from error


def folded(name: str) -> str:
    """The name of a column as rows have it."""
    return name.strip().casefold()


def is_text(value: Any) -> TypeGuard[str]:
    """Whether a value is a string without halves of surrogate pairs, which JSON can hold and UTF-8 cannot."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _csv_rows(table: Path, lines: IO[str]) -> Iterator[Row]:
    header_line = next((line for line in lines if line.strip()), "")
    lines.seek(0)
    delimiter = "\t" if table.suffix.lower() == ".tsv" else max(DELIMITERS, key=header_line.count)
    # strict: a quotation mark in a wrong place is an error, not a guess
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    number = 1
    try:
        for fields in reader:
            where, number = f"line {number}", reader.line_num + 1
            if not any(each.strip() for each in fields):  # a blank line, or a spreadsheet's empty row
                continue
            if not header:
                header = [folded(each) for each in fields]
                twice = sorted({each for each in header if each and header.count(each) > 1})
                if twice:
                    raise ValueError(f"{table} has more than one column {some(twice)}.")
                continue
            if len(fields) != len(header):
                raise ValueError(_wrong_count(f"{table}, {where}", fields, header, delimiter))
            yield where, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise ValueError(
            f"{table}, line {number}: the quotation marks of this row do not fit together ({error}). A text "
            'with a quotation mark is quoted, and the mark doubled: "the word ""dog""".'
        ) from error
    if not header:
        raise ValueError(f"{table} is empty; its first line has to name the columns.")


def _wrong_count(where: str, fields: list[str], header: list[str], delimiter: str) -> str:
    row = delimiter.join(fields)
    shown = repr(row if len(row) <= 80 else f"{row[:77]}...")
    name = {",": "comma", ";": "semicolon", "\t": "tab"}[delimiter]
    advice = f"; a text with a {name} has to be in double quotes" if len(fields) > len(header) else ""
    count = f"{len(fields)} field{'s' * (len(fields) != 1)}"
    return f"{where}: {count} where the header has {len(header)}: {shown}{advice}."


def _jsonl_rows(table: Path, lines: IO[str], example: str) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{table}, line {number} is not JSON: {error}.") from error
            yield f"line {number}", _object(value, f"{table}, line {number}", example)


def _json_rows(table: Path, lines: IO[str], example: str) -> Iterator[Row]:
    text = lines.read()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{table} is not JSON: {error}.") from error
    entries = value.get("data") if isinstance(value, dict) else value
    if not isinstance(entries, list):
        raise ValueError(f'{table} holds no table; it has to be a list of objects, or {{"data": [...]}}.')
    for number, entry in enumerate(entries, start=1):
        yield f"entry {number}", _object(entry, f"{table}, entry {number}", example)


def _object(value: Any, where: str, example: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} has to be an object such as {example}.")
    return {folded(name): each for name, each in value.items()}
