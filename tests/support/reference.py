"""Random checkpoints made with the reference libraries (diffusers, transformers): tiny and odd ones.

Every parameter is random, norms and biases too: fresh weights (norms 1, biases 0) would hide a swapped pair.
"""

import math
from pathlib import Path

import torch
from diffusers import AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel, AutoencoderKL, DDIMScheduler
from torch import nn
from transformers import (
    ClapConfig,
    ClapModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    T5Config,
    T5EncoderModel,
    VitsConfig,
    VitsModel,
)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and running statistic a random value that keeps activations of ordinary size."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, std: float, mean: float = 0.0) -> None:
        tensor.copy_(torch.empty_like(tensor).normal_(mean, std, generator=generator))

    transposed = {id(m.weight): m for m in model.modules() if isinstance(m, nn.ConvTranspose1d)}
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if id(tensor) in transposed:  # (in, out, kernel): each output sees kernel / stride taps
                module = transposed[id(tensor)]
                normal(tensor, math.sqrt(module.stride[0] / (tensor.shape[0] * tensor.shape[2])))
            elif (
                "relative_attention_bias" in name
                or "relative_position_bias" in name
                or "embed" in name.split(".")[-2:][0]
            ):
                normal(tensor, 1.0)
            elif tensor.ndim >= 2:
                conv1d_of_gpt2 = name.split(".")[-2] in ("c_attn", "c_proj", "c_fc")
                fan_in = tensor.shape[0] if conv1d_of_gpt2 else tensor[0].numel()
                unscaled = name.endswith(
                    "SelfAttention.q.weight"
                )  # T5 does not divide scores by sqrt(head_dim)
                normal(tensor, 1 / math.sqrt(fan_in) / (math.sqrt(model.config.d_kv) if unscaled else 1))
            elif name.endswith("weight"):
                normal(tensor, 0.2, 1.0)
            else:
                normal(tensor, 0.2, 1.0 if "logit_scale" in name else 0.0)
        for name, tensor in model.named_buffers():
            if name.endswith(("running_mean", "mean")):
                normal(tensor, 0.3)
            elif name.endswith(("running_var", "scale")):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


def unet(seed: int = 0, **changes) -> AudioLDM2UNet2DConditionModel:
    """A tiny UNet of the base kind: three levels, the finest without transformers; odd widths."""
    config = dict(
        sample_size=16, in_channels=3, out_channels=3, block_out_channels=(8, 16, 24), layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=((None, 12, 20),) * 3, attention_head_dim=4, norm_num_groups=4, act_fn="silu",
    )  # fmt: skip
    return randomise(AudioLDM2UNet2DConditionModel(**(config | changes)), seed)


def vae(seed: int = 0, **changes) -> AutoencoderKL:
    config = dict(
        in_channels=1, out_channels=1, latent_channels=3, block_out_channels=(8, 16, 24), layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4, scaling_factor=0.37,
    )  # fmt: skip
    return randomise(AutoencoderKL(**(config | changes)), seed)


def hifigan(seed: int = 0, **changes) -> SpeechT5HifiGan:
    config = dict(
        model_in_dim=16, sampling_rate=16000, upsample_initial_channel=32, upsample_rates=[5, 4, 2],
        upsample_kernel_sizes=[16, 16, 8], resblock_kernel_sizes=[3, 7],
        resblock_dilation_sizes=[[1, 3, 5], [1, 2]], normalize_before=False,
    )  # fmt: skip
    model = randomise(SpeechT5HifiGan(SpeechT5HifiGanConfig(**(config | changes))), seed)
    with torch.no_grad():  # keep the last tanh away from saturation, which would hide errors
        model.conv_post.weight *= 0.3
    return model


def t5(seed: int = 0, **changes) -> T5EncoderModel:
    config = dict(
        vocab_size=320, d_model=24, d_kv=6, d_ff=40, num_layers=3, num_heads=3,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=32, relative_attention_max_distance=128,
    )  # fmt: skip
    return randomise(T5EncoderModel(T5Config(**(config | changes))), seed)


def vits(seed: int = 0, **changes) -> VitsModel:
    """Its text encoder has sizes of its own; the parts beside it, which are not used, are tiny."""
    config = dict(
        vocab_size=183, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, ffn_dim=10,
        flow_size=4, window_size=4, ffn_kernel_size=3, upsample_initial_channel=8, upsample_rates=(2, 2),
        upsample_kernel_sizes=(4, 4), resblock_kernel_sizes=(3,), resblock_dilation_sizes=((1,),),
        prior_encoder_num_flows=1, prior_encoder_num_wavenet_layers=1, posterior_encoder_num_wavenet_layers=1,
        duration_predictor_num_flows=1, duration_predictor_filter_channels=8, spectrogram_bins=6,
        pad_token_id=0,
    )  # fmt: skip
    return randomise(VitsModel(VitsConfig(**(config | changes))), seed)


def gpt2(seed: int = 0, language_head: bool = True, **changes) -> GPT2Model | GPT2LMHeadModel:
    """With a head the reference pipeline can generate; without one, as published, it cannot."""
    config = dict(vocab_size=50, n_positions=256, n_embd=12, n_layer=3, n_head=3, max_new_tokens=8)
    kind = GPT2LMHeadModel if language_head else GPT2Model
    return randomise(kind(GPT2Config(**(config | changes))), seed)


def projection(seed: int = 0, **changes) -> AudioLDM2ProjectionModel:
    config = dict(text_encoder_dim=10, text_encoder_1_dim=24, langauge_model_dim=12)
    return randomise(AudioLDM2ProjectionModel(**(config | changes)), seed)


def clap(seed: int = 0, **changes) -> ClapModel:
    config = dict(
        projection_dim=10,
        text_config=dict(
            vocab_size=400, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=40
        ),
        audio_config=dict(
            spec_size=32, window_size=4, num_mel_bins=8, depths=[2, 2], num_attention_heads=[2, 4],
            hidden_size=32,
            patch_size=2, patch_stride=[2, 2], patch_embeds_hidden_size=16, num_hidden_layers=2,
        ),
    )  # fmt: skip
    return randomise(ClapModel(ClapConfig(**(config | changes))), seed)


def ddim() -> DDIMScheduler:
    """The published scheduler."""
    return DDIMScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1,
        set_alpha_to_one=False, timestep_spacing="leading",
    )  # fmt: skip


def save(folder: Path, name: str, model: nn.Module) -> Path:
    """Save one model as the diffusers layout has it; returns its folder."""
    model.save_pretrained(folder / name)
    return folder / name
