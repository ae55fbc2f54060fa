"""`audioldm2 generate`, the default command: a prompt to a sound file with its record.

Its arguments are in `generate_arguments`; `list_run` makes the sounds of lists.
"""

import argparse
import os
from collections.abc import Sequence

from audioldm2.cli.generate_arguments import edit_options_of, options_of, parser
from audioldm2.cli.model import PUBLISHED, front_end_of, likely_shape, load, name_demo
from audioldm2.cli.output_files import plan_jobs, require_others, require_places, write
from audioldm2.cli.progress import progress
from audioldm2.cli.speak import clips_asked, speak_job, take_transcription_file
from audioldm2.cli.streams import print_path, print_result
from audioldm2.cli.timeline import read_times, timeline
from audioldm2.edit_options import EditOptions
from audioldm2.errors import ArgumentError, require_whole
from audioldm2.options import GenerationOptions
from audioldm2.request import Request
from audioldm2.sampling.samplers import SAMPLERS
from audioldm2.sampling.schedule import NoiseSchedule


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
    options = checked_options(given, arguments, [job.prompt for job in jobs], later)
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


def checked_options(
    given: argparse.Namespace, arguments: Sequence[str], prompts: list[str], later: list[tuple[float, str]]
) -> GenerationOptions | EditOptions:
    """The options of the request, or of each line of a list, checked before a model is loaded."""
    if given.source_prompt is not None:
        edit = edit_options_of(arguments)
        Request.resolve_edit(given.audio, prompts, edit, PUBLISHED, NoiseSchedule())
        return edit
    options = options_of(given)
    if given.prompts is None:  # `run_list` resolves each line
        # How long the model's sounds are is not known yet: those of a timeline are long enough for now.
        longest = PUBLISHED.default_seconds + max([time for time, _ in later], default=0)
        seconds, shape = options.audio_length_in_s or longest, likely_shape(options)
        asked = timeline(prompts[0], later, seconds, shape) if later else prompts
        Request.resolve(asked, options, shape, NoiseSchedule())
    return options


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


def require_matplotlib() -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ValueError(f"--plot needs matplotlib ({error}); run: pip install matplotlib") from None
