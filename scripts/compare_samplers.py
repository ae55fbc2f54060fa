"""Measures how close each sampler comes to the exact solution for a given number of network calls.

    python scripts/compare_samplers.py [--plot samplers.png]
    python scripts/compare_samplers.py --model FOLDER --prompt "rain on a tin roof"

All samplers start from the same noise. The table shows the relative RMS distance between a sampler's clean
latent and that of DDIM with 1000 steps (--exact-steps). It compares the last estimates x0, because
DDIM's result keeps the noise of time 0. Each sampler takes as many steps as fit into the network calls.
Samplers that draw noise at every step end somewhere else each time, so they have no distance.

Without --model the denoiser is exact, for known data: each number of a latent comes from a mixture of
Gaussians, noised by AudioLDM 2's schedule. The distance is then the sampler's error alone.
"""

import argparse
import math
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

import audioldm2
from audioldm2 import SAMPLERS
from audioldm2.sampling.samplers import Denoiser
from audioldm2.sampling.schedule import NoiseSchedule

Walk = Callable[..., Tensor]  # (sampler, steps, karras=, on_step=) -> clean latent, from the same noise


def mixture(schedule: NoiseSchedule, centres: Tensor, std: float) -> Denoiser:
    """Returns the exact denoiser of data whose numbers are N(centre, std^2), each centre equally likely.

    With a = alpha_bar, the numbers x = sqrt(a) x0 + sqrt(1 - a) eps that belong to a centre are
    N(sqrt(a) centre, v) with v = a std^2 + 1 - a, which gives the probability of each centre given x. For one
    centre, the mean of eps given x is sqrt(1 - a) (x - sqrt(a) centre) / v.
    """

    def denoiser(x: Tensor, t: float) -> Tensor:
        a = 1 / (1 + schedule.sigma_of(t) ** 2)
        v = a * std**2 + 1 - a
        offset = x.unsqueeze(-1) - math.sqrt(a) * centres  # (batch, channels, time, mel, centres)
        probability = (-offset.square() / (2 * v)).softmax(dim=-1)
        return math.sqrt(1 - a) / v * (probability * offset).sum(-1)  # (batch, channels, time, mel)

    return denoiser


def known_data(seed: int) -> Walk:
    """Returns walks with the exact denoiser of an uneven mixture of about unit variance, in float64."""
    schedule, centres = NoiseSchedule(), torch.tensor([-1.5, -0.4, 0.5, 1.3], dtype=torch.float64)
    denoiser = mixture(schedule, centres, std=0.15)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 8, 250, 16, generator=generator, dtype=torch.float64)  # 32,000 draws
    return lambda name, steps, **rest: SAMPLERS[name](denoiser, noise, schedule, steps, **rest)


def checkpoint(folder: str, prompt: str, seconds: float, guidance: float, seed: int) -> Walk:
    """Returns walks with the network of a checkpoint."""
    model = audioldm2.load(folder)
    conditioning = model.encode_prompt(prompt)
    shape = model.sound.latents(1, model.sound.latent_frames(seconds))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    walk = partial(model.denoise, conditioning, noise, guidance_scale=guidance)
    return lambda name, steps, **rest: walk(sampler=name, num_inference_steps=steps, **rest)


def last_estimate(walk: Walk, name: str, steps: int, karras: bool = False) -> Tensor:
    """Returns the estimate of the clean latent at the last step."""
    seen = []
    walk(name, steps, karras=karras, on_step=lambda step, t, x0: seen.append(x0) if step == steps else None)
    return seen[0]


def steps_for(name: str, calls: int) -> int | None:
    """Returns the most steps that fit into that many network calls; None if the fewest do not fit."""
    sampler = SAMPLERS[name]
    steps = [n for n in range(sampler.min_steps, calls + 1) if sampler.network_calls(n) <= calls]
    return max(steps, default=None)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder or hub id (default: data with a known denoiser)")
    parser.add_argument("--prompt", default="rain on a tin roof", help="with --model (default: %(default)s)")
    parser.add_argument("--duration", type=float, default=2.0, help="seconds, with --model (default: 2)")
    parser.add_argument(
        "--guidance", type=float, default=3.5, help="guidance scale, with --model (default: 3.5)"
    )
    parser.add_argument(
        "--calls",
        type=int,
        nargs="+",
        default=[5, 10, 20, 50, 100],
        help="numbers of network calls to compare at (default: 5 10 20 50 100)",
    )
    parser.add_argument(
        "--exact-steps", type=int, default=1000, help="steps of the DDIM solution (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the starting noise (default: %(default)s)")
    parser.add_argument("--plot", metavar="PNG", help="also plot the table (needs matplotlib)")
    options = parser.parse_args()
    if options.plot and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib; run: pip install matplotlib")

    if options.model:
        walk = checkpoint(options.model, options.prompt, options.duration, options.guidance, options.seed)
    else:
        walk = known_data(options.seed)
    exact = last_estimate(walk, "ddim", options.exact_steps)

    print(f"{'network calls':<22}" + "".join(f"{calls:>10}" for calls in options.calls))
    curves: dict[str, list[tuple[int, float]]] = {}
    for name, sampler in SAMPLERS.items():
        if "noise" in sampler.takes and "eta" not in sampler.takes:
            print(f"{name:<22}  draws fresh noise at every step")
            continue
        for karras in (False, True) if "karras" in sampler.takes else (False,):
            label = f"{name} + karras" if karras else name
            curves[label] = []
            print(f"{label:<22}", end="", flush=True)
            for calls in options.calls:
                steps = steps_for(name, calls)
                if steps is None:
                    print(f"{'-':>10}", end="")
                    continue
                found = last_estimate(walk, name, steps, karras)
                distance = ((found - exact).square().mean() / exact.square().mean()).sqrt().item()
                curves[label].append((sampler.network_calls(steps), distance))
                print(f"{distance:>10.1e}", end="", flush=True)
            print()
    if options.plot:
        plot(curves, options.plot, options.exact_steps)
    return 0


def plot(curves: dict[str, list[tuple[int, float]]], path: str, exact_steps: int) -> None:
    """Writes distances over network calls, one curve per sampler, to a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    for label, points in curves.items():
        axes.loglog(
            *zip(*points, strict=True), marker="o", label=label, linestyle="--" if "karras" in label else "-"
        )
    axes.set(xlabel="network calls", ylabel=f"relative RMS distance to DDIM with {exact_steps} steps")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError, audioldm2.WeightsError) as error:
        sys.exit(f"{Path(__file__).name}: error: {error}")
