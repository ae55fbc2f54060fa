"""A list of sounds on one process or many: each sound once, and a summary of all.

Rank 0 plans the batches; whoever is free takes the next one. A process that is lost loses its batch: the
others go on, unless the launcher ends them, and the same command started again makes what is missing.
A line that fails is reported and the others go on; an error of the system, such as a full disk, ends the run.
"""

import argparse
import json
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from audioldm2.audio import MelSettings
from audioldm2.cli.arguments import Parser
from audioldm2.cli.failures import in_words, is_device_failure
from audioldm2.cli.generate_arguments import parser
from audioldm2.cli.list_plan import WORDS, Batch, Options, SoundList, duration_of, requests, sounds_of
from audioldm2.cli.model import OUT_OF_MEMORY, PUBLISHED, front_end_of, likely_shape, load, name_demo
from audioldm2.cli.output_files import Job, naming, write
from audioldm2.cli.progress import progress
from audioldm2.cli.prompt_lists import for_model, require_distinct
from audioldm2.cli.ranks import MISTAKE
from audioldm2.cli.streams import print_path, report
from audioldm2.edit_options import EditOptions
from audioldm2.files import atomic_write, remove_drafts
from audioldm2.request import drawn_seed
from audioldm2.result import Result
from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.training.distributed import OtherRankFailed, Ranks, joined

MADE, SKIPPED, FAILED, MISSING = "made", "skipped", "failed", "missing"
Follow = Callable[[], AbstractContextManager[tuple[Callable[..., None], Callable[..., None]]]]
Row = dict[str, Any]  # of the manifest


def run_list(given: argparse.Namespace, jobs: list[Job], options: Options) -> int:
    """Make the sounds of a list on this process, or this process's share; returns the exit code."""
    lines = [job.line for job in jobs if job.line is not None]
    require_distinct(lines, options.seed)
    shape = PUBLISHED if isinstance(options, EditOptions) else likely_shape(options)
    requests(lines, options, given.audio, shape, NoiseSchedule())  # mistakes, before gigabytes are read
    manifest = jobs[0].sound.with_name(f"{given.prompts.stem}.manifest.jsonl")
    require_manifest(manifest)
    with joined(given.device) as (ranks, device):
        given.device = str(device)
        with ranks.first_goes_first():  # which fetches the model, and times dtypes and kernels
            model = load(given)
        name_demo(given)
        lines = for_model(lines, getattr(model, "speaks", False), given.prompts)
        sounds = SoundList(
            model, jobs, lines, options, given.audio, with_record=given.json, with_picture=given.plot
        )
        run = ListRun(
            sounds,
            ranks,
            parser=parser(),
            out_of_memory=OUT_OF_MEMORY,
            front_end=front_end_of(model) if given.plot else None,
            follow=lambda: progress(options.num_inference_steps, quiet=given.quiet),
            quiet=given.quiet,
        )
        return run.run(manifest, at_once=given.at_once, overwrite=given.overwrite)


