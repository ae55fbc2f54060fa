"""The questions of the procedural world, asked of true and of false sounds."""

from collections.abc import Callable

from audioldm2.training.randomness import rng
from scripts import world_questions
from scripts.demo_sounds import FAMILIES
from scripts.make_demo_data import render


class Stub(world_questions.World):
    """Answers captions with procedural sounds of what `heard` returns for the words of a caption."""

    def __init__(self, heard: Callable[[str, dict[str, str]], tuple[str, dict[str, str]]]):
        self.seeds, self.rate, self.seconds, self.heard = range(10), 16_000, 2.56, heard
        self.meant: dict[str, tuple[str, dict[str, str]]] = {}

    def caption(self, family: str, seed: int, **said: str) -> str:
        words = f"{family} {seed} {said}"
        self.meant[words] = family, said
        return words

    def make(self, captions, seeds, **settings):
        sounds = []
        for place, (caption, seed) in enumerate(zip(captions, seeds, strict=True)):
            family, said = self.heard(*self.meant[caption])
            sounds.append(render(rng("told", seed, place), {family: said}, "", self.seconds))
        return sounds


def answers(world: world_questions.World) -> dict[str, world_questions.Answer]:
    return world.pitch() | world.tempo() | world.noisiness() | world.sweeps()


def test_true_sounds_pass_every_question():
    found = answers(Stub(lambda family, said: (family, said)))
    assert len(found) == 4 and all("yes" in str(answer) for answer in found.values()), found


OPPOSITE = {"low": "high", "high": "low", "slow": "fast", "fast": "slow"}
OTHER = {"rising": "falling", "falling": "rising"} | dict(
    zip(
        world_questions.NOISES + world_questions.TONES,
        world_questions.TONES + world_questions.NOISES,
        strict=True,
    )
)


def test_opposite_sounds_pass_none():
    def opposite(family: str, said: dict[str, str]) -> tuple[str, dict[str, str]]:
        said = {name: OPPOSITE[word] for name, word in said.items()}
        return (family if said else OTHER[family]), said

    found = answers(Stub(opposite))
    assert all("NO" in str(answer) and answer.value < 0.2 for answer in found.values()), found


def test_questions_use_wordings_that_training_lacks():
    """Each question's captions are of the split "test", whose wordings training does not have."""
    world = world_questions.World.__new__(world_questions.World)
    phrases = [phrase for words in world_questions.WORDINGS.values() for phrase in words["train"].nouns]
    for family in FAMILIES:
        for seed in range(10):
            assert world.caption(family, seed).lower().rstrip(".") not in phrases
