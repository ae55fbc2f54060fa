"""A procedural world of captioned sounds, endless and the same each time: what the demo model is trained on.

    python scripts/make_demo_data.py sounds/ --count 1000 --seed 0
    python scripts/make_demo_data.py --list

writes sounds/000000.wav ... and sounds/captions.csv (file, caption, family, relation, attributes as JSON).
Item i depends on the seed, the split and i alone: a run that was stopped goes on where it was, and a larger
--count adds to what is there. In Python, `sample(seed, i)` makes one item in a few milliseconds.

The sounds are in demo_sounds.py. A caption is put together from the wordings below. Those of the split "test"
never occur in "train", though each of their words does: who reads "a very high beep" for the first time can
still know what it means.
"""

import argparse
import csv
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/ is in the clone, not in the package
from audioldm2.audio import SAMPLE_RATE, write_wav
from audioldm2.files import atomic_write
from scripts.demo_sounds import ATTRIBUTES, FAMILIES, PEAK, SHORTEST

SPLITS = ("train", "test")
SECONDS = 2.56
VERSION = 1  # of the world; another one when the same seed gives other sounds or captions

# How often a caption says an attribute that the sound can have; in pairs, half as often. Adjectives stand in
# this order.
SAID = {"level": 0.25, "length": 0.35, "tempo": 0.5, "room": 0.35, "pitch": 0.55}
SCENES = {"": 0.7, "and": 0.12, "then": 0.18}  # one sound; two at the same time; one after the other

Attributes = Mapping[str, str]  # {attribute: word}


@dataclass(frozen=True)
class Sound:
    """One item of the world."""

    caption: str
    audio: np.ndarray  # float32 (samples,) at 16 kHz
    attributes: dict[str, dict[str, str]]  # {family: {attribute: word}}, only what the caption says
    relation: str  # "": one family; "and": two at the same time; "then": the first, and after it the second

    @property
    def family(self) -> tuple[str, ...]:
        """The names of the one or two families, in the order in which they sound."""
        return tuple(self.attributes)


