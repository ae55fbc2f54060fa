"""`audioldm2 evaluate`: judge a model by the sounds that it generates, or a folder by the sounds in it."""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import audioldm2
from audioldm2.audio import read, resample
from audioldm2.checkpoints.load import load
from audioldm2.cli.arguments import Parser, new_parser, number, whole_number
from audioldm2.cli.output_files import require_place
from audioldm2.cli.sounds import expand, why_skipped
from audioldm2.cli.streams import print_result, report
from audioldm2.errors import require_whole
from audioldm2.evaluation import Judge, Prompt, evaluate
from audioldm2.files import atomic_write
from audioldm2.options import GenerationOptions
from audioldm2.training.folders import list_items, tables_in

OUT_OF_MEMORY = "Ask for shorter sounds (--seconds), or try --device cpu."
AT_ONCE = 16  # prompts in a batch

DESCRIPTION = """\
Judge a model by the sounds that it generates, or a folder by the sounds in it. The figures:

  CLAP score   the mean cosine of each sound and its prompt, by the model's own CLAP or that of --judge
  families     the share of sounds that CLAP finds nearest to their own family, of those in the CSV
  Frechet      the distance of the sounds from those of --reference, on CLAP's vectors, as in FID: smaller is
               nearer, and few sounds make it large"""

EPILOG = """\
examples:
  audioldm2 evaluate --model cvssp/audioldm2 --prompts prompts.csv --reference sounds/
  audioldm2 evaluate --sounds generated/ --judge cvssp/audioldm2 --reference sounds/

Each prompt is generated once for each seed. A folder of --sounds has captions where it holds a table: a .csv
with the columns file and caption, or a .jsonl. Sound files that cannot be read are named and left out.
"""


def parser() -> Parser:
    made = new_parser("audioldm2 evaluate", DESCRIPTION, epilog=EPILOG)
    # fmt: off
    add = made.add_argument
    add("--model", metavar="NAME", help="the model to judge: folder, .pth file or hub id")
    add("--prompts", type=Path, metavar="FILE",
        help="for --model: text with one prompt a line, or CSV with the columns prompt and perhaps family")
    add("--sounds", type=Path, metavar="FOLDER", help="sounds to judge, in place of --model and --prompts")
    add("--judge", metavar="NAME", help="whose CLAP judges (default: the model's own; needed for --sounds)")
    add("--reference", type=Path, metavar="FOLDER", help="sounds to compare with (default: none)")
    add("--json", type=Path, metavar="FILE", help="also write the figures there (default: nowhere)")
    add("--device", default="auto", metavar="NAME",
        help="cpu, cuda, cuda:1, mps (default: %(default)s, a GPU if there is one)")
    add_generation(made.add_argument_group("how sounds are generated"))
    # fmt: on
    return made


def add_generation(group: argparse._ArgumentGroup) -> None:
    """Flags that the evaluations of any model share."""
    default = GenerationOptions()
    # fmt: off
    add = group.add_argument
    add("--seeds", type=whole_number, default=10, metavar="N",
        help="how many seeds, from 0 on (default: %(default)s)")
    add("--seconds", dest="audio_length_in_s", type=number, metavar="S",
        help="length of each sound (default: that of the model's training clips)")
    add("--steps", dest="num_inference_steps", type=whole_number, default=default.num_inference_steps,
        metavar="N", help="denoising steps (default: %(default)s)")
    add("--guidance", dest="guidance_scale", type=number, default=default.guidance_scale, metavar="X",
        help="how strongly to follow the prompt (default: %(default)s)")
    # fmt: on


def generation_options(given: argparse.Namespace) -> GenerationOptions:
    return GenerationOptions(
        audio_length_in_s=given.audio_length_in_s,
        num_inference_steps=given.num_inference_steps,
        guidance_scale=given.guidance_scale,
    )


