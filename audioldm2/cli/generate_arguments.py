"""The arguments of `audioldm2 generate`, and the options that they set. A third of the file is help."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from audioldm2.checkpoints import hub
from audioldm2.cli.arguments import (
    Parser,
    adapter_and_weight,
    add_options,
    first_of,
    new_parser,
    nonempty,
    values_of,
    whole_number,
)
from audioldm2.cli.speak import take_transcription_file
from audioldm2.edit_options import EditOptions, refuse
from audioldm2.errors import ArgumentError
from audioldm2.options import GenerationOptions
from audioldm2.result import package_version

USAGE = """\
audioldm2 PROMPT [-o FILE] [options]
       audioldm2 --prompts FILE [-o FOLDER] [options]
       audioldm2 COMMAND ...    convert, info, train, evaluate, score, verify, ui: audioldm2 COMMAND --help"""

EPILOG = """\
examples:
  audioldm2 "Techno music with a strong beat" --model cvssp/audioldm2 -o techno.wav
  audioldm2 "rain on a tin roof" --model ./base --negative-prompt "music" --candidates 3 -o rain.flac
  audioldm2 "a cat meows" --audio dog.wav --source "a dog barks" -o cat.wav
  audioldm2 "far away" --audio-prompt dog.wav --model full.pth -o another.wav
  audioldm2 "A man speaks slowly" --model speech.pth --transcription "Hello, world." -o hello.wav
  audioldm2 --prompts prompts.txt -o sounds/        one prompt a line, one sound file each
  torchrun --nproc-per-node 8 -m audioldm2 --prompts prompts.csv -o sounds/      the same on eight GPUs

Standard output lists the sound files. Beside x.wav stands its record x.wav.json, with every setting. A sound
replaces a file of its name; a record or a picture replaces no file that this program did not write. A list
that is started again keeps what is there of the same settings, and stops at a sound of others.

exit codes: 0 every sound is written; 2 error and 130 Ctrl-C, finished sounds are kept; 141 every sound is
written, but the reader of standard output left before the end of the list.