def sample(seed: int, index: int = 0, *, split: str = "train", seconds: float = SECONDS) -> Sound:
    """Item `index` of the endless world of a seed.

    seed, index: at least 0. split: "train" or "test", which differ in wordings and in chance.
    seconds: of the clip, at least 0.64.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    if min(seed, index) < 0:
        raise ValueError(f"seed and index are {seed} and {index}; both must be at least 0")
    place = np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), index))
    words, chance = (np.random.default_rng(child) for child in place.spawn(2))
    relation, attributes = imagine(words, seconds)
    caption = describe(words, attributes, relation, split)
    return Sound(caption, render(chance, attributes, relation, seconds), attributes, relation)


# Sounds -----------------------------------------------------------------------------------------------------


def imagine(rng: np.random.Generator, seconds: float) -> tuple[str, dict[str, dict[str, str]]]:
    """What is heard: a relation, and one or two families with what is said of them."""
    relation = str(rng.choice(list(SCENES), p=list(SCENES.values())))
    if relation == "then" and 0.45 * seconds < SHORTEST:
        relation = "and"
    families = rng.choice(list(FAMILIES), size=2 if relation else 1, replace=False)
    # A part of a sequence is too short to be called slow, or short.
    left_out = ("tempo", "length") if relation == "then" else ()
    attributes = {
        str(family): {
            name: str(rng.choice(list(ATTRIBUTES[name])))
            for name, often in SAID.items()
            if name in FAMILIES[family].takes
            and name not in left_out
            and rng.random() < (often / 2 if relation else often)
        }
        for family in families
    }
    return relation, attributes


def render(
    rng: np.random.Generator, attributes: Mapping[str, Attributes], relation: str, seconds: float = SECONDS
) -> np.ndarray:
    """The sound of one or two families {family: {attribute: word}}: float32 (seconds * 16,000,)."""
    if relation == "then":
        n = round(seconds * SAMPLE_RATE)
        first = round(n * rng.uniform(0.45, 0.55))
        lengths = [first / SAMPLE_RATE, (n - first) / SAMPLE_RATE]
    else:
        lengths = [seconds] * len(attributes)
    waves = [
        FAMILIES[family](rng, length, said)
        for (family, said), length in zip(attributes.items(), lengths, strict=True)
    ]
    wave = np.concatenate(waves) if relation == "then" else sum(waves)
    return wave * np.float32(min(1, PEAK / np.abs(wave).max()))


# Words ------------------------------------------------------------------------------------------------------


def describe(
    rng: np.random.Generator, attributes: Mapping[str, Attributes], relation: str = "", split: str = "train"
) -> str:
    """A caption for one or two families {family: {attribute: word}}, in one of the wordings of the split."""
    as_clauses = rng.random() < 0.3 and all(len(said) <= 1 for said in attributes.values())
    phrases = [
        phrase(rng, family, said, split, as_clauses, in_pair=bool(relation))
        for family, said in attributes.items()
    ]
    caption = phrases[0]
    if relation:
        joints = JOINTS[relation][split]
        caption = one_of(rng, joints.clauses if as_clauses else joints.nouns).format(*phrases)
    caption = re.sub(r"\ba(?= [aeiou])", "an", caption)
    if rng.random() < 0.2:
        caption = caption[0].upper() + caption[1:]
    return caption + "." if rng.random() < 0.2 else caption


def phrase(
    rng: np.random.Generator, family: str, said: Attributes, split: str, as_clause: bool, in_pair: bool
) -> str:
    """One sound in words: "a loud, high beep", "a beep at a high pitch", or "a machine beeps loudly"."""
    wording = WORDINGS[family][split]
    ways = {name: SAYINGS[name, said[name]][split] for name in SAID if name in said}
    if as_clause:
        ends = [one_of(rng, (*way.adverbs, *way.after)) for way in ways.values()]
        return " ".join([one_of(rng, wording.clauses), *ends])
    # An end such as "at a high pitch" could be of either sound of a pair; and two of them are hard to read.
    ending = str(rng.choice(list(ways))) if ways and not in_pair and rng.random() < 0.35 else None
    adjectives = [one_of(rng, way.before) for name, way in ways.items() if name != ending]
    fitting = [noun for noun in wording.nouns if "{}" in noun or not adjectives]
    noun = one_of(rng, fitting).format(", ".join(adjectives) + " " if adjectives else "")
    return f"{noun} {one_of(rng, ways[ending].after)}" if ending else noun


def one_of(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[rng.integers(len(choices))]


class Wording(NamedTuple):
    """Ways to name a sound: noun phrases, where {} takes adjectives, and clauses; or to join two of them."""

    nouns: tuple[str, ...]
    clauses: tuple[str, ...]


class Saying(NamedTuple):
    """Ways to say an attribute: adjectives, what follows a noun or a verb, and what follows a verb only."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    adverbs: tuple[str, ...]


def _table(kind: type, rows: dict) -> dict[object, dict[str, tuple]]:
    """Rows of texts, as many for "train" as for "test" and each with its choices between bars, by split."""
    fields = len(kind._fields)

    def read(texts: Sequence[str]) -> tuple:
        return kind(
            *(tuple(choice.strip() for choice in text.split("|") if choice.strip()) for text in texts)
        )

    return {
        key: {split: read(texts[i * fields : (i + 1) * fields]) for i, split in enumerate(SPLITS)}
        for key, texts in rows.items()
    }


# Train: noun phrases, clauses; test: the same.
JOINTS = _table(Wording, {
    "and": (
        "{} and {} | {} with {} | {} and {} at the same time | {} together with {} | {} mixed with {}",
        "{} and {} | {} while {} | {} as {}",
        "{} and {} together | {} with {} at the same time",
        "{} while {} at the same time",
    ),
    "then": (
        "{}, then {} | {} followed by {} | {} and then {} | first {}, then {} | {} and after that {} | "
        "{} before {}",
        "{}, then {} | {} and then {} | first {}, then {} | {} before {}",
        "{}, after that {} | first {} and then {}",
        "first {} and then {}",
    ),
})  # fmt: skip

