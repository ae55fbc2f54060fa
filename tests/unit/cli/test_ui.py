"""The command line of `audioldm2 ui`: what it refuses before a model is read."""

import sys

import pytest

from tests.support.command_line import ERR, assert_refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--port", "70000"), ("--port is 70000", "from 1 to 65535")),
        (("--max-duration", "nan"), ("--max-duration is nan",)),
        (("--max-steps", "0"), ("--max-steps is 0",)),
        (("--max-candidates", "x"), ("--max-candidates", "'x' is not a whole number")),
        (("--queue", "0"), ("--queue is 0", "at least 1")),
        (("--model", ""), ("--model", "the name is empty")),
        (("--public",), ("unrecognized arguments: --public",)),
    ],
)
def test_bad_arguments_get_a_sentence(run, arguments, words):
    assert_refused(run("ui", *arguments), *words)


def test_without_gradio_the_sentence_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    outcome = run("ui")
    assert_refused(outcome, "the page needs Gradio", "pip install 'gradio>=6,<7'")


def test_help_says_that_the_page_is_local_unless_asked(run):
    code, out, _ = run("ui", "--help")
    assert code == 0 and "default: 127.0.0.1" in out and "--share" in out


@pytest.mark.slow
def test_a_port_that_is_taken_gets_a_sentence(run, tiny_folder):
    pytest.importorskip("gradio", reason="the page needs Gradio")
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        outcome = run("ui", "--model", tiny_folder, "--port", taken.getsockname()[1])
    assert "port" in outcome[ERR]
    assert_refused((outcome[0], outcome[1], outcome[ERR].splitlines(keepends=True)[-1]), "port")
