"""Whole checkpoints of tiny networks with random weights, in both layouts, made by our own classes alone.

Every parameter is random, norms and biases too. Writing one takes a quarter of a second; it generates noise.
"""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor

import audioldm2
from audioldm2 import convert
from audioldm2.checkpoints import storage
from audioldm2.convert import keymap
from audioldm2.errors import WeightsError
from audioldm2.models import build_on_meta

State = dict[str, Tensor]

CORPUS = [
    "Techno music with a strong beat",
    "A hammer hitting a wooden surface, again and again",
    "a dog barks while the rain falls on the roof",
]

INDEX = {"_class_name": "AudioLDM2Pipeline", "unet": ["audioldm2", "AudioLDM2UNet2DConditionModel"]}
SCHEDULER = dict(
    _class_name="DDIMScheduler", beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195,
    num_train_timesteps=1000, steps_offset=1, prediction_type="epsilon", trained_betas=None,
    clip_sample=False, set_alpha_to_one=False,
)  # fmt: skip
HEARING = dict(
    feature_extractor_type="ClapFeatureExtractor", sampling_rate=48000, fft_window_size=1024, hop_length=480,
    feature_size=64, frequency_min=50, frequency_max=14000, truncation="rand_trunc", padding="repeatpad",
)  # fmt: skip
CONFIGS = {  # the config.json of each folder of the diffusers layout
    "text_encoder": dict(
        architectures=["ClapModel"], model_type="clap", projection_dim=10, projection_hidden_act="relu",
        text_config=dict(
            vocab_size=300, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=14,
        ),
        audio_config=dict(
            depths=[1, 2], num_attention_heads=[2, 4], hidden_size=16, patch_embeds_hidden_size=8,
            patch_size=16, patch_stride=[16, 16], window_size=4, mlp_ratio=2.0,
        ),
    ),
    "text_encoder_2": dict(
        architectures=["T5EncoderModel"], model_type="t5", vocab_size=200, d_model=14, num_layers=2,
        num_heads=3, d_kv=4, d_ff=18, feed_forward_proj="gated-gelu",
    ),
    "projection_model": dict(
        _class_name="AudioLDM2ProjectionModel", text_encoder_dim=10, text_encoder_1_dim=14,
        langauge_model_dim=12,
    ),
    "language_model": dict(
        architectures=["GPT2Model"], model_type="gpt2", n_embd=12, n_layer=2, n_head=3, n_positions=150,
        max_new_tokens=4,
    ),
    "unet": dict(
        _class_name="AudioLDM2UNet2DConditionModel", in_channels=3, out_channels=3,
        block_out_channels=[8, 12], down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"], cross_attention_dim=[[None, 12, 14]] * 2,
        attention_head_dim=2, layers_per_block=1, norm_num_groups=4, sample_size=16,
    ),
    "vae": dict(
        _class_name="AutoencoderKL", in_channels=1, out_channels=1, latent_channels=3,
        block_out_channels=[4, 8, 12], down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3, layers_per_block=1, norm_num_groups=4, scaling_factor=0.37,
    ),
    "vocoder": dict(
        architectures=["SpeechT5HifiGan"], model_type="hifigan", model_in_dim=16, sampling_rate=16000,
        upsample_initial_channel=16, upsample_rates=[5, 4, 4, 2], upsample_kernel_sizes=[16, 16, 8, 4],
        resblock_kernel_sizes=[3, 5], resblock_dilation_sizes=[[1, 3], [1]], normalize_before=False,
    ),
}  # fmt: skip


def networks() -> dict[str, object]:
    """Return the config of each of our networks."""
    parts = {name: part for name, part in convert.PARTS.items() if name != "phonemes"}
    return {name: part.config_from(CONFIGS[part.folder]) for name, part in parts.items()}