WORDINGS = _table(Wording, {
    "tone": (
        "a {}tone | a {}steady tone | a {}pure tone | a {}sine tone | a {}test tone | "
        "a {}continuous sine wave",
        "a tone sounds | a steady tone plays",
        "a {}steady sine wave | a {}pure sine tone", "a pure tone plays",
    ),
    "beep": (
        "a {}beep | a {}single beep | one {}beep | a {}beep of a machine | a {}electronic beep | "
        "the {}beep of a microwave",
        "a machine beeps once | a microwave beeps once",
        "one {}electronic beep | a {}single beep of a machine", "an electronic machine beeps once",
    ),
    "beeps": (
        "{}beeps | repeated {}beeps | a {}beep again and again | a series of {}beeps | {}beeping | "
        "the {}beeping of an alarm | a {}alarm",
        "an alarm beeps | a machine beeps again and again",
        "a series of repeated {}beeps | repeated {}beeping", "an alarm beeps again and again",
    ),
    "rising": (
        "a {}rising tone | a {}rising sweep | a {}tone going up | a {}sweep from low to high | "
        "a {}tone that rises | a {}upward sweep",
        "a tone rises | the pitch goes up",
        "a {}sweep going up | a {}upward tone", "a tone goes up",
    ),
    "falling": (
        "a {}falling tone | a {}falling sweep | a {}tone going down | a {}sweep from high to low | "
        "a {}tone that falls | a {}downward sweep",
        "a tone falls | the pitch goes down",
        "a {}sweep going down | a {}downward tone", "a tone goes down",
    ),
    "siren": (
        "a {}siren | a {}wailing siren | the {}siren of an ambulance | a {}police siren | "
        "the {}wail of a siren | a {}emergency siren",
        "a siren wails | a police siren sounds",
        "the {}wail of a police siren | a {}wailing ambulance siren", "a police siren wails",
    ),
    "bell": (
        "a {}bell | a {}church bell | a {}ringing bell | the {}ring of a bell | a {}bell ringing | "
        "one {}stroke of a bell",
        "a bell rings | a church bell is struck",
        "the {}ring of a church bell | a {}church bell ringing", "a church bell rings",
    ),
    "melody": (
        "a {}plucked melody | a {}guitar melody | {}plucked strings | a {}melody on a guitar | "
        "a {}harp melody | {}notes on a harp",
        "a guitar plays a melody | someone plucks a harp",
        "a {}melody on plucked strings | {}notes on a guitar", "someone plucks a guitar",
    ),
    "noise": (
        "{}white noise | {}static | {}noise | a {}hiss | the {}static of a radio | {}television noise",
        "white noise plays | a radio hisses",
        "the {}white noise of a radio | {}television static", "a television hisses",
    ),
    "wind": (
        "{}wind | a {}howling wind | {}wind blowing | the {}howl of the wind | a {}gust of wind | "
        "{}wind in the trees",
        "the wind blows | the wind howls",
        "{}wind howling in the trees | a {}gust of howling wind", "the wind howls in the trees",
    ),
    "rain": (
        "{}rain | {}rain falling | {}rain on a roof | the {}patter of rain | a {}rain shower | "
        "{}raindrops on a window",
        "rain falls | it is raining",
        "{}rain on a window | the {}patter of raindrops", "rain falls on a roof",
    ),
    "waves": (
        "{}sea waves | {}ocean waves | {}waves on a beach | the {}sound of the sea | "
        "a {}wave breaking on the shore | {}surf",
        "waves roll onto the beach | the sea breaks on the shore",
        "{}ocean waves on a beach | {}waves breaking on the shore", "ocean waves roll onto the shore",
    ),
    "thunder": (
        "{}thunder | a {}clap of thunder | {}rumbling thunder | a {}thunderstorm | the {}rumble of thunder | "
        "a {}roll of thunder",
        "thunder rumbles | thunder rolls over the land",
        "a {}rumbling thunderstorm | the {}rumble of a thunderstorm", "thunder rumbles over the land",
    ),
    "fire": (
        "a {}crackling fire | a {}campfire | a {}fire | the {}crackle of a fire | {}burning wood | "
        "{}wood crackling",
        "a fire crackles | wood burns",
        "a {}crackling campfire | the {}crackle of burning wood", "a campfire crackles",
    ),
    "bubbles": (
        "{}bubbles | {}bubbling water | {}bubbles in water | the {}bubbling of water | {}boiling water | "
        "a {}bubbling pot",
        "water bubbles | water boils in a pot",
        "{}bubbles in boiling water | the {}bubbling of a pot", "water bubbles in a pot",
    ),
    "engine": (
        "a {}engine | a {}running engine | the {}hum of an engine | a {}motor running | "
        "the {}hum of a motor | a {}truck engine",
        "an engine runs | a motor hums",
        "a {}running motor | the {}hum of a truck", "an engine hums",
    ),
    "clock": (
        "{}ticking | the {}ticking of a clock | {}ticks of a clock | the {}tick of a watch | "
        "a clock with a {}tick | a ticking clock | a clock ticking",
        "a clock ticks | a watch is ticking",
        "the {}ticking of a watch | a watch with a {}tick", "a clock is ticking",
    ),
    "drums": (
        "a {}drum beat | {}drums | {}drumming | a {}beat on a drum | a {}drum rhythm | "
        "a {}rhythm on a drum kit",
        "drums play | someone plays the drums",
        "a {}beat on the drums | a {}drum kit rhythm", "someone plays a drum beat",
    ),
    "footsteps": (
        "{}footsteps | {}steps | the {}footsteps of a person | {}footsteps on gravel | "
        "someone taking {}steps | {}steps on a path | a person walking",
        "someone walks | a person walks on gravel",
        "the {}steps of a person | {}steps on gravel", "a person walks on a path",
    ),
    "dog": (
        "{}barking | the {}bark of a dog | a dog's {}bark | {}barks of a dog | a dog with a {}bark | "
        "a dog barking | a dog",
        "a dog barks | a dog is barking again and again",
        "the {}barking of a dog | the {}barks of a dog", "a dog barks again and again",
    ),
    "birds": (
        "{}birds | {}bird song | {}birds chirping | the {}chirping of birds | a {}bird singing | "
        "{}chirps of a bird",
        "birds sing | a bird chirps",
        "{}birds singing | the {}song of a bird", "a bird sings in the trees",
    ),
    "crickets": (
        "{}crickets | {}crickets chirping | a {}cricket | the {}chirping of crickets | {}insects at night | "
        "{}crickets at night",
        "crickets chirp | a cricket sings at night",
        "{}crickets chirping at night | the {}chirping of insects", "crickets chirp at night",
    ),
    "laser": (
        "a {}laser zap | {}laser shots | the {}zap of a ray gun | {}zapping | {}zaps of a laser | "
        "the {}shots of a laser gun | a laser",
        "a laser fires | a ray gun zaps",
        "the {}zap of a laser gun | {}ray gun shots", "a laser gun fires",
    ),
})  # fmt: skip

