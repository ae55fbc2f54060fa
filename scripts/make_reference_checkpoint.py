"""Write a random checkpoint in the diffusers layout, made and saved by the reference libraries themselves.

    python scripts/make_reference_checkpoint.py ./tiny
    python scripts/make_reference_checkpoint.py ./base --size base --tokenizers ../shared/data/tokenizers

It sounds like nothing, but every parameter is random and every activation of ordinary size, so that an
error anywhere is heard at the end: `scripts/compare_with_reference.py` runs the reference and ours on it.
Needs diffusers and transformers: pip install -e ".[test]".
"""

import argparse
import io
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sentencepiece
import torch
import torch.nn.functional as F
from diffusers import AudioLDM2Pipeline, AudioLDM2UNet2DConditionModel
from safetensors.torch import load_file
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import (
    ClapFeatureExtractor,
    RobertaTokenizerFast,
    SpeechT5HifiGan,
    T5TokenizerFast,
    VitsTokenizer,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/ is in the clone, not in the package
from audioldm2.convert.phonemes import SYMBOLS
from scripts.make_random_checkpoint import CAPTIONS
from tests.support import reference

# What the published configs set otherwise than the libraries' defaults; the music model is of base size.
T5 = dict(vocab_size=32128, d_model=1024, d_kv=64, d_ff=2816, num_layers=24, num_heads=16)
CLAP = dict(
    projection_dim=512,
    text_config={},
    audio_config=dict(depths=[2, 2, 12, 2], hidden_size=1024, patch_embeds_hidden_size=128),
)
GPT2 = dict(vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12)
PROJECTION = dict(text_encoder_dim=512, text_encoder_1_dim=1024, langauge_model_dim=768)
UNET = dict(
    sample_size=256, in_channels=8, out_channels=8, block_out_channels=(128, 256, 384, 640),
    down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
    up_block_types=(*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"),
    cross_attention_dim=((None, 768, 1024),) * 4, attention_head_dim=8, norm_num_groups=32,
)  # fmt: skip
LARGE_UNET = UNET | dict(cross_attention_dim=((None, 768, 1024, None),) * 4, transformer_layers_per_block=2)
VAE = dict(
    latent_channels=8, block_out_channels=(128, 256, 512), norm_num_groups=32, sample_size=1024,
    scaling_factor=0.4110932946205139,
)  # fmt: skip
HIFIGAN = dict(
    model_in_dim=64, upsample_initial_channel=1024, upsample_rates=[5, 4, 2, 2, 2],
    upsample_kernel_sizes=[16, 16, 8, 4, 4], resblock_kernel_sizes=[3, 7, 11],
    resblock_dilation_sizes=[[1, 3, 5]] * 3,
)  # fmt: skip
VITS = dict(
    vocab_size=len(SYMBOLS), hidden_size=192, num_attention_heads=2, num_hidden_layers=6, ffn_dim=768,
    window_size=4,
)  # fmt: skip
SPEECH_PROJECTION = PROJECTION | dict(
    text_encoder_1_dim=192, use_learned_position_embedding=True, max_seq_length=310
)
BASE = dict(t5=T5, clap=CLAP, gpt2=GPT2, projection=PROJECTION, unet=UNET, vae=VAE, hifigan=HIFIGAN)

# As in tests/support/reference.py, but with the published hop of 160 samples and 64 mel bands for CLAP.
TINY = dict(
    t5={},
    clap=dict(
        text_config=dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=40),
        audio_config=dict(
            window_size=4, depths=[2, 2], num_attention_heads=[2, 4], hidden_size=32, patch_size=16,
            patch_stride=[16, 16], patch_embeds_hidden_size=16, num_hidden_layers=2,
        ),
    ),
    gpt2=dict(bos_token_id=0, eos_token_id=0),
    projection={},
    unet=dict(
        cross_attention_dim=((None, 12, 24),) * 3,
        block_out_channels=(32, 16, 24),  # wide where `fit_last_convolution` has to find the input again
    ),
    vae={},
    hifigan=dict(upsample_rates=[5, 4, 4, 2], upsample_kernel_sizes=[16, 16, 8, 4]),
)  # fmt: skip
TINY_SPEECH = TINY | dict(
    vits={},
    gpt2=TINY["gpt2"] | dict(max_new_tokens=20, n_positions=850),
    projection=dict(text_encoder_1_dim=12, use_learned_position_embedding=True, max_seq_length=310),
    unet=TINY["unet"] | dict(cross_attention_dim=((None, 12),) * 3),
)
SPEECH = BASE | dict(
    vits=VITS,
    gpt2=GPT2 | dict(max_new_tokens=512),
    projection=SPEECH_PROJECTION,
    unet=UNET | dict(cross_attention_dim=((None, 768),) * 4),
)
SIZES = {
    "tiny": TINY,
    "base": BASE,
    "large": BASE | {"unet": LARGE_UNET},
    "music": BASE,
    "tiny-speech": TINY_SPEECH,
    "speech": SPEECH,
}


def make(
    out: Path,
    size: str | Mapping[str, Any] = "tiny",
    *,
    tokenizers: Path | None = None,
    language_head: bool = True,
    pickled: bool = False,
    seed: int = 0,
) -> None:
    """Write a random checkpoint into the folder `out`; --help says what the arguments do.

    size: one of SIZES, or the changes to the networks of `tests.support.reference`.
    """
    sizes = SIZES[size] if isinstance(size, str) else size
    clap_tokenizer, t5_tokenizer = small_tokenizers() if tokenizers is None else read_tokenizers(tokenizers)
    clap, t5 = dict(sizes["clap"]), dict(sizes["t5"])
    if size in ("tiny", "tiny-speech"):  # the published networks have more rows than any of the vocabularies
        clap["text_config"] = clap["text_config"] | dict(vocab_size=len(clap_tokenizer))
        t5["vocab_size"] = len(t5_tokenizer)
    if "vits" in sizes:
        second, second_tokenizer = reference.vits(seed + 1, **sizes["vits"]), phoneme_tokenizer()
    else:
        second, second_tokenizer = reference.t5(seed + 1, **t5), t5_tokenizer
    unet = reference.unet(seed + 4, **sizes["unet"])
    hifigan = reference.hifigan(seed + 6, **sizes["hifigan"])
    fit_last_convolution(unet)
    set_loudness(hifigan)
    AudioLDM2Pipeline(
        text_encoder=reference.clap(seed, **clap),
        text_encoder_2=second,
        projection_model=reference.projection(seed + 2, **sizes["projection"]),
        language_model=reference.gpt2(seed + 3, language_head, **sizes["gpt2"]),
        unet=unet,
        vae=reference.vae(seed + 5, **sizes["vae"]),
        vocoder=hifigan,
        tokenizer=clap_tokenizer,
        tokenizer_2=second_tokenizer,
        feature_extractor=ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc"),
        scheduler=reference.ddim(),
    ).save_pretrained(out)
    if tokenizers is not None:  # the published layout has them beside tokenizer.json
        for file in ("roberta/vocab.json", "roberta/merges.txt", "t5/spiece.model"):
            folder = "tokenizer" if file.startswith("roberta") else "tokenizer_2"
            shutil.copyfile(tokenizers / file, out / folder / Path(file).name)
    if pickled:
        for file in out.glob("*/*.safetensors"):
            stem = "pytorch_model" if file.stem == "model" else file.stem
            torch.save(load_file(file), file.with_name(f"{stem}.bin"))
            file.unlink()


@torch.no_grad()
def fit_last_convolution(unet: AudioLDM2UNet2DConditionModel) -> None:
    """Solve for the last convolution with which the network denoises, if poorly, where x0 is white noise.

    A random one tells nothing of its input, and a walk along it multiplies latents by 1/sqrt(alpha_bar) of
    its start, 30 to 80: so loud that most of the VAE's blocks add nothing to them. For x0 of unit variance
    without structure, the best answer to x is sqrt(1 - alpha_bar) x.
    """
    config, alpha_bar = unet.config, reference.ddim().alphas_cumprod
    gpt2_dim, *second_dim = [dim for dim in config.cross_attention_dim[-1] if dim]
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    loudness = torch.tensor([0.5, 1.0, 1.0, 2.0])[:, None, None, None]
    inputs: list[Tensor] = []  # of the last convolution: (batch, channels, time, mel)
    hook = unet.conv_out.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    features, answers = [], []
    for t in (1, 200, 400, 600, 800, 900, 950, 999) * 2:
        x = loudness * normal(4, config.in_channels, 16, 16)
        gpt2 = normal(4, 8, gpt2_dim)
        second = normal(4, 12, second_dim[0]) if second_dim else None
        unet(x, t, gpt2, encoder_hidden_states_1=second)
        patches = F.unfold(inputs.pop(), 3, padding=1).transpose(1, 2)  # (batch, time * mel, 9 * channels)
        features.append(F.pad(patches.flatten(0, 1), (0, 1), value=1.0))  # (positions, 9 * channels + 1)
        answers.append((1 - alpha_bar[t]).sqrt() * x.flatten(2).transpose(1, 2).flatten(0, 1))
    hook.remove()
    found = torch.cat(features).double(), torch.cat(answers).double()
    square = found[0].T @ found[0]
    square += 0.01 * square.diagonal().mean() * torch.eye(len(square))  # ridge: against fitting the sample
    solution = torch.linalg.solve(square, found[0].T @ found[1]).T.float()  # (channels out, 9 * channels + 1)
    unet.conv_out.weight.copy_(solution[:, :-1].reshape(unet.conv_out.weight.shape))
    unet.conv_out.bias.copy_(solution[:, -1])


@torch.no_grad()
def set_loudness(hifigan: SpeechT5HifiGan, rms: float = 0.15) -> None:
    """Shift and scale what the last convolution gives to an ordinary level, where tanh is almost linear."""
    mel = torch.randn(1, 100, hifigan.config.model_in_dim, generator=torch.Generator().manual_seed(0)) / 2
    before_tanh = hifigan(mel).atanh()
    factor = rms / before_tanh.std()
    hifigan.conv_post.weight *= factor
    hifigan.conv_post.bias.sub_(before_tanh.mean()).mul_(factor)


def read_tokenizers(folder: Path) -> tuple[RobertaTokenizerFast, T5TokenizerFast]:
    return (
        RobertaTokenizerFast.from_pretrained(folder / "roberta", model_max_length=512),
        T5TokenizerFast.from_pretrained(folder / "t5", model_max_length=128),
    )


def small_tokenizers() -> tuple[RobertaTokenizerFast, T5TokenizerFast]:
    """Vocabularies of a few hundred pieces, trained here and now."""
    bpe = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(CAPTIONS, vocab_size=400, show_progress=False, special_tokens=specials)
    with TemporaryDirectory() as folder:
        bpe.save_model(folder)
        clap = RobertaTokenizerFast.from_pretrained(folder, model_max_length=512)

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS), model_writer=model, vocab_size=200, hard_vocab_limit=False,
        normalization_rule_name="identity", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocab = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(len(pieces))]
    vocab += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
    return clap, T5TokenizerFast(vocab=vocab, model_max_length=128)


