"""`audioldm2 verify`: find out whether a checkpoint is right, and if not, what is wrong where."""

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from audioldm2.checkpoints.load import resolve_device
from audioldm2.cli.arguments import Parser, new_parser, nonempty, whole_number
from audioldm2.cli.output_files import require_place
from audioldm2.cli.streams import print_result, report
from audioldm2.errors import require_whole
from audioldm2.files import atomic_write
from audioldm2.result import package_version
from audioldm2.verification import (
    CHECKS,
    Effort,
    Finding,
    Subject,
    Unopened,
    facts,
    facts_of,
    finding,
    open_subject,
    verify,
)
from audioldm2.verification.finding import Inapplicable
from audioldm2.verification.prompts import PROMPTS
from audioldm2.verification.published import PUBLISHED
from audioldm2.verification.weights import unopened

OUT_OF_MEMORY = "Leave out the largest checks with --quick, or try --device cpu."
FAILED = 1  # exit code where a check fails

DESCRIPTION = f"""\
Find out whether a checkpoint is right: a published one, or any other with the facts of a copy that is right.
The report on standard output says of each check what was found, what a failure means and what to do.

{chr(10).join(f"  {check.name:<11} {check.what}" for check in CHECKS)}

The last four run networks, in float32 on --device; "heads" generates 120 sounds by default and says
how long that takes."""

EPILOG = """\
examples:
  audioldm2 verify cvssp/audioldm2 --json report.json
  audioldm2 verify audioldm2-full.pth --tokenizers ./base --quick     reads files only
  audioldm2 verify ./mine --write-facts mine.json                     for whoever gets a copy
  audioldm2 verify ./copy --facts mine.json                           names every tensor that differs

exit codes: 0 all that applies holds; 1 a check fails; 2 another error, such as no checkpoint there.
"""


def parser() -> Parser:
    made = new_parser("audioldm2 verify", DESCRIPTION, epilog=EPILOG)
    effort = Effort()
    # fmt: off
    add = made.add_argument
    add("model", type=nonempty, metavar="MODEL",
        help="folder, .pth file, hub id such as cvssp/audioldm2, or demo")
    add("--json", type=Path, metavar="FILE",
        help="also write the report there, after each check (default: nowhere)")
    add("--quick", action="store_true", help="leave out the checks that run networks")
    add("--skip", action="append", default=[], choices=[check.name for check in CHECKS], metavar="NAME",
        help="leave out a check; may be given several times (default: none)")
    add("--as", dest="named", choices=[facts.name for facts in PUBLISHED], metavar="NAME",
        help="the published checkpoint that this should be: %(choices)s (default: by architecture and name)")
    add("--facts", type=Path, metavar="FILE",
        help="facts of a right copy, in place of those of the published checkpoints")
    add("--write-facts", type=Path, metavar="FILE",
        help="check nothing, and write the facts of this copy, which has to be right")
    add("--revision", metavar="NAME", help="branch, tag or commit of a hub repository")
    add("--tokenizers", type=Path, metavar="FOLDER",
        help="for a .pth file, which has none: a folder with both")
    add("--device", default="auto", metavar="NAME",
        help="cpu, cuda, cuda:1, mps (default: %(default)s, a GPU if there is one)")
    add = made.add_argument_group("how much heads does").add_argument
    add("--prompts", type=whole_number, default=effort.prompts, metavar="N",
        help=f"prompts, at most {len(PROMPTS)} (default: %(default)s)")
    add("--seeds", type=whole_number, default=effort.seeds, metavar="N", help="seeds (default: %(default)s)")
    add("--steps", type=whole_number, default=effort.steps, metavar="N",
        help="denoising steps of DDIM (default: %(default)s)")
    # fmt: on
    return made


def run(arguments: Sequence[str]) -> int:
    given = parser().parse_args(arguments)
    effort = _effort(given)
    for path in (given.json, given.write_facts):
        if path is not None:
            require_place(path)  # before hours of work
    if given.write_facts and (given.facts or given.json or given.named or given.skip):
        raise ValueError("--write-facts checks nothing; it takes no --facts, --json, --as and --skip.")
    if given.facts and given.named:
        raise ValueError("--facts and --as exclude each other; the facts say what it should be.")
    device = resolve_device(given.device)
    known = facts.read(given.facts) if given.facts else None
    started = time.monotonic()
    try:
        subject = open_subject(
            given.model,
            device=device,
            revision=given.revision,
            tokenizers=given.tokenizers,
            given=known,
            named=given.named,
            effort=effort,
            report=report,
        )
    except Unopened as error:
        if given.write_facts:
            raise ValueError(f"{given.model} is not right, so no facts are written: {error}") from error
        return _print_findings(unopened(str(error)), given, str(device), started)
    if given.write_facts:
        return _write_facts(subject, given)
    return _print_findings(verify(subject, quick=given.quick, skip=given.skip), given, str(device), started)


def _effort(given: argparse.Namespace) -> Effort:
    return Effort(
        prompts=require_whole("prompts", given.prompts, 1, len(PROMPTS)),
        seeds=require_whole("seeds", given.seeds, 1),
        steps=require_whole("steps", given.steps, 1, 999),
    )


def _write_facts(subject: Subject, given: argparse.Namespace) -> int:
    try:
        found = facts_of(subject, quick=given.quick)
    except Inapplicable as reason:
        raise ValueError(
            f"the sounds of {given.model} cannot be recorded ({reason}); --quick leaves them out."
        ) from None
    facts.write(found, given.write_facts)
    print_result(str(given.write_facts))
    return 0


def _print_findings(
    findings: Iterable[Finding], given: argparse.Namespace, device: str, started: float
) -> int:
    """Print each finding when it is there, and keep the JSON report up to date."""
    found: list[Finding] = []
    for each in findings:
        found.append(each)
        print_result(finding.text_of(each) + "\n")
        _write_report(found, given, device, started, complete=False)
    _write_report(found, given, device, started, complete=True)
    print_result(finding.closing_line(found))
    return FAILED if finding.verdict(found) == finding.FAILED else 0


def _write_report(
    found: list[Finding], given: argparse.Namespace, device: str, started: float, *, complete: bool
) -> None:
    if given.json is None:
        return
    content = finding.report(
        found,
        model=given.model,
        version=package_version(),
        device=device,
        seconds=time.monotonic() - started,
        complete=complete,
    )
    with atomic_write(given.json) as draft:
        text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
