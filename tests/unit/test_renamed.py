"""Modules of version 0.1 under their old names."""

import importlib
import subprocess
import sys

import pytest

import audioldm2
from audioldm2 import renamed
from audioldm2.prompt.conditioning import Conditioning
from audioldm2.runtime import tiling
from audioldm2.sampling import eps_samplers, samplers, schedule, x0_samplers


@pytest.mark.parametrize("old", sorted(renamed.MOVED))
def test_old_module_leads_to_modules_that_exist(old: str):
    module = importlib.import_module(f"audioldm2.{old}")
    homes = [importlib.import_module(f"audioldm2.{home}") for home in renamed.MOVED[old]]
    for home in homes:
        name = next(name for name, value in vars(home).items() if callable(value) and name[0] != "_")
        with pytest.warns(DeprecationWarning, match=f"audioldm2.{old} is deprecated: import {name} from"):
            assert getattr(module, name) is getattr(home, name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SAMPLERS", samplers.SAMPLERS),
        ("NoiseSchedule", schedule.NoiseSchedule),
        ("karras_sigmas", schedule.karras_sigmas),
        ("ddim", eps_samplers.ddim),
        ("dpmpp_2m", x0_samplers.dpmpp_2m),
    ],
)
def test_samplers_of_0_1_are_found_where_they_moved(name: str, value: object):
    with pytest.warns(DeprecationWarning, match="audioldm2.samplers is deprecated"):
        assert getattr(audioldm2.samplers, name) is value


def test_old_module_can_be_imported_from():
    with pytest.warns(DeprecationWarning, match="from audioldm2.prompt.conditioning") as seen:
        from audioldm2.conditioning import Conditioning as Old
    assert Old is Conditioning
    assert {each.filename for each in seen} == {__file__}, "the warning names the caller's line"


def test_old_module_can_be_imported_in_a_fresh_interpreter():
    program = (
        "import audioldm2.pieces, audioldm2.weights as weights\n"
        "from audioldm2 import samplers\n"
        "print(audioldm2.pieces.__name__, weights.is_converted.__name__, samplers.SAMPLERS['ddim'].name)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["audioldm2.pieces", "is_converted", "ddim"]


def test_removed_name_raises_attribute_error_with_the_new_module():
    with pytest.raises(AttributeError, match=r"vocode_in_pieces .* audioldm2\.runtime\.tiling"):
        _ = audioldm2.pieces.vocode_in_pieces
    assert callable(tiling.vocode)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = audioldm2.nonsense


def test_importing_the_package_warns_of_nothing():
    program = "import warnings; warnings.simplefilter('error', DeprecationWarning); import audioldm2"
    program = f"import torch, soundfile, tokenizers, sentencepiece, safetensors; {program}"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
