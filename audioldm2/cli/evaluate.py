"""`audioldm2 evaluate`: judge a model by the sounds that it generates, or a folder by the sounds in it.

A little long because a third of the file is help.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import audioldm2
from audioldm2.audio import read
from audioldm2.checkpoints.load import load
from audioldm2.cli.arguments import Parser, new_parser, nonempty, number, whole_number
from audioldm2.cli.output_files import require_place, require_writable
from audioldm2.cli.sounds import why_skipped
from audioldm2.cli.streams import print_result, report
from audioldm2.errors import ArgumentError, require_whole
from audioldm2.evaluation import Judge, Report, SoundSet, evaluate
from audioldm2.evaluation.captions import Captioned, list_captioned
from audioldm2.evaluation.embeddings import embed_file
from audioldm2.evaluation.generation import Job, generate, plan, rank_and_world, require_same, settings_of
from audioldm2.evaluation.judges import JUDGES, PackageJudge, open_judge
from audioldm2.evaluation.prompts import read_prompts
from audioldm2.files import atomic_write
from audioldm2.options import GenerationOptions

OUT_OF_MEMORY = "Ask for shorter sounds (--seconds), or try --device cpu."
REPORT_EVERY = 30  # seconds between reports of a stage that goes file by file

DESCRIPTION = """\
Judge a model by the sounds that it generates, or a folder by the sounds in it. The figures, each with its
95 % interval:

  FD-CLAP      Frechet distance from the reference, on CLAP's vectors; needs many sounds
  KAD-CLAP     kernel distance from the reference, on CLAP's vectors, without bias in small samples
  CLAP score   the mean cosine of each sound and its caption
  retrieval    how often a caption finds its own sound as the first, or among the first 10
  families     the share of sounds nearest to their own family, of those in the CSV

and beside them what the same measures say of the reference. A model's own CLAP is a partial judge: --judge
takes another model's, --other-judges adds judges that are no CLAP."""

EPILOG = """\
examples:
  audioldm2 evaluate --model cvssp/audioldm2 --prompts builtin --seeds 3 --out runs/builtin
  audioldm2 evaluate --model cvssp/audioldm2 --prompts test.csv --reference audiocaps/ --out runs/audiocaps
  audioldm2 evaluate --sounds generated/ --judge cvssp/audioldm2 --reference sounds/
  torchrun --nproc-per-node 4 -m audioldm2 evaluate --model ... --prompts ... --out runs/shared

Each prompt is generated once for each seed. A folder of --sounds or --reference has captions where it holds a
table: a .csv with the columns file and caption, a .jsonl, or a table of AudioCaps (youtube_id, start_time,
caption) beside sounds that are named by their youtube_id. Files that cannot be read are named and left out.

With --out, sounds, vectors, report.md and report.json are kept there, and the same command goes on where a
killed run stopped. Several processes (RANK and WORLD_SIZE) share the sounds; the last one to finish judges.

An interval is about this number of sounds: FD-CLAP falls as sounds are added, so compare it only between
equally many. Rows "N against N" have the same number on both sides; their floor is the reference against
itself.
"""


