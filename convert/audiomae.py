"""`Vanilla_AudioMAE` of the original files -> `audioldm2.models.audiomae.AudioMAE`.

The diffusers layout has no place for it.
"""

from collections.abc import Mapping

from torch import Size

from audioldm2.errors import WeightsError
from audioldm2.models.audiomae import AudioMAEConfig

from .configs import count, need
from .keymap import Row, nest

HEAD_DIM = 64  # in all vision transformers; no tensor tells
DECODER = "the decoder of AudioMAE's training, which AudioLDM 2 never runs"
BLOCK = [
    Row("norm1", "attn_norm"),
    Row("attn.qkv", "attn.qkv"),
    Row("attn.proj", "attn.out"),
    Row("norm2", "ff_norm"),
    Row("mlp.fc1", "ff_in"),
    Row("mlp.fc2", "ff_out"),
]
ORIGINAL_ROWS = [
    Row("cls_token", "class_embedding"),
    Row("pos_embed", "position_embedding"),
    Row("patch_embed.proj", "patch_embed"),
    *nest("blocks.*", "blocks.*", BLOCK),
    Row("norm", "norm_out"),
    *(
        Row(name, None, note=DECODER, optional=True)
        for name in (
            *("mask_token", "decoder_embed", "decoder_pos_embed"),
            *("decoder_blocks", "decoder_norm", "decoder_pred"),
        )
    ),
]


def original_config(shapes: Mapping[str, Size], new_vectors: int) -> AudioMAEConfig:
    """Return the config that the shapes of the original's tensors imply.

    Args:
        shapes: of the tensors.
        new_vectors: how many GPT-2 generates. As many are left of the patches: all of them (512, speech), or
            one for a stretch of time over all frequencies (8, sounds and music).

    Raises:
        WeightsError: a tensor is missing, or no such pooling exists.
    """
    dim, _, patch, _ = need(shapes, "patch_embed.proj.weight", 4)
    patches = need(shapes, "pos_embed", 3)[1] - 1
    columns = max(AudioMAEConfig.mels // patch, 1)
    rows = patches // columns
    if new_vectors == patches:
        pool = (1, 1)
    elif rows % new_vectors == 0 and rows:
        pool = (rows // new_vectors, columns)
    else:
        raise WeightsError(
            f"AudioMAE's {patches} patches cannot be pooled to {new_vectors} vectors, as many as GPT-2 "
            "generates."
        )
    depth = count(shapes, "blocks.*")
    return AudioMAEConfig(
        dim=dim,
        depth=depth,
        heads=max(dim // HEAD_DIM, 1),
        patch=patch,
        frames=rows * patch,
        mels=columns * patch,
        averaged=min(AudioMAEConfig.averaged, depth),
        pool=pool,
    )
