"""Loops: the decoder and the vocoder around a ring of frames."""

import pytest
import torch

from audioldm2.runtime import looping, tiling
from audioldm2.sampling.windows import anchors

HOP, LARGER = 160, 4


@pytest.mark.parametrize("time", [1, 9, 60])
@pytest.mark.parametrize("frames", [None, 7])
def test_vocoder_goes_around(tiny_model, time, frames, monkeypatch):
    """As in the middle of a sound that repeats the loop."""
    mel = torch.randn(2, time, 64)
    with tiny_model.networks.running("hifigan") as vocoder:
        found = looping.vocode_loop(vocoder, mel)
        turns = 1 + 2 * (23 // time + 1)
        long = tiling.vocode(vocoder, mel.repeat(1, turns, 1))
        again = looping.vocode_loop(vocoder, mel.roll(5, dims=1))
    middle = turns // 2 * time * HOP
    assert found.shape == (2, time * HOP)
    torch.testing.assert_close(found, long[:, middle : middle + time * HOP], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(again, found.roll(5 * HOP, dims=1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("time", [1, 9, 60])
def test_rolled_loop_decodes_to_a_rolled_spectrogram(tiny_model, time):
    z = torch.randn(2, 8, time, 16)
    with tiny_model.networks.running("vae") as vae:
        found = looping.decode_loop(vae, z, anchors(z))
        for turn in (1, 4):
            rolled = z.roll(turn, dims=2)
            again = looping.decode_loop(vae, rolled, anchors(rolled))
            torch.testing.assert_close(again, found.roll(turn * LARGER, dims=2), rtol=1e-5, atol=1e-5)
    assert found.shape == (2, 1, time * LARGER, 64)


def test_context_is_enough_for_the_seam(tiny_model):
    """Frames that far from the ends of a clip are the same one turn later: the seam is as any place."""
    z = torch.randn(1, 8, 30, 16)
    with tiny_model.networks.running("vae") as vae:
        context = tiling.decoder_context(vae.config) + looping.MIDDLE
        clip = torch.cat([z[:, :, -2 * context :], z, z[:, :, : 2 * context]], dim=2)
        mel = tiling.decode(vae, clip)[:, :, context * LARGER : -context * LARGER]
    turn = 30 * LARGER
    torch.testing.assert_close(mel[:, :, turn:], mel[:, :, :-turn], rtol=1e-4, atol=1e-4)


def test_context_of_the_middle_is_what_its_convolutions_see(tiny_model):
    """A change of one frame reaches MIDDLE frames, apart from norms and attention, which see everything."""
    with tiny_model.networks.running("vae") as vae:
        reach = 0
        for layer in (vae.decoder.conv_in, vae.decoder.middle.resnet_in, vae.decoder.middle.resnet_out):
            kernels = [layer] if hasattr(layer, "kernel_size") else [layer.conv_in, layer.conv_out]
            reach += sum(each.kernel_size[0] // 2 for each in kernels)
    assert reach == looping.MIDDLE
