"""`SpeechT5HifiGan` of transformers, or the original `Generator` -> `audioldm2.models.hifigan.HiFiGAN`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Size, Tensor

from audioldm2.checkpoints.validate import typed
from audioldm2.errors import WeightsError
from audioldm2.models.hifigan import HiFiGANConfig

from .configs import count, field, need, require_value
from .keymap import Row, nest

BRANCH = [Row("convs1.*", "dilated.*"), Row("convs2.*", "plain.*")]


def rows(config: HiFiGANConfig) -> list[Row]:
    """Return the rows. The source numbers all residual branches in one list; ours belong to their stage."""
    branches = len(config.branch_kernels)
    return [
        Row("mean", "mean"),
        Row("scale", "scale"),
        Row("conv_pre", "conv_in"),
        Row("upsampler.*", "stages.*.upsample"),
        *(
            row
            for stage in range(len(config.upsample_rates))
            for branch in range(branches)
            for row in nest(
                f"resblocks.{stage * branches + branch}", f"stages.{stage}.branches.{branch}", BRANCH
            )
        ),
        Row("conv_post", "conv_out"),
    ]


def config_from(source: dict) -> HiFiGANConfig:
    """Return our config for the source\'s."""
    require_value(source, "model_type", "hifigan", "speecht5_hifigan")  # its name changed over the years
    return HiFiGANConfig(
        mels=field(source, "model_in_dim", int),
        sample_rate=field(source, "sampling_rate", int),
        channels=field(source, "upsample_initial_channel", int),
        upsample_rates=field(source, "upsample_rates", tuple[int, ...]),
        upsample_kernels=field(source, "upsample_kernel_sizes", tuple[int, ...]),
        branch_kernels=field(source, "resblock_kernel_sizes", tuple[int, ...]),
        branch_dilations=field(source, "resblock_dilation_sizes", tuple[tuple[int, ...], ...]),
        slope=field(source, "leaky_relu_slope", float, 0.1),
        normalize_before=field(source, "normalize_before", bool, True),
    )


WEIGHT_NORM_NAMES = [  # (length, direction), as the two generations of torch.nn.utils.weight_norm store them
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
]


def fold_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace lengths and directions (Salimans and Kingma 2016) by the weights that they parametrise.

    Args:
        state: tensors in any of the three forms: plain, `weight_g` and `weight_v`, or `parametrizations`.
            The length runs over all dimensions but the first, for transposed convolutions too, as torch
            stores it.

    Returns:
        The same tensors, weights in place of each pair.

    Raises:
        WeightsError: a direction has no length of its shape, or a weight beside it.
    """
    folded: dict[str, Tensor] = {}
    pairs: set[str] = set()  # the keys that they replace
    for length_name, direction_name in WEIGHT_NORM_NAMES:
        for key in [key for key in state if key.endswith(f".{direction_name}")]:
            module = key.removesuffix(direction_name)
            length, direction = state.get(module + length_name), state[key]
            if (
                length is None
                or not (length.is_floating_point() and direction.is_floating_point())
                or length.shape != (*direction.shape[:1], *[1] * (direction.ndim - 1))
            ):
                raise WeightsError(
                    f"'{key}' has no '{length_name}' of its shape beside it, so the weight is unknown. "
                    "Copy or download the file again."
                )
            if module + "weight" in state:
                raise WeightsError(
                    f"'{module}weight' and '{key}' are two values of one weight. Remove the wrong one."
                )
            # What both of torch's modules call; the same formula in other operations differs in the last bit.
            folded[module + "weight"] = torch._weight_norm(direction, length.to(direction.dtype), 0)
            pairs |= {module + length_name, key}
    return {key: tensor for key, tensor in state.items() if key not in pairs} | folded


def config_to(config: HiFiGANConfig) -> dict:
    """Return the source\'s config for ours."""
    return {
        "architectures": ["SpeechT5HifiGan"],
        "model_type": "speecht5_hifigan",
        "leaky_relu_slope": config.slope,
        "model_in_dim": config.mels,
        "normalize_before": config.normalize_before,
        "resblock_dilation_sizes": [list(dilations) for dilations in config.branch_dilations],
        "resblock_kernel_sizes": list(config.branch_kernels),
        "sampling_rate": config.sample_rate,
        "upsample_initial_channel": config.channels,
        "upsample_kernel_sizes": list(config.upsample_kernels),
        "upsample_rates": list(config.upsample_rates),
    }


# The original files -----------------------------------------------------------------------------------------

# Rates and sample rate leave no trace in the weights; upstream chose them with the kernels.
PUBLISHED_RATES: dict[tuple[int, ...], tuple[tuple[int, ...] | None, int | None]] = {
    (16, 16, 8, 4, 4): ((5, 4, 2, 2, 2), 16000),
    (12, 10, 8, 4, 4): ((6, 5, 4, 2, 2), 48000),
}
DILATIONS = (1, 3, 5)  # they leave none either


def original_rows(config: HiFiGANConfig) -> list[Row]:
    """Return the rows: as above but for one name, and without mean and scale, which the original lacks."""
    named = {"upsampler.*": "ups.*"}
    return [
        replace(row, source=named.get(row.source, row.source))
        for row in rows(config)
        if row.source not in ("mean", "scale")
    ]


def original_config(shapes: Mapping[str, Size], given: Mapping[str, Any]) -> HiFiGANConfig:
    """Return the config that the shapes of the original's tensors imply.

    Args:
        shapes: by the original's keys, below the vocoder.
        given: the fields for the vocoder in the user's config file, as JSON has them: rates are taken from
            there where the kernels are not a published model's.

    Raises:
        WeightsError: the rates are unknown, or the shapes are no vocoder's.
    """
    stages = count(shapes, "ups.*")
    branches = count(shapes, "resblocks.*") // max(stages, 1)
    channels, mels, _ = need(shapes, "conv_pre.weight", 3)
    kernels = tuple(need(shapes, f"ups.{stage}.weight", 3)[2] for stage in range(stages))
    branch_kernels = tuple(
        need(shapes, f"resblocks.{branch}.convs1.0.weight", 3)[2] for branch in range(branches)
    )
    rates, sample_rate = PUBLISHED_RATES.get(kernels, (None, None))
    if rates is None and {"upsample_rates", "sample_rate"} <= set(given):
        what = "of 'hifigan' of the config file"
        rates = typed(f"upsample_rates {what}", given["upsample_rates"], tuple[int, ...])
        sample_rate = typed(f"sample_rate {what}", given["sample_rate"], int)
    if rates is None or sample_rate is None:
        raise WeightsError(
            f"its vocoder has kernels {kernels}, which no published one has, and no tensor shows its rates. "
            'Give a config file with {"hifigan": {"upsample_rates": [...], "sample_rate": ...}}.'
        )
    pairs = [count(shapes, f"resblocks.{branch}.convs1.*") for branch in range(branches)]
    return HiFiGANConfig(
        mels=mels,
        sample_rate=sample_rate,
        channels=channels,
        upsample_rates=rates,
        upsample_kernels=kernels,
        branch_kernels=branch_kernels,
        branch_dilations=tuple(DILATIONS[:pair] for pair in pairs),
    )


def with_mean_and_scale(state: dict[str, Tensor], config: HiFiGANConfig) -> dict[str, Tensor]:
    """Return the same tensors and a mean of 0 and a scale of 1, which the original does not store."""
    like = next(iter(state.values()))
    added = {"mean": torch.zeros(config.mels), "scale": torch.ones(config.mels)}
    return state | {key: tensor.to(like) for key, tensor in added.items()}
