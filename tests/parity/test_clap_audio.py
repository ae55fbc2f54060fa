"""ClapAudio against the audio half of transformers' ClapModel, with random parameters and statistics."""

from dataclasses import replace

import pytest
import torch
import transformers

from audioldm2.convert import clap, keymap
from audioldm2.models.clap_audio import ClapAudio, ClapAudioConfig


def convert_clap_audio(config: ClapAudioConfig, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The reference's tensors of the audio half, or their gradients, under our keys."""
    reference = transformers.ClapModel(published(config)).state_dict()
    moves = keymap.plan(reference, clap.audio_rows(config))
    return {move.target: tensors[move.source] for move in moves if move.target and move.source in tensors}


def published(config: ClapAudioConfig) -> transformers.ClapConfig:
    """The reference's config of the same network, with a minimal text half."""
    audio = {
        "num_mel_bins": config.mels,
        "spec_size": config.spec_size,
        "patch_embed_input_channels": config.in_channels,
        "patch_size": config.patch_size,
        "patch_stride": config.patch_stride,
        "patch_embeds_hidden_size": config.dim,
        "hidden_size": config.dim * 2 ** (len(config.depths) - 1),
        "depths": list(config.depths),
        "num_attention_heads": list(config.heads),
        "window_size": config.window,
        "mlp_ratio": config.ff_ratio,
        "layer_norm_eps": config.eps,
    }
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8}
    return transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=config.projection_dim)


def randomised_pair(config: ClapAudioConfig, seed: int = 0) -> tuple[ClapAudio, torch.nn.Module]:
    reference = transformers.ClapModel(published(config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in reference.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif "norm" in name and name.endswith("weight"):
                tensor.copy_(1 + 0.3 * noise)
            elif tensor.dim() >= 2 and "bias_table" not in name:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
            else:
                tensor.copy_(0.5 * noise)
    with torch.device("meta"):
        ours = ClapAudio(config)
    ours.load_state_dict(convert_clap_audio(config, reference.state_dict()), strict=True, assign=True)
    return ours.eval(), reference.eval()


def embeddings(config: ClapAudioConfig, frames: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    ours, reference = randomised_pair(config)
    log_mel = 20 * torch.randn(batch, frames, config.mels, generator=torch.Generator().manual_seed(1)) - 30
    with torch.no_grad():
        features = log_mel.unsqueeze(1).expand(-1, config.in_channels, -1, -1)
        expected = reference.get_audio_features(input_features=features).pooler_output
        return ours(log_mel), expected


TINY = ClapAudioConfig(
    mels=8,
    spec_size=32,
    patch_size=2,
    patch_stride=2,
    dim=8,
    depths=(2, 2),
    heads=(2, 4),
    window=4,
    projection_dim=8,
)
CASES = {
    # 16x16, then 8x8 patches: both stages shift their windows
    "tiny": TINY,
    # 8x8 then 4x4: the second stage is a single window, which is not shifted
    "one window": replace(TINY, spec_size=16, depths=(1, 2), heads=(1, 1), ff_ratio=2.5),
    # 12x12 patches in windows of 5: padded to 15x15, with a shift of 2; then 6x6 padded to 10x10
    "padded windows": replace(
        TINY, mels=12, spec_size=24, dim=12, depths=(2, 3), heads=(3, 2), window=5, projection_dim=7, eps=1e-3
    ),
    # patches that overlap, four input channels, one stage
    "overlapping patches": replace(TINY, mels=16, in_channels=4, patch_size=4, depths=(2,), heads=(2,)),
    # as many mel bands as the image has rows: the clip is not folded
    "not folded": replace(TINY, mels=16, spec_size=16, heads=(2, 2), window=3),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("length", ["full", "one less", "short"])
def test_embeddings(name, length):
    config = CASES[name]
    full = config.spec_size * (config.spec_size // config.mels)
    frames = {"full": full, "one less": full - 1, "short": full // 3}[length]
    ours, expected = embeddings(config, frames)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_embeddings_with_a_stretched_mel_axis():
    """If mels does not divide spec_size, the mel axis is stretched (in the reference for full clips only)."""
    ours, expected = embeddings(replace(TINY, mels=12), frames=64)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_batch_norm_in_training_mode():
    """In training mode, batch norm uses the batch's statistics and updates the running ones equally."""
    ours, reference = randomised_pair(TINY)
    ours.band_norm.train()
    norm = reference.audio_model.audio_encoder.batch_norm.train()
    log_mel = torch.randn(2, 100, TINY.mels, generator=torch.Generator().manual_seed(1)) - 3
    with torch.no_grad():
        expected = reference.get_audio_features(input_features=log_mel.unsqueeze(1)).pooler_output
        torch.testing.assert_close(ours(log_mel), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.band_norm.running_mean, norm.running_mean)
    torch.testing.assert_close(ours.band_norm.running_var, norm.running_var)


def test_gradients():
    ours, reference = randomised_pair(TINY)
    log_mel = torch.randn(2, 100, TINY.mels, generator=torch.Generator().manual_seed(1))
    probe = torch.randn(2, TINY.projection_dim, generator=torch.Generator().manual_seed(2))
    (ours(log_mel) * probe).sum().backward()
    (reference.get_audio_features(input_features=log_mel.unsqueeze(1)).pooler_output * probe).sum().backward()
    expected = convert_clap_audio(TINY, {name: p.grad for name, p in reference.named_parameters()})
    for name, parameter in ours.named_parameters():
        if name != "logit_scale":
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-4)


def test_rejects_too_many_frames():
    ours, _ = randomised_pair(TINY)
    with pytest.raises(ValueError, match="at most 128 frames of 8 bands"):
        ours(torch.zeros(1, 129, 8))
