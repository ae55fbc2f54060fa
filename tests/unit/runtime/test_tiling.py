"""Pieces against the whole, on tiny networks with odd shapes and every parameter random."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from audioldm2.models.hifigan import HiFiGAN, HiFiGANConfig
from audioldm2.models.vae import VAE, VAEConfig
from audioldm2.runtime import tiling
from audioldm2.runtime.tiling import (
    decoder_context,
    vocode,
    vocoder_context,
    vocoder_samples,
)

PUBLISHED_RATES = HiFiGANConfig(
    mels=3, channels=64, branch_kernels=(3, 5), branch_dilations=((1, 3), (1,)), normalize_before=True
)


def randomised(network: nn.Module, gain: float = 1.0) -> nn.Module:
    """Norms not 1, biases not 0, sums of inputs of about unit variance."""
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1:
            nn.init.uniform_(tensor, 0.5, 1.5) if name.endswith(("weight", "scale")) else tensor.normal_(
                std=0.3
            )
        else:
            nn.init.normal_(tensor, std=gain / tensor[0].numel() ** 0.5)
    return network.requires_grad_(False)


@st.composite
def vocoder_configs(draw) -> HiFiGANConfig:
    stages = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 7)), min_size=1, max_size=3))
    branches = draw(
        st.lists(
            st.tuples(st.sampled_from((1, 3, 5)), st.lists(st.integers(1, 5), min_size=1, max_size=2)),
            min_size=1,
            max_size=2,
        )
    )
    return HiFiGANConfig(
        mels=2,
        channels=2 ** len(stages),
        upsample_rates=tuple(rate for rate, _ in stages),
        upsample_kernels=tuple(rate + extra for rate, extra in stages),
        branch_kernels=tuple(kernel for kernel, _ in branches),
        branch_dilations=tuple(tuple(dilations) for _, dilations in branches),
        normalize_before=draw(st.booleans()),
    )


@settings(max_examples=80, deadline=None)
@given(config=vocoder_configs(), time=st.integers(1, 60), frames=st.integers(1, 70), batch=st.integers(1, 2))
def test_vocoder_pieces_are_the_whole(config, time, frames, batch):
    vocoder = randomised(HiFiGAN(config).double())
    mel = torch.randn(batch, time, config.mels, dtype=torch.float64)
    expected = vocoder(mel)
    found = vocode(vocoder, mel, frames=frames)
    assert expected.shape == (batch, vocoder_samples(config, time))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(config=vocoder_configs(), seed=st.integers(0, 2**32))
def test_vocoder_context_is_met_exactly(config, seed):
    """The gradient of a piece's outermost samples reaches just so far: one frame less would change them."""
    torch.manual_seed(seed)
    vocoder = randomised(HiFiGAN(config).double(), gain=0.5)
    before, after = vocoder_context(config)
    start, end = before + 2, before + 5
    mel = torch.randn(1, end + after + 2, config.mels, dtype=torch.float64, requires_grad=True)
    wave = vocoder(mel)[0]

    def seen(sample: int) -> Tensor:
        gradient = torch.autograd.grad(wave[sample], mel, retain_graph=True)[0]
        return gradient[0].abs().amax(1).nonzero()

    assert seen(start * config.hop).min() == start - before
    assert seen(end * config.hop - 1).max() == end - 1 + after


def test_published_vocoder():
    assert vocoder_context(HiFiGANConfig()) == (23, 23)
    assert vocoder_samples(HiFiGANConfig(), 7) == 7 * 160 + 32


@pytest.mark.parametrize("time", [1, 39, 40, 41, 80, 97])
def test_vocoder_at_the_published_rates(time):
    vocoder = randomised(HiFiGAN(PUBLISHED_RATES), gain=0.6)  # more saturates the last tanh
    mel = torch.randn(2, time, 3)
    found = vocode(vocoder, mel, frames=40)
    assert found.shape == (2, 160 * time + 32)
    expected = vocoder(mel)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("less", [(1, 0), (0, 1)])
