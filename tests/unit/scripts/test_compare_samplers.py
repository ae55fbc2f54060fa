"""scripts/compare_samplers.py: the exact denoiser, the number of steps, and the table."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

from audioldm2.sampling.samplers import SAMPLERS
from audioldm2.sampling.schedule import NoiseSchedule

SPEC = importlib.util.spec_from_file_location(
    "compare_samplers", Path(__file__).parents[3] / "scripts" / "compare_samplers.py"
)
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)


@pytest.mark.parametrize("t", [0.0, 37.5, 400.0, 999.0])
def test_mixture_denoiser_is_the_score_of_the_noisy_data(t: float) -> None:
    """For any data, eps is -sqrt(1 - alpha_bar) times the gradient of the log-density of the noisy data."""
    schedule, std = NoiseSchedule(), 0.2
    centres = torch.tensor([-1.0, 0.3, 1.1], dtype=torch.float64)
    x = torch.linspace(-2, 2, 24, dtype=torch.float64).view(1, 2, 4, 3).requires_grad_()
    a = 1 / (1 + schedule.sigma_of(t) ** 2)
    offset = x.unsqueeze(-1) - math.sqrt(a) * centres
    log_density = (-offset.square() / (2 * (a * std**2 + 1 - a))).logsumexp(dim=-1)
    expected = -math.sqrt(1 - a) * torch.autograd.grad(log_density.sum(), x)[0]
    found = script.mixture(schedule, centres, std)(x.detach(), t)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_are_the_most_that_fit_into_the_calls(name: str) -> None:
    calls_of = SAMPLERS[name].network_calls
    for calls in range(1, 60):
        steps = script.steps_for(name, calls)
        if steps is None:
            assert calls_of(SAMPLERS[name].min_steps) > calls
        else:
            assert calls_of(steps) <= calls < calls_of(steps + 1)


@pytest.mark.slow
def test_table_has_every_sampler_and_distances_that_fall(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["compare_samplers.py", "--calls", "5", "20", "--exact-steps", "100"])
    assert script.main() == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["network", "calls", "5", "20"]
    assert {row.split()[0] for row in rows} == set(SAMPLERS)
    assert len(rows) == 16  # 8 samplers that draw no noise, 6 of them with Karras sigmas too, and 2 that do
    for row in rows:
        if "noise" not in row and "pndm" not in row:
            few, many = (float(distance) for distance in row.split()[-2:])
            assert many < few / 2 < 1
