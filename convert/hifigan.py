"""`SpeechT5HifiGan` of transformers, or the original `Generator` -> `audioldm2.models.hifigan.HiFiGAN`."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Size, Tensor

from audioldm2.errors import WeightsError
from audioldm2.models.hifigan import HiFiGANConfig

from .configs import count, demand, field, need
from .keymap import Row, nest

BRANCH = [Row("convs1.*", "dilated.*"), Row("convs2.*", "plain.*")]


def rows(config: HiFiGANConfig) -> list[Row]:
    """The source numbers all residual branches in one list; ours stand in their upsampling stage."""
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
    demand(source, "model_type", "hifigan", "speecht5_hifigan")  # its names through the years
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


def fold_weight_norm(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Replace lengths and directions (Salimans and Kingma 2016) by the weights that they stand for.

    The length runs over all dimensions but the first, for transposed convolutions too, as torch stores it.
    """
    folded = {}
    for length_name, direction_name in WEIGHT_NORM_NAMES:
        for key in [key for key in state if key.endswith(f".{direction_name}")]:
            module = key.removesuffix(direction_name)
            length, direction = state.get(module + length_name), state[key]
            if length is None or length.shape != (len(direction), *[1] * (direction.ndim - 1)):
                raise WeightsError(
                    f"'{key}' has no '{length_name}' of its shape beside it, so its weight cannot be known. "
                    "Copy or download the file again."
                )
            if module + "weight" in state:
                raise WeightsError(
                    f"'{module}weight' and '{key}' are two values of one weight. "
                    "Remove the one that is not meant."
                )
            # What both of torch's modules call; the same formula in other operations differs in the last bit.
            folded[module + "weight"] = torch._weight_norm(direction, length, 0)
            folded[module + length_name] = folded[key] = None
    if not folded:
        return state
    kept = {key: state[key] for key in state if key not in folded}
    return kept | {key: tensor for key, tensor in folded.items() if tensor is not None}


def config_to(config: HiFiGANConfig) -> dict:
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
KNOWN = {
    (16, 16, 8, 4, 4): ((5, 4, 2, 2, 2), 16000),
    (12, 10, 8, 4, 4): ((6, 5, 4, 2, 2), 48000),
}
DILATIONS = (1, 3, 5)  # neither do these


def original_rows(config: HiFiGANConfig) -> list[Row]:
    """As above but for one name, and without the mean and scale, which the original does not have."""
    named = {"upsampler.*": "ups.*"}
    return [
        replace(row, source=named.get(row.source, row.source))
        for row in rows(config)
        if row.source not in ("mean", "scale")
    ]


def original_config(shapes: Mapping[str, Size]) -> HiFiGANConfig:
    """Raises WeightsError for a vocoder whose rates are not known; a config file can tell them."""
    stages = count(shapes, "ups.*")
    branches = count(shapes, "resblocks.*") // max(stages, 1)
    channels, mels, _ = need(shapes, "conv_pre.weight", 3)
    kernels = tuple(need(shapes, f"ups.{stage}.weight", 3)[2] for stage in range(stages))
    branch_kernels = tuple(
        need(shapes, f"resblocks.{branch}.convs1.0.weight", 3)[2] for branch in range(branches)
    )
    rates, sample_rate = KNOWN.get(kernels, ((), 0))
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
    """The same tensors and what whitens nothing, which the original does not store."""
    like = next(iter(state.values()))
    added = {"mean": torch.zeros(config.mels), "scale": torch.ones(config.mels)}
    return state | {key: tensor.to(like) for key, tensor in added.items()}