def random_state(name: str, config: object) -> dict[str, Tensor]:
    """Return a random tensor for every key of a network."""
    state = {}
    for key, tensor in build_on_meta(name, config).state_dict().items():
        fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
        state[key] = torch.randn(tensor.shape) / fan_in**0.5 + float("norm" in key and key.endswith("weight"))
        if key.endswith(("running_var", "scale")):
            state[key] = torch.rand(tensor.shape) + 0.5
    return state


def write_tokenizers(clap: Path, t5: Path) -> None:
    """Train and write vocabularies of a few hundred pieces."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(CORPUS, trainer)
    bpe.model.save(str(clap))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=90, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (t5 / "spiece.model").write_bytes(model.getvalue())


def to_diffusers(name: str, config: object, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return one network's tensors as the diffusers layout has them, by the converter's rows backwards."""
    moves = keymap.plan(state, keymap.reverse(convert.PARTS[name].rows(config)))
    return {key: tensor.contiguous() for key, tensor in keymap.convert(state, moves).items()}


def write_diffusers(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Write a checkpoint in the diffusers layout, all safetensors; returns our tensors of each network."""
    for name in (*CONFIGS, "scheduler", "feature_extractor", "tokenizer", "tokenizer_2"):
        (folder / name).mkdir(parents=True)
    write_json(folder / "model_index.json", INDEX)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "feature_extractor" / "preprocessor_config.json", HEARING)
    write_tokenizers(folder / "tokenizer", folder / "tokenizer_2")
    states = {name: random_state(name, config) for name, config in networks().items()}
    theirs: dict[str, dict[str, Tensor]] = {}
    for name, config in networks().items():  # CLAP's two networks share a file
        theirs.setdefault(convert.PARTS[name].folder, {}).update(to_diffusers(name, config, states[name]))
    for name, state in theirs.items():
        write_json(folder / name / "config.json", CONFIGS[name])
        save_file(state, folder / name / weights_name(name))
    return states


def write_converted(folder: Path, diffusers: Path) -> Path:
    """Convert a folder in the diffusers layout; returns the new folder."""
    storage.write(convert.read_diffusers(diffusers), folder)
    return folder


def weights_name(folder: str) -> str:
    """Return the name of the weight file that diffusers, or transformers, would write."""
    of_diffusers = ("projection_model", "unet", "vae")
    return "diffusion_pytorch_model.safetensors" if folder in of_diffusers else "model.safetensors"


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2))


def change_json(path: Path, **changes: object) -> None:
    """Set fields of a JSON object in a file; `...` removes one."""
    content = json.loads(path.read_text()) | changes
    write_json(path, {name: value for name, value in content.items() if value is not ...})


def weights_file(folder: Path) -> Path:
    """Return the weight file in a network's folder."""
    return folder / weights_name(folder.name)


def change_state(path: Path, change: Callable[[State], State]) -> None:
    """Replace a safetensors file by one with changed tensors."""
    state = change(load_file(path))
    path.unlink()  # the tensors are mapped from it: they stay, and a new file takes the name
    save_file(state, path)


def states_of(checkpoint: storage.Checkpoint) -> dict[str, State]:
    """Return the tensors of each network of a checkpoint."""
    return {name: open_state() for name, open_state in checkpoint.states.items()}


def loaded_states(folder: Path, **arguments: Any) -> dict[str, State]:
    """Return the tensors of each network of a loaded model."""
    model = audioldm2.load(folder, device="cpu", **arguments)
    return {name: network.state_dict() for name, network in model.networks._loaded.items()}


def assert_same_states(found: Mapping[str, State], expected: Mapping[str, State]) -> None:
    """Check that two checkpoints have the same networks, keys and values, bit for bit."""
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].keys() == expected[name].keys()
        for key, tensor in expected[name].items():
            assert torch.equal(found[name][key], tensor), f"{name}: {key}"


def load_error(folder: str | Path, **arguments: Any) -> str:
    """Return the message of the WeightsError that loading raises; any other outcome fails."""
    with pytest.raises(WeightsError) as caught:
        audioldm2.load(folder, device="cpu", **arguments)
    return str(caught.value)
