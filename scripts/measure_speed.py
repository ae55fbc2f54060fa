"""Time each stage of a request, and tell the peak of resident memory.

    python scripts/measure_speed.py FOLDER --duration 10.24 --steps 20

The first run warms up and is not counted; told are medians. The peak is that of this process, from its start.
"""

import argparse
import itertools
import resource
import statistics
import sys
import time
from pathlib import Path

import audioldm2

PROMPT = "Techno music with a strong, upbeat tempo and high melodic riffs"


def stage_seconds(model: audioldm2.AudioLDM2, **settings) -> dict[str, float]:
    """Seconds of each stage of one request, in order, and of the whole."""
    marks: list[tuple[str, float]] = []
    model.generate(PROMPT, **settings, on_stage=lambda stage: marks.append((stage, time.perf_counter())))
    marks.append(("end", time.perf_counter()))
    seconds: dict[str, float] = {}
    for (stage, begin), (_, end) in itertools.pairwise(marks):
        seconds[stage] = seconds.get(stage, 0.0) + end - begin
    return seconds | {"whole request": marks[-1][1] - marks[0][1]}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="a checkpoint's folder, or a hub id")
    parser.add_argument("--duration", type=float, default=10.24)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--candidates", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--low-memory", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()

    begin = time.perf_counter()
    model = audioldm2.load(
        options.folder, device=options.device, dtype=options.dtype, low_memory=options.low_memory
    )
    print(f"{'load':<22}{time.perf_counter() - begin:9.2f} s")
    settings = {
        "audio_length_in_s": options.duration,
        "num_inference_steps": options.steps,
        "num_waveforms_per_prompt": options.candidates,
    }
    runs = [stage_seconds(model, **settings) for _ in range(options.runs + 1)][1:] or [{}]
    for stage in runs[0]:
        values = [run[stage] for run in runs]
        print(f"{stage:<22}{statistics.median(values):9.2f} s   ({min(values):.2f} to {max(values):.2f})")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e3 if sys.platform != "darwin" else 1e6)
    print(f"{'peak resident memory':<22}{peak:9.0f} MB")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError, audioldm2.WeightsError) as error:
        sys.exit(f"{Path(__file__).name}: error: {error}")