The published weights are licensed for non-commercial use only (CC BY-NC-SA 4.0).
"""

OPTIONS = [each for each in fields(GenerationOptions) if each.metadata["flag"]]
SHARED = {each.name for each in fields(EditOptions)} & {each.name for each in OPTIONS}
EDIT_ONLY = [each for each in fields(EditOptions) if each.metadata["flag"] and each.name not in SHARED]


def parser() -> Parser:
    """The parser of `generate`; without --source the options of an edit alone are None."""
    made = new_parser(
        "audioldm2",
        "Generate sound effects and music from text with AudioLDM 2.",
        usage=USAGE,
        epilog=EPILOG,
    )
    # fmt: off
    group = made.add_argument_group("common options")
    add = group.add_argument
    add("prompt", nargs="?", metavar="PROMPT", help="a description of one sound, in quotes")
    add("-o", "--output", type=Path, metavar="PATH",
        help="sound file (.wav, .flac, .ogg) or folder (default: here, named after the prompt)")
    add("--model", type=nonempty, metavar="NAME",
        help=f"folder, .pth file or hub id (default: {hub.DEMO}, which is in the package)")
    add_options(group, [each for each in (*OPTIONS, *EDIT_ONLY) if each.metadata["common"]])
    add("--at", nargs=2, action="append", default=[], metavar=("S", "PROMPT"),
        help="another prompt from S seconds on; may be repeated (default: none)")
    add("--prompts", type=Path, metavar="FILE",
        help="a list in place of PROMPT; -o is then a folder: text with a prompt a line, or a .csv, .tsv, "
        ".jsonl or .json with the column prompt, and others (audioldm2/cli/README.md)")

    add_options(made.add_argument_group("more about the sound"),
                [each for each in (*OPTIONS, *EDIT_ONLY) if not each.metadata["common"]])
    made.set_defaults(**{each.name: None for each in EDIT_ONLY})
    group.add_argument("--transcription-file", type=Path, metavar="FILE",
                       help="text file with the words to speak, in place of --transcription (default: none)")

    add = made.add_argument_group("more about the files").add_argument
    add("--plot", action="store_true", help="also save a picture (x.wav.png); needs matplotlib")
    add("--join", action="store_true",
        help="one file of a transcription that is too long for one clip: several clips, joined with pauses; "
        "where -o is a folder, each clip is a file instead")
    add("--no-json", dest="json", action="store_false", help="do not save the record (x.wav.json)")
    add("--no-clobber", dest="replace", action="store_false", help="stop if one of the files exists already")
    add("--overwrite", action="store_true",
        help="replace sounds of --prompts that were made with other settings (default: stop)")
    add("--at-once", type=whole_number, metavar="N",
        help="sounds of --prompts in a batch (default: 1 on a CPU, else 16)")
    add("--quiet", action="store_true", help="no progress, only notes and errors")

    made.second = {each.name: each.metadata["second"] for each in OPTIONS if each.metadata["second"]}
    made.second |= {each.name: f"{each.name}[1]" for each in OPTIONS if each.metadata["first"]}

    add_model_options(made.add_argument_group("more about the model"))
    add = made.add_argument
    add("--version", action="version", version=f"audioldm2 {package_version()}",
        help="print the version, and stop")
    # fmt: on
    return made


def add_model_options(group: argparse._ArgumentGroup) -> None:
    """The arguments of `audioldm2.load` but the first."""
    # fmt: off
    add = group.add_argument
    add("--revision", metavar="NAME", help="branch, tag or commit of a hub id (default: main)")
    add("--heads", choices=["config", "trained"],
        help="attention heads: as the config says, or 32 wide as the published weights were trained "
        "(default: config; trained for a .pth file)")
    add("--device", default="auto", metavar="NAME",
        help="cpu, cuda, cuda:1, mps (default: %(default)s, a GPU if there is one)")
    add("--dtype", default="auto", metavar="NAME",
        help="float32, float16, bfloat16 (default: %(default)s, float16 on CUDA, the faster one on a CPU)")
    add("--ops", choices=["auto", "reference"],
        help="reference: plain PyTorch kernels only, for comparing (default: auto)")
    add("--lora", action="append", default=[], type=adapter_and_weight, metavar="FOLDER[:WEIGHT]",
        help="a LoRA adapter: a folder in PEFT's layout, a .safetensors file or a hub id; may be repeated "
        "(default: none; WEIGHT: 1)")
    add("--word", action="append", default=[], metavar="FILE",
        help="a new word, as 'audioldm2 train --new-word' writes it: its file or folder; may be repeated "
        "(default: none)")
    memory = group.add_mutually_exclusive_group()
    memory.add_argument("--offload", action="store_true", help="keep only the running network on the GPU")
    memory.add_argument("--low-memory", action="store_true",
        help="read each network from disk for its stage only")
    memory.add_argument("--compile", action="store_true",
        help="compile the networks first, which takes minutes: for many sounds on a GPU")
    # fmt: on


def options_of(given: argparse.Namespace) -> GenerationOptions:
    for each in EDIT_ONLY:
        value = getattr(given, each.name)
        if value is not None:
            raise ArgumentError(each.name, value, "be left out without --source, which edits the audio")
    if given.audio is None:
        for name, value in _in_front(given):
            raise ArgumentError(name, value, "be left out without --audio")
    return GenerationOptions(**values_of(given, OPTIONS))


def edit_options_of(arguments: Sequence[str]) -> EditOptions:
    """The options of an edit, whose defaults differ in part."""
    made = parser()
    made.set_defaults(**{each.name: each.default for each in fields(EditOptions)})
    given = made.parse_args(arguments)
    if given.audio is None:
        allowed = "be left out without --audio, the sound that it describes"
        raise ArgumentError("source_prompt", given.source_prompt, allowed)
    take_transcription_file(given)
    for name, value in _in_front(given):
        refuse(name, value)
    for each in OPTIONS:
        value = getattr(given, each.name)
        if each.name not in {*SHARED, "audio"} and value != each.default:
            refuse(each.name, value)
    return EditOptions(**values_of(given, [each for each in OPTIONS if each.name in SHARED] + EDIT_ONLY))


def _in_front(given: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """The flags that set the first of a pair, where they are given."""
    for each in OPTIONS:
        if each.metadata["first"] and getattr(given, first_of(each)) is not None:
            yield first_of(each), getattr(given, first_of(each))
