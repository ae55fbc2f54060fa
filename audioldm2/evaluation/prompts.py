"""Lists of prompts: text files, tables, and the 100 prompts in the package."""

from pathlib import Path

from audioldm2.evaluation.clap import Prompt
from audioldm2.table_files import read_rows

BUILTIN = "builtin"
FILE = Path(__file__).with_name("prompts.csv")


def read_prompts(path: Path | str) -> list[Prompt]:
    """Read prompts from a text file with one a line, or a CSV with the columns prompt, family and category.

    Args:
        path: a file; or "builtin" for the 100 prompts in the package, whose text never changes.

    Raises:
        ValueError: the file holds no prompts, has no column "prompt", is not UTF-8, or has a row with more or
            fewer fields than its header.
        OSError: from the system.
    """
    path = FILE if str(path) == BUILTIN else Path(path)
    if path.suffix.lower() == ".csv":
        rows = [row for _, row in read_rows(path, "")]
        if rows and "prompt" not in rows[0]:
            raise ValueError(f"{path} has no column 'prompt'; its first line has to name the columns.")
        names = ("prompt", "family", "category")
        found = [Prompt(*(row.get(name, "").strip() for name in names)) for row in rows]
    else:
        try:
            found = [Prompt(line.strip()) for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
    found = [prompt for prompt in found if prompt.text]
    if not found:
        raise ValueError(f"{path} holds no prompts.")
    return found
