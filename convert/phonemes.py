"""The text encoder of `VitsModel` of transformers -> `audioldm2.models.phonemes.PhonemeEncoder`."""

import warnings
from collections.abc import Mapping, Sequence

from torch import Size

from audioldm2.errors import WeightsError
from audioldm2.models.phonemes import PhonemesConfig

from .configs import count, field, need, require_value
from .keymap import Row, Transform, nest, once_pointwise

SYMBOLS = (  # of the published speech models, as their source lists them after VITS and Tacotron
    *'_;:,.!?¡¿—…"«»“” ',
    *"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
    *"ɑɐɒæɓʙβɔɕçɗɖðʤəɘɚɛɜɝɞɟʄɡɠɢʛɦɧħɥʜɨɪʝɭɬɫɮʟɱɯɰŋɳɲɴøɵɸθœɶʘɹɺɾɻʀʁɽʂʃʈʧʉʊʋⱱʌɣɤʍχʎʏʑʐʒʔʡʕʢ",
    *"ǀǁǂǃˈˌːˑʼʴʰʱʲʷˠˤ˞↓↑→↗↘",
    *"'\u0329'ᵻ♪☎☒☝⚠",  # the second apostrophe counts; ⚠ ends a text
)
SECONDS = 10.24  # of a clip in training: 256 latent frames
NEW_VECTORS = 512  # that GPT-2 generates where phonemes are spoken, 8 in all other models; no tensor shows

one = Transform("squeezed", lambda w: w.squeeze(0), lambda w: w.unsqueeze(0))
UNREAD = "AudioLDM 2 reads hidden states, never the prior"
BLOCK = [
    Row("attention.q_proj", "attn.query"),
    Row("attention.k_proj", "attn.key"),
    Row("attention.v_proj", "attn.value"),
    Row("attention.out_proj", "attn.out"),
    Row("attention.emb_rel_k", "attn.distance_key", one),
    Row("attention.emb_rel_v", "attn.distance_value", one),
    Row("layer_norm", "attn_norm"),
    Row("feed_forward.conv_1", "ff.conv_in"),
    Row("feed_forward.conv_2", "ff.conv_out"),
    Row("final_layer_norm", "ff_norm"),
]


def rows(config: PhonemesConfig) -> list[Row]:
    """Return the rows of the diffusers layout."""
    return [
        Row("text_encoder.embed_tokens", "embedding"),
        *nest("text_encoder.encoder.layers.*", "blocks.*", BLOCK),
        Row("text_encoder.project", None, note=UNREAD),
        *(
            Row(name, None, note="AudioLDM 2 uses the text encoder alone", optional=True)
            for name in ("flow", "decoder", "duration_predictor", "posterior_encoder", "embed_speaker")
        ),
    ]


def config_from(source: dict) -> PhonemesConfig:
    """Return our config for the source\'s."""
    require_value(source, "model_type", "vits")
    require_value(source, "hidden_act", "relu")
    require_value(source, "use_bias", True)
    return PhonemesConfig(
        vocabulary=field(source, "vocab_size", int),
        dim=field(source, "hidden_size", int),
        depth=field(source, "num_hidden_layers", int),
        heads=field(source, "num_attention_heads", int),
        ff_dim=field(source, "ffn_dim", int),
        ff_kernel=field(source, "ffn_kernel_size", int, 3),
        window=field(source, "window_size", int, 4),
        eps=field(source, "layer_norm_eps", float, 1e-5),
    )


def config_to(config: PhonemesConfig) -> dict:
    """Return the source\'s config for ours. What AudioLDM 2 does not use is as small as its classes allow."""
    return {
        "architectures": ["VitsModel"],
        "model_type": "vits",
        "hidden_act": "relu",
        "use_bias": True,
        "vocab_size": config.vocabulary,
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "ffn_dim": config.ff_dim,
        "ffn_kernel_size": config.ff_kernel,
        "window_size": config.window,
        "layer_norm_eps": config.eps,
        "layerdrop": 0.0,
        "pad_token_id": 0,
        "flow_size": 2,
        "spectrogram_bins": 2,
        "prior_encoder_num_flows": 1,
        "prior_encoder_num_wavenet_layers": 1,
        "posterior_encoder_num_wavenet_layers": 1,
        "duration_predictor_num_flows": 1,
        "duration_predictor_filter_channels": 2,
        "upsample_initial_channel": 2,
        "upsample_rates": [2],
        "upsample_kernel_sizes": [4],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1]],
    }


