"""The command line: flags to `model.generate` to files, with progress and messages.

Every mistake that a user can make ends in one sentence on stderr and exit code 2, an interrupt in exit code 130.
Standard output holds the paths of the files written, one a line, and nothing else.
"""

import argparse
import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

import audioldm2
from audioldm2.audio import SOUND_FORMATS
from audioldm2.files import safe_name, written_whole
from audioldm2.request import DEFAULT_SECONDS
from audioldm2.result import Result, package_version
from audioldm2.samplers import SAMPLERS

COMMANDS = ("generate", "convert")
ON_TWO_LINES = argparse.RawDescriptionHelpFormatter

GENERATE_EPILOG = """\
examples:
  audioldm2 "Techno music with a strong beat" --model cvssp/audioldm2 -o techno.wav
  audioldm2 "rain on a tin roof" --negative-prompt "music" --candidates 3 -o rain.flac
  audioldm2 --prompts prompts.txt -o sounds/        one prompt a line, one sound file each
  audioldm2 convert cvssp/audioldm2 ./audioldm2-base

A JSON file with every setting lies beside each sound, unless --no-json is given.
The published weights are licensed for non-commercial use only (CC BY-NC-SA 4.0).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 a mistake, 130 an interrupt."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    warnings.showwarning = lambda message, *_: say(f"note: {message}")
    try:
        if arguments[:1] == ["convert"]:
            return convert(arguments[1:])
        return generate(arguments[1:] if arguments[:1] == ["generate"] else arguments)
    except KeyboardInterrupt:
        say("interrupted; nothing half-written was left")
        return 128 + signal.SIGINT
    except (ValueError, audioldm2.WeightsError) as error:
        say(f"error: {error}")
    except MemoryError as error:
        say(f"error: not enough memory ({error}). Ask for fewer or shorter sounds at once.")
    except torch.OutOfMemoryError:
        say(
            "error: not enough memory on the device. Ask for fewer or shorter sounds at once, or use --dtype float16."
        )
    except OSError as error:
        say(f"error: {in_words(error)}")
    return 2


def generate(arguments: Sequence[str]) -> int:
    options = generate_parser().parse_args(arguments)
    if options.sampler == "list":
        width = max(map(len, SAMPLERS))
        print("\n".join(f"{name:<{width}}  {run.traits.summary}" for name, run in SAMPLERS.items()))
        return 0
    jobs = plan_jobs(options)
    if options.plot:
        demand_matplotlib()
    model = audioldm2.load(options.model, device=options.device, dtype=options.dtype, heads=options.heads)
    for place, job in enumerate(jobs, start=1):
        if len(jobs) > 1:
            say(f"{place} of {len(jobs)}: {job.prompt}")
        with progress(options.steps, shown=not options.quiet) as (on_stage, on_step):
            result = model.generate(
                job.prompt,
                negative_prompt=options.negative_prompt,
                audio_length_in_s=options.duration,
                num_inference_steps=options.steps,
                guidance_scale=options.guidance,
                num_waveforms_per_prompt=options.candidates,
                sampler=options.sampler,
                eta=options.eta,
                seed=options.seed,
                on_stage=on_stage,
                on_step=on_step,
            )
        write(result, job.path, with_json=options.json, with_plot=options.plot)
    return 0


def convert(arguments: Sequence[str]) -> int:
    from audioldm2.convert.__main__ import run

    return run(arguments)


# What to make, and where it goes ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One prompt and the sound file that it becomes."""

    prompt: str
    path: Path


def plan_jobs(options: argparse.Namespace) -> list[Job]:
    """The sounds to make; every path is checked before a network is loaded."""
    if (options.prompt is None) == (options.prompts is None):
        raise ValueError(
            'give one prompt, as in audioldm2 "rain on a tin roof", or a file of them with --prompts FILE.'
        )
    if options.prompts is None:
        jobs = [Job(options.prompt, sound_path(options.output, options.prompt))]
    else:
        jobs = jobs_from_file(options.prompts, options.output)
    for folder in {job.path.parent for job in jobs}:
        demand_writable(folder)
    return jobs


def sound_path(output: Path | None, prompt: str) -> Path:
    """The file for one prompt: `output`, or in the folder `output` (or here) a name made from the prompt."""
    if output is None:
        return Path(f"{safe_name(prompt)}.wav")
    if output.is_dir():
        return output / f"{safe_name(prompt)}.wav"
    if output.suffix.lower() not in SOUND_FORMATS:
        raise ValueError(f"-o {output}: a sound file ends in {', '.join(SOUND_FORMATS)}.")
    return output


