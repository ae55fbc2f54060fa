"""The flags of `generate` come from the option fields; --help shows them all, with their defaults."""

import re
from dataclasses import dataclass, fields
from functools import partial

import pytest

from audioldm2 import AudioLDM2
from audioldm2.cli import generate, generate_arguments, main
from audioldm2.cli.arguments import Parser, add_options, values_of
from audioldm2.errors import ArgumentError, require_number, require_whole
from audioldm2.options import GenerationOptions, option

COMMANDS = sorted(main.COMMANDS)


def flag_fields() -> list:
    return [each for each in fields(GenerationOptions) if each.metadata["flag"]]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options that do not exist, one of each kind."""

    echoes: int = option(
        2, partial(require_whole, least=0), "how many, 5% of them", flag="--echoes", metavar="N"
    )
    gain: float | None = option(None, require_number, "in dB", flag="--gain", metavar="X")
    range: tuple[float, float] = option(
        (0.0, 1.0),
        lambda name, value: value,
        "from and to",
        flag="--range",
        metavar="LO HI",
        parse=float,
        values=2,
    )
    dry: bool = option(False, lambda name, value: value, "no room", flag="--dry")
    stereo: bool = option(True, lambda name, value: value, "two channels", flag="--stereo")
    style: str = option("plain", lambda name, value: value, "what kind", flag="--style", metavar="NAME")


@pytest.fixture
def parser() -> Parser:
    made = Parser(prog="test")
    add_options(made, fields(Options))
    return made


def test_new_option_needs_no_edit_of_the_command_line(parser):
    assert vars(parser.parse_args([])) == {each.name: each.default for each in fields(Options)}
    words = "--echoes 3 --gain -6.5 --range 0.25 2 --dry --no-stereo --style loud"
    assert vars(parser.parse_args(words.split())) == dict(
        echoes=3, gain=-6.5, range=[0.25, 2.0], dry=True, stereo=False, style="loud"
    )


def test_text_of_another_type_is_left_to_the_option_rule(parser):
    found = parser.parse_args(["--echoes", "2.5", "--gain", "loud"])
    assert (found.echoes, found.gain) == ("2.5", "loud")


def test_help_of_an_option_shows_its_default(parser):
    text = " ".join(parser.format_help().split())
    assert "how many, 5% of them (default: 2)" in text
    assert "in dB (default: none)" in text
    assert "--style NAME what kind (default: plain)" in text


def test_flag_of_an_argument(parser):
    assert parser.flag_of("gain") == "--gain"
    assert parser.flag_of("range[1]") == "--range[1]"
    assert parser.flag_of("stereo") == "--stereo"
    assert parser.flag_of("/sounds/gain[1].wav") == "/sounds/gain[1].wav"
    assert generate.parser().flag_of("output") == "--output"
    assert generate.parser().flag_of("prompt[2]") == "prompt[2]"  # a positional argument has no flag


@pytest.mark.parametrize("each", flag_fields(), ids=lambda each: each.name)
def test_generate_has_the_flag_of_each_option(each):
    made = generate.parser()
    assert made.flag_of(each.name) == each.metadata["flag"]
    assert made.get_default(each.name) == each.default


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_the_screen_and_shows_no_none(run, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = run(*command.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith("usage: audioldm2")
    assert max(map(len, out.splitlines())) <= 110
    assert "default: None" not in out and "Namespace" not in out


def test_help_names_every_flag(run):
    _, out, _ = run("--help")
    for action in generate.parser()._actions:
        assert action.help and all(flag in out for flag in action.option_strings)


def test_help_lists_common_options_first(run):
    _, out, _ = run("--help")
    places = {each.metadata["flag"]: out.index(f"\n  {each.metadata['flag']}") for each in flag_fields()}
    common = {each.metadata["flag"] for each in flag_fields() if each.metadata["common"]}
    last_common = max(places[flag] for flag in common)
    assert all(places[flag] > last_common for flag in places.keys() - common)
    first_group = out.split("common options:")[1].split("\n\n")[0]
    assert re.findall(r"^  (-\S+)", first_group, re.MULTILINE)[:2] == ["-o", "--model"]


def test_help_shows_the_default_of_every_value():
    for action in generate.parser()._actions:
        if action.option_strings and action.nargs != 0 and action.dest != "prompts":
            assert "default" in action.help, action.option_strings


def test_flag_of_two_options_sets_both():
    words = [
        "a",
        "--audio",
        "dog.wav",
        "--mask",
        "1",
        "2.5",
        "--mask-hz",
        "400",
        "1000",
        "--extend",
        "3",
    ]
    found = values_of(generate.parser().parse_args(words), flag_fields())
    assert (found["mask_start_seconds"], found["mask_end_seconds"]) == (1.0, 2.5)
    assert (found["mask_start_hz"], found["mask_end_hz"]) == (400.0, 1000.0)
    assert found["extend_seconds"] == 3.0
    assert "mask_end_seconds" not in values_of(generate.parser().parse_args(["a"]), flag_fields())


def test_error_of_the_second_option_names_their_flag():
    assert generate.parser().flag_of("mask_end_seconds") == "--mask"
    assert generate.parser().flag_of("mask_start_hz[0]") == "--mask-hz[0]"


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        (["--extend", "3"], (0.0, 3.0)),
        (["--extend-before", "2"], (2.0, 0.0)),
        (["--extend", "3", "--extend-before", "2"], (2.0, 3.0)),
        ([], None),
    ],
)
def test_two_flags_set_a_pair(words, seconds):
    found = values_of(generate.parser().parse_args(["a", "--audio", "dog.wav", *words]), flag_fields())
    assert GenerationOptions(**found).extend_seconds == seconds


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--extend", "-1"], "--extend is -1.0; it has to be a number from 0 to 86400."),
        (["--extend", "far"], "--extend is 'far'; it has to be a number from 0 to 86400."),
        (["--extend-before", "far"], "--extend-before is 'far'; it has to be a number from 0 to 86400."),
        (
            ["--extend-before", "1", "--extend", "far"],
            "--extend is 'far'; it has to be a number from 0 to 86400.",
        ),
    ],
)
def test_error_of_a_pair_names_the_flag_of_the_entry(words, sentence):
    parser = generate.parser()
    with pytest.raises(ArgumentError) as caught:
        GenerationOptions(**values_of(parser.parse_args(["a", *words]), flag_fields()))
    assert caught.value.sentence(parser.flag_of(caught.value.name)) == sentence


def test_help_of_generate_lists_the_other_commands():
    [line] = [each for each in generate_arguments.USAGE.splitlines() if "COMMAND ..." in each]
    assert set(re.findall(r"\w+", line)) >= set(COMMANDS) - {"generate"}


def test_help_says_nothing_of_python(run):
    """What the library takes beside a flag's values is in the docstrings alone."""
    _, out, _ = run("--help")
    text = " ".join(out.split())
    for word in ("Python", "samples,", "latents`", "(before, after)"):
        assert word not in text, word
    documented = " ".join((AudioLDM2.generate.__doc__ or "").split())
    for word in ("floats (samples,) do as well", "or that of `latents`", "or a pair (before, after)"):
        assert word in documented, word
