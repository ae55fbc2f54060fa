"""What the tests of the converter's command share: names, and checks of what a command printed."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from audioldm2.checkpoints import storage
from tests.support import originals

CODE, OUT, ERR = 0, 1, 2  # places in what `run` returns
BASE, MADE = "base.pth", originals.make("base")
QUICK = ("--duration", "0.25", "--steps", "2", "--quiet")
Run = Callable[..., tuple[int, str, str]]


def created() -> list[str]:
    """Return everything in this folder that a test created, hidden drafts too."""
    given = {*(f"{kind}.pth" for kind in originals.CONFIGS), "clap_tokenizer", "t5_tokenizer"}
    return sorted({path.name for path in Path().iterdir()} - given)


def assert_failed(result: tuple[int, str, str], *words: str) -> None:
    """Check for one sentence with these words on stderr, nothing on stdout, and exit code 2."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("audioldm2: error: ")
    assert err.count("\n") == 1 and err.endswith("\n"), err
    assert "Traceback" not in err and "usage:" not in err
    for word in words:
        assert word in err, err


def assert_failed_later(result: tuple[int, str, str], *words: str) -> None:
    """Check for the same after a report of what was begun."""
    code, out, err = result
    *report, last = err.splitlines(keepends=True)
    assert not any("error" in line or "Traceback" in line for line in report)
    assert_failed((code, out, last), *words)


def without_report(err: str) -> str:
    """Return stderr without the lines of the report."""
    return "".join(line for line in err.splitlines(keepends=True) if line.startswith("audioldm2: "))


def folder_states(folder: str | Path) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each network in a converted folder."""
    return {name: open_state() for name, open_state in storage.read(Path(folder)).states.items()}