# Train: adjectives, what follows anything, adverbs; test: the same. The first adjective is that of both.
SAYINGS = _table(Saying, {
    ("pitch", "low"): (
        "low | low-pitched | deep", "at a low pitch | with a low pitch | in a low register", "",
        "low | very low | very deep", "at a very low pitch | with a deep pitch", "",
    ),
    ("pitch", "middle"): (
        "middle-pitched | medium-pitched | mid-range",
        "at a middle pitch | with a medium pitch | in a middle register", "",
        "middle-pitched | mid-pitched", "at a medium pitch | in a medium register", "",
    ),
    ("pitch", "high"): (
        "high | high-pitched | shrill", "at a high pitch | with a high pitch | in a high register", "",
        "high | very high | very shrill", "at a very high pitch | with a shrill pitch", "",
    ),
    ("tempo", "slow"): (
        "slow | slow-paced | leisurely", "at a slow pace | at a slow tempo | at a leisurely pace", "slowly",
        "slow | very slow", "at a very slow pace | at a leisurely tempo", "very slowly",
    ),
    ("tempo", "fast"): (
        "fast | quick | rapid | fast-paced", "at a fast pace | at a fast tempo | at a quick pace",
        "quickly | rapidly",
        "fast | very fast | very rapid", "at a very fast pace | at a quick tempo", "very quickly",
    ),
    ("level", "quiet"): (
        "quiet | soft | faint | very quiet", "at a quiet level | in the far distance",
        "quietly | softly | very softly",
        "quiet | very soft | very faint", "at a very quiet level | at a soft level | far in the distance",
        "very quietly",
    ),
    ("level", "loud"): (
        "loud | powerful | strong | very loud", "at a loud level | at full volume",
        "loudly | very loudly | powerfully",
        "loud | very powerful | very strong", "at a very loud level | at a powerful level", "very powerfully",
    ),
    ("length", "short"): (
        "short | brief", "for a short time | for a moment", "briefly",
        "short | very short | very brief", "for a very short time | for a brief moment", "very briefly",
    ),
    ("length", "long"): (
        "long | sustained | long-lasting", "for a long time | for a while | without a pause", "",
        "long | very long", "for a very long time | for a long while", "",
    ),
    ("room", "dry"): (
        "dry | echoless", "without any echo | in a dry room", "",
        "dry | very dry", "in a very dry room | in a room without any echo", "",
    ),
    ("room", "reverberant"): (
        "reverberant | echoing", "in a large hall | with a lot of echo | in a big echoing room", "",
        "reverberant | very reverberant", "in a large echoing hall | in a big hall", "",
    ),
})  # fmt: skip


