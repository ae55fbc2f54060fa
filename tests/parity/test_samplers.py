"""Each sampler against the diffusers scheduler of the same name, built from the published configuration."""

import math
import sys
from dataclasses import dataclass, field

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from audioldm2.sampling.samplers import SAMPLERS, generator_noise, sigmas, times
from audioldm2.sampling.schedule import NoiseSchedule

# cvssp/audioldm2, scheduler/scheduler_config.json. Every scheduler below is built from it, as users do.
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
    draws: bool = False  # whether its step() takes a generator


# Missing are the counts at which the reference itself fails: 1000 steps index alpha_bar[1000] (DDIM, PNDM) or
# divide by a step of length 0 (LMS, DPM-Solver, UniPC); PNDM needs four times for its warm-up.
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
DPM_SOLVER = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
KARRAS = ("euler", "heun", "lms", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "unipc")

CASES = [
    *((name, steps, 0.0, False) for name, reference in REFERENCES.items() for steps in reference.steps),
    *(("ddim", steps, eta, False) for eta in (0.3, 1.0) for steps in (1, 5, 20, 50)),
    *((name, steps, 0.0, True) for name in KARRAS for steps in (1, 2, 3, 5, 20, 50)),
    *((name, 1000, 0.0, True) for name in ("euler", "heun")),
]


WEIGHT = torch.randn(3, 3, 3, 3, generator=torch.Generator().manual_seed(0)) / 3


def denoiser(x: Tensor, t: float | Tensor) -> Tensor:
    """A smooth network with random weights, close to the right answer for data of unit variance."""
    t = float(t)
    weight = WEIGHT.to(x.dtype)
    share = 1 / (1 + math.exp((500 - t) / 120))
    return share**0.5 * x + 0.3 * torch.tanh(
        torch.nn.functional.conv2d(x, weight, padding=1) + math.sin(t / 150)
    )


def noise(batch: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, 9, 8, generator=seeded(5)).to(dtype)  # an odd time axis


def make(name: str, steps: int, karras: bool = False):
    reference = REFERENCES[name]
    config = {**reference.config, "use_karras_sigmas": True} if karras else reference.config
    scheduler = getattr(diffusers, reference.scheduler).from_config(PUBLISHED, **config)
    scheduler.set_timesteps(steps)
    return scheduler


