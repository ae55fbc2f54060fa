"""Lists of prompts: text files, tables, and the 100 prompts in the package."""

import csv
from pathlib import Path

from audioldm2.evaluation.clap import Prompt

BUILTIN = "builtin"
FILE = Path(__file__).with_name("prompts.csv")


def read_prompts(path: Path | str) -> list[Prompt]:
    """Read prompts from a text file with one a line, or a CSV with the columns prompt, family and category.

    Args:
        path: a file; or "builtin" for the 100 prompts in the package, whose text never changes.

    Raises:
        ValueError: the file holds no prompts, has no column "prompt", or is not UTF-8.
        OSError: from the system.
    """
    path = FILE if str(path) == BUILTIN else Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
    if path.suffix.lower() == ".csv":
        rows = list(csv.DictReader(text.splitlines()))
        if rows and "prompt" not in rows[0]:
            raise ValueError(f"{path} has no column 'prompt'; its first line has to name the columns.")
        names = ("prompt", "family", "category")
        found = [Prompt(*((row.get(name) or "").strip() for name in names)) for row in rows]
    else:
        found = [Prompt(line.strip()) for line in text.splitlines()]
    found = [prompt for prompt in found if prompt.text]
    if not found:
        raise ValueError(f"{path} holds no prompts.")
    return found
