"""How FD and KAD behave in small samples, and how often their intervals hold the truth.

    python scripts/plot_small_samples.py --out small_samples.png
    python scripts/plot_small_samples.py --coverage

draws vectors from known normal distributions. The plot (it needs matplotlib) has both distances over the
number of sounds, for sets that do not differ and for sets that do, with 90 % of the draws. `--coverage`
counts how often 95 % intervals hold the mean distance: ours, and the usual bootstrap with replacement.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/ is in the clone, not in the package
from audioldm2.cli.arguments import Parser, new_parser, whole_number
from audioldm2.cli.main import Command, execute
from audioldm2.cli.output_files import require_place
from audioldm2.cli.streams import print_result, report
from audioldm2.errors import require_whole
from audioldm2.evaluation import frechet_distance, frechet_interval, kernel_distance, kernel_interval
from audioldm2.files import atomic_write

DISTANCES = {"FD": frechet_distance, "KAD": kernel_distance}
SHIFTS = {"equal": 0.0, "different": 0.25}  # of each coordinate's mean
CASES = ((4, 60, 0.0), (4, 60, 0.5), (8, 100, 0.25), (16, 50, 0.25), (32, 200, 0.25))  # dim, sounds, shift


def parser() -> Parser:
    made = new_parser("python scripts/plot_small_samples.py", __doc__ or "")
    add = made.add_argument
    add("--out", type=Path, metavar="FILE", help="the plot, .png or .svg (default: a table only)")
    add("--coverage", action="store_true", help="count how often intervals hold the truth (minutes)")
    add("--dim", type=whole_number, default=64, metavar="N", help="of the vectors (default: %(default)s)")
    add("--draws", type=whole_number, default=40, metavar="N",
        help="of each size; for --coverage, pairs of samples (default: %(default)s)")  # fmt: skip
    return made


def draw(rng: np.random.Generator, sounds: int, dim: int, shift: float = 0.0) -> Tensor:
    """Normal vectors whose deviations fall from 1 to 0.3."""
    return torch.from_numpy(rng.standard_normal((sounds, dim)) * np.linspace(1, 0.3, dim) + shift)


def run(arguments: Sequence[str]) -> int:
    given = parser().parse_args(arguments)
    require_whole("draws", given.draws, 2)
    require_whole("dim", given.dim, 1)
    if given.out is not None:
        require_place(given.out)
    if given.coverage:
        print_result(coverage_table(given.draws))
        return 0
    sizes = [each for each in (10, 20, 50, 100, 200, 500, 1000) if given.dim <= 128 or each <= 500]
    found = {
        (name, kind): np.array([values(distance, shift, size, given.dim, given.draws) for size in sizes])
        for name, distance in DISTANCES.items()
        for kind, shift in SHIFTS.items()
    }  # (sizes, draws)
    lines = ["| sounds | " + " | ".join(f"{name}, {kind}" for name, kind in found) + " |", "|---" * 5 + "|"]
    for row, size in enumerate(sizes):
        cells = [f"{each[row].mean():.3g} ± {each[row].std(ddof=1):.2g}" for each in found.values()]
        lines.append(f"| {size} | {' | '.join(cells)} |")
    if given.out is not None:
        plot(sizes, found, given.dim, given.out)
    print_result("\n".join(lines))
    return 0


def values(distance, shift: float, size: int, dim: int, draws: int) -> list[float]:
    """A distance of so many pairs of samples, `size` sounds on each side."""
    rng = np.random.default_rng(size)
    return [distance(draw(rng, size, dim, shift), draw(rng, size, dim)) for _ in range(draws)]


def plot(sizes: list[int], found: dict[tuple[str, str], np.ndarray], dim: int, out: Path) -> None:
    """Mean and 90 % of the draws over the number of sounds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for panel, name in zip(panels, DISTANCES, strict=True):
        for kind, colour in zip(SHIFTS, ("tab:blue", "tab:orange"), strict=True):
            each = found[name, kind]
            low, high = np.quantile(each, [0.05, 0.95], axis=1)
            panel.plot(sizes, each.mean(axis=1), color=colour, label=f"{kind} distributions")
            panel.fill_between(sizes, low, high, color=colour, alpha=0.25, linewidth=0)
        panel.axhline(0, color="gray", linewidth=0.8)
        panel.set(
            title=name, xscale="log", xlabel=f"sounds on each side (dimension {dim})", ylabel="distance"
        )
        panel.legend(frameon=False)
    with atomic_write(out) as draft:
        figure.savefig(draft, dpi=120)
    pyplot.close(figure)


def coverage_table(pairs: int) -> str:
    """How often intervals of each kind hold the mean distance, in some settings."""
    lines = ["| distance | dim | sounds | shift | ours | with replacement |", "|---" * 6 + "|"]
    for name, distance in DISTANCES.items():
        for dim, sounds, shift in CASES:
            rng = np.random.default_rng(dim)
            truth = np.mean(
                [
                    distance(draw(rng, sounds, dim, shift), draw(rng, sounds, dim))
                    for _ in range(max(500, 2 * pairs))
                ]
            )
            hits = [
                covered(name, float(truth), draw(rng, sounds, dim, shift), draw(rng, sounds, dim), rng)
                for _ in range(pairs)
            ]
            ours, usual = np.mean(hits, axis=0)
            lines.append(f"| {name} | {dim} | {sounds} | {shift:g} | {ours:.1%} | {usual:.1%} |")
            report(lines[-1])
    return "\n".join(lines)


def covered(
    name: str, truth: float, x: Tensor, y: Tensor, rng: np.random.Generator, resamples: int = 60
) -> tuple[bool, bool]:
    """Whether our interval holds the truth, and whether that of a bootstrap with replacement does."""
    interval = {"FD": frechet_interval, "KAD": kernel_interval}[name]
    _, (low, high) = interval(x, y, splits=resamples)
    size = len(x)
    usual = [
        DISTANCES[name](x[rng.integers(size, size=size)], y[rng.integers(size, size=size)])
        for _ in range(resamples)
    ]
    bottom, top = np.quantile(usual, [0.025, 0.975])
    return low <= truth <= high, bool(bottom <= truth <= top)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    return execute(lambda: Command(parser, run), arguments)


if __name__ == "__main__":
    sys.exit(main())