def walk(scheduler, x: Tensor, **options) -> Tensor:
    """The sampling loop of the reference's pipeline."""
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        eps = denoiser(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(eps, t, x, **options).prev_sample
    return x


def reference_options(name: str, eta: float, generator) -> dict:
    """The keywords that step() of this scheduler takes."""
    if not REFERENCES[name].draws:
        return {}
    return {"generator": generator, "eta": eta} if name == "ddim" else {"generator": generator}


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", REFERENCES)
def test_result_equals_the_reference_in_float32(name: str) -> None:
    for steps, eta, karras in [case for each, *case in CASES if each == name]:
        theirs = walk(make(name, steps, karras), noise(), **reference_options(name, eta, seeded()))
        options = {"eta": eta, "karras": karras, "noise": generator_noise(seeded())}
        ours = SAMPLERS[name](denoiser, noise(), NoiseSchedule(), steps, **options)
        # Measured: at most 2e-6 (9e-6: euler_ancestral, 1000 steps), mostly from the reference's tables.
        assert relative_error(ours, theirs) <= 1e-5, (steps, eta, karras)


def in_float64(scheduler, name: str, steps: int, karras: bool):
    """Recomputes the tables that the reference rounds to float32, with its own functions and numpy."""
    beta = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    alpha_bar = np.cumprod(1 - beta)
    scheduler.alphas_cumprod = torch.from_numpy(alpha_bar)
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    if not hasattr(scheduler, "sigmas"):
        return scheduler
    every = np.sqrt((1 - alpha_bar) / alpha_bar)
    sigmas = every[np.minimum(make(name, steps).timesteps.long().unique().numpy()[::-1], 999)]
    if karras:
        sigmas = every[::-1] if REFERENCES[name].scheduler in DPM_SOLVER else sigmas
        scheduler.num_inference_steps = steps
        convert = scheduler._convert_to_karras
        sigmas = convert(sigmas) if name == "lms" else convert(sigmas, steps)
        if REFERENCES[name].scheduler not in DPM_SOLVER:
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
def test_coefficients_equal_the_reference_in_float64(
    name: str, karras: bool, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the reference's rounding, the results differ by a few units in the last place."""
    scheduler = in_float64(make(name, steps, karras), name, steps, karras)
    to = torch.Tensor.to

    def keep(self: Tensor, *args, **kwargs) -> Tensor:  # step() casts the sample to float32
        return to(self, *(torch.float64 if arg is torch.float32 else arg for arg in args), **kwargs)

    def draw(shape, generator, **_) -> Tensor:  # step() draws in the sample's dtype, ours in float32
        return torch.randn(shape, generator=generator).double()

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", keep)
        patch.setattr(sys.modules[type(scheduler).__module__], "randn_tensor", draw, raising=False)
        theirs = walk(scheduler, noise(dtype=torch.float64), **reference_options(name, 0.0, seeded()))
    options = {"karras": karras, "noise": generator_noise(seeded())}
    ours = SAMPLERS[name](denoiser, noise(dtype=torch.float64), NoiseSchedule(), steps, **options)
    assert theirs.dtype == ours.dtype == torch.float64
    assert relative_error(ours, theirs) <= 1e-12


@pytest.mark.parametrize("steps", [5, 20, 50])
def test_euler_ancestral_on_karras_sigmas_equals_the_reference_step_on_them(steps: int) -> None:
    """The reference's ancestral scheduler lacks Karras sigmas, so it borrows those of its Euler scheduler."""
    scheduler, euler = make("euler_ancestral", steps), make("euler", steps, karras=True)
    scheduler.sigmas, scheduler.timesteps = euler.sigmas, euler.timesteps
    theirs = walk(scheduler, noise(), generator=seeded())
    options = {"karras": True, "noise": generator_noise(seeded())}
    ours = SAMPLERS["euler_ancestral"](denoiser, noise(), NoiseSchedule(), steps, **options)
    assert relative_error(ours, theirs) <= 1e-5


@pytest.mark.parametrize(("name", "eta"), [("ddim", 1.0), ("euler_ancestral", 0.0), ("dpmpp_2m_sde", 0.0)])
def test_one_generator_per_row_draws_as_the_reference_does(name: str, eta: float) -> None:
    theirs = walk(make(name, 8), noise(3), **reference_options(name, eta, [seeded(i) for i in range(3)]))
    drawn = generator_noise([seeded(i) for i in range(3)])
    ours = SAMPLERS[name](denoiser, noise(3), NoiseSchedule(), 8, eta=eta, noise=drawn)
    assert relative_error(ours, theirs) <= 1e-5


@pytest.mark.parametrize("kind", ["scaled_linear", "linear"])
def test_alpha_bar_equals_the_reference(kind: str) -> None:
    scheduler = diffusers.DDIMScheduler.from_config(PUBLISHED, beta_schedule=kind)
    alpha_bar = NoiseSchedule(kind=kind).alpha_bar
    assert alpha_bar.dtype == torch.float64
    assert (alpha_bar - scheduler.alphas_cumprod.double()).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("name", "karras"), [("euler", False), ("euler", True), ("dpmpp_2m", False), ("dpmpp_2m", True)]
)
def test_times_and_sigmas_equal_the_reference(name: str, karras: bool) -> None:
    schedule = NoiseSchedule()
    for steps in (1, 2, 3, 7, 25, 50, 200, 400):
        scheduler = make(name, steps, karras)
        # float32 cannot resolve 1 - alpha_bar any better.
        assert sigmas(name, schedule, steps, karras) == pytest.approx(scheduler.sigmas.tolist(), rel=2e-5)
        # Rounded times are equal; fractional ones differ by the same float32 alpha_bar over a small slope.
        atol = 5e-3 if name == "euler" and karras else 0
        expected = scheduler.timesteps.tolist()
        assert times(name, schedule, steps, karras) == pytest.approx(expected, abs=atol)
