"""The command line: flags to `model.generate` to files, with progress and messages.

Every mistake that a user can make ends in one sentence on stderr and exit code 2, an interrupt in exit code
130. Standard output holds the path of each sound, one a line, once it and what belongs to it are written.
"""

import argparse
import io
import json
import os
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import audioldm2
from audioldm2.audio import SOUND_FORMATS, VAE_MEL
from audioldm2.checkpoints import hub
from audioldm2.checkpoints.load import demand_converter
from audioldm2.cli.arguments import FLAG_OF, generate_parser
from audioldm2.files import atomic_write, safe_name
from audioldm2.options import GenerationOptions
from audioldm2.request import Request
from audioldm2.result import Result
from audioldm2.sampling.samplers import SAMPLERS
from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.sound_shape import SoundShape

BAR = "{desc:<20} |{bar:30}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"

# The published models' shape: what a mistake is looked for with before gigabytes are fetched and read.
PUBLISHED = SoundShape(VAE_MEL.sample_rate, VAE_MEL.hop, downsampling=4, latent_channels=8, mels=VAE_MEL.mels)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 a mistake, 130 an interrupt, 141 a closed output."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path that a terminal cannot show is no error
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: say(f"note: {message}")
        try:
            try:
                return run(arguments)
            finally:
                sys.stdout.flush()  # here, and not after the end, where nobody could catch what it raises
        except KeyboardInterrupt:
            say("interrupted; finished sounds are kept, and nothing half-written is left")
            return 128 + signal.SIGINT
        except BrokenPipeError:  # who read the output has left, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + 13  # SIGPIPE, which Windows has not
        except (ValueError, audioldm2.WeightsError) as error:
            say(f"error: {in_flags(str(error))}")
        except OSError as error:
            say(f"error: {in_words(error)}")
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            say(
                "error: not enough memory. Ask for a shorter sound or fewer candidates, or try --low-memory, "
                "--offload or --dtype float16."
            )
    return 2


def run(arguments: list[str]) -> int:
    if arguments[:1] == ["convert"]:
        return convert(arguments[1:])
    if arguments[:1] == ["info"]:
        return info(arguments[1:])
    return generate(arguments[1:] if arguments[:1] == ["generate"] else arguments)


def generate(arguments: Sequence[str]) -> int:
    options = generate_parser().parse_args(arguments)
    if options.sampler == "list":
        width = max(map(len, SAMPLERS))
        print("\n".join(f"{name:<{width}}  {run.summary}" for name, run in SAMPLERS.items()))
        return 0
    jobs, settings = plan_jobs(options), settings_from(options)
    Request.resolve([job.prompt for job in jobs], GenerationOptions(**settings), PUBLISHED, NoiseSchedule())
    if options.plot:
        demand_matplotlib()
    model = audioldm2.load(
        options.model or hub.DEMO,
        device=options.device,
        dtype=options.dtype,
        heads=options.heads,
        revision=options.revision,
        offload=options.offload,
        low_memory=options.low_memory,
        compile=options.compile,
    )
    if options.model is None and not options.quiet:
        say(
            f"this is the small demo model, of simple sounds; the published one is --model {hub.PUBLISHED} "
            "(4.5 GB, fetched once)"
        )
    for place, job in enumerate(jobs, start=1):
        if len(jobs) > 1 and not options.quiet:
            say(f"{place} of {len(jobs)}: {job.prompt}")
        with progress(options.steps, quiet=options.quiet) as (on_stage, on_step):
            result = model.generate(job.prompt, **settings, on_stage=on_stage, on_step=on_step)
        write(result, job.path, with_json=options.json, with_plot=options.plot, hop=model.sound.hop)
        print(job.path, flush=True)
    return 0


def settings_from(options: argparse.Namespace) -> dict[str, Any]:
    """What all sounds share: arguments of `AudioLDM2.generate`."""
    return dict(
        negative_prompt=options.negative_prompt,
        audio_length_in_s=options.duration,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
        num_waveforms_per_prompt=options.candidates,
        sampler=options.sampler,
        eta=options.eta,
        karras=options.karras,
        guidance_interval=options.guidance_interval,
        guidance_rescale=options.guidance_rescale,
        seed=options.seed,
    )


def convert(arguments: Sequence[str]) -> int:
    demand_converter()
    from audioldm2.convert.__main__ import run

    return run(arguments)


def info(arguments: Sequence[str]) -> int:
    demand_converter()
    from audioldm2.convert.__main__ import run_info

    return run_info(arguments)


# What to make, and where it goes ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One prompt and the sound file that it becomes."""

    prompt: str
    path: Path


def plan_jobs(options: argparse.Namespace) -> list[Job]:
    """The sounds to make; every path is checked before a network is loaded, and nothing is written yet."""
    if (options.prompt is None) == (options.prompts is None):
        raise ValueError(
            'give either one prompt in quotes, as in audioldm2 "rain on a tin roof", '
            "or a file with one prompt a line, as in audioldm2 --prompts prompts.txt."
        )
    if options.prompts is None:
        if not options.prompt.strip():
            raise ValueError("the prompt is empty; say what to hear.")
        jobs = [Job(options.prompt, sound_path(options.output, options.prompt))]
    else:
        jobs = jobs_from_file(options.prompts, options.output)
    for folder in {job.path.parent for job in jobs}:
        demand_writable(folder)
    for job in jobs:
        if job.path.is_dir():
            raise ValueError(f"{job.path}, the name of a sound, is a folder; give another with -o.")
    return jobs