def symbols_from(vocabulary: dict, count: int) -> tuple[str, ...]:
    """Return the symbol of each of `count` ids in `VitsTokenizer`'s vocab.json; "" where an id has none.

    Community checkpoints come with vocabularies of other models. Where an encoder of the published size has
    no symbol for its last id, which ends every text, the published symbols are taken, with a warning.
    """
    if vocabulary == {symbol: number for number, symbol in enumerate(SYMBOLS)} and count == len(SYMBOLS):
        return SYMBOLS  # a symbol that stands there twice included
    symbols = [""] * count
    for symbol, number in vocabulary.items():
        if not isinstance(number, int) or not 0 <= number < count:
            raise WeightsError(f"'{symbol}' has the id {number!r}; it has to be from 0 to {count - 1}.")
        symbols[number] = symbol
    if count == len(SYMBOLS) and not symbols[-1]:
        warnings.warn(
            f"the vocabulary lists {len(vocabulary)} symbols, and the phoneme encoder has learnt {count}: it "
            "is of another model; the symbols of the published speech models are used.",
            stacklevel=2,
        )
        return SYMBOLS
    return tuple(symbols)


def tokenizer_to(symbols: Sequence[str], max_length: int) -> dict[str, dict]:
    """Return the files of `VitsTokenizer`, by name. A text is one symbol after the other, without blanks."""
    return {
        "vocab.json": {symbol: number for number, symbol in enumerate(symbols) if symbol},
        "tokenizer_config.json": {
            "tokenizer_class": "VitsTokenizer",
            "add_blank": False,
            "normalize": False,
            "phonemize": True,
            "language": "en",
            "pad_token": symbols[0],
            "unk_token": symbols[0],
            "model_max_length": max_length,
        },
    }


# The original files -----------------------------------------------------------------------------------------


def original_rows(config: PhonemesConfig) -> list[Row]:
    """Return the rows of an original file."""
    attention = [
        Row("conv_q", "query", once_pointwise),
        Row("conv_k", "key", once_pointwise),
        Row("conv_v", "value", once_pointwise),
        Row("conv_o", "out", once_pointwise),
        Row("emb_rel_k", "distance_key", one),
        Row("emb_rel_v", "distance_value", one),
    ]
    norm = [Row("gamma", "weight"), Row("beta", "bias")]
    return [
        Row("emb", "embedding"),
        *nest("encoder.attn_layers.*", "blocks.*.attn", attention),
        *nest("encoder.norm_layers_1.*", "blocks.*.attn_norm", norm),
        *nest("encoder.ffn_layers.*", "blocks.*.ff", [Row("conv_1", "conv_in"), Row("conv_2", "conv_out")]),
        *nest("encoder.norm_layers_2.*", "blocks.*.ff_norm", norm),
        Row("proj", None, note=UNREAD),
    ]


def original_config(shapes: Mapping[str, Size]) -> PhonemesConfig:
    """Return the config that the shapes of the original\'s tensors imply."""
    vocabulary, dim = need(shapes, "emb.weight", 2)
    _, distances, head_dim = need(shapes, "encoder.attn_layers.0.emb_rel_k", 3)
    ff_dim, _, kernel = need(shapes, "encoder.ffn_layers.0.conv_1.weight", 3)
    return PhonemesConfig(
        vocabulary=vocabulary,
        dim=dim,
        depth=count(shapes, "encoder.attn_layers.*"),
        heads=dim // head_dim,
        ff_dim=ff_dim,
        ff_kernel=kernel,
        window=distances // 2,
    )
