"""`audioldm2 generate`, the default command: prompts to sound files with their records.

The file is a little long because a third of it is help; `list_run` makes the sounds of lists.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from torch import Tensor

import audioldm2
from audioldm2.adapters.reading import find as find_adapter
from audioldm2.adapters.words import find as find_word
from audioldm2.audio import VAE_MEL, VAE_MEL_48K, MelSettings, vae_front_end
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
from audioldm2.cli.output_files import plan_jobs, require_others, require_places, write
from audioldm2.cli.speak import clips_asked, speak_job, take_transcription_file
from audioldm2.cli.streams import one_line, print_path, print_result, report
from audioldm2.cli.timeline import read_times, timeline
from audioldm2.edit_options import EditOptions, refuse
from audioldm2.errors import ArgumentError, require_whole
from audioldm2.options import GenerationOptions
from audioldm2.request import Request
from audioldm2.result import package_version
from audioldm2.sampling.samplers import SAMPLERS
from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.sound_shape import SoundShape

OUT_OF_MEMORY = (
    "Ask for a shorter sound (--duration) or fewer --candidates, or try --low-memory, --offload or "
    "--dtype float16."
)

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

BAR = "{desc:<20} |{bar:30}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"

# The published models' shape, to find mistakes before gigabytes are fetched and read.
PUBLISHED = SoundShape(VAE_MEL.sample_rate, VAE_MEL.hop, downsampling=4, latent_channels=8, mels=VAE_MEL.mels)
PUBLISHED_48K = SoundShape(
    VAE_MEL_48K.sample_rate, VAE_MEL_48K.hop, downsampling=8, latent_channels=16, mels=VAE_MEL_48K.mels
)
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


def run(arguments: Sequence[str]) -> int:
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return run_here(arguments)
    from audioldm2.cli.ranks import first_rank_speaks  # imports training, as lists do

    with first_rank_speaks(parser()):
        return run_here(arguments)


def run_here(arguments: Sequence[str]) -> int:
    """Run the command on this process, which may be one of several."""
    given = parser().parse_args(arguments)
    take_transcription_file(given)
    if given.sampler == "list":
        width = max(map(len, SAMPLERS))
        print_result("\n".join(f"{name:<{width}}  {each.summary}" for name, each in SAMPLERS.items()))
        return 0
    jobs = plan_jobs(given.prompt, given.prompts, given.output, given.audio_prompt)
    require_others(
        jobs, [given.audio, given.audio_prompt, *(job.line.audio_prompt for job in jobs if job.line)]
    )
    require_places(jobs, with_record=given.json, with_picture=given.plot, replace=given.replace)
    later = read_times(given.at)
    if later and given.prompts is not None:
        raise ArgumentError("at", later, "be left out with --prompts", given="is set")
    require_list_flags(given)
    if later and given.audio is not None:
        raise ArgumentError("at", later, "be left out with --audio, which one prompt changes", given="is set")
    options: GenerationOptions | EditOptions
    if given.source_prompt is not None:
        options = edit_options_of(arguments)
        prompts = [job.prompt for job in jobs]
        Request.resolve_edit(given.audio, prompts, options, PUBLISHED, NoiseSchedule())
    elif given.prompts is not None:
        options = options_of(given)  # `run_list` resolves each line
    else:
        options = options_of(given)
        # How long the model's sounds are is not known yet: those of a timeline are long enough for now.
        longest = PUBLISHED.default_seconds + max([time for time, _ in later], default=0)
        seconds = options.audio_length_in_s or longest
        shape = likely_shape(options)
        asked = timeline(jobs[0].prompt, later, seconds, shape) if later else [job.prompt for job in jobs]
        Request.resolve(asked, options, shape, NoiseSchedule())
    if given.plot:
        require_matplotlib()
    if given.prompts is not None:
        from audioldm2.cli.list_run import run_list  # imports training, which single prompts need not

        return run_list(given, jobs, options)
    model = load(given)
    (job,) = jobs
    texts = clips_asked(model, options, job, given)
    front_end = front_end_of(model) if given.plot else None
    name_demo(given)
    with progress(options.num_inference_steps, quiet=given.quiet) as (on_stage, on_step):
        follow = {"on_stage": on_stage, "on_step": on_step}
        if texts is not None:
            speak_job(model, job, options, texts, given, front_end, follow)
            return 0
        if isinstance(options, EditOptions):
            result = model.edit(given.audio, job.prompt, options=options, **follow)
        else:
            seconds = options.audio_length_in_s or model.sound.default_seconds
            prompt = timeline(job.prompt, later, seconds, model.sound) if later else job.prompt
            result = model.generate(prompt, options=options, **follow)
    write(result, job, with_record=given.json, front_end=front_end)
    print_path(job.sound)
    return 0


def require_list_flags(given: argparse.Namespace) -> None:
    """Raise ValueError for what only a list has, and for several processes without one."""
    if given.at_once is not None:
        require_whole("at_once", given.at_once, 1)
    if given.prompts is not None:
        if given.join:
            allowed = "be left out with --prompts: a line of a list is one clip"
            raise ArgumentError("join", True, allowed, given="is set")
        return
    for name in ("at_once", "overwrite"):
        if getattr(given, name):
            raise ArgumentError(name, getattr(given, name), "be left out without --prompts")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("several processes share a list of --prompts; start one process for one prompt.")


def name_demo(given: argparse.Namespace) -> None:
    """Report which model it is where the user names none."""
    if given.model is None and not given.quiet:
        report(
            f"this is the small demo model, of simple sounds; the published one is --model {hub.PUBLISHED} "
            "(4.5 GB, fetched once)"
        )


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


def likely_shape(options: GenerationOptions) -> SoundShape:
    """The published models' shape; that of the 48 kHz one where the options name frequencies above 8 kHz."""
    highest = max([*(options.mask_start_hz or ()), *(options.mask_end_hz or ())], default=0.0)
    return PUBLISHED if highest <= VAE_MEL.f_max else PUBLISHED_48K