def sound_path(output: Path | None, prompt: str) -> Path:
    """The file for one prompt: `output`, or in the folder `output` (or here) a name made from the prompt."""
    if output is None:
        return Path(f"{safe_name(prompt)}.wav")
    if output.is_dir():
        return output / f"{safe_name(prompt)}.wav"
    if output.suffix.lower() not in SOUND_FORMATS:
        raise ValueError(
            f"-o {output} is neither a folder that exists nor a sound file, "
            f"which ends in {', '.join(SOUND_FORMATS)}."
        )
    if not output.parent.is_dir():
        raise ValueError(f"the output folder {output.parent} does not exist; make it, or give another.")
    return output


def jobs_from_file(prompts: Path, folder: Path | None) -> list[Job]:
    """One job a line that is not blank. Equal names are told apart by a number."""
    try:
        lines = prompts.read_text(encoding="utf-8-sig").splitlines()  # Windows' editors put a mark in front
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--prompts {prompts}: the file is not UTF-8 text ({error.reason}); save it as UTF-8."
        ) from error
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise ValueError(f"--prompts {prompts}: the file has no prompt; write one a line.")
    folder = folder or Path()
    if not folder.is_dir() and (folder.exists() or folder.suffix.lower() in SOUND_FORMATS):
        raise ValueError(f"-o {folder}: with --prompts this is the folder for all sounds, not a file.")
    jobs, taken = [], set()
    for line in lines:
        name, count = safe_name(line), 1
        while name.casefold() in taken:  # some file systems do not tell case apart
            count += 1
            name = f"{safe_name(line)}-{count}"
        taken.add(name.casefold())
        jobs.append(Job(line, folder / f"{name}.wav"))
    return jobs


def demand_writable(folder: Path) -> None:
    """Raise ValueError unless files can be made in a folder, or in what exists of the way to it."""
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()  # os.access tells root yes, whatever the folder is
    except OSError as error:
        raise ValueError(
            f"the output folder {folder} cannot be written to ({error.strerror}); give another."
        ) from error


def demand_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("--plot needs matplotlib; run: pip install matplotlib") from None


def write(result: Result, path: Path, *, with_json: bool, with_plot: bool, hop: int) -> None:
    """The best sound, its picture, and its record; each whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with named(path):
        result.save(path)
    if with_plot:
        from audioldm2.audio.plot import save_spectrogram

        picture = path.with_suffix(".png")
        with named(picture):
            save_spectrogram(result.mel[0], result.request.prompts[0], picture, hop / result.sample_rate)
    if with_json:
        record = json.dumps({"file": path.name, **result.record()}, indent=2, ensure_ascii=False) + "\n"
        with named(path.with_suffix(".json")), atomic_write(path.with_suffix(".json")) as draft:
            # Half of a surrogate pair, as in a name that is not UTF-8, becomes what JSON writes for it too.
            draft.write_text(record, encoding="utf-8", errors="backslashreplace")


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let an error of the system name the file that was to be written, not its draft or nothing."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


# Progress and words -----------------------------------------------------------------------------------------


@contextmanager
def progress(steps: int, *, quiet: bool) -> Iterator[tuple[Callable[..., None], Callable[..., None]]]:
    """The two callbacks that show progress on stderr, where the stages have names.

    On a terminal a bar shows the stage and its steps; in a log, where a bar is a hundred lines of noise, each
    stage is a line.
    """
    from huggingface_hub.utils import tqdm

    as_bar = sys.stderr.isatty() and not quiet
    with tqdm(total=steps, disable=not as_bar, leave=False, bar_format=BAR) as bar, warnings.catch_warnings():
        if as_bar:
            warnings.showwarning = lambda message, *_: bar.write(line(f"note: {message}"), file=sys.stderr)

        def on_stage(stage: str) -> None:
            bar.set_description_str(stage)
            if not as_bar and not quiet:
                say(stage)

        def on_step(step: int, t: float, x0: Tensor) -> None:
            bar.update(step - bar.n)  # more sounds than fit into memory count their steps anew

        yield on_stage, on_step


def say(message: str) -> None:
    print(line(message), file=sys.stderr)


def line(message: str) -> str:
    return f"audioldm2: {' '.join(message.splitlines())}"


def in_words(error: OSError) -> str:
    """What went wrong with a file, and where."""
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def in_flags(message: str) -> str:
    """A message of the library, with the argument that it begins with under its name on the command line."""
    return re.sub(r"^\w+(?= is |=|\[)", lambda found: FLAG_OF.get(found[0], found[0]), message)


def is_out_of_memory(error: BaseException) -> bool:
    """PyTorch raises a plain RuntimeError for the computer's own memory, and for Apple's GPUs."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(each in str(error) for each in words)
