"""Write a random checkpoint in the diffusers layout, made and saved by the reference libraries themselves.

    python scripts/make_reference_checkpoint.py /tmp/tiny
    python scripts/make_reference_checkpoint.py /tmp/base --size base --tokenizers ../shared/data/tokenizers

It sounds like nothing, but every parameter is random and every activation of ordinary size, so that an error anywhere
is heard at the end: `scripts/compare_with_reference.py` runs the reference and ours on it.
Needs diffusers and transformers: pip install -e ".[test]".
"""

import argparse
import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import sentencepiece
import torch
from diffusers import AudioLDM2Pipeline
from safetensors.torch import load_file
from tokenizers import ByteLevelBPETokenizer
from transformers import ClapFeatureExtractor, RobertaTokenizerFast, T5TokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/ is in the clone, not in the package
from tests.parity import reference

# What the published configs set otherwise than the libraries' defaults; the music model is of base size.
T5 = dict(
    vocab_size=32128, d_model=1024, d_kv=64, d_ff=2816, num_layers=24, num_heads=16, tie_word_embeddings=False
)
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
BASE = dict(t5=T5, clap=CLAP, gpt2=GPT2, projection=PROJECTION, unet=UNET, vae=VAE, hifigan=HIFIGAN)

# The sizes of tests/parity/reference.py, with a hop of 160 samples and ears for 64 mel bands, as in every real model.
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
    unet=dict(cross_attention_dim=((None, 12, 24),) * 3),
    vae={},
    hifigan=dict(upsample_rates=[5, 4, 4, 2], upsample_kernel_sizes=[16, 16, 8, 4]),
)  # fmt: skip
SIZES = {"tiny": TINY, "base": BASE, "large": BASE | {"unet": LARGE_UNET}, "music": BASE}

CAPTIONS = [  # what small vocabularies are trained on
    "Techno music with a strong, upbeat tempo and high melodic riffs.",
    "A hammer hitting a wooden surface, again and again",
    "A dog barks while the rain falls on the roof of a car.",
    "Birds sing (live) & 12 people cheer! Don't stop.",
    "Low quality, average quality; noise, hiss and hum.",
    "The sound of a steam engine, a church bell and a violin",
]


def make(
    out: Path,
    size: str = "tiny",
    *,
    tokenizers: Path | None = None,
    language_head: bool = True,
    pickled: bool = False,
    seed: int = 0,
) -> None:
    """Write a random checkpoint into the folder `out`; the command line's --help says what the arguments do."""
    sizes = SIZES[size]
    clap_tokenizer, t5_tokenizer = small_tokenizers() if tokenizers is None else read_tokenizers(tokenizers)
    clap, t5 = dict(sizes["clap"]), dict(sizes["t5"])
    if size == "tiny":  # the published networks have more rows than any of the vocabularies
        clap["text_config"] = clap["text_config"] | dict(vocab_size=len(clap_tokenizer))
        t5["vocab_size"] = len(t5_tokenizer)
    AudioLDM2Pipeline(
        text_encoder=reference.clap(seed, **clap),
        text_encoder_2=reference.t5(seed + 1, **t5),
        projection_model=reference.projection(seed + 2, **sizes["projection"]),
        language_model=reference.gpt2(seed + 3, language_head, **sizes["gpt2"]),
        unet=reference.unet(seed + 4, **sizes["unet"]),
        vae=reference.vae(seed + 5, **sizes["vae"]),
        vocoder=reference.hifigan(seed + 6, **sizes["hifigan"]),
        tokenizer=clap_tokenizer,
        tokenizer_2=t5_tokenizer,
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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder to write; what it already holds is overwritten")
    parser.add_argument(
        "--size", choices=SIZES, default="tiny", help="tiny: seconds and 1 MB; the others: 4.5 to 6 GB"
    )
    parser.add_argument(
        "--tokenizers", type=Path, metavar="FOLDER",
        help="real vocabularies: FOLDER/roberta (vocab.json, merges.txt) and FOLDER/t5 (spiece.model, tokenizer.json); "
        "without it, small ones are trained on a few captions",
    )  # fmt: skip
    parser.add_argument(
        "--gpt2-model", action="store_true",
        help="save the language model as GPT2Model, as the published checkpoints do; with it the reference pipeline dies",
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
