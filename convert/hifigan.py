"""`SpeechT5HifiGan` of transformers -> `audioldm2.models.hifigan.HiFiGAN`."""

from collections.abc import Mapping

import torch
from torch import Tensor

from audioldm2.models.hifigan import HiFiGANConfig

from .configs import field
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
    return HiFiGANConfig(
        mels=field(source, "model_in_dim"),
        sample_rate=field(source, "sampling_rate"),
        channels=field(source, "upsample_initial_channel"),
        upsample_rates=tuple(field(source, "upsample_rates")),
        upsample_kernels=tuple(field(source, "upsample_kernel_sizes")),
        branch_kernels=tuple(field(source, "resblock_kernel_sizes")),
        branch_dilations=tuple(tuple(dilations) for dilations in field(source, "resblock_dilation_sizes")),
        slope=source.get("leaky_relu_slope", 0.1),
        normalize_before=source.get("normalize_before", True),
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
            length, direction = state[module + length_name], state[key]
            dims = tuple(range(1, direction.ndim))
            folded[module + "weight"] = direction * (
                length / torch.linalg.vector_norm(direction, dim=dims, keepdim=True)
            )
            folded[module + length_name] = folded[key] = None
    if not folded:
        return state
    kept = {key: state[key] for key in state if key not in folded}
    return kept | {key: tensor for key, tensor in folded.items() if tensor is not None}
