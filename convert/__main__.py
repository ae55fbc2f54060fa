"""`audioldm2 convert` and `python -m convert`: write a checkpoint in the converted format."""

import sys
from collections.abc import Sequence
from pathlib import Path

from audioldm2 import weights
from audioldm2.cli import demand_writable
from audioldm2.flags import Parser
from audioldm2.loading import open_checkpoint


def parser() -> Parser:
    made = Parser(
        prog="audioldm2 convert",
        description="Convert an AudioLDM 2 checkpoint (a hub id, or a folder in the diffusers layout) "
        "to a folder that loads at once, memory-mapped.",
        epilog="example: audioldm2 convert cvssp/audioldm2 ./audioldm2-base --dtype float16",
        allow_abbrev=False,
    )
    made.add_argument("source", metavar="SOURCE", help="hub id such as cvssp/audioldm2, or a folder")
    made.add_argument("out", metavar="OUT", type=Path, help="the folder to write; it must not exist yet")
    made.add_argument("--dtype", choices=list(weights.DTYPES), help="cast the weights (default: as they are)")
    made.add_argument(
        "--heads",
        default="config",
        choices=["config", "trained"],
        help="the UNet's attention heads: as the source's config says and the reference reads (default), "
        "or 32 wide, as the published weights were trained",
    )
    made.add_argument("--revision", help="branch, tag or commit of a hub repository")
    made.add_argument("--force", action="store_true", help="replace OUT if it is a converted folder")
    return made


def run(arguments: Sequence[str]) -> int:
    """Convert; errors are raised for the command line to put into words."""
    options = parser().parse_args(arguments)
    out, parent = options.out, options.out.absolute().parent
    if out.exists() and not options.force:
        raise ValueError(f"{out} exists already; give another folder, or --force to replace it.")
    if out.exists() and not (out.is_dir() and (weights.is_converted(out) or not any(out.iterdir()))):
        raise ValueError(f"{out} is not a converted folder, and --force replaces no other; give another.")
    if not parent.is_dir():
        raise ValueError(f"the output folder {parent} does not exist; make it, or give another.")
    demand_writable(parent)
    checkpoint = open_checkpoint(
        options.source,
        heads=options.heads,
        revision=options.revision,
        prefer_half=options.dtype == "float16",
    )
    dtype = options.dtype and weights.DTYPES[options.dtype]
    weights.write(checkpoint, out, dtype=dtype, force=options.force, on_network=_report)
    print(out)
    return 0


def _report(name: str, tensors: int, size: int) -> None:
    print(f"{name:<11} {tensors:>5} tensors {size / 1e6:>9.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    from audioldm2.cli import main

    sys.exit(main(["convert", *sys.argv[1:]]))