def run(arguments: Sequence[str]) -> int:
    given = parser().parse_args(arguments)
    require_whole("seeds", given.seeds, 1)
    options = generation_options(given)
    if given.json is not None:
        require_place(given.json)  # before hours of work
    named = {name for name, value in vars(given).items() if value is not None}
    if ("model" in named) == ("sounds" in named):
        raise ValueError("give either --model with --prompts, or --sounds; see audioldm2 evaluate --help.")
    if "model" in named and "prompts" not in named:
        raise ValueError("--model needs --prompts, a file with one prompt a line.")
    if "sounds" in named and ("judge" not in named or "prompts" in named):
        raise ValueError("--sounds needs --judge, a model whose CLAP judges, and takes no --prompts.")
    reference_files = expand([given.reference], report) if "reference" in named else []

    reference_rate = None
    if "model" in named:
        prompts = read_prompts(given.prompts)
        model = load(given.model, device=given.device, dtype="float32")
        judge = Judge(load(given.judge, device=given.device, dtype="float32") if given.judge else model)
        prompts, vectors = generated(model, judge, prompts, range(given.seeds), options)
        reference_rate = model.sample_rate  # no sound of the model has what lies above half of it
    else:
        files, captions = captioned_files(given.sounds)
        judge = Judge(load(given.judge, device=given.device, dtype="float32"))
        readable, vectors = embedded(judge, files)
        prompts = [Prompt(captions[file]) for file in readable] if captions else []
    reference = embedded(judge, reference_files, reference_rate)[1] if reference_files else None
    figures = evaluate(judge, prompts, vectors, reference)
    write_figures(figures, given.json)
    print_result("\n".join(f"{name:<12}{value:8.4g}" for name, value in figures.items()))
    return 0


def write_figures(figures: dict[str, float], path: Path | None) -> None:
    if path is not None:
        with atomic_write(path) as draft:
            draft.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a text file or a CSV; ValueError where there are none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
    if path.suffix.lower() == ".csv":
        rows = list(csv.DictReader(text.splitlines()))
        if rows and "prompt" not in rows[0]:
            raise ValueError(f"{path} has no column 'prompt'; its first line has to name the columns.")
        found = [Prompt((row["prompt"] or "").strip(), (row.get("family") or "").strip()) for row in rows]
    else:
        found = [Prompt(line.strip()) for line in text.splitlines()]
    found = [prompt for prompt in found if prompt.text]
    if not found:
        raise ValueError(f"{path} holds no prompts.")
    return found


def captioned_files(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """The sounds of a folder; and the caption of each, where the folder holds a table."""
    if not folder.is_dir() or not tables_in(folder):
        return expand([folder], report), {}
    captions = {item.file: item.caption for item in reversed(list_items(folder))}  # the first of several
    return list(reversed(captions)), captions


def generated(
    model: audioldm2.AudioLDM2,
    judge: Judge,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    options: GenerationOptions,
) -> tuple[list[Prompt], Tensor]:
    """One sound for each prompt and seed: the prompt of each, and the sounds' vectors (sounds, clap_dim)."""
    vectors = []
    for seed in seeds:
        for first in range(0, len(prompts), AT_ONCE):
            texts = [prompt.text for prompt in prompts[first : first + AT_ONCE]]
            result = model.generate(texts, options=options, seed=seed)
            vectors.append(judge.of_sounds(result.audio[:, 0].unbind(), model.sample_rate))
            report(f"seed {seed}: {min(first + AT_ONCE, len(prompts))} of {len(prompts)} prompts")
    return list(prompts) * len(seeds), torch.cat(vectors)


def embedded(judge: Judge, files: Sequence[Path], at_rate: int | None = None) -> tuple[list[Path], Tensor]:
    """The files that can be read, and their vectors (files, clap_dim); the others are reported.

    at_rate: Hz, to resample each sound to first; None for its own rate.
    """
    readable, vectors = [], []
    for file in files:
        try:
            wave, rate = read(file)
            if at_rate is not None:
                wave, rate = resample(wave, rate, at_rate), at_rate
            vectors.append(judge.of_sounds([wave], rate))
        except audioldm2.WeightsError:  # the model's fault, whatever the file
            raise
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            reason = why_skipped(file, error)
            if reason is None:
                raise
            report(f"note: left out: {reason}")
            continue
        readable.append(file)
    if not readable:
        raise ValueError(f"none of the {len(files)} sounds could be read.")
    return readable, torch.cat(vectors)
