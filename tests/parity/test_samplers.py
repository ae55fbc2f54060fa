"""Each sampler against the diffusers scheduler of its name, built from the published configuration."""

import math
import sys
from dataclasses import dataclass, field

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from audioldm2.sampling.samplers import SAMPLERS
from audioldm2.sampling.schedule import NoiseSchedule

# cvssp/audioldm2, scheduler/scheduler_config.json. Every scheduler below is made from this one, as users do.
PUBLISHED = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.20.0.dev0",
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.0015,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "thresholding": False,
    "timestep_spacing": "leading",
    "trained_betas": None,
}


@dataclass(frozen=True)
class Reference:
    scheduler: str
    config: dict = field(default_factory=dict)
    steps: tuple[int, ...] = (1, 2, 3, 5, 14, 15, 20, 30, 50)  # 30: an odd stride of 33
    draws: bool = False  # its step() takes a generator


# The counts left out are those at which the reference itself fails: 1000 steps index alpha_bar[1000] (DDIM,
# PNDM) or divide by a step of length 0 (LMS, DPM-Solver, UniPC); PNDM needs four times for its warm-up.
REFERENCES = {
    "ddim": Reference("DDIMScheduler", draws=True),
    "pndm": Reference("PNDMScheduler", steps=(4, 5, 20, 30, 50)),
    "euler": Reference("EulerDiscreteScheduler", steps=(1, 2, 3, 5, 20, 30, 50, 1000)),
    "euler_ancestral": Reference(
        "EulerAncestralDiscreteScheduler", steps=(1, 2, 3, 5, 20, 30, 50, 1000), draws=True
    ),
    "heun": Reference("HeunDiscreteScheduler", steps=(1, 2, 3, 5, 20, 30, 50, 1000)),
    "lms": Reference("LMSDiscreteScheduler"),
    "dpmpp_2m": Reference("DPMSolverMultistepScheduler"),
    "dpmpp_2m_sde": Reference(
        "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, draws=True
    ),
    "dpmpp_3m": Reference("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "unipc": Reference("UniPCMultistepScheduler"),
}
OPEN_END = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
KARRAS = ("euler", "heun", "lms", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "unipc")

CASES = [
    *((name, steps, 0.0, False) for name, reference in REFERENCES.items() for steps in reference.steps),
    *(("ddim", steps, eta, False) for eta in (0.3, 1.0) for steps in (1, 5, 20, 50)),
    *((name, steps, 0.0, True) for name in KARRAS for steps in (1, 2, 3, 5, 20, 50)),
    *((name, 1000, 0.0, True) for name in ("euler", "heun")),
]


def denoiser(x: Tensor, t: float | Tensor) -> Tensor:
    """A smooth network with random weights: near the right answer for unit data, as a trained one is."""
    t = float(t)
    weight = torch.randn(3, 3, 3, 3, generator=torch.Generator().manual_seed(0)).to(x.dtype) / 3
    share = 1 / (1 + math.exp((500 - t) / 120))
    return share**0.5 * x + 0.3 * torch.tanh(
        torch.nn.functional.conv2d(x, weight, padding=1) + math.sin(t / 150)
    )


def noise(batch: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, 9, 8, generator=torch.Generator().manual_seed(5)).to(dtype)  # time is odd


def make(name: str, steps: int, karras: bool = False):
    reference = REFERENCES[name]
    config = {**reference.config, "use_karras_sigmas": True} if karras else reference.config
    scheduler = getattr(diffusers, reference.scheduler).from_config(PUBLISHED, **config)
    scheduler.set_timesteps(steps)
    return scheduler


def walk(scheduler, x: Tensor, **options) -> Tensor:
    """The loop of the reference's pipeline."""
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        eps = denoiser(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(eps, t, x, **options).prev_sample
    return x


def options_of(name: str, eta: float, generator) -> dict:
    return (
        {"generator": generator} | ({"eta": eta} if name == "ddim" else {}) if REFERENCES[name].draws else {}
    )


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("name", "steps", "eta", "karras"), CASES)
def test_result_is_the_reference_s_in_float32(name: str, steps: int, eta: float, karras: bool) -> None:
    theirs = walk(make(name, steps, karras), noise(), **options_of(name, eta, seeded()))
    sampler = SAMPLERS[name]
    ours = sampler(denoiser, noise(), NoiseSchedule(), steps, eta=eta, karras=karras, generator=seeded())
    # Measured: 2e-6 at most (9e-6: euler_ancestral, 1000 steps), mostly from the reference's float32 tables.
    assert relative_error(ours, theirs) <= 1e-5


def in_float64(scheduler, name: str, steps: int, karras: bool):
    """Put the tables that the reference rounds to float32 back to float64, by its own functions and numpy."""
    beta = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    alpha_bar = np.cumprod(1 - beta)
    scheduler.alphas_cumprod = torch.from_numpy(alpha_bar)
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    if not hasattr(scheduler, "sigmas"):
        return scheduler
    every = np.sqrt((1 - alpha_bar) / alpha_bar)
    sigmas = every[np.minimum(make(name, steps).timesteps.long().unique().numpy()[::-1], 999)]
    if karras:
        sigmas = every[::-1] if REFERENCES[name].scheduler in OPEN_END else sigmas
        scheduler.num_inference_steps = steps
        convert = scheduler._convert_to_karras
        sigmas = convert(sigmas) if name == "lms" else convert(sigmas, steps)
        if REFERENCES[name].scheduler not in OPEN_END:
            times = [scheduler._sigma_to_t(sigma, np.log(every)) for sigma in sigmas]
            times = times[:1] + [t for t in times[1:] for _ in range(2)] if name == "heun" else times
            scheduler.timesteps = torch.tensor(np.array(times))
    if name == "heun":
        sigmas = np.concatenate([sigmas[:1], sigmas[1:].repeat(2)])
    scheduler.sigmas = torch.from_numpy(np.append(sigmas, 0.0))
    return scheduler


@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize(
    ("name", "karras"), [*((n, False) for n in REFERENCES), *((n, True) for n in KARRAS)]
)
def test_coefficients_are_the_reference_s_in_float64(
    name: str, karras: bool, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reference's rounding gone, what is left of the difference is a few units in the last place."""
    scheduler = in_float64(make(name, steps, karras), name, steps, karras)
    to = torch.Tensor.to

    def keep(self: Tensor, *args, **kwargs) -> Tensor:  # step() casts the sample to float32
        return to(self, *(torch.float64 if arg is torch.float32 else arg for arg in args), **kwargs)

    def draw(shape, generator, **_) -> Tensor:  # step() draws in the sample's dtype, we in float32
        return torch.randn(shape, generator=generator).double()

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", keep)
        patch.setattr(sys.modules[type(scheduler).__module__], "randn_tensor", draw, raising=False)
        theirs = walk(scheduler, noise(dtype=torch.float64), **options_of(name, 0.0, seeded()))
    ours = SAMPLERS[name](
        denoiser, noise(dtype=torch.float64), NoiseSchedule(), steps, karras=karras, generator=seeded()
    )
    assert theirs.dtype == ours.dtype == torch.float64
    assert relative_error(ours, theirs) <= 1e-12


@pytest.mark.parametrize("steps", [5, 20, 50])
def test_euler_ancestral_on_karras_sigmas_is_the_reference_s_step_on_those_of_its_euler(steps: int) -> None:
    scheduler, euler = make("euler_ancestral", steps), make("euler", steps, karras=True)
    scheduler.sigmas, scheduler.timesteps = euler.sigmas, euler.timesteps
    theirs = walk(scheduler, noise(), generator=seeded())
    ours = SAMPLERS["euler_ancestral"](
        denoiser, noise(), NoiseSchedule(), steps, karras=True, generator=seeded()
    )
    assert relative_error(ours, theirs) <= 1e-5


@pytest.mark.parametrize(("name", "eta"), [("ddim", 1.0), ("euler_ancestral", 0.0), ("dpmpp_2m_sde", 0.0)])
def test_a_list_of_generators_draws_as_the_reference_does(name: str, eta: float) -> None:
    theirs = walk(make(name, 8), noise(3), **options_of(name, eta, [seeded(i) for i in range(3)]))
    generators = [seeded(i) for i in range(3)]
    ours = SAMPLERS[name](denoiser, noise(3), NoiseSchedule(), 8, eta=eta, generator=generators)
    assert relative_error(ours, theirs) <= 1e-5


@pytest.mark.parametrize("kind", ["scaled_linear", "linear"])
def test_alpha_bar_is_the_reference_s(kind: str) -> None:
    scheduler = diffusers.DDIMScheduler.from_config(PUBLISHED, beta_schedule=kind)
    alpha_bar = NoiseSchedule(kind=kind).alpha_bar
    assert alpha_bar.dtype == torch.float64
    assert (alpha_bar - scheduler.alphas_cumprod.double()).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("name", "karras"), [("euler", False), ("euler", True), ("dpmpp_2m", False), ("dpmpp_2m", True)]
)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 25, 50, 200, 400])
def test_times_and_sigmas_are_the_reference_s(name: str, karras: bool, steps: int) -> None:
    scheduler = make(name, steps, karras)
    schedule = NoiseSchedule()
    times, sigmas = (schedule.open_path if name == "dpmpp_2m" else schedule.path)(steps, karras)
    assert sigmas == pytest.approx(
        scheduler.sigmas.tolist(), rel=2e-5
    )  # float32 cannot tell 1 - alpha_bar better
    # Rounded times are equal; fractional ones differ by the same float32 alpha_bar over a small slope.
    assert times == pytest.approx(scheduler.timesteps.tolist(), abs=5e-3 if name == "euler" and karras else 0)
