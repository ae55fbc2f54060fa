"""`audioldm2 train`, which also takes `--data procedural`: the endless procedural world of demo_world/.

python scripts/train.py --stage vae --data procedural --out runs/vae
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/ is in the clone, not in the package
from audioldm2.audio import SAMPLE_RATE, resample
from audioldm2.cli import train
from audioldm2.cli.main import Command, execute
from audioldm2.training.data import crop_or_pad
from audioldm2.training.randomness import rng
from scripts.demo_world.captions import describe
from scripts.demo_world.make_demo_data import SECONDS, draw_scene, sample

PROG = "python scripts/train.py"


class Procedural:
    """The endless procedural world, as clips; a short clip is a part of a sound of 2.56 s."""

    def __init__(self, seconds: float, sample_rate: int, seed: int):
        self.seconds, self.sample_rate, self.seed = seconds, sample_rate, seed

    def __repr__(self) -> str:
        return "<the procedural world, endless>"

    def captions(self) -> list[str]:
        generators = [rng("caption", self.seed, index) for index in range(2000)]
        scenes = [draw_scene(each, SECONDS) for each in generators]
        return [
            describe(each, mentioned, relation)
            for each, (relation, mentioned) in zip(generators, scenes, strict=True)
        ]

    def batch(self, step: int, size: int) -> tuple[Tensor, list[str]]:
        return self.part(step, size, range(size))

    def part(self, step: int, size: int, places: range) -> tuple[Tensor, list[str]]:
        waves, captions = [], []
        for place in places:
            sound = sample(self.seed, step * size + place, seconds=max(self.seconds, SECONDS))
            wave = resample(torch.from_numpy(sound.audio), SAMPLE_RATE, self.sample_rate)
            samples = round(self.seconds * self.sample_rate)
            waves.append(crop_or_pad(wave, samples, rng("crop", self.seed, step, place)))
            captions.append(sound.caption)
        return torch.stack(waves), captions


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    run = partial(train.run, prog=PROG, worlds={"procedural": Procedural})
    command = Command(partial(train.parser, PROG), run, train.OUT_OF_MEMORY)
    return execute(lambda: command, arguments)


if __name__ == "__main__":
    sys.exit(main())
