"""Finding and parsing the files of a tokenizer's folder; every error names the file and the repair."""

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from audioldm2.errors import WeightsError
from audioldm2.files import failed_download

_REPAIR = "copy the tokenizer's files from the checkpoint again, or convert it again"


def find_vocabulary(folder: str | Path, first: str, second: str, also: str | None = None) -> Path:
    """The file `first` in the folder, or else `second`, which needs `also` beside it."""
    folder = Path(folder)
    if (folder / first).is_file():
        return folder / first
    if (folder / second).is_file() and (also is None or (folder / also).is_file()):
        return folder / second
    names = f"{first}, or {second}" + (f" and {also}" if also else "")
    raise WeightsError(f"{folder} must hold {names}: {_REPAIR}")


@contextmanager
def parsing(file: Path, expected: str) -> Iterator[None]:
    """Turn whatever a parser raises into a WeightsError; `tokenizers` raises the bare class Exception."""
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:
        mistaken = None
        with suppress(OSError):  # a folder, or a file that cannot be opened
            mistaken = failed_download(file)
        reason = f"it is {mistaken[0]}" if mistaken else str(error) or type(error).__name__
        raise WeightsError(f"{file} is not {expected} ({reason}): {_REPAIR}") from error


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file, or {} if the file does not exist."""
    with parsing(file, "a JSON object"):
        return {**json.loads(file.read_text("utf-8"))} if file.is_file() else {}


def charsmap_of_json(serialized: dict) -> bytes:
    """The NFKC table of a tokenizer.json, or b"" if it has none."""
    normalizer = serialized.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    tables = [step["precompiled_charsmap"] for step in steps if step.get("type") == "Precompiled"]
    return base64.b64decode(tables[0]) if tables else b""


def bytes_field(message: bytes, wanted: int) -> bytes:
    """The bytes of one field of a well-formed protobuf message, or b"" if it is absent.

    `sentencepiece` exposes the pieces of a model but not its NFKC table. Parsing it here saves a dependency
    on protobuf.
    """
    stream, found = io.BytesIO(message), b""

    def varint() -> int:
        byte = stream.read(1)[0]
        return byte if byte < 128 else byte - 128 + 128 * varint()

    while stream.tell() < len(message):
        field, kind = divmod(varint(), 8)
        if kind == 0:
            varint()
        else:  # fixed 64 bits, bytes, fixed 32 bits
            value = stream.read({1: 8, 2: None, 5: 4}[kind] or varint())
            found = value if field == wanted else found
    return found
