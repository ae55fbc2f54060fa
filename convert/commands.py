"""The commands `audioldm2 convert` and `audioldm2 info`."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from audioldm2.adapters import reading
from audioldm2.adapters.merging import merged
from audioldm2.checkpoints import storage
from audioldm2.checkpoints.load import open_checkpoint
from audioldm2.checkpoints.validate import typed
from audioldm2.cli.arguments import Parser, adapter_and_weight, nonempty
from audioldm2.cli.output_files import require_writable

from . import audiomae, differing_copies, report
from .export import require_exportable, without_audiomae, write_diffusers
from .original import Original
from .sources import is_diffusers_layout

EPILOG = """\
examples:
  audioldm2 convert cvssp/audioldm2 ./base --dtype float16
  audioldm2 convert audioldm2-full.pth ./full --tokenizers ./base
  audioldm2 convert ./base ./for-diffusers --to diffusers
  audioldm2 convert cvssp/audioldm2 ./base --audiomae audioldm2-full.pth       let a sound be the prompt
  audioldm2 convert audioldm2-full.pth ./full --dry-run        list what would be read, renamed and dropped
  audioldm2 convert audioldm2-full.pth ./full --check          compare every value with the source's
"""


SOURCE = "hub id such as cvssp/audioldm2, a folder, or a .pth file"


def convert_parser() -> Parser:
    """Return the parser of `audioldm2 convert`."""
    parser = Parser(
        prog="audioldm2 convert",
        description="Convert an AudioLDM 2 checkpoint (a hub id, a folder in the diffusers layout, an\n"
        "original .pth file) to a folder that loads at once, memory-mapped; or back to the diffusers layout.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", type=nonempty, metavar="SOURCE", help=SOURCE)
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write; it must not exist yet")
    parser.add_argument(
        "--to", choices=["converted", "diffusers"], default="converted", help="the layout of OUT"
    )
    parser.add_argument(
        "--dtype", choices=list(storage.DTYPES), help="cast the weights (default: keep each dtype)"
    )
    parser.add_argument(
        "--heads",
        choices=["config", "trained"],
        help="the UNet's attention heads: as the diffusers layout's config says and the reference reads, or "
        "32 wide, as the published weights were trained (default: config for that layout, trained for .pth)",
    )
    parser.add_argument(
        "--ema", action="store_true", help="from a .pth file, take the UNet's averaged weights"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="JSON",
        help='for a .pth file: {network: {field: value}} for what no tensor shows, such as {"unet": '
        '{"heads": [8, 8, 8, 8]}}',
    )
    parser.add_argument(
        "--tokenizers",
        type=Path,
        metavar="FOLDER",
        help="for a .pth file, which has none: a folder with those of a converted or diffusers-layout model "
        "(default: beside the file, or else those of cvssp/audioldm2)",
    )
    parser.add_argument(
        "--audiomae",
        type=nonempty,
        metavar="FILE",
        help="add AudioMAE, which reads a sound as a prompt and which the diffusers layout lacks, from an "
        "original .pth file or a folder converted from one",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub repository")
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        type=adapter_and_weight,
        metavar="FOLDER[:WEIGHT]",
        help="fold a LoRA adapter into the weights, which become float32 without --dtype; may be repeated",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it is such a folder")
    parser.add_argument("--dry-run", action="store_true", help="list what would be done, and write nothing")
    parser.add_argument(
        "--check", action="store_true", help="compare OUT, converted before, with SOURCE by value"
    )
    return parser


def run(arguments: Sequence[str]) -> int:
    """Run `audioldm2 convert`; returns the exit code.

    Raises:
        ValueError: a flag has a value that is not allowed.
        WeightsError: the source cannot be converted.
        OSError: the disk refuses.
    """
    options = convert_parser().parse_args(arguments)
    _require_one_task(options)
    if not (options.dry_run or options.check):
        _require_place(options.out, options.force)
    checkpoint = open_checkpoint(
        options.source,
        heads=options.heads,
        revision=options.revision,
        prefer_half=options.dtype == "float16",
        tokenizers=options.tokenizers,
        ema=options.ema,
        config=_overrides(options.config) if options.config else None,
    )
    if options.audiomae:
        checkpoint = audiomae.added(checkpoint, options.audiomae)
    if options.lora:
        adapters = [
            replace(reading.read(source, checkpoint.configs), weight=weight)
            for source, weight in options.lora
        ]
        checkpoint = merged(checkpoint, adapters)
    if options.check:
        count = report.check_by_value(storage.read(options.out), checkpoint, options.out)
        print(f"{options.out}: all {count} tensors are those of {options.source}")
        return 0
    if options.to == "diffusers":
        require_exportable(checkpoint)
        checkpoint = without_audiomae(checkpoint)
    for line in report.lines(report.tally(checkpoint)):
        print(line, file=sys.stderr)
    for sentence in differing_copies(checkpoint) if isinstance(checkpoint, Original) else ():
        warnings.warn(sentence, stacklevel=1)
    absent = sorted(set(storage.tokenizers_of(checkpoint.configs)) - set(checkpoint.tokenizers))
    if absent:
        warnings.warn(
            f"no tokenizers were found (the file has none, and the hub cannot be reached): put {absent} of "
            "another converted model into the folder before you load it, or convert with --tokenizers.",
            stacklevel=1,
        )
    if options.dry_run:
        for open_state in checkpoint.states.values():
            open_state()  # checks that every tensor fits
        return 0
    write = write_diffusers if options.to == "diffusers" else storage.write
    dtype = options.dtype and storage.DTYPES[options.dtype]
    write(checkpoint, options.out, dtype=dtype, force=options.force, on_network=_print_written)
    print(options.out)
    return 0


def info_parser() -> Parser:
    """Return the parser of `audioldm2 info`."""
    parser = Parser(
        prog="audioldm2 info",
        description="Print what a checkpoint is: architecture, sizes, dtypes, revision, licence. "
        "No weight is loaded.",
        allow_abbrev=False,
    )
    parser.add_argument("source", type=nonempty, metavar="SOURCE", help=SOURCE)
    parser.add_argument("--revision", help="branch, tag or commit of a hub repository")
    return parser


def run_info(arguments: Sequence[str]) -> int:
    """Run `audioldm2 info`: print what a checkpoint is, without loading it; returns the exit code."""
    options = info_parser().parse_args(arguments)
    checkpoint = open_checkpoint(options.source, revision=options.revision, with_weights=False)
    print(*report.describe(checkpoint, opened=Path(options.source).expanduser().exists()), sep="\n")
    return 0


def _require_one_task(options: argparse.Namespace) -> None:
    if options.dry_run and options.check:
        raise ValueError("--dry-run and --check exclude each other; a check writes nothing either.")
    if options.check and options.to == "diffusers":
        raise ValueError(
            "--check compares a converted folder; export to the diffusers layout is not checked."
        )
    if options.audiomae and options.to == "diffusers":
        raise ValueError("--audiomae adds a network that the diffusers layout cannot hold.")


def _require_place(out: Path, force: bool) -> None:
    parent = out.absolute().parent
    if out.exists() and not force:
        raise ValueError(f"{out} exists already; give another folder, or --force to replace it.")
    if out.exists() and not (out.is_dir() and _is_ours_to_replace(out)):
        raise ValueError(f"{out} is not a converted folder, and --force replaces no other; give another.")
    if not parent.is_dir():
        raise ValueError(f"the output folder {parent} does not exist; make it, or give another.")
    require_writable(parent)


def _is_ours_to_replace(folder: Path) -> bool:
    return storage.is_converted(folder) or is_diffusers_layout(folder) or not any(folder.iterdir())


def _overrides(path: Path) -> dict:
    """Read the file of --config."""
    if not path.is_file():
        raise ValueError(f"--config {path}: there is no such file.")
    found = storage.read_json(path)
    return {name: typed(f"'{name}' in {path}", fields, dict) for name, fields in found.items()}


def _print_written(name: str, tensors: int, size: int) -> None:
    print(f"writing {name:<16} {tensors:>5} tensors {size / 1e6:>9.1f} MB", file=sys.stderr)
