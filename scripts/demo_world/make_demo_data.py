"""Make captioned procedural sounds, endless and reproducible: the data that the demo model is trained on.

    python scripts/demo_world/make_demo_data.py sounds/ --count 1000 --seed 0
    python scripts/demo_world/make_demo_data.py --list

writes sounds/000000.wav ... and sounds/captions.csv (file, caption, family, relation, attributes as JSON).
Item i depends only on the seed, the split and i: an interrupted run continues where it stopped, and a larger
--count adds to the folder. In Python, `sample(seed, i)` makes one item in a few milliseconds.

families.py renders the sounds. captions.py composes the captions; those of the split "test" use wordings that
never occur in "train", although each of their words does.
"""

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/ is in the clone, not in the package
from audioldm2.audio import SAMPLE_RATE, write_wav
from audioldm2.errors import ArgumentError, require_choice, require_whole
from audioldm2.files import atomic_write
from scripts.demo_world.captions import MENTION_RATE, Attributes, describe
from scripts.demo_world.families import FAMILIES
from scripts.demo_world.registry import ATTRIBUTES, SHORTEST
from scripts.demo_world.synthesis import PEAK
from scripts.demo_world.wordings import SPLITS, WORDINGS

SECONDS = 2.56
VERSION = 1  # of the world; changes when the same seed gives other sounds or captions

# Probabilities: one sound; two at the same time; one after the other.
RELATIONS = {"": 0.7, "and": 0.12, "then": 0.18}


@dataclass(frozen=True)
class Sound:
    """One item of the world."""

    caption: str
    audio: np.ndarray  # float32 (samples,) at 16 kHz
    attributes: dict[str, dict[str, str]]  # {family: {attribute: word}}, only what the caption mentions
    relation: str  # "": one sound; "and": two at the same time; "then": the first, then the second

    @property
    def family(self) -> tuple[str, ...]:
        """The one or two families in order of their sounds."""
        return tuple(self.attributes)


def sample(seed: int, index: int = 0, *, split: str = "train", seconds: float = SECONDS) -> Sound:
    """Makes one item of the endless world of a seed.

    Args:
        seed: at least 0.
        index: of the item, at least 0.
        split: "train" or "test", which have different wordings and different random sounds.
        seconds: length of the clip, at least 0.64.

    Raises:
        ArgumentError: an argument is out of range.
    """
    require_choice("split", split, SPLITS)
    require_whole("seed", seed, 0)
    require_whole("index", index, 0)
    sequence = np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), index))
    caption_rng, sound_rng = (np.random.default_rng(child) for child in sequence.spawn(2))
    relation, attributes = draw_scene(caption_rng, seconds)
    caption = describe(caption_rng, attributes, relation, split)
    return Sound(caption, render(sound_rng, attributes, relation, seconds), attributes, relation)


# Sounds -----------------------------------------------------------------------------------------------------


def draw_scene(rng: np.random.Generator, seconds: float) -> tuple[str, dict[str, dict[str, str]]]:
    """Draws what an item contains.

    Args:
        rng: provides all randomness.
        seconds: length of the clip; a short one has no room for two sounds in sequence.

    Returns:
        The relation, and {family: {attribute: word}} with what the caption mentions.
    """
    relation = str(rng.choice(list(RELATIONS), p=list(RELATIONS.values())))
    if relation == "then" and 0.45 * seconds < SHORTEST:
        relation = "and"
    families = rng.choice(list(FAMILIES), size=2 if relation else 1, replace=False)
    # Half a clip is too short to be called slow or short.
    excluded = ("tempo", "length") if relation == "then" else ()
    attributes = {
        str(family): {
            name: str(rng.choice(list(ATTRIBUTES[name])))
            for name, rate in MENTION_RATE.items()
            if name in FAMILIES[family].takes
            and name not in excluded
            and rng.random() < (rate / 2 if relation else rate)
        }
        for family in families
    }
    return relation, attributes


def render(
    rng: np.random.Generator, attributes: Mapping[str, Attributes], relation: str, seconds: float = SECONDS
) -> np.ndarray:
    """Renders one or two sounds.

    Args:
        rng: provides all randomness.
        attributes: {family: {attribute: word}}.
        relation: "", "and" or "then".
        seconds: length of the clip.

    Returns:
        float32 (seconds * 16,000,).
    """
    if relation == "then":
        n = round(seconds * SAMPLE_RATE)
        first = round(n * rng.uniform(0.45, 0.55))
        lengths = [first / SAMPLE_RATE, (n - first) / SAMPLE_RATE]
    else:
        lengths = [seconds] * len(attributes)
    waves = [
        FAMILIES[family](rng, length, mentioned)
        for (family, mentioned), length in zip(attributes.items(), lengths, strict=True)
    ]
    wave = np.concatenate(waves) if relation == "then" else sum(waves)
    return wave * np.float32(min(1, PEAK / np.abs(wave).max()))


# Command line -----------------------------------------------------------------------------------------------


def write(
    out: str | Path, count: int, seed: int = 0, *, split: str = "train", seconds: float = SECONDS
) -> int:
    """Writes items 0 to count - 1 and their captions; files appear whole or not at all, captions last.

    Args:
        out: a new or empty folder, or one with items of the same seed, split and length.
        count: how many items the folder holds afterwards.
        seed: of the items.
        split: of the items.
        seconds: length of the items.

    Returns:
        How many sounds were new.

    Raises:
        ArgumentError: an argument is out of range.
        ValueError: `out` holds something else.
    """
    if count < 1:
        raise ArgumentError("count", count, "be at least 1")
    sample(seed, split=split, seconds=seconds)  # raises for a wrong argument before a folder is made
    out = Path(out)
    recipe = json.dumps({"version": VERSION, "seed": seed, "split": split, "seconds": seconds}) + "\n"
    recipe_file = out / "recipe.json"
    found = recipe_file.read_text(encoding="utf-8") if recipe_file.exists() else "something else"
    if found != recipe and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} holds {found.strip()}, not {recipe.strip()}: choose another folder.")
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(recipe_file) as draft:
        draft.write_text(recipe, encoding="utf-8")
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
        atomic_write(out / "captions.csv") as draft,
        open(draft, "w", newline="", encoding="utf-8") as table,
    ):
        csv.writer(table).writerows([["file", "caption", "family", "relation", "attributes"], *rows])
    return new


def print_world() -> None:
    """Prints all attributes with their words, and all families with their attributes."""
    print("attributes:")
    for name, words in ATTRIBUTES.items():
        print(f"  {name:<8}{' / '.join(words)}")
    print("families and their attributes:")
    for name, family in FAMILIES.items():
        print(f"  {name:<11}{', '.join(family.takes):<28}{WORDINGS[name]['train'].clauses[0]}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("out", type=Path, nargs="?", help="output folder; it may already hold some of the sounds")
    add("--count", type=int, default=1000, help="number of sounds (default: %(default)s)")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--seconds", type=float, default=SECONDS, help="length of each sound (default: %(default)g)")
    add("--split", choices=SPLITS, default="train", help="which wordings to use (default: %(default)s)")
    add("--list", action="store_true", help="print the families and attributes, and exit")
    options = parser.parse_args(arguments)
    if options.list:
        print_world()
        return 0
    if options.out is None:
        parser.error("an output folder is required (or --list)")
    try:
        new = write(options.out, options.count, options.seed, split=options.split, seconds=options.seconds)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    print(f"{options.out}: {options.count} sounds, {new} of them new")
    return 0


if __name__ == "__main__":
    sys.exit(main())
