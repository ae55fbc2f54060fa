"""`audioldm2 generate`, the default command: a prompt to a sound file with its record.

Its arguments are in `generate_arguments`; `list_run` makes the sounds of lists.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

import audioldm2
from audioldm2.adapters.reading import find as find_adapter
from audioldm2.adapters.words import find as find_word
from audioldm2.audio import VAE_MEL, VAE_MEL_48K, MelSettings, vae_front_end
from audioldm2.checkpoints import hub
from audioldm2.cli.generate_arguments import edit_options_of, options_of, parser
from audioldm2.cli.output_files import plan_jobs, require_others, require_places, write
from audioldm2.cli.speak import clips_asked, speak_job, take_transcription_file
from audioldm2.cli.streams import one_line, print_path, print_result, report
from audioldm2.cli.timeline import read_times, timeline
from audioldm2.edit_options import EditOptions
from audioldm2.errors import ArgumentError, require_whole
from audioldm2.options import GenerationOptions
from audioldm2.request import Request
from audioldm2.sampling.samplers import SAMPLERS
from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.sound_shape import SoundShape

OUT_OF_MEMORY = (
    "Ask for a shorter sound (--duration) or fewer --candidates, or try --low-memory, --offload or "
    "--dtype float16."
)

BAR = "{desc:<20} |{bar:30}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"

# The published models' shape, to find mistakes before gigabytes are fetched and read.
PUBLISHED = SoundShape(VAE_MEL.sample_rate, VAE_MEL.hop, downsampling=4, latent_channels=8, mels=VAE_MEL.mels)
PUBLISHED_48K = SoundShape(
    VAE_MEL_48K.sample_rate, VAE_MEL_48K.hop, downsampling=8, latent_channels=16, mels=VAE_MEL_48K.mels
)


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