def phoneme_tokenizer() -> VitsTokenizer:
    """Of the published symbols, fed phonemes; what pads and what ends a text are the reference's too."""
    with TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.json"
        vocabulary.write_text(json.dumps({symbol: number for number, symbol in enumerate(SYMBOLS)}))
        return VitsTokenizer(
            vocabulary, pad_token="_", unk_token="_", add_blank=False, normalize=False, phonemize=False,
            model_max_length=310,
        )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder to write; what it already holds is overwritten")
    parser.add_argument(
        "--size", choices=SIZES, default="tiny", help="tiny (default), tiny-speech: 3 MB; others: 2 to 6 GB"
    )
    parser.add_argument(
        "--tokenizers", type=Path, metavar="FOLDER",
        help="real vocabularies: FOLDER/roberta (vocab.json, merges.txt) and FOLDER/t5 (spiece.model, "
        "tokenizer.json); without it, small ones are trained on a few captions",
    )  # fmt: skip
    parser.add_argument(
        "--gpt2-model", action="store_true",
        help="save the language model as GPT2Model, as published; the reference's own pipeline dies of it",
    )  # fmt: skip
    parser.add_argument("--bin", action="store_true", help="save pickled .bin files instead of safetensors")
    parser.add_argument("--seed", type=int, default=0, help="of every parameter (default: 0)")
    chosen = parser.parse_args(arguments)
    make(
        chosen.out,
        chosen.size,
        tokenizers=chosen.tokenizers,
        language_head=not chosen.gpt2_model,
        pickled=chosen.bin,
        seed=chosen.seed,
    )


if __name__ == "__main__":
    main()
