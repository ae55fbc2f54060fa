"""Windows against the whole, on tiny networks with odd shapes and every parameter random."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from audioldm2.errors import ArgumentError
from audioldm2.models import vae as vae_module
from audioldm2.models.hifigan import HiFiGAN, HiFiGANConfig
from audioldm2.models.vae import VAE, VAEConfig
from audioldm2.runtime import tiling
from audioldm2.runtime.tiling import (
    decoder_context,
    vocode,
    vocoder_context,
    vocoder_samples,
)
from tests.support.sizes import full_or

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


@settings(max_examples=full_or(80, 30), deadline=None)
@given(config=vocoder_configs(), time=st.integers(1, 60), frames=st.integers(1, 70), batch=st.integers(1, 2))
def test_vocoder_in_windows_equals_the_whole(config, time, frames, batch):
    vocoder = randomised(HiFiGAN(config).double())
    mel = torch.randn(batch, time, config.mels, dtype=torch.float64)
    expected = vocoder(mel)
    found = vocode(vocoder, mel, frames=frames)
    assert expected.shape == (batch, vocoder_samples(config, time))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(config=vocoder_configs(), seed=st.integers(0, 2**32))
def test_vocoder_context_is_exact(config, seed):
    """The gradient of a window's outermost samples reaches just so far: one frame less would change them."""
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


def test_context_of_the_published_vocoder():
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
def test_one_frame_less_of_context_changes_the_sound(monkeypatch, less):
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
    """Silence, then noise that grows: no two windows have the same statistics."""
    growth = torch.linspace(-1, 3, time).clamp(min=0).view(1, 1, time, 1)
    return (torch.randn(batch, 3, 1, 5) + growth * torch.randn(batch, 3, time, 5)).to(dtype)


def in_windows(network: VAE, z: Tensor, *, digest: int = 40, frames: int = 7) -> Tensor:
    """Decoded in windows of so many latent frames at most, whatever its length; digests of so many."""
    larger = network.config.downsampling
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "DIGEST_EXCERPT", min(tiling.DIGEST_EXCERPT, digest))
        return tiling.decode(network, z, whole_up_to=digest * larger, frames=frames * larger)


@pytest.mark.slow
@settings(max_examples=full_or(30, 12), deadline=None)
@given(levels=st.integers(1, 4), time=st.integers(41, 70), frames=st.integers(1, 30), batch=st.integers(1, 2))
def test_windows_with_the_statistics_of_the_whole_equal_the_whole(levels, time, frames, batch):
    """So nothing but the statistics is estimated, and no window has a seam."""
    network, z = vae(levels, torch.float64), uneven_latents(batch, time, torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "_digests", lambda x, frames: [x])
        found = in_windows(network, z, frames=frames)
    torch.testing.assert_close(found, network.decode(z), rtol=0, atol=1e-11)


@torch.no_grad()  # as in `decode`: kernels are chosen by the clock, and only without gradients
@pytest.mark.parametrize("time", [1, 7, 40])
def test_short_sounds_are_decoded_at_once(time: int):
    network, z = vae(), uneven_latents(2, time)
    expected = torch.cat([network.decode(row) for row in z.split(1)])
    assert torch.equal(tiling.decode(network, z, whole_up_to=160), expected)


def test_statistics_of_each_window_would_differ(monkeypatch):
    """What digests are for, and that these tests would notice without them."""
    network, z = vae(), uneven_latents(1, 60)
    expected = network.decode(z)
    monkeypatch.setattr(tiling, "_pooled_statistics", lambda upsample, x, digest: {})
    own = in_windows(network, z, frames=20) - expected
    assert own.std() > 0.1 * expected.std()