class ListRun:
    """The run of a list on this rank.

    Args:
        sounds: the list.
        ranks: the processes that share it.
        parser: of the command, for messages.
        out_of_memory: what to try when memory runs out.
        front_end: of the spectrogram, for pictures; None for none.
        follow: begins the progress of a batch; yields the callbacks of `generate`.
        quiet: no progress.
    """

    def __init__(
        self,
        sounds: SoundList,
        ranks: Ranks,
        *,
        parser: Parser,
        out_of_memory: str,
        front_end: MelSettings | None,
        follow: Follow,
        quiet: bool,
    ) -> None:
        self.sounds, self.ranks = sounds, ranks
        self.parser, self.out_of_memory = parser, out_of_memory
        self.front_end, self.follow, self.quiet = front_end, follow, quiet
        self.rows: dict[int, Row] = {}  # of this rank's sounds, by their place in the list

    def run(self, manifest: Path, *, at_once: int | None, overwrite: bool) -> int:
        """Make the sounds that are missing, and write the manifest; returns the exit code."""
        plans = []
        if self.ranks.is_first:
            for folder in {job.sound.parent for job in self.sounds.jobs if job.sound.parent.is_dir()}:
                remove_drafts(folder, only_files=True)
            if not overwrite:
                self.sounds.require_no_others()
            plans = [self.sounds.plan(at_once)]
        (plan,) = self.ranks.gather_list(plans)
        kept = len(self.sounds.jobs) - sum(len(batch.missing) for batch in plan)
        if kept and not self.quiet:
            report(f"{kept} of {len(self.sounds.jobs)} sounds are there already")
        lost = None
        try:
            with terminated_as_interrupted(self.ranks.count > 1):
                for number in self.ranks.shared(len(plan)):
                    self.make(plan[number])
            rows = dict(self.ranks.gather_list(list(self.rows.items())))
        except OtherRankFailed as error:
            if not self.ranks.is_first:
                raise
            lost, rows = error, self.rows
        incomplete = lost is not None
        if self.ranks.is_first:
            planned = {place for batch in plan for place in batch.missing}
            for place in range(len(self.sounds.jobs)):
                if place not in rows:
                    rows[place] = self.row_of_file(place, planned)
            write_manifest([rows[place] for place in sorted(rows)], manifest)
            self.summarise(rows, manifest, lost)
            incomplete |= any(row["status"] in (FAILED, MISSING) for row in rows.values())
        return MISTAKE if lost is not None or self.ranks.any(incomplete) else 0

    # Making ---------------------------------------------------------------------------------------------

    def make(self, batch: Batch) -> None:
        """Generate a batch and write what is missing of it; where that fails, one sound after the other."""
        self.announce(batch)
        try:
            result = self.generate(batch.places)
        except Exception as error:  # `fail` notes it, or raises it
            if len(batch.places) > 1 and not _ends_the_run(error):
                for place in batch.missing:
                    self.make(Batch([place], [place]))
                return
            self.fail(batch.missing, error)
            return
        for row, place in enumerate(batch.places):
            if place in batch.missing:
                self.write(place, result.of_prompt(row))

    def generate(self, places: Sequence[int]) -> Result:
        sounds = self.sounds
        lines = [sounds.lines[place] for place in places]
        seeds = [sounds.seed(line) for line in lines]
        options = replace(
            sounds.options,
            seed=[drawn_seed() if seed is None else seed for seed in seeds],
            negative_prompt=[sounds.negative_prompt(line) for line in lines],
            **duration_of(lines[0], sounds.options),
            **sounds_of(lines, sounds.options),
        )
        prompts = [line.prompt for line in lines]
        words = {name: [getattr(line, name) for line in lines] for name in WORDS}
        words = {name: texts for name, texts in words.items() if None not in texts}
        with self.follow() as (on_stage, on_step):
            following = {"on_stage": on_stage, "on_step": on_step}
            if isinstance(options, EditOptions):
                return sounds.model.edit(sounds.audio, prompts, options=options, **following)
            return sounds.model.generate(prompts, options=options, **following, **words)

    def write(self, place: int, result: Result) -> None:
        job, more = self.sounds.jobs[place], self.sounds.also(self.sounds.lines[place])
        try:
            write(result, job, with_record=self.sounds.with_record, front_end=self.front_end, for_list=more)
        except Exception as error:  # `fail` notes it, or raises it
            self.fail([place], error)
            return
        self.rows[place] = self.row(place, MADE, result.record())
        print_path(job.sound)

    def fail(self, places: Sequence[int], error: Exception) -> None:
        """Note why lines failed; raises what ends the run."""
        if _ends_the_run(error):
            raise error
        sentence = in_words(error, self.parser, self.out_of_memory)
        if sentence is None:
            sentence = f"{type(error).__name__}: {error}"
            traceback.print_exception(error)
        for place in places:
            self.rows[place] = self.row(place, FAILED, {}, sentence)
            report(f"error: {self.sounds.lines[place].where}: {sentence}")

    def announce(self, batch: Batch) -> None:
        jobs = self.sounds.jobs
        if len(jobs) > 1 and not self.quiet:
            first, others = batch.missing[0], len(batch.missing) - 1
            line, more = self.sounds.lines[first], f" and {others} more" if others else ""
            report(f"{first + 1} of {len(jobs)}: {line.prompt or line.text}{more}")

    # The manifest ---------------------------------------------------------------------------------------

    def row(self, place: int, status: str, record: dict[str, Any], reason: str | None = None) -> Row:
        line, job = self.sounds.lines[place], self.sounds.jobs[place]
        return {
            "file": job.sound.name,
            "prompt": line.prompt,
            "seed": record.get("seed", self.sounds.seed(line)),
            "seconds": self.sounds.seconds(place),
            "score": record.get("score"),
            "status": status,
            "reason": reason,
        }

    def row_of_file(self, place: int, planned: set[int]) -> Row:
        """The row of a sound that no rank has reported: it was there, or its rank is lost."""
        record = self.sounds.record(place) or {}
        if place not in planned:
            return self.row(place, SKIPPED, record)
        if self.sounds.is_there(place):
            return self.row(place, MADE, record)
        return self.row(place, MISSING, {}, "the process that took it has ended; start the command again")

    def summarise(self, rows: dict[int, Row], manifest: Path, lost: OtherRankFailed | None) -> None:
        of_status = {status: [place for place in sorted(rows) if rows[place]["status"] == status]
                     for status in (MADE, SKIPPED, FAILED, MISSING)}  # fmt: skip
        if self.ranks.count > 1:  # the others are silent
            for place in of_status[FAILED]:
                if place not in self.rows:
                    report(f"error: {self.sounds.lines[place].where}: {rows[place]['reason']}")
        counts = ", ".join(
            f"{len(places)} {status}"
            for status, places in of_status.items()
            if places or status in (MADE, SKIPPED, FAILED)
        )
        if not self.quiet:
            report(f"{counts}; {manifest} lists them")
        if lost is not None:
            again = f"start the same command again for the {len(of_status[MISSING])} sounds that are missing"
            report(f"error: {lost}; {again}")


def write_manifest(rows: Sequence[Row], path: Path) -> None:
    """Write a line of JSON for each sound."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), atomic_write(path) as draft:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")


def require_manifest(path: Path) -> None:
    """Raise ValueError where a file that is no manifest has the name of one."""
    if not path.exists():
        return
    try:
        with open(path, encoding="utf-8") as lines:
            first = json.loads(next(lines, ""))
    except (ValueError, OSError, RecursionError):
        first = None
    if not isinstance(first, dict) or not {"file", "prompt", "status"} <= first.keys():
        raise ValueError(f"{path} exists and is not a manifest; move it, or give another folder with -o.")


def _ends_the_run(error: Exception) -> bool:
    """Whether an error is not the line's: of the system, or of a device that answers no more."""
    return isinstance(error, OSError) or is_device_failure(error)


@contextmanager
def terminated_as_interrupted(active: bool) -> Iterator[None]:
    """Make SIGTERM, with which a launcher ends the other processes, an interrupt: no draft stays behind."""
    if not active:
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