def jobs_from_file(prompts: Path, folder: Path | None) -> list[Job]:
    """One job a line that is not blank. Equal names are told apart by a number."""
    try:
        lines = [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts {prompts}: the file is not UTF-8 text ({error.reason}).") from error
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError(f"--prompts {prompts}: the file has no prompt; write one a line.")
    folder = folder or Path()
    folder.mkdir(parents=True, exist_ok=True)
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
    if not folder.is_dir():
        raise ValueError(f"the output folder {folder} does not exist; make it, or give another with -o.")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"the output folder {folder} is not writable; give another with -o.")


def demand_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("--plot needs matplotlib; run: pip install 'audioldm2[plot]'") from None


def write(result: Result, path: Path, *, with_json: bool, with_plot: bool) -> None:
    """The best sound, its picture, and its record; each whole or not at all."""
    result.save(path)
    print(path, flush=True)
    if with_plot:
        from audioldm2.plot import save_spectrogram

        save_spectrogram(
            result.mel[0], result.request.prompts[0], path.with_suffix(".png"), hop_seconds(result)
        )
        print(path.with_suffix(".png"), flush=True)
    if with_json:
        with written_whole(path.with_suffix(".json")) as draft:
            record = {"file": path.name, **result.record()}
            draft.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def hop_seconds(result: Result) -> float:
    """Seconds from one mel frame to the next."""
    return result.request.seconds / max(round(result.request.seconds * 100), 1)


# Progress and words -----------------------------------------------------------------------------------------


@contextmanager
def progress(steps: int, *, shown: bool) -> Iterator[tuple]:
    """A bar on stderr that names the stage, and the two callbacks that move it."""
    from huggingface_hub.utils import tqdm

    stages_besides_steps = 3
    with tqdm(total=steps + stages_besides_steps, disable=not shown, leave=False, bar_format=BAR) as bar:
        begun = False

        def on_stage(stage: str) -> None:
            nonlocal begun
            bar.update(int(begun and bar.desc.strip(": ") != "denoising"))
            begun = True
            bar.set_description(stage)

        def on_step(step: int, t: float, x0: torch.Tensor) -> None:
            bar.update(1)

        yield on_stage, on_step


BAR = "{desc:<20} |{bar:30}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"


def say(message: str) -> None:
    print(f"audioldm2: {message}", file=sys.stderr)


def in_words(error: OSError) -> str:
    """What went wrong with a file, and where."""
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


# Flags ------------------------------------------------------------------------------------------------------


def generate_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="audioldm2",
        description="Make sound effects, music and speech from text with AudioLDM 2.",
        epilog=GENERATE_EPILOG,
        formatter_class=ON_TWO_LINES,
    )
    add = parser.add_argument
    add("prompt", nargs="?", help="what to hear")
    add(
        "-o",
        "--output",
        type=Path,
        help="sound file (.wav, .flac, .ogg), or a folder; default: named by the prompt",
    )
    add(
        "--prompts", type=Path, metavar="FILE", help="a text file with one prompt a line; -o is then a folder"
    )
    add("--model", default="cvssp/audioldm2", help="folder or hub id (default: %(default)s)")
    add("--negative-prompt", metavar="TEXT", help="what not to hear")
    add("--duration", type=float, default=DEFAULT_SECONDS, metavar="S", help="seconds (default: %(default)g)")
    add("--steps", type=int, default=25, help="denoising steps (default: %(default)s)")
    add(
        "--guidance", type=float, default=3.5, help="how strongly to follow the prompt (default: %(default)s)"
    )
    add(
        "--candidates",
        type=int,
        default=1,
        help="sounds to make; the first is written (default: %(default)s)",
    )
    add("--sampler", default="dpmpp_2m", help="'list' explains them (default: %(default)s)")
    add("--eta", type=float, default=0.0, help="noise of the ddim sampler, 0 to 1 (default: %(default)g)")
    add("--seed", type=int, default=0, help="the same seed gives the same sound (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ... (default: %(default)s)")
    add("--dtype", default="auto", help="auto, float32, float16, bfloat16 (default: %(default)s)")
    add("--heads", default="config", choices=["config", "trained"],
        help="attention heads of a diffusers-layout model: as its config says, or 32 wide as it was trained")  # fmt: skip
    add("--plot", action="store_true", help="save a spectrogram (PNG) beside the sound; needs matplotlib")
    add("--no-json", dest="json", action="store_false", help="do not save the settings beside the sound")
    add("--quiet", action="store_true", help="no progress bar")
    add("--version", action="version", version=f"audioldm2 {package_version()}")
    return parser
