"""One voice for a run of several processes: rank 0 reports, and says what went wrong on any of them."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from audioldm2.cli.arguments import Parser
from audioldm2.cli.failures import in_words
from audioldm2.training.distributed import OtherRankFailed, rank_from_environment

MISTAKE = 2  # the exit code of `main`


@contextmanager
def first_rank_speaks(parser: Parser) -> Iterator[None]:
    """Silences all ranks but the first inside the block.

    There, an error that has a sentence ends the process with exit code 2: rank 0 has got its words, or the
    same error, because all ranks have the same arguments. A bug shows its traceback on every rank.

    Args:
        parser: of the command.
    """
    if rank_from_environment() == 0:
        yield
        return
    try:
        with redirect_stderr(io.StringIO()):
            yield
    except Exception as error:
        first_may_be_lost = isinstance(error, OtherRankFailed) and not error.answers
        if first_may_be_lost or in_words(error, parser, "") is None:
            raise
        raise SystemExit(MISTAKE) from error