def load(given: argparse.Namespace) -> audioldm2.AudioLDM2:
    sources = [source for source, _ in given.lora]
    for source in sources:
        if sources.count(source) > 1:
            raise ValueError(f"--lora names {source} twice; give it once, with the sum of the weights.")
        find_adapter(source)  # before gigabytes of the model are read
    for source in given.word:
        find_word(source)
    model = audioldm2.load(
        given.model or hub.DEMO,
        device=given.device,
        dtype=given.dtype,
        heads=given.heads,
        revision=given.revision,
        offload=given.offload,
        low_memory=given.low_memory,
        compile=given.compile,
        ops=given.ops,
    )
    last = [Path(source).name for source, _ in given.lora]
    for source, weight in given.lora:
        # Adapters that would have the same name are called by their whole path.
        model.load_lora(source, weight, source if last.count(Path(source).name) > 1 else None)
    for source in given.word:
        model.load_word(source)
    return model


def front_end_of(model: audioldm2.AudioLDM2) -> MelSettings:
    """The settings of the model's spectrograms, for the frequencies of a picture."""
    vocoder = model.networks.configs["hifigan"]
    try:
        return vae_front_end(vocoder.sample_rate, vocoder.hop, vocoder.mels)
    except ValueError as error:
        raise ValueError(f"--plot does not know the frequencies of {model.source}; leave it out.") from error


def require_matplotlib() -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ValueError(f"--plot needs matplotlib ({error}); run: pip install matplotlib") from None


@contextmanager
def progress(steps: int, *, quiet: bool) -> Iterator[tuple[Callable[..., None], Callable[..., None]]]:
    """Show progress on standard error; yields the two callbacks of `AudioLDM2.generate`.

    On a terminal a bar shows the stage and its steps. In a log, where a bar is a hundred lines of noise, each
    stage is a line.
    """
    from huggingface_hub.utils import tqdm

    as_bar = sys.stderr.isatty() and not quiet
    with tqdm(total=steps, disable=not as_bar, leave=False, bar_format=BAR) as bar, warnings.catch_warnings():
        if as_bar:
            warnings.showwarning = lambda message, *_: bar.write(
                one_line(f"note: {message}"), file=sys.stderr
            )

        def on_stage(stage: str) -> None:
            bar.set_description_str(stage)
            if not as_bar and not quiet:
                report(stage)

        def on_step(step: int, t: float, x0: Tensor) -> None:
            bar.update(step - bar.n)  # sounds that do not fit into memory together count their steps anew

        yield on_stage, on_step
