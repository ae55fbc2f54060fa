"""The command line: which command runs, and how its errors and its exit code reach the user.

An error that a user can cause ends in one sentence on standard error and exit code 2, a Ctrl-C in exit code
130. `verify` exits with 1 where a check fails. Exit code 141 means that all is done and written, but who read
standard output has left.
"""

import errno
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from audioldm2.checkpoints.converter import require_converter
from audioldm2.cli.arguments import Parser
from audioldm2.cli.failures import in_words
from audioldm2.cli.streams import ReaderLeft, report, require_printed, safe_streams

DONE, MISTAKE, INTERRUPTED = 0, 2, 128 + signal.SIGINT
READER_LEFT = 128 + 13  # SIGPIPE, which Windows does not have


@dataclass(frozen=True)
class Command:
    """A command of the program."""

    parser: Callable[[], Parser]
    run: Callable[[Sequence[str]], int]  # the arguments after the command's name -> exit code
    out_of_memory: str = "Try a smaller model or a shorter sound."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in COMMANDS:
        return execute(COMMANDS[arguments[0]], arguments[1:])
    return execute(COMMANDS["generate"], arguments)


def execute(find: Callable[[], Command], arguments: Sequence[str]) -> int:
    """Run the command that `find` returns; returns the exit code."""
    command = Command(Parser, lambda _: MISTAKE)  # for the errors of `find` itself
    with safe_streams(), warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: report(f"note: {message}")
        try:
            command = find()
            code = command.run(arguments)
        except SystemExit as end:  # argparse, after --help and --version
            code = end.code if isinstance(end.code, int) else DONE
        except KeyboardInterrupt:
            report("interrupted; finished files are kept, and nothing half-written is left")
            return INTERRUPTED
        except ReaderLeft:
            return READER_LEFT
        except Exception as error:
            sentence = in_words(error, command.parser(), command.out_of_memory)
            if sentence is None:
                raise
            report(f"error: {sentence}")
            return MISTAKE
        return code if code else _after_printing()


def _after_printing() -> int:
    """The exit code of a command that is done; what it wrote is there, even where its output was lost."""
    try:
        sys.stdout.flush()
        require_printed()
    except ReaderLeft:
        return READER_LEFT
    except OSError as error:
        if error.errno != errno.EBADF:  # that one was closed by whoever started the program
            report(f"note: {error.filename}: {error.strerror}; all files are written")
    return DONE


# Each command imports what it needs when it is asked for. ---------------------------------------------------


def _generate() -> Command:
    from audioldm2.cli import generate
    from audioldm2.cli.model import OUT_OF_MEMORY

    return Command(generate.parser, generate.run, OUT_OF_MEMORY)


def _convert() -> Command:
    require_converter()
    from audioldm2.convert.commands import convert_parser, run

    return Command(convert_parser, run, "Close other programs, or convert on a computer with more.")


def _info() -> Command:
    require_converter()
    from audioldm2.convert.commands import info_parser, run_info

    def run(arguments: Sequence[str]) -> int:
        code = run_info(arguments)
        require_printed()
        return code

    return Command(info_parser, run)


def _train() -> Command:
    from audioldm2.cli import train

    return Command(train.parser, train.run, train.OUT_OF_MEMORY)


def _evaluate() -> Command:
    from audioldm2.cli import evaluate

    return Command(evaluate.parser, evaluate.run, evaluate.OUT_OF_MEMORY)


def _score() -> Command:
    from audioldm2.cli import score

    return Command(score.parser, score.run, score.OUT_OF_MEMORY)


def _verify() -> Command:
    from audioldm2.cli import verify

    return Command(verify.parser, verify.run, verify.OUT_OF_MEMORY)


def _ui() -> Command:
    from audioldm2.cli import ui

    return Command(ui.parser, ui.run, ui.OUT_OF_MEMORY)


COMMANDS: dict[str, Callable[[], Command]] = {
    "generate": _generate,
    "convert": _convert,
    "info": _info,
    "train": _train,
    "evaluate": _evaluate,
    "score": _score,
    "verify": _verify,
    "ui": _ui,
}