# Command line -----------------------------------------------------------------------------------------------


def write(
    out: str | Path, count: int, seed: int = 0, *, split: str = "train", seconds: float = SECONDS
) -> int:
    """Write items 0 to count - 1 into the folder `out`, and their captions; returns how many sounds were new.

    Each file appears whole or not at all, the captions last. Raises ValueError if `out` holds anything else.
    """
    if count < 1:
        raise ValueError(f"count is {count}; it must be at least 1")
    sample(seed, split=split, seconds=seconds)  # a wrong argument is told before a folder is made
    out = Path(out)
    recipe = json.dumps({"version": VERSION, "seed": seed, "split": split, "seconds": seconds}) + "\n"
    recipe_file = out / "recipe.json"
    found = recipe_file.read_text(encoding="utf-8") if recipe_file.exists() else "something else"
    if found != recipe and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} holds {found.strip()}, not {recipe.strip()}: choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(recipe_file) as temporary:
        temporary.write_text(recipe, encoding="utf-8")
    new, rows = 0, []
    for index in range(count):
        sound = sample(seed, index, split=split, seconds=seconds)
        file = out / f"{index:06d}.wav"
        if not file.exists():
            write_wav(file, sound.audio, SAMPLE_RATE)
            new += 1
        family = f" {sound.relation} ".join(sound.family)
        rows.append([file.name, sound.caption, family, sound.relation, json.dumps(sound.attributes)])
    with (
        atomic_write(out / "captions.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as table,
    ):
        csv.writer(table).writerows([["file", "caption", "family", "relation", "attributes"], *rows])
    return new


def list_world() -> None:
    print("attributes:")
    for name, words in ATTRIBUTES.items():
        print(f"  {name:<8}{' / '.join(words)}")
    print("families, and what can be said of them:")
    for name, family in FAMILIES.items():
        print(f"  {name:<11}{', '.join(family.takes):<28}{WORDINGS[name]['train'].clauses[0]}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, nargs="?", help="folder to write to; it may hold a part already")
    parser.add_argument("--count", type=int, default=1000, help="how many sounds (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each sound (default: %(default)g)")
    parser.add_argument(
        "--split", choices=SPLITS, default="train", help="which wordings (default: %(default)s)"
    )
    parser.add_argument("--list", action="store_true", help="print the families and attributes, and stop")
    options = parser.parse_args(arguments)
    if options.list:
        list_world()
        return 0
    if options.out is None:
        parser.error("a folder to write to is needed (or --list)")
    try:
        new = write(options.out, options.count, options.seed, split=options.split, seconds=options.seconds)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    print(f"{options.out}: {options.count} sounds, {new} of them new")
    return 0


if __name__ == "__main__":
    sys.exit(main())
