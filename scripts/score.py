"""Score sound files against a text with CLAP: the cosine of their vectors, best first.

python scripts/score.py rain.wav dog.wav --prompt "heavy rain" --model cvssp/audioldm2
"""

import argparse
import sys
from pathlib import Path

import audioldm2
from audioldm2.audio import read


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "files", nargs="+", type=Path, help="sound files (WAV, FLAC, OGG, ...), of any rate and length"
    )
    parser.add_argument("--prompt", required=True, help="the text that they should fit")
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    try:
        model = audioldm2.load(options.model, device=options.device, dtype="float32")
        scores = {}
        for file in options.files:
            wave, sample_rate = read(file)
            scores[file] = model.score(options.prompt, wave, sample_rate).item()
    except (ValueError, OSError, audioldm2.WeightsError) as error:
        print(f"score.py: error: {error}", file=sys.stderr)
        return 2
    for file, score in sorted(scores.items(), key=lambda item: -item[1]):
        print(f"{score:+.4f}  {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
