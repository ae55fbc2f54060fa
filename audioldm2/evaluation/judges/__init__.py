"""Judges from other packages, for who has them: `pip install -e ".[judges]"` in the clone.

CLAP ranks the candidates of the models that it judges; these judges had no part in making the sounds. Each
file has one: a class with the name of its figure and a method that returns a number for a sound and its
captions, or None where it has nothing to say of that sound. To add one, write a file and a line in JUDGES.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from audioldm2.errors import require_choice
from audioldm2.evaluation.judges.pocketsphinx import WordErrors
from audioldm2.evaluation.judges.silero import SpeechShare
from audioldm2.evaluation.judges.yamnet import NamedClass


class PackageJudge(Protocol):
    """A judge from another package."""

    figure: str  # what it adds to the table

    def judge(self, wave: Tensor, rate: int, captions: Sequence[str]) -> float | None:
        """A number for one sound (samples,) at `rate` Hz; None where it has nothing to say of it."""
        ...


JUDGES: dict[str, Callable[[], PackageJudge]] = {
    "yamnet": NamedClass,
    "silero-vad": SpeechShare,
    "pocketsphinx": WordErrors,
}


def open_judge(name: str) -> PackageJudge:
    """Load a judge.

    Raises:
        ArgumentError: there is no judge of this name.
        ValueError: its package is not installed.
    """
    return JUDGES[require_choice("judges", name, JUDGES)]()