def parser() -> Parser:
    made = new_parser("audioldm2 evaluate", DESCRIPTION, epilog=EPILOG)
    # fmt: off
    add = made.add_argument
    add("--model", type=nonempty, metavar="NAME", help="the model to judge: folder, .pth file or hub id")
    add("--prompts", type=Path, metavar="FILE",
        help="for --model: text with one prompt a line, or CSV with the column prompt and perhaps family and "
        "category; 'builtin' for the 100 prompts in the package")
    add("--sounds", type=Path, metavar="FOLDER", help="sounds to judge, in place of --model and --prompts")
    add("--judge", type=nonempty, metavar="NAME",
        help="whose CLAP judges (default: the model's own; needed for --sounds)")
    add("--reference", type=Path, metavar="FOLDER",
        help="true sounds to compare with: a folder, or a table of AudioCaps beside its sounds")
    add("--other-judges", nargs="+", choices=JUDGES, default=(), metavar="NAME",
        help=f"judges from other packages: {', '.join(JUDGES)}")
    add("--rate", type=whole_number, metavar="HZ",
        help="resample all sounds to this rate first: a model's sounds lack what lies above half of its rate "
        "(default: the model's; with --sounds, none)")
    add("--out", type=Path, metavar="FOLDER", help="keep sounds, vectors and report there (default: nowhere)")
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
    options = _require_arguments(given)
    rank, world = rank_and_world()
    others = [open_judge(name) for name in given.other_judges]
    reference = list_captioned(given.reference, report) if given.reference is not None else []
    clock = Clock()
    with _folder(given.out) as out:
        device = _device(given.device)
        if given.model is not None:
            prompts = read_prompts(given.prompts)
            with clock("loading"):
                model = load(given.model, device=device, dtype="float32")
                judge = Judge(load(given.judge, device=device, dtype="float32") if given.judge else model)
            if given.out is not None:
                require_same(out / "run.json", settings_of(model, prompts, options))
            jobs = plan(prompts, range(given.seeds), out / "sounds")
            with clock("generating"):
                missing = generate(model, jobs, options, report, rank=rank, world=world)
            if missing:
                report(f"this share is done; {len(missing)} sounds of other processes are still missing")
                return 0
            items: Sequence[Job | Captioned] = jobs
            rate = given.rate or model.sample_rate
        else:
            items, rate = list_captioned(given.sounds, report), given.rate
            with clock("loading"):
                judge = Judge(load(given.judge, device=device, dtype="float32"))
        cache = out / "vectors" if given.out is not None else None
        through = () if rate is None else (rate,)
        ours = embedded(judge, items, clock, "the sounds", through, cache, others)
        theirs = (
            embedded(judge, reference, clock, "the reference", through, cache, others) if reference else None
        )
        with clock("figures and intervals"):
            figures = evaluate(judge, ours, theirs)
    found = Report(figures, _facts(given, judge, ours, theirs, rate, options), clock.seconds)
    if given.out is not None:
        _write(given.out / "report.md", found.markdown() + "\n")
        write_figures(found.json(), given.out / "report.json")
    write_figures(found.json(), given.json)
    print_result(found.markdown())
    return 0


def _require_arguments(given: argparse.Namespace) -> GenerationOptions:
    """Raise ValueError for what cannot work, before anything is loaded."""
    require_whole("seeds", given.seeds, 1)
    options = generation_options(given)
    if given.rate is not None:
        require_whole("rate", given.rate, 1000, 192_000)
    if given.json is not None:
        require_place(given.json)  # before hours of work
    if given.out is not None:
        if given.out.exists() and not given.out.is_dir():
            raise ValueError(f"--out {given.out} is a file; give the name of a folder.")
        require_writable(given.out)
    named = {name for name, value in vars(given).items() if value is not None}
    world = rank_and_world()[1]
    if ("model" in named) == ("sounds" in named):
        raise ValueError("give either --model with --prompts, or --sounds; see audioldm2 evaluate --help.")
    if "model" in named and "prompts" not in named:
        raise ValueError("--model needs --prompts, a file with one prompt a line, or 'builtin'.")
    if "sounds" in named and ("judge" not in named or "prompts" in named):
        raise ValueError("--sounds needs --judge, a model whose CLAP judges, and takes no --prompts.")
    if "sounds" in named:
        default = parser()
        for name in ("seeds", "audio_length_in_s", "num_inference_steps", "guidance_scale"):
            if getattr(given, name) != default.get_default(name):
                raise ArgumentError(
                    name, getattr(given, name), "be left out with --sounds, which exist already"
                )
    if world > 1 and not {"model", "out"} <= named:
        raise ArgumentError("WORLD_SIZE", world, "be 1 without --model and --out, the folder to share")
    return options


