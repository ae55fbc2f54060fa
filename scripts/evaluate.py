"""Judge a model by its sounds: how well they fit their prompts, and what is asked of each is there.

    python scripts/evaluate.py --model runs/demo/model          a model of the procedural world
    python scripts/evaluate.py --model cvssp/audioldm2 --prompts prompts.csv --reference sounds/

Of any model and prompts (a text file with one prompt a line, or a CSV with the columns prompt and perhaps
family), for each seed one sound a prompt:

    CLAP score   the cosine of each sound and its prompt, by the model's own CLAP, or that of --judge
    families     how many sounds CLAP takes for what they are, among the families of the CSV
    Frechet      the distance of the sounds from those of the folder --reference, on CLAP's vectors; like
                 FID (Heusel et al. 2017, arXiv 1706.08500), smaller is nearer; with few sounds it is large

Without --prompts, the questions of the procedural world (world_questions.py) are asked, such as whether "a
high beep" is higher than "a low beep", in wordings that training has not seen. --json FILE keeps all figures.
"""

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import audioldm2
from audioldm2 import clap_score
from audioldm2.audio import read, resample
from audioldm2.errors import WeightsError
from audioldm2.files import atomic_write
from audioldm2.training.data import list_items

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/ is in the clone, not in the package
from scripts import world_questions

AT_ONCE = 16  # prompts in a batch


@dataclass(frozen=True)
class Prompt:
    text: str
    family: str = ""  # what the sound is, where that is known


class Judge:
    """CLAP, from whichever model it is taken."""

    def __init__(self, model: audioldm2.AudioLDM2):
        self.model = model
        self.networks, self.hearing, self.tokenizer = model.networks, model.hearing, model.clap_tokenizer

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """(texts, clap_dim), of norm 1."""
        return clap_score.embed_texts(self.networks, self.tokenizer, texts)

    def of_sounds(self, sounds: Sequence[Tensor], rate: int) -> Tensor:
        """(sounds, clap_dim), of norm 1; each sound is (samples,)."""
        return torch.cat(
            [clap_score.embed_sounds(self.networks, self.hearing, sound[None], rate) for sound in sounds]
        )

    def families(self, sounds: Tensor, texts: Mapping[str, Sequence[str]]) -> list[str]:
        """The family whose texts are nearest to each sound; sounds: (sounds, clap_dim)."""
        names = list(texts)
        centres = torch.stack([self.of_texts(texts[name]).mean(dim=0) for name in names])
        return [names[i] for i in (sounds @ centres.T).argmax(dim=1)]


def frechet(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The Frechet distance of the normal distributions of two sets of vectors, (sounds, dim) each."""
    between = np.square(ours.mean(axis=0) - theirs.mean(axis=0)).sum()
    one, other = (np.cov(each, rowvar=False, dtype=np.float64) for each in (ours, theirs))
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ other @ root).clip(min=0)).sum()
    return float(between + np.trace(one) + np.trace(other) - 2 * cross)


def read_prompts(path: Path) -> list[Prompt]:
    """Of a text file or a CSV; ValueError, a sentence, where there are none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
    if path.suffix.lower() == ".csv":
        rows = list(csv.DictReader(text.splitlines()))
        if rows and "prompt" not in rows[0]:
            raise ValueError(f"{path} has no column 'prompt'; its first line has to name the columns.")
        found = [Prompt(row["prompt"].strip(), (row.get("family") or "").strip()) for row in rows]
    else:
        found = [Prompt(line.strip()) for line in text.splitlines()]
    found = [prompt for prompt in found if prompt.text]
    if not found:
        raise ValueError(f"{path} holds no prompts.")
    return found


def reference_sounds(folder: Path, rate: int) -> list[Tensor]:
    """Every sound of a folder, at a rate."""
    return [
        resample(*read(file), rate) for file in dict.fromkeys(item.file for item in list_items(folder, False))
    ]


def judge_prompts(
    model: audioldm2.AudioLDM2, judge: Judge, prompts: Sequence[Prompt], seeds: Sequence[int],
    reference: Path | None, **settings: object,
) -> dict[str, float]:  # fmt: skip
    """All that can be said of any model: {figure: value}."""
    sounds = []
    for seed in seeds:
        for first in range(0, len(prompts), AT_ONCE):
            texts = [prompt.text for prompt in prompts[first : first + AT_ONCE]]
            sounds += list(model.generate(texts, seed=seed, **settings).audio[:, 0])
            say(f"seed {seed}: {min(first + AT_ONCE, len(prompts))} of {len(prompts)} prompts")
    asked = list(prompts) * len(seeds)
    heard = judge.of_sounds(sounds, model.sample_rate)
    texts = judge.of_texts([prompt.text for prompt in prompts]).repeat(len(seeds), 1)
    found = {"sounds": len(sounds), "CLAP score": (heard * texts).sum(dim=1).mean().item()}
    families = sorted({prompt.family for prompt in prompts if prompt.family})
    if len(families) > 1:
        named = [(i, prompt.family) for i, prompt in enumerate(asked) if prompt.family]
        taken_for = judge.families(heard[[i for i, _ in named]], {name: [name] for name in families})
        found["families"] = float(
            np.mean([one == name for one, (_, name) in zip(taken_for, named, strict=True)])
        )
    if reference is not None:
        theirs = judge.of_sounds(reference_sounds(reference, model.sample_rate), model.sample_rate)
        if min(len(theirs), len(heard)) < 2:
            raise ValueError("the Frechet distance needs at least two sounds of each kind.")
        found["Frechet"] = frechet(heard.numpy(), theirs.numpy())
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="folder, original file or hub id")
    add("--judge", metavar="MODEL", help="whose CLAP judges (default: the model's own)")
    add("--prompts", type=Path, metavar="FILE", help="default: the questions of the procedural world")
    add("--reference", type=Path, metavar="FOLDER", help="sounds to be near to; needs --prompts")
    add("--seeds", type=int, default=10, metavar="N", help="0 to N - 1 (default: %(default)s)")
    add("--seconds", type=float, help="of each sound (default: the model's own)")
    add("--steps", type=int, default=25)
    add("--guidance", type=float, default=3.5)
    add("--device", default="auto")
    add("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}; it has to be at least 1")
    if options.reference and not options.prompts:
        parser.error("--reference needs --prompts")
    settings = dict(
        audio_length_in_s=options.seconds,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
    )
    try:
        model = audioldm2.load(options.model, device=options.device, dtype="float32")
        judge = Judge(
            audioldm2.load(options.judge, device=options.device, dtype="float32") if options.judge else model
        )
        seeds = range(options.seeds)
        if options.prompts:
            prompts = read_prompts(options.prompts)
            found = judge_prompts(model, judge, prompts, seeds, options.reference, **settings)
            for name, value in found.items():
                print(f"{name:<12}{value:8.4g}")
        else:
            found = world_questions.ask_all(model, judge, seeds, settings, say)
        if options.json:
            with atomic_write(options.json) as draft:
                draft.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    except (ValueError, OSError, WeightsError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
