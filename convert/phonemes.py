"""The text encoder of `VitsModel` of transformers -> `audioldm2.models.phonemes.PhonemeEncoder`."""

from collections.abc import Mapping

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


def symbols_from(vocabulary: dict, count: int) -> tuple[str, ...]:
    """Return the symbol of each of `count` ids in `VitsTokenizer`'s vocab.json; "" where an id has none."""
    symbols = [""] * count
    for symbol, number in vocabulary.items():
        if not isinstance(number, int) or not 0 <= number < count:
            raise WeightsError(f"'{symbol}' has the id {number!r}; it has to be from 0 to {count - 1}.")
        symbols[number] = symbol
    return tuple(symbols)


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