def test_statistics_survive_large_means():
    norm = vae_module.GroupNorm(2, 4, eps=1e-6)
    x = torch.randn(1, 4, 50, 5) + 1000 * torch.arange(1, 51).view(1, 1, 50, 1).ge(25)
    parts = [vae_module.Statistics() for _ in range(8)]
    pieces = x.split(7, dim=2)
    pairs = [part.of(norm, piece) for part, piece in zip(parts, pieces, strict=True)]
    means, variances = zip(*pairs, strict=True)
    mean, variance = tiling._pooled([piece.shape[2] for piece in pieces], means, variances)
    torch.testing.assert_close(norm.by(x, mean, variance), norm(x), rtol=0, atol=2e-4)
    torch.testing.assert_close(norm(x, vae_module.Statistics()), norm(x), rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype):
    network, z = vae(dtype=dtype), uneven_latents(1, 20, dtype)
    mel = in_windows(network, z, digest=18)
    assert mel.dtype == dtype
    torch.testing.assert_close(mel, network.decode(z), rtol=0, atol=1.5)
    vocoder = randomised(HiFiGAN(PUBLISHED_RATES)).to(dtype)
    wave = vocode(vocoder, mel[:, 0, :, :3], frames=30)
    assert wave.dtype == dtype
    torch.testing.assert_close(wave, vocoder(mel[:, 0, :, :3]), rtol=0, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("time", [20, 60])
def test_row_is_the_same_in_any_batch(time: int):
    network, z = vae(), uneven_latents(3, time)
    mel = in_windows(network, z)
    assert torch.equal(mel[1:2], in_windows(network, z[1:2]))
    vocoder = randomised(HiFiGAN(PUBLISHED_RATES))
    wave = vocode(vocoder, mel[:, 0, :, :3], frames=30)
    assert torch.equal(wave[1:2], vocode(vocoder, mel[1:2, 0, :, :3], frames=30))


@pytest.mark.parametrize(("dtype", "count"), [(torch.float32, 2), (torch.bfloat16, 3)])
def test_window_of_the_vocoder_is_ten_seconds_or_five_in_bfloat16(dtype: torch.dtype, count: int):
    """Only the lengths of its inputs count, so this vocoder computes nothing."""
    vocoder, lengths = HiFiGAN(PUBLISHED_RATES).to(dtype), []
    vocoder.forward = lambda mel: (
        lengths.append(mel.shape[1]) or mel.new_zeros(len(mel), vocoder_samples(vocoder.config, mel.shape[1]))
    )
    vocode(vocoder, torch.randn(1, 1100, 3, dtype=dtype))
    assert len(lengths) == count


def test_rejects_windows_that_are_too_short():
    with pytest.raises(ArgumentError, match="frames is 0; it has to be a whole number of at least 1"):
        vocode(HiFiGAN(PUBLISHED_RATES), torch.zeros(1, 9, 3), frames=0)
    with pytest.raises(ArgumentError, match="frames is 3; it has to be a whole number of at least 4"):
        tiling.decode(vae(), torch.zeros(1, 3, 9, 5), frames=3)
    with pytest.raises(ArgumentError, match="whole_up_to is 0; it has to be a whole number of at least 4"):
        tiling.decode(vae(), torch.zeros(1, 3, 9, 5), whole_up_to=0)
    with pytest.raises(ArgumentError, match="the number of frames of mel is 0"):
        vocode(HiFiGAN(PUBLISHED_RATES), torch.zeros(1, 0, 3))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_decoder_context_is_exact(levels: int, layers: int):
    """The gradient of a latent frame's mel frames, but through norms, reaches just so far."""
    config = VAEConfig(latent_channels=3, channels=(4, 6, 8, 10)[:levels], layers=layers, norm_groups=2)
    decoder, larger = randomised(VAE(config).double()).decoder, config.downsampling
    known = {
        module: (torch.zeros(1, 2, 1, dtype=torch.float64), torch.ones(1, 2, 1, dtype=torch.float64))
        for module in decoder.modules()
        if isinstance(module, vae_module.GroupNorm)
    }
    x = torch.randn(1, config.channels[-1], 61, 2, dtype=torch.float64, requires_grad=True)
    mel = decoder.upsample(x, vae_module.Statistics(known))[:, :, 30 * larger : 31 * larger]
    seen = torch.autograd.grad(mel.sum(), x)[0].abs().amax(dim=(0, 1, 3)).nonzero()
    assert max(30 - seen.min(), seen.max() - 30) == decoder_context(config)


def test_context_of_the_published_decoders():
    assert decoder_context(VAEConfig()) == 12
    assert decoder_context(VAEConfig(channels=(128, 256, 512, 512))) == 13  # of the 48 kHz model


def test_error_of_long_sounds_is_small_and_has_no_seams():
    network, z = vae(), uneven_latents(1, 400)
    exact = network.decode(z)
    error = in_windows(network, z, digest=160, frames=134) - exact
    assert error.std() < 10 ** (-30 / 20) * exact.std()
    steps = error.diff(dim=2).abs().mean(dim=(0, 1, 3))  # of each frame to the next
    ends = [(i * 400 // 3) * 4 - 1 for i in (1, 2)]  # of windows: 400 frames in 3 of 134 at most
    assert steps[ends].max() < 1.5 * steps.mean()


@pytest.mark.parametrize("digest", [40, 100, 750])
def test_digests_hold_every_frame_once(digest: int):
    for time in range(751, 4001, 13):
        x = torch.arange(time, dtype=torch.float32).view(1, 1, -1, 1)
        digests = list(tiling._digests(x, digest))
        assert all(each.shape[2] <= digest for each in digests)
        assert torch.equal(torch.cat(digests, dim=2).sort(dim=2).values, x)


@pytest.mark.slow
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_any_length_has_the_right_shape(levels: int):
    network = vae(levels)
    larger = network.config.downsampling
    for time in (41, 67, 106):
        mel = in_windows(network, uneven_latents(1, time))
        assert mel.shape == (1, 1, time * larger, 5 * larger)
        assert mel.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("time", [751, 1502])
def test_defaults_at_the_published_lengths(time: int):
    network = vae()
    mel = tiling.decode(network, uneven_latents(1, time))
    assert mel.shape == (1, 1, 4 * time, 20)
    assert mel.isfinite().all()


def test_memory_of_the_last_levels_does_not_grow_with_the_sound():
    """The largest input of any convolution of the levels, in values, beyond the length decoded at once."""
    network, largest = vae(), 0

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal largest
        largest = max(largest, inputs[0].numel())

    for module in network.decoder.levels.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(watch)
    found = []
    for time in (40, 80, 240):
        largest = 0
        in_windows(network, uneven_latents(1, time))
        found.append(largest)
    assert max(found) <= 1.15 * found[0]
