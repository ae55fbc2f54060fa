"""The progress of a request on standard error: a bar on a terminal, lines in a log."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from audioldm2.cli.streams import one_line, report

BAR = "{desc:<20} |{bar:30}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"


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
