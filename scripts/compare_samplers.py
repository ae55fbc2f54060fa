"""How near each sampler comes to the exact solution, for so many network calls.

    python scripts/compare_samplers.py [--plot samplers.png]
    python scripts/compare_samplers.py --model FOLDER --prompt "rain on a tin roof"

From one starting noise, each sampler's clean latent is compared with that of DDIM in 1000 steps: the relative
RMS distance. Compared is the estimate x0 of the last step, because DDIM leaves the noise of time 0 in its
result. A sampler makes as many steps as the calls allow. Those that draw noise end elsewhere each time: for
them there is no distance.

Without --model the denoiser is exact, for data that is known: each number of a latent is a draw from a
mixture of Gaussians, diffused by AudioLDM 2's schedule. What is left is the sampler's error.
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

Walk = Callable[..., Tensor]  # (sampler, steps, karras=, on_step=) -> the clean latent, from one noise


def mixture(schedule: NoiseSchedule, centres: Tensor, std: float) -> Denoiser:
    """The exact denoiser where each number of a latent is N(one of the centres, std^2), all equally likely.

    With a = alpha_bar, a number x = sqrt(a) x0 + sqrt(1 - a) eps is N(sqrt(a) centre, v) around each centre,
    v = a std^2 + 1 - a: that tells how likely each is, given x. Around it, the mean of eps given x is
    sqrt(1 - a) (x - sqrt(a) centre) / v.
    """

    def denoiser(x: Tensor, t: float) -> Tensor:
        a = 1 / (1 + schedule.sigma_of(t) ** 2)
        v = a * std**2 + 1 - a
        away = x.unsqueeze(-1) - math.sqrt(a) * centres  # (batch, channels, time, mel, centres)
        likely = (-away.square() / (2 * v)).softmax(dim=-1)
        return math.sqrt(1 - a) / v * (likely * away).sum(-1)  # (batch, channels, time, mel)

    return denoiser


def known_data(seed: int) -> Walk:
    """Samplers walk with the denoiser of a mixture, uneven and of about unit variance, in float64."""
    schedule, centres = NoiseSchedule(), torch.tensor([-1.5, -0.4, 0.5, 1.3], dtype=torch.float64)
    denoiser = mixture(schedule, centres, std=0.15)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 8, 250, 16, generator=generator, dtype=torch.float64)  # 32,000 draws
    return lambda name, steps, **rest: SAMPLERS[name](denoiser, noise, schedule, steps, **rest)


def checkpoint(folder: str, prompt: str, seconds: float, guidance: float, seed: int) -> Walk:
    """Samplers walk with a checkpoint's network."""
    model = audioldm2.load(folder)
    conditioning = model.encode_prompt(prompt)
    shape = model.sound.latents(1, model.sound.latent_frames(seconds))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    walk = partial(model.denoise, conditioning, noise, guidance_scale=guidance)
    return lambda name, steps, **rest: walk(sampler=name, num_inference_steps=steps, **rest)


def last_estimate(walk: Walk, name: str, steps: int, karras: bool = False) -> Tensor:
    """The estimate of the clean latent that the last step makes."""
    seen = []
    walk(name, steps, karras=karras, on_step=lambda step, t, x0: seen.append(x0) if step == steps else None)
    return seen[0]


def steps_for(name: str, calls: int) -> int | None:
    """As many steps as make no more than so many network calls; None if not even the fewest do."""
    traits = SAMPLERS[name].traits
    steps = [n for n in range(traits.min_steps, calls + 1) if traits.network_calls(n) <= calls]
    return max(steps, default=None)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder or hub id; default: data whose denoiser is known")
    parser.add_argument("--prompt", default="rain on a tin roof", help="(with --model)")
    parser.add_argument("--duration", type=float, default=2.0, help="seconds (with --model; default: 2)")
    parser.add_argument("--guidance", type=float, default=3.5, help="(with --model; default: 3.5)")
    parser.add_argument("--calls", type=int, nargs="+", default=[5, 10, 20, 50, 100], help="of the network")
    parser.add_argument(
        "--exact-steps", type=int, default=1000, help="of the DDIM solution (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", metavar="PNG", help="draw the table (needs matplotlib)")
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
    for name, run in SAMPLERS.items():
        if "generator" in run.traits.takes and "eta" not in run.traits.takes:
            print(f"{name:<22}  draws fresh noise at every step")
            continue
        for karras in (False, True) if "karras" in run.traits.takes else (False,):
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
                curves[label].append((run.traits.network_calls(steps), distance))
                print(f"{distance:>10.1e}", end="", flush=True)
            print()
    if options.plot:
        draw(curves, options.plot)
    return 0


def draw(curves: dict[str, list[tuple[int, float]]], path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    for label, points in curves.items():
        axes.loglog(
            *zip(*points, strict=True), marker="o", label=label, linestyle="--" if "karras" in label else "-"
        )
    axes.set(xlabel="network calls", ylabel="relative RMS distance to DDIM in 1000 steps")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError, audioldm2.WeightsError) as error:
        sys.exit(f"{Path(__file__).name}: error: {error}")
