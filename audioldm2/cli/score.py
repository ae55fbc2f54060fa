"""`audioldm2 score`: rank sound files by how well they fit a text."""

import math
from collections.abc import Sequence
from pathlib import Path

import audioldm2
from audioldm2.audio import read
from audioldm2.cli.arguments import Parser, new_parser, nonempty
from audioldm2.cli.sounds import expand, why_skipped
from audioldm2.cli.streams import print_result, report

OUT_OF_MEMORY = "Try --low-memory or --device cpu."

DESCRIPTION = """\
Score sound files against a text with CLAP and print them, best first. A score is the cosine of the vectors of
text and sound, from -1 to 1; compare scores of one text only."""

EPILOG = """\
example:
  audioldm2 score rain.wav more-sounds/ --prompt "heavy rain" --model cvssp/audioldm2

A file that cannot be read, or that has NaN in it, is named on standard error and left out.

exit codes: 0 at least one sound has a score; 2 none has, or another error.
"""


def parser() -> Parser:
    made = new_parser("audioldm2 score", DESCRIPTION, epilog=EPILOG)
    # fmt: off
    add = made.add_argument
    add("sounds", nargs="+", type=Path, metavar="SOUND",
        help="sound files of any rate and length, or folders of them")
    add("--prompt", required=True, metavar="TEXT", help="the text that they should fit")
    add("--model", required=True, type=nonempty, metavar="NAME",
        help="whose CLAP scores: folder, .pth file or hub id")
    add("--device", default="auto", metavar="NAME",
        help="cpu, cuda, cuda:1, mps (default: %(default)s, a GPU if there is one)")
    add("--low-memory", action="store_true", help="read each network from disk for its stage only")
    # fmt: on
    return made


def run(arguments: Sequence[str]) -> int:
    given = parser().parse_args(arguments)
    files = expand(given.sounds, report)
    model = audioldm2.load(given.model, device=given.device, dtype="float32", low_memory=given.low_memory)
    scores = score_files(model, given.prompt, files)
    if not scores:
        raise ValueError(f"none of the {len(files)} sounds could be scored.")
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    print_result("\n".join(f"{score:+.4f}  {file}" for file, score in ranked))
    return 0


def score_files(model: audioldm2.AudioLDM2, text: str, files: Sequence[Path]) -> dict[Path, float]:
    """The score of each sound file against a text. Files that cannot be scored are reported and left out."""
    scores = {}
    for file in files:
        try:
            wave, rate = read(file)
            score = model.score(text, wave, rate).item()
            if not math.isfinite(score):
                raise ValueError(f"{file} has the score {score}.")
        except audioldm2.WeightsError:  # the model's fault, whatever the file
            raise
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            reason = why_skipped(file, error)
            if reason is None:
                raise
            report(f"note: left out: {reason}")
            continue
        scores[file] = score
    return scores
