"""Damaged, foreign and impossible configs of a checkpoint, and what their errors and warnings say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import audioldm2
from audioldm2.audio import CLAP_MEL
from audioldm2.checkpoints import storage
from audioldm2.errors import WeightsError
from tests.support import checkpoints
from tests.support.checkpoints import (
    load_error,
)

SCHEDULER = "scheduler/scheduler_config.json"
HEARING = "feature_extractor/preprocessor_config.json"


@pytest.mark.parametrize("folder", ["unet", "text_encoder", "vocoder"])
def test_rejects_missing_config(diffusers: Path, folder: str):
    (diffusers / folder / "config.json").unlink()
    assert load_error(diffusers) == (
        f"{diffusers / folder / 'config.json'} is missing; the checkpoint is not complete."
    )


NO_JSON = ["", "{", "nan", "\x00", '{"a": 1,}', "[" * 100_000]


@pytest.mark.parametrize("content", NO_JSON, ids=range(len(NO_JSON)))
@pytest.mark.parametrize(
    "file",
    ["model_index.json", "vae/config.json", SCHEDULER, HEARING],
)
def test_rejects_invalid_json(diffusers: Path, file: str, content: str):
    (diffusers / file).write_text(content)
    assert load_error(diffusers).startswith(f"{diffusers / file} cannot be read as JSON (")


@pytest.mark.parametrize(
    ("content", "kind"), [("[]", "list"), ("3", "int"), ("null", "NoneType"), ('""', "str")]
)
@pytest.mark.parametrize("file", ["model_index.json", "vae/config.json", "config.json"])
def test_rejects_json_without_object(diffusers: Path, converted: Path, file: str, content: str, kind: str):
    folder = converted if file == "config.json" else diffusers
    (folder / file).write_text(content)
    assert load_error(folder) == f"{folder / file} holds a {kind}, not an object. Copy or download it again."


OTHER_ARCHITECTURES = [
    ("model_index.json", "_class_name", "StableDiffusionPipeline"),
    ("unet/config.json", "_class_name", "UNet2DConditionModel"),
    ("unet/config.json", "resnet_time_scale_shift", "scale_shift"),
    ("unet/config.json", "class_embed_type", "timestep"),
    ("unet/config.json", "out_channels", 6),
    ("text_encoder_2/config.json", "feed_forward_proj", "relu"),
    ("text_encoder_2/config.json", "model_type", "bert"),
    ("language_model/config.json", "activation_function", "gelu"),
    ("language_model/config.json", "n_inner", 7),
    ("projection_model/config.json", "use_learned_position_embedding", False),
    ("vae/config.json", "_class_name", "AutoencoderTiny"),
    ("vae/config.json", "use_quant_conv", False),
    ("vocoder/config.json", "model_type", "univnet"),
    ("text_encoder/config.json", "projection_hidden_act", "gelu"),
    (SCHEDULER, "prediction_type", "v_prediction"),
    (SCHEDULER, "beta_schedule", "squaredcos_cap_v2"),
    (HEARING, "feature_extractor_type", "ASTFeatureExtractor"),
]


@pytest.mark.parametrize(("file", "field", "value"), OTHER_ARCHITECTURES)
def test_rejects_other_architecture(diffusers: Path, file: str, field: str, value: object):
    checkpoints.change_json(diffusers / file, **{field: value})
    message = load_error(diffusers)
    assert message.startswith(f"{diffusers / file}: the ")
    assert f"says {field} = {value!r}; only " in message
    assert message.endswith("This is another architecture than AudioLDM 2's.")


def test_rejects_clap_with_fusion(diffusers: Path):
    audio = checkpoints.CONFIGS["text_encoder"]["audio_config"] | {"enable_fusion": True}
    checkpoints.change_json(diffusers / "text_encoder" / "config.json", audio_config=audio)
    assert "says enable_fusion = True; only False is supported" in load_error(diffusers)


@pytest.mark.parametrize(
    ("file", "field", "value", "words"),
    [
        (
            "unet",
            "block_out_channels",
            ...,
            "has no 'block_out_channels'; is it the config.json of this network?",
        ),
        ("unet", "block_out_channels", 8, "is 8; it has to be a list, each entry a whole number."),
        ("unet", "block_out_channels", [], "has 2 entries for 0 levels"),
        (
            "unet",
            "block_out_channels",
            [8, 13],
            "channels of 'unet' in {} is (8, 13); it has to hold multiples of norm_groups (4).",
        ),
        (
            "unet",
            "norm_num_groups",
            0,
            "norm_groups of 'unet' in {} is 0; it has to be a whole number from 1 to",
        ),
        (
            "unet",
            "attention_head_dim",
            5,
            "channels[1] of 'unet' in {} is 12; it has to be a multiple of heads[1] (5).",
        ),
        (
            "unet",
            "attention_head_dim",
            [2],
            "has 2 and 1 and 2 entries; it has to have one entry for each level",
        ),
        (
            "unet",
            "attention_head_dim",
            "8",
            "is '8'; it has to be a whole number or a list, each entry a whole",
        ),
        ("unet", "cross_attention_dim", [[None, 12, 14]], "has 1 entries for 2 levels"),
        ("unet", "cross_attention_dim", [[None, 12, 14, 14]] * 2, "is not an AudioLDM 2 layer"),
        (
            "unet",
            "cross_attention_dim",
            [[None, 13, 14]] * 2,
            "dim of 'gpt2' is 12, but gpt2_dim of 'unet' is 13",
        ),
        ("unet", "cross_attention_dim", {"a": 1}, "it has to be a whole number or "),
        (
            "unet",
            "down_block_types",
            ["DownBlock2D", "Swirl2D"],
            "names a block 'Swirl2D'; known are DownBlock2D",
        ),
        ("unet", "layers_per_block", [1, 2], "differs between levels ((1, 2)), which is not supported"),
        ("unet", "in_channels", 4, "only 4 is supported"),
        ("vae", "latent_channels", 5, "latent_channels of 'unet' is 3, but latent_channels of 'vae' is 5"),
        ("vae", "scaling_factor", None, "is None; it has to be a finite number."),
        (
            "vae",
            "scaling_factor",
            0,
            "scaling_factor of 'vae' in {} is 0; it has to be above 0 and at most 1000000.",
        ),
        ("vae", "in_channels", True, "is True; it has to be a whole number."),
        ("text_encoder_2", "d_model", "14", "is '14'; it has to be a whole number."),
        ("text_encoder_2", "d_model", 1.5, "is 1.5; it has to be a whole number."),
        (
            "text_encoder_2",
            "num_layers",
            -1,
            "depth of 't5' in {} is -1; it has to be a whole number from 1 to 100.",
        ),
        ("text_encoder_2", "num_layers", 10**9, "is 1000000000; it has to be a whole number from 1 to 100."),
        (
            "text_encoder_2",
            "relative_attention_num_buckets",
            2,
            "buckets of 't5' in {} is 2; it has to be a whole number from 4 to",
        ),
        ("language_model", "n_head", 5, "dim of 'gpt2' in {} is 12; it has to be a multiple of heads (5)."),
        (
            "projection_model",
            "text_encoder_dim",
            9,
            "projection_dim of 'clap_text' is 10, but clap_dim of 'projection' is 9.",
        ),
        (
            "vocoder",
            "upsample_rates",
            [5, 4],
            "upsample_rates, upsample_kernels of 'hifigan' in {} has 2 and 4 entries",
        ),
        (
            "vocoder",
            "upsample_rates",
            [20, 4, 4, 2],
            "it has to be at least the upsample_rates (20, 4, 4, 2), stage by stage.",
        ),
        (
            "vocoder",
            "upsample_initial_channel",
            8,
            "channels of 'hifigan' in {} is 8; it has to be a whole number from 16 to",
        ),
        (
            "vocoder",
            "resblock_kernel_sizes",
            [3, 4],
            "branch_kernels of 'hifigan' in {} is (3, 4); it has to hold odd numbers.",
        ),
        ("vocoder", "resblock_dilation_sizes", [3, 1], "each entry a list, each entry a whole number"),
        (
            "vocoder",
            "model_in_dim",
            17,
            "mels of 'hifigan' is 17; it has to be a multiple of the VAE's downsampling, 4.",
        ),
        ("text_encoder", "text_config", [1], "is [1]; it has to be an object or null."),
    ],
)
def test_rejects_impossible_config_in_diffusers_layout(
    diffusers: Path, file: str, field: str, value: object, words: str
):
    checkpoints.change_json(diffusers / file / "config.json", **{field: value})
    message = load_error(diffusers)
    assert words.format(diffusers / file / "config.json") in message
    assert str(diffusers) in message


@pytest.mark.parametrize(
    ("file", "field", "value", "words"),
    [
        (SCHEDULER, "beta_start", ..., "has no 'beta_start'"),
        (SCHEDULER, "beta_start", "low", "is 'low'; it has to be a finite number."),
        (SCHEDULER, "beta_start", 0.5, "0 < beta_start <= beta_end < 1"),
        (SCHEDULER, "num_train_timesteps", 10**12, "steps of 'schedule'"),
        (HEARING, "sampling_rate", 0, "sample_rate of 'clap_mel'"),
        (HEARING, "frequency_max", 30000, "f_max of 'clap_mel'"),
    ],
)
def test_rejects_impossible_schedule_or_front_end(
    diffusers: Path, file: str, field: str, value: object, words: str
):
    checkpoints.change_json(diffusers / file, **{field: value})
    message = load_error(diffusers)
    assert words in message
    assert str(diffusers) in message


def test_warns_about_unsupported_sampling_settings(diffusers: Path):
    checkpoints.change_json(diffusers / SCHEDULER, timestep_spacing="trailing", clip_sample=True)
    with pytest.warns(UserWarning, match="'trailing'.*sounds are sampled as with the published"):
        audioldm2.load(diffusers, device="cpu")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("feature_size", 32, "computes 1001 frames of 32 mel bands"),
        ("hop_length", 100, "computes 4801 frames of 64 mel bands"),
    ],
)
def test_unfit_front_end_prevents_scoring_only(diffusers: Path, field: str, value: int, words: str):
    checkpoints.change_json(diffusers / HEARING, **{field: value})
    model = audioldm2.load(diffusers, device="cpu")
    for ask in (
        lambda: model.score("rain", torch.zeros(16000)),
        lambda: model.generate("rain", num_waveforms_per_prompt=2),
    ):
        with pytest.raises(WeightsError, match="sounds cannot be scored") as caught:
            ask()
        assert words in str(caught.value)


def test_warns_about_unsupported_truncation(diffusers: Path):
    checkpoints.change_json(diffusers / "feature_extractor" / "preprocessor_config.json", truncation="fusion")
    with pytest.warns(
        UserWarning, match="says {'truncation': 'fusion'}; candidates are ranked as with the published"
    ):
        audioldm2.load(diffusers, device="cpu")


def test_missing_scheduler_fields_take_reference_defaults(diffusers: Path):
    checkpoints.change_json(diffusers / SCHEDULER, steps_offset=..., clip_sample=..., set_alpha_to_one=...)
    with pytest.warns(UserWarning, match="'clip_sample': True.*as with the published"):
        assert audioldm2.load(diffusers, device="cpu").schedule.steps_offset == 0


def test_missing_front_end_fields_take_reference_defaults(diffusers: Path):
    checkpoints.change_json(diffusers / HEARING, frequency_min=..., frequency_max=..., truncation=...)
    with pytest.warns(UserWarning, match="says {'truncation': 'fusion'}"):
        hearing = audioldm2.load(diffusers, device="cpu").clap_mel
    assert hearing == replace(CLAP_MEL, f_min=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "most"), [("tokenizer", 512), ("tokenizer_2", 128)])
def test_token_limit_is_the_smaller_of_file_and_published(diffusers: Path, folder: str, most: int):
    file = diffusers / folder / "tokenizer_config.json"
    for message, read in ((40, 40), (10**30, most), (most + 1, most), (..., most)):
        settings = json.loads(file.read_text()) if file.is_file() else {}
        settings.pop("model_max_length", None)
        file.write_text(json.dumps(settings if message is ... else settings | {"model_max_length": message}))
        model = audioldm2.load(diffusers, device="cpu")
        tokenizers = {"tokenizer": model.clap_tokenizer, "tokenizer_2": model.t5_tokenizer}
        assert tokenizers[folder].max_length == read


@pytest.mark.parametrize("folder", ["tokenizer", "tokenizer_2"])
@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("padding_side", "left", "padding_side = 'left'; only 'right' is supported"),
        ("truncation_side", "left", "truncation_side = 'left'; only 'right' is supported"),
        ("model_max_length", 0, "model_max_length = 0; it has to be a number from"),
        ("model_max_length", "many", "model_max_length = 'many'; it has to be a number from"),
    ],
)
def test_rejects_unsupported_tokenizer_settings(diffusers, folder, field, value, words):
    file = diffusers / folder / "tokenizer_config.json"
    settings = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(settings | {field: value}))
    message = load_error(diffusers)
    assert words in message and str(file) in message


@pytest.mark.parametrize("version", [0, 6, "1", None, [1], 1.5])
def test_rejects_other_format_version(converted: Path, version: object):
    checkpoints.change_json(converted / "config.json", audioldm2_format=version)
    assert load_error(converted) == (
        f"{converted / 'config.json'} has format {version!r}; this version reads 1 to 5. "
        "Convert the source again with 'audioldm2 convert', or install the version that wrote it."
    )


@pytest.mark.parametrize(
    "field",
    [
        "source",
        "revision",
        "schedule",
        "clap_mel",
        "seconds",
        "unconditional",
        "normalized",
        "symbols",
        "pronunciations",
        "networks",
    ],
)
def test_rejects_missing_field_of_converted_config(converted: Path, field: str):
    checkpoints.change_json(converted / "config.json", **{field: ...})
    assert load_error(converted) == (
        f"{converted / 'config.json'} lacks, or should not have, '{field}'. "
        "Convert the source again with 'audioldm2 convert'."
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", 3),
        ("revision", []),
        ("schedule", []),
        ("clap_mel", "x"),
        ("networks", 5),
        ("networks", [[]]),
    ],
)
def test_rejects_wrong_type_in_converted_config(converted: Path, field: str, value: object):
    checkpoints.change_json(converted / "config.json", **{field: value})
    assert f"'{field}' in {converted / 'config.json'} is {value!r}; it has to be " in load_error(converted)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"speed": 3},
            "'gpt2' in {} and this version differ in speed. Convert the source again",
        ),
        (
            {"heads": ...},
            "'gpt2' in {} and this version differ in heads. Convert the source again",
        ),
        ({"heads": "x"}, "heads of 'gpt2' in {} is 'x'; it has to be a whole number."),
        ({"depth": -1}, "depth of 'gpt2' in {} is -1; it has to be a whole number from 1 to 100."),
        ({"heads": 5}, "dim of 'gpt2' in {} is 12; it has to be a multiple of heads (5)."),
        ({"depth": 3}, "does not fit its configuration: missing 'blocks.2.attn_norm.weight'"),
        ({"max_positions": 10**6}, "position_embedding.weight is (150, 12) and should be (1000000, 12)"),
    ],
)
def test_rejects_impossible_network_in_converted_config(converted: Path, changes: dict, words: str):
    path = converted / "config.json"
    config = json.loads(path.read_text())
    config["networks"]["gpt2"] |= changes
    config["networks"]["gpt2"] = {k: v for k, v in config["networks"]["gpt2"].items() if v is not ...}
    checkpoints.write_json(path, config)
    assert words.format(path) in load_error(converted)


def test_rejects_unknown_network(converted: Path):
    checkpoints.change_json(converted / "config.json", networks={"gpt3": {}})
    assert "describes the networks ['gpt3']; this version knows [" in load_error(converted)


@pytest.mark.parametrize("name", ["unet", "vae", "hifigan", "t5", "clap_text", "projection", "gpt2"])
def test_rejects_checkpoint_without_required_network(converted: Path, name: str):
    path = converted / "config.json"
    networks = json.loads(path.read_text())["networks"]
    del networks[name]
    checkpoints.change_json(path, networks=networks)
    assert load_error(converted).startswith(f"{path} lacks the networks '{name}', without which there is no")


@pytest.mark.parametrize("seconds", [0, -1, 1e6])
def test_rejects_impossible_default_length(converted: Path, seconds: float):
    checkpoints.change_json(converted / "config.json", seconds=seconds)
    assert "it has to be above 0 and at most 86400" in load_error(converted)


@pytest.mark.parametrize("command", [storage.read, audioldm2.load])
def test_rejects_network_too_large_to_exist(converted: Path, command):
    """Every size is allowed alone, but the bias table of attention would have 4e18 values."""
    path = converted / "config.json"
    config = json.loads(path.read_text())
    config["networks"]["clap_audio"]["window"] = 10**6
    config["networks"]["clap_audio"]["heads"] = [4, 10**6]
    config["networks"]["clap_audio"]["dim"] = 500_000
    checkpoints.write_json(path, config)
    with pytest.raises(WeightsError) as caught:
        command(converted)
    assert str(caught.value).startswith(f"'clap_audio' in {path} describes a network too large to exist (")
