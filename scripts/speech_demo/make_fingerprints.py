"""Write coarse log-mels of true digits in all voices, by which a test knows what the model in the box says.

    python scripts/speech_demo/make_fingerprints.py tests/end_to_end/spoken_digits.json

They are far too coarse to be turned back into speech: 12 x 16 numbers a digit. Needs flite.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/ is in the clone, not in the package
from audioldm2.files import atomic_write
from scripts.speech_demo.judges import features
from scripts.speech_demo.make_speech_data import Utterance, render
from scripts.speech_demo.vocabulary import DIGITS, VOICES

SHAPE = (12, 16)


def main() -> int:
    """Runs the command line; returns the exit code."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        return 0
    table = {
        voice: {
            digit: features(render(Utterance(digit, voice, "normal", 0.05)), SHAPE)
            .mul(10)
            .round()
            .int()
            .tolist()
            for digit in DIGITS
        }
        for voice in VOICES
    }
    with atomic_write(Path(sys.argv[1])) as draft:
        draft.write_text(json.dumps(table, separators=(",", ":")) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