def test_one_frame_less_of_context_is_seen(monkeypatch, less):
    vocoder = randomised(HiFiGAN(PUBLISHED_RATES).double())
    mel = torch.randn(1, 120, 3, dtype=torch.float64)
    expected = vocoder(mel)
    assert (vocode(vocoder, mel, frames=40) - expected).abs().max() < 1e-13
    before, after = vocoder_context(PUBLISHED_RATES)
    monkeypatch.setattr(tiling, "vocoder_context", lambda config: (before - less[0], after - less[1]))
    assert (vocode(vocoder, mel, frames=40) - expected).abs().max() > 1e-9


def vae(levels: int = 3, dtype: torch.dtype = torch.float32) -> VAE:
    config = VAEConfig(latent_channels=3, channels=(8, 16, 24, 32)[:levels], layers=1, norm_groups=4)
    return randomised(VAE(config)).to(dtype)


def uneven_latents(batch: int, time: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Silence, then noise that grows: no two pieces have the same statistics."""
    growth = torch.linspace(-1, 3, time).clamp(min=0).view(1, 1, time, 1)
    return (torch.randn(batch, 3, 1, 5) + growth * torch.randn(batch, 3, time, 5)).to(dtype)


@settings(max_examples=40, deadline=None)
@given(levels=st.integers(1, 4), time=st.integers(1, 24), frames=st.integers(3, 30), batch=st.integers(1, 2))
def test_decoder_pieces_are_the_whole(levels, time, frames, batch):
    network, z = vae(levels, torch.float64), uneven_latents(batch, time, torch.float64)
    found = tiling.decode(network, z, whole_up_to=0, frames=frames * network.config.downsampling)
    torch.testing.assert_close(found, network.decode(z), rtol=0, atol=1e-11)


@pytest.mark.parametrize("frames", [3, 7, 20, 59, 60])
def test_decoder_in_float32(frames):
    network, z = vae(), uneven_latents(2, 60)
    torch.testing.assert_close(
        tiling.decode(network, z, whole_up_to=0, frames=4 * frames), network.decode(z), rtol=0, atol=1e-5
    )


def test_statistics_of_each_piece_would_not_do(monkeypatch):
    """What the decoder's second pass is for, and that these tests would notice without it."""
    network, z = vae(), uneven_latents(1, 60)
    expected, of_all = network.decode(z), tiling._affine
    monkeypatch.setattr(tiling, "_affine", lambda norm, parts, known: of_all(norm, list(parts)[:1], known))
    error = tiling.decode(network, z, whole_up_to=0, frames=80) - expected
    assert error.std() > 0.1 * expected.std()


def test_large_means_do_not_hide_the_variance():
    norm = nn.GroupNorm(2, 4, eps=1e-6)
    x = torch.randn(1, 4, 50, 5) + 1000 * torch.arange(1, 51).view(1, 1, 50, 1).ge(25)
    scale, shift = tiling._affine(norm, x.split(7, dim=2), {})
    torch.testing.assert_close(x * scale + shift, norm(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype):
    network, z = vae(dtype=dtype), uneven_latents(1, 20, dtype)
    mel = tiling.decode(network, z, whole_up_to=0, frames=24)
    assert mel.dtype == dtype
    torch.testing.assert_close(mel, network.decode(z), rtol=0, atol=0.1)
    vocoder = randomised(HiFiGAN(PUBLISHED_RATES)).to(dtype)
    wave = vocode(vocoder, mel[:, 0, :, :3], frames=30)
    assert wave.dtype == dtype
    torch.testing.assert_close(wave, vocoder(mel[:, 0, :, :3]), rtol=0, atol=0.05)


def test_a_row_is_the_same_in_any_batch():
    network, z = vae(), uneven_latents(3, 20)
    mel = tiling.decode(network, z, whole_up_to=0, frames=24)
    assert torch.equal(mel[1:2], tiling.decode(network, z[1:2], whole_up_to=0, frames=24))
    vocoder = randomised(HiFiGAN(PUBLISHED_RATES))
    wave = vocode(vocoder, mel[:, 0, :, :3], frames=30)
    assert torch.equal(wave[1:2], vocode(vocoder, mel[1:2, 0, :, :3], frames=30))


def test_only_a_piece_runs_at_once(monkeypatch):
    """Nothing finer than the latents is ever computed longer than a piece and its context."""
    network, longest = vae(), 0

    def watched(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal longest
        longest = max(longest, inputs[0].shape[2])

    for level in network.decoder.levels:
        for module in level.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(watched)
    tiling.decode(network, uneven_latents(1, 60), whole_up_to=0, frames=24)
    assert longest == 6 * 4 + 2 * 2


@pytest.mark.parametrize("dtype, count", [(torch.float32, 2), (torch.bfloat16, 3)])
def test_a_piece_of_the_vocoder_is_ten_seconds_but_in_bfloat16(dtype: torch.dtype, count: int):
    vocoder, lengths = HiFiGAN(HiFiGANConfig(mels=3, channels=32)).to(dtype), []
    vocoder.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))
    vocode(vocoder, torch.randn(1, 1100, 3, dtype=dtype))
    assert len(lengths) == count


def test_pieces_too_short_are_refused():
    with pytest.raises(ValueError, match="frames is 0; the vocoder needs pieces of 1 mel frame or more"):
        vocode(HiFiGAN(PUBLISHED_RATES), torch.zeros(1, 9, 3), frames=0)
    with pytest.raises(ValueError, match="frames is 11; this decoder needs pieces of 12 mel frames or more"):
        tiling.decode(vae(), torch.zeros(1, 3, 9, 5), frames=11)
    with pytest.raises(ValueError, match="exact_up_to is 115; this decoder needs 116 mel frames or more"):
        tiling.decode(vae(), torch.zeros(1, 3, 9, 5), frames=12, exact_up_to=115)
    with pytest.raises(ValueError, match="mel has no frames"):
        vocode(HiFiGAN(PUBLISHED_RATES), torch.zeros(1, 0, 3))


# Sounds beyond the exact length -----------------------------------------------------------------------------

EXACT = 160  # mel frames: 40 latent frames of a decoder of three levels, which has a context of 13


def long_sound(network: VAE, z: Tensor, **options) -> Tensor:
    return tiling.decode(network, z, **({"frames": 28, "whole_up_to": 0, "exact_up_to": EXACT} | options))


@settings(max_examples=20, deadline=None)
@given(
    levels=st.integers(1, 4), time=st.integers(60, 130), frames=st.integers(3, 30), batch=st.integers(1, 2)
)
def test_windows_with_the_statistics_of_the_whole_are_the_whole(levels, time, frames, batch):
    """So nothing but the statistics is approximated: no window has a seam, and the attention hears all."""
    network, z = vae(levels, torch.float64), uneven_latents(batch, time, torch.float64)
    larger = network.config.downsampling
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "_digests", lambda z, frames: [z])
        found = long_sound(network, z, frames=frames * larger, exact_up_to=59 * larger)
    torch.testing.assert_close(found, network.decode(z), rtol=0, atol=1e-11)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_decoder_context_is_met_exactly(levels, layers):
    """The gradient of a latent frame's mel frames, but through norms and attention, reaches just so far."""
    config = VAEConfig(latent_channels=3, channels=(4, 6, 8, 10)[:levels], layers=layers, norm_groups=2)
    decoder, larger = randomised(VAE(config).double()).decoder, config.downsampling
    decoder.middle.attn = nn.Identity()
    for module in list(decoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    z = torch.randn(1, 3, 61, 2, dtype=torch.float64, requires_grad=True)
    mel = decoder(z)[:, :, 30 * larger : 31 * larger]
    seen = torch.autograd.grad(mel.sum(), z)[0].abs().amax(dim=(0, 1, 3)).nonzero()
    assert max(30 - seen.min(), seen.max() - 30) == decoder_context(config)


def test_context_of_the_published_decoders():
    assert decoder_context(VAEConfig()) == 17
    assert decoder_context(VAEConfig(channels=(128, 256, 512, 512))) == 18  # of the 48 kHz model


def test_exact_up_to_its_length_and_as_far_as_is_asked():
    network, z = vae(dtype=torch.float64), uneven_latents(1, 90, torch.float64)
    at_the_length, beyond = z[:, :, :40], z[:, :, :41]
    torch.testing.assert_close(
        long_sound(network, at_the_length), network.decode(at_the_length), rtol=0, atol=1e-11
    )
    assert (long_sound(network, beyond) - network.decode(beyond)).abs().max() > 1e-6
    exact = long_sound(network, z, exact_up_to=math.inf)
    torch.testing.assert_close(exact, network.decode(z), rtol=0, atol=1e-11)


def test_the_error_beyond_it_is_small_and_has_no_seams():
    network, z = vae(), uneven_latents(1, 400)
    exact = network.decode(z)
    error = long_sound(network, z, exact_up_to=4 * EXACT) - exact
    assert error.std() < 10 ** (-30 / 20) * exact.std()
    steps = error.diff(dim=2).abs().mean(dim=(0, 1, 3))  # of each frame to the next
    shares = [(i * 400 // 3) * 4 - 1 for i in (1, 2)]  # where a window ends: 400 frames in 3 of 134 at most
    assert steps[shares].max() < 1.5 * steps.mean()


@pytest.mark.parametrize("longest", [34, 716])
def test_windows_and_digests_hold_every_frame_once(longest):
    for time in range(751, 4001, 13 if longest == 34 else 1):
        z = torch.arange(time, dtype=torch.float32).view(1, 1, -1, 1)
        windows = list(tiling._evenly(z, longest, context=17))
        assert torch.equal(torch.cat([around[:, :, start:end] for start, end, around in windows], dim=2), z)
        lengths = [end - start for start, end, _ in windows]
        assert max(lengths) <= longest and max(lengths) - min(lengths) <= 1
        assert all(around.shape[2] <= longest + 2 * 17 for _, _, around in windows)
        digests = tiling._digests(z, longest + 34)
        assert all(digest.shape[2] <= longest + 34 for digest in digests)
        assert torch.equal(torch.cat(digests, dim=2).sort(dim=2).values, z)


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_any_length_beyond_it_has_the_right_shape(levels):
    network = vae(levels)
    larger = network.config.downsampling
    for time in range(41, 121, 13):
        mel = long_sound(network, uneven_latents(1, time), frames=4 * larger, exact_up_to=40 * larger)
        assert mel.shape == (1, 1, time * larger, 5 * larger)
        assert mel.isfinite().all()


@pytest.mark.parametrize("time", [751, 1502, 4000])
def test_the_defaults_at_the_published_lengths(time):
    network = vae()
    mel = tiling.decode(network, uneven_latents(1, time))
    assert mel.shape == (1, 1, 4 * time, 20)
    assert mel.isfinite().all()


def test_a_long_row_is_the_same_in_any_batch():
    network, z = vae(), uneven_latents(3, 130)
    assert torch.equal(long_sound(network, z)[1:2], long_sound(network, z[1:2]))


def test_work_in_memory_does_not_grow_with_the_sound():
    """The largest input of any layer of the decoder, in numbers, beyond the exact length."""
    network, largest = vae(), 0

    def watched(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal largest
        if inputs[0].shape[1] != network.config.latent_channels:  # latents are there from the beginning
            largest = max(largest, inputs[0].numel())

    for module in network.decoder.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_pre_hook(watched)
    found = []
    for time in (40, 80, 240, 480):
        largest = 0
        long_sound(network, uneven_latents(1, time))
        found.append(largest)
    assert max(found) <= 1.15 * found[0]
