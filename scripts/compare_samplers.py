"""How near each sampler comes to the exact solution, for how many network calls.

    python scripts/compare_samplers.py MODEL --prompt "rain on a tin roof" [--plot samplers.png]

For one prompt and one starting noise, each sampler's clean latent is compared with that of DDIM in 1000
steps: the relative RMS distance, over the number of calls of the network. Stochastic samplers do not follow
that solution and are left out. Compared is the estimate x0 of the last step, because DDIM leaves the noise of
time 0 in its result.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

import audioldm2
from audioldm2 import SAMPLERS


def last_estimate(
    model, conditioning, noise, name: str, steps: int, karras: bool, guidance: float
) -> torch.Tensor:
    """The estimate of the clean latent that the last step makes."""
    seen = []
    model.denoise(
        conditioning, noise, num_inference_steps=steps, sampler=name, karras=karras, guidance_scale=guidance,
        on_step=lambda step, t, x0: seen.append(x0) if step == steps else None,
    )  # fmt: skip
    return seen[0]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder or hub id")
    parser.add_argument("--prompt", default="rain on a tin roof")
    parser.add_argument("--duration", type=float, default=2.0, help="seconds (default: %(default)g)")
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 25, 50, 100])
    parser.add_argument(
        "--exact-steps", type=int, default=1000, help="of the DDIM solution (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", metavar="PNG", help="draw the table (needs matplotlib)")
    options = parser.parse_args()
    if options.plot and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib; run: pip install matplotlib")

    model = audioldm2.load(options.model)
    conditioning = model.encode_prompt(options.prompt)
    shape = model.sound.latents(1, model.sound.latent_frames(options.duration))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(options.seed))
    exact = last_estimate(model, conditioning, noise, "ddim", options.exact_steps, False, options.guidance)

    print(f"{'sampler':<22}" + "".join(f"{steps:>10} steps" for steps in options.steps))
    curves = {}
    for name, run in SAMPLERS.items():
        if "generator" in run.traits.takes and "eta" not in run.traits.takes:
            continue
        for karras in (False, True) if "karras" in run.traits.takes else (False,):
            label = f"{name} + karras" if karras else name
            curves[label] = []
            for steps in options.steps:
                found = last_estimate(model, conditioning, noise, name, steps, karras, options.guidance)
                distance = ((found - exact).square().mean() / exact.square().mean()).sqrt().item()
                curves[label].append((run.traits.network_calls(steps), distance))
            print(f"{label:<22}" + "".join(f"{f'{d:.2e} /{c:>4}':>16}" for c, d in curves[label]), flush=True)
    print("each entry: relative RMS distance to the exact latent / network calls")
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