def _device(name: str) -> str:
    """With `torchrun` on a machine with several GPUs, "auto" is the GPU of the process."""
    local = os.environ.get("LOCAL_RANK", "")
    if name == "auto" and local.isdecimal() and torch.cuda.device_count() > 1:
        return f"cuda:{int(local) % torch.cuda.device_count()}"
    return name


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """The folder of the run, or one that is gone afterwards."""
    if out is None:
        with TemporaryDirectory(prefix="audioldm2-") as folder:
            yield Path(folder)
        return
    out.mkdir(parents=True, exist_ok=True)
    yield out


class Clock:
    """The seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start
        report(f"{stage}: {self.seconds[stage]:.1f} s")


def embedded(
    judge: Judge,
    items: Sequence[Job | Captioned],
    clock: Clock,
    what: str,
    through: Sequence[int],
    cache: Path | None,
    others: Sequence[PackageJudge],
) -> SoundSet:
    """Embed and judge sounds one file at a time; files that cannot be read are reported and left out.

    Raises:
        ValueError: no sound could be read.
    """
    kept: list[Job | Captioned] = []
    vectors: list[torch.Tensor] = []
    judged: dict[str, list[float | None]] = {other.figure: [] for other in others}
    with clock(f"judging {what}"):
        last = time.perf_counter()
        for place, item in enumerate(items):
            try:
                vector = embed_file(judge, item.file, through, cache)
                opinions = [other.judge(*read(item.file), _captions(item)) for other in others]
            except audioldm2.WeightsError:  # the model's fault, whatever the file
                raise
            except (ValueError, OSError, MemoryError, RuntimeError) as error:
                reason = why_skipped(item.file, error)
                if reason is None:
                    raise
                report(f"note: left out: {reason}")
                continue
            kept.append(item)
            vectors.append(vector)
            for other, opinion in zip(others, opinions, strict=True):
                judged[other.figure].append(opinion)
            if time.perf_counter() - last > REPORT_EVERY:
                last = time.perf_counter()
                report(f"{place + 1} of {len(items)} of {what}")
        if not kept:
            raise ValueError(f"none of the {len(items)} sounds could be read.")
    captions = [_captions(item) for item in kept]
    if any(captions) and not all(captions):
        raise ValueError(f"some of {what} have no caption.")
    jobs = [item for item in kept if isinstance(item, Job)]
    return SoundSet(
        torch.stack(vectors),
        captions if any(captions) else (),
        groups=[job.group for job in jobs] or None,
        rounds=[job.seed for job in jobs] or None,
        families=[job.prompt.family for job in jobs],
        categories=[job.prompt.category for job in jobs],
        judged=judged,
    )


def _captions(item: Job | Captioned) -> tuple[str, ...]:
    return (item.prompt.text,) if isinstance(item, Job) else item.captions


def _facts(
    given: argparse.Namespace,
    judge: Judge,
    ours: SoundSet,
    theirs: SoundSet | None,
    rate: int | None,
    options: GenerationOptions,
) -> dict[str, str]:
    """What belongs beside the figures."""
    if given.model is not None:
        length = options.audio_length_in_s
        sounds = (
            f"{len(ours)} by {given.model}: {len(set(ours.groups or ()))} prompts of {given.prompts}, "
            f"{given.seeds} seeds, {options.num_inference_steps} steps, guidance {options.guidance_scale:g}"
            + (f", {length:g} s" if length else "")
        )
    else:
        sounds = f"{len(ours)} of {given.sounds}"
    found = {"sounds": sounds}
    if theirs is not None:
        found["reference"] = f"{len(theirs)} of {given.reference}"
    own = " (the model's own)" if given.model is not None and not given.judge else ""
    to = judge.front_end.sample_rate
    found["CLAP"] = f"{judge.digest} of {given.judge or given.model}{own}"
    found["resampling"] = f"file -> {f'{rate} Hz -> ' if rate else ''}{to} Hz, windowed sinc"
    if given.other_judges:
        found["other judges"] = ", ".join(given.other_judges)
    return found


def write_figures(figures: Mapping[str, Any], path: Path | None) -> None:
    """Write figures as JSON; None writes nothing."""
    if path is not None:
        _write(path, json.dumps(figures, indent=2, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8")
