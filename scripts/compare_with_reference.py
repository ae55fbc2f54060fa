"""Run the reference (diffusers, transformers) and ours on one checkpoint, from the same prompt and noise.

    python scripts/make_reference_checkpoint.py ./tiny       # or any published checkpoint
    python scripts/compare_with_reference.py ./tiny --sampler dpmpp_2m --steps 20

One line a stage: its shape, the largest error, the error's RMS over the reference's, and the same in
decibels. Each of our networks is given what the reference's pipeline gave to its own, so that an error shows
in the line where it arises; the two lines "from the prompt" are all ours, from the text on. With --networks,
every network is run on random inputs of many lengths instead, and has to reach 100 dB, an error of 1e-5.

Exit code: 0 if every stage reaches --at-least, 1 if one does not, 2 if they cannot be compared.
Needs diffusers and transformers: pip install -e ".[test]".

The file is long because it pairs every stage and every network of ours with the reference's.
"""

import argparse
import functools
import gc
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
import transformers
from diffusers import AudioLDM2Pipeline, DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor, nn

import audioldm2
from audioldm2 import AudioLDM2, WeightsError
from audioldm2.audio import clap_log_mel, resample
from audioldm2.checkpoints import hub
from audioldm2.checkpoints.storage import read_json
from audioldm2.prompt.tokenizers import T5Tokenizer, pad

SCHEDULERS = {"ddim": DDIMScheduler, "dpmpp_2m": DPMSolverMultistepScheduler}
Ours = Callable[[AudioLDM2], Tensor | tuple[Tensor, ...]]


class Stage(NamedTuple):
    """One line of the table: what the reference computed, and how ours computes it."""

    name: str
    expected: Tensor | tuple[Tensor, ...]
    ours: Ours


@dataclass(frozen=True)
class Request:
    """What both sides are asked for."""

    prompt: str
    negative_prompt: str
    seconds: float
    sampler: str
    steps: int
    guidance: float
    seed: int

    @property
    def guided(self) -> bool:
        return self.guidance > 1


def load_reference(folder: Path, sampler: str = "ddim") -> AudioLDM2Pipeline:
    """The reference's pipeline in float32."""
    given = {}
    if read_json(folder / "model_index.json")["language_model"][1] == "GPT2Model":
        # As published. The pipeline generates with methods that this class has lost, and dies. So the same
        # weights are put under a language model's head: tied to the token embedding, its output unread.
        model = transformers.GPT2LMHeadModel.from_pretrained(folder / "language_model", dtype=torch.float32)
        given["language_model"] = model
    pipe = AudioLDM2Pipeline.from_pretrained(folder, dtype=torch.float32, **given)
    pipe.scheduler = SCHEDULERS[sampler].from_config(pipe.scheduler.config)
    return pipe


def through(name: str, *inputs: Tensor, method: str = "__call__") -> Ours:
    """One of our networks on these inputs."""

    def run(model: AudioLDM2) -> Tensor | tuple[Tensor, ...]:
        with model.networks.running(name) as network:
            return getattr(network, method)(*inputs)

    return run


# From a prompt ----------------------------------------------------------------------------------------------


def stages_of_a_sound(folder: Path, request: Request) -> list[Stage]:
    """Run the reference's pipeline once; what its networks were given and returned makes the stages."""
    pipe = load_reference(folder, request.sampler)
    latents: list[Tensor] = []  # after each step
    with (
        recording(pipe.projection_model) as projections,
        recording(pipe.unet) as denoisings,
        recording(pipe.vocoder) as vocodings,
    ):
        sound = pipe(
            request.prompt,
            negative_prompt=request.negative_prompt if request.guided else None,
            audio_length_in_s=request.seconds,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            generator=torch.Generator().manual_seed(request.seed),
            callback=lambda step, t, x: latents.append(x),
            output_type="pt",
        ).audios  # (1, samples)

    stages = []
    texts = {"prompt": request.prompt, "negative": request.negative_prompt}
    contexts = denoisings[0].given["encoder_hidden_states"]  # (1 or 2, 8, dim), the negative prompt's first
    for (kind, text), call, context in zip(texts.items(), projections, reversed(contexts), strict=False):
        stages += stages_of_a_text(kind, text, call, context.unsqueeze(0))

    middle = len(denoisings) // 2
    given, (eps,) = denoisings[middle]
    ours = through(
        "unet",
        given["sample"],
        given["timestep"],
        given["encoder_hidden_states"],
        given["encoder_hidden_states_1"],
        given["encoder_attention_mask_1"].bool(),
    )
    stages.append(Stage(f"UNet, call {middle + 1} of {len(denoisings)}", eps, ours))

    stages += stages_of_vae(pipe, latents[-1])
    given, waveform = vocodings[0]
    stages.append(Stage("HiFi-GAN", waveform, through("hifigan", given["spectrogram"])))
    stages.append(stage_of_clap_audio(pipe, sound))

    noise = denoisings[0].given["sample"][:1]  # both samplers start at x itself; guidance doubles the batch

    @functools.cache
    def generated(model: AudioLDM2) -> audioldm2.Result:
        return model.generate(
            request.prompt,
            negative_prompt=request.negative_prompt,
            audio_length_in_s=request.seconds,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            sampler=request.sampler,
            latents=noise,
        )

    stages.append(Stage("latents, from the prompt", latents[-1], lambda model: generated(model).latents))
    stages.append(Stage("waveform, from the prompt", sound, lambda model: generated(model).audio[0]))
    return stages


class Call(NamedTuple):
    given: dict[str, Any]  # arguments by name
    returned: Any


@contextmanager
def recording(module: nn.Module) -> Iterator[list[Call]]:
    """Every call of a module while the block lasts."""
    calls: list[Call] = []
    signature = inspect.signature(module.forward)

    def note(module: nn.Module, positional: tuple, named: dict, returned: Any) -> None:
        calls.append(Call(signature.bind(*positional, **named).arguments, returned))

    hook = module.register_forward_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def stages_of_a_text(kind: str, text: str, projection: Call, gpt2_context: Tensor) -> list[Stage]:
    """The four text networks; the first two read the text through our tokenizers."""
    clap, t5 = projection.given["hidden_states"][:, 0], projection.given["hidden_states_1"]
    t5_mask = projection.given["attention_mask_1"].bool()
    vectors, mask = projection.returned.hidden_states, projection.returned.attention_mask.bool()

    def our_clap(model: AudioLDM2) -> Tensor:
        tokens = pad([model.clap_tokenizer.encode(text)], model.clap_tokenizer.pad_id)
        return through("clap_text", tokens.ids, tokens.mask)(model)

    def our_t5(model: AudioLDM2) -> Tensor:
        tokens = pad([model.t5_tokenizer.encode(text)], model.t5_tokenizer.pad_id, t5.shape[1])
        return through("t5", tokens.ids, tokens.mask)(model)

    return [
        Stage(f"CLAP text, {kind}", clap, our_clap),
        Stage(f"T5, {kind}", t5, our_t5),
        Stage(f"projection, {kind}", (vectors, mask), through("projection", clap, t5, t5_mask)),
        Stage(f"GPT-2, {kind}", gpt2_context, through("gpt2", vectors, mask, method="generate")),
    ]


def stages_of_vae(pipe: AudioLDM2Pipeline, z: Tensor, note: str = "") -> list[Stage]:
    """Decode latents, and encode the spectrogram that the reference makes of them."""
    scale = pipe.vae.config.scaling_factor
    mel = pipe.vae.decode(z / scale).sample  # (batch, 1, time, mel)
    posterior = pipe.vae.encode(mel).latent_dist
    scaled = (posterior.mean * scale, posterior.std * scale)  # our encoder returns both scaled
    return [
        Stage(f"VAE decoder{note}", mel, through("vae", z, method="decode")),
        Stage(f"VAE encoder{note}", scaled, through("vae", mel, method="encode")),
    ]


def stage_of_clap_audio(pipe: AudioLDM2Pipeline, sound: Tensor) -> Stage:
    """CLAP's audio branch with its front end. Clips over 10 s are cut; the reference crops at random."""
    rate = pipe.feature_extractor.sampling_rate
    wave = resample(sound, pipe.vocoder.config.sampling_rate, rate)[:, : 10 * rate]
    heard = pipe.feature_extractor(list(wave.numpy()), sampling_rate=rate, return_tensors="pt").input_features
    expected = pipe.text_encoder.get_audio_features(heard).pooler_output  # (batch, dim)

    def our_clap(model: AudioLDM2) -> Tensor:
        return through("clap_audio", clap_log_mel(wave, model.clap_mel))(model)

    return Stage("CLAP audio", expected, our_clap)


def cut_negative_prompt(tokenizer: T5Tokenizer, prompt: str, negative: str) -> str:
    """The part of a negative prompt that the reference's T5 reads: as many tokens as the prompt has."""
    length = len(tokenizer.encode(prompt))
    if length == len(tokenizer.after):  # nothing but the end token
        return ""
    tokenizer = replace(tokenizer, max_length=min(length, tokenizer.max_length))
    while lost := tokenizer.truncated_part(negative):
        negative = negative.removesuffix(lost)
    return negative


# Network by network -----------------------------------------------------------------------------------------


def stages_of_networks(folder: Path) -> list[Stage]:
    """Every network of the reference on random inputs: a batch of two with different lengths, odd times."""
    pipe = load_reference(folder)
    clap, t5, gpt2 = pipe.text_encoder, pipe.text_encoder_2, pipe.language_model
    clap_dim, t5_dim, gpt2_dim = clap.config.projection_dim, t5.config.d_model, gpt2.config.n_embd
    channels, mels = pipe.unet.config.in_channels, pipe.vocoder.config.model_in_dim
    generator = torch.Generator().manual_seed(0)
    stages: list[Stage] = []

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def tokens(vocabulary: int, mask: Tensor, pad_id: int) -> Tensor:
        ids = torch.randint(pad_id + 1, vocabulary, mask.shape, generator=generator)
        return ids.masked_fill(~mask, pad_id)

    def mask_of(*lengths: int) -> Tensor:
        return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # (batch, seq)

    for lengths in ((9, 1), (40, 9), (510, 128)):
        mask = mask_of(*lengths)
        ids = tokens(clap.config.text_config.vocab_size, mask, pad_id=1)
        expected = clap.get_text_features(ids, attention_mask=mask.long()).pooler_output
        stages.append(Stage(f"CLAP text, {lengths} tokens", expected, through("clap_text", ids, mask)))

    for lengths in ((1, 1), (9, 1), (40, 9), (128, 40)):
        mask = mask_of(*lengths)
        ids = tokens(t5.config.vocab_size, mask, pad_id=0)
        text_context = t5(ids, attention_mask=mask.long())[0]
        stages.append(Stage(f"T5, {lengths} tokens", text_context, through("t5", ids, mask)))

        clap_vector = normal(2, clap_dim)
        projected = pipe.projection_model(clap_vector[:, None], text_context, torch.ones(2, 1), mask.long())
        vectors, joined = projected.hidden_states, projected.attention_mask.bool()
        ours = through("projection", clap_vector, text_context, mask)
        stages.append(Stage(f"projection, {lengths} tokens", (vectors, joined), ours))

        expected = pipe.generate_language_model(
            vectors, max_new_tokens=gpt2.config.max_new_tokens, attention_mask=joined.long()
        )
        ours = through("gpt2", vectors, joined, method="generate")
        stages.append(Stage(f"GPT-2, {lengths} tokens", expected, ours))

    mel = mels // pipe.vae_scale_factor
    mask = mask_of(40, 9)
    for time, t in ((61, 999), (125, 637), (250, 1)):
        x, t = normal(2, channels, time, mel), torch.tensor(t)
        gpt2_context, text_context = normal(2, 8, gpt2_dim), normal(2, 40, t5_dim)
        eps = pipe.unet(
            x, t, gpt2_context, encoder_hidden_states_1=text_context, encoder_attention_mask_1=mask.long()
        ).sample
        ours = through("unet", x, t, gpt2_context, text_context, mask)
        stages.append(Stage(f"UNet, {time} frames, t={t}", eps, ours))

    for time in (61, 125):
        stages += stages_of_vae(pipe, normal(2, channels, time, mel), f", {time} frames")

    for time in (1, 61, 250):
        spectrogram = normal(2, time, mels)
        expected = pipe.vocoder(spectrogram)
        stages.append(Stage(f"HiFi-GAN, {time} frames", expected, through("hifigan", spectrogram)))

    stages.append(stage_of_clap_audio(pipe, 0.1 * normal(2, 3 * pipe.vocoder.config.sampling_rate)))
    return stages


# The table --------------------------------------------------------------------------------------------------


def report(stages: Sequence[Stage], model: AudioLDM2, at_least: float) -> bool:
    """Print a line for each stage; whether all reach `at_least` decibels."""
    width = max(len(stage.name) for stage in stages)
    print(f"{'stage':{width}}           shape  max error  relative      dB")
    missed = []
    for stage in stages:
        found, expected = tuple_of(stage.ours(model)), tuple_of(stage.expected)
        shapes = [tuple(tensor.shape) for tensor in found], [tuple(tensor.shape) for tensor in expected]
        if shapes[0] != shapes[1]:
            print(f"{stage.name:{width}}  ours has the shape {shapes[0]}, the reference {shapes[1]}")
            missed.append(stage.name)
            continue
        largest, relative = errors(found, expected)
        decibels = math.inf if relative == 0 else -20 * math.log10(relative)
        short = not decibels >= at_least  # also when it is not a number
        shape = "x".join(map(str, expected[0].shape))
        numbers = f"{shape:>14}  {largest:9.1e}  {relative:8.1e}  {decibels:6.1f}"
        print(f"{stage.name:{width}}  {numbers}{'  <' if short else ''}", flush=True)
        if short:
            missed.append(stage.name)
    if missed:
        print(f"below {at_least:g} dB: {', '.join(missed)}")
    return not missed


def tuple_of(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else value


def errors(found: Sequence[Tensor], expected: Sequence[Tensor]) -> tuple[float, float]:
    """The largest error, and the RMS of the error over that of what is expected."""
    ours, theirs = (torch.cat([tensor.double().flatten() for tensor in side]) for side in (found, expected))
    error = ours - theirs
    return error.abs().max().item(), (error.norm() / theirs.norm()).item()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add, default = parser.add_argument, "default: %(default)s"
    add("checkpoint", help="a folder in the diffusers layout, or a hub id such as cvssp/audioldm2")
    add("--ours", metavar="CHECKPOINT", help="what ours loads, such as a conversion (default: the same)")
    add("--networks", action="store_true", help="network by network on random inputs; no sound is made")
    add("--prompt", default="Techno music with a strong, upbeat tempo and high melodic riffs", help=default)
    add("--negative-prompt", default="Low quality.", help=default)
    add("--duration", type=float, default=10.24, metavar="SECONDS", help=default)
    add("--sampler", choices=SCHEDULERS, default="ddim", help=default)
    add("--steps", type=int, default=10, help=default)
    add("--guidance", type=float, default=3.5, metavar="SCALE", help=f"{default}; 1 turns it off")
    add("--seed", type=int, default=0, help=f"of the noise, which the reference draws; {default}")
    add("--threads", type=int, help="of PyTorch (default: its own choice)")
    add("--at-least", type=float, metavar="DB", help="for every stage (default: 60; with --networks 100)")
    chosen = parser.parse_args(arguments)
    if not 1 <= chosen.steps <= 1000 or not 0.04 <= chosen.duration < 3600:
        parser.error("--steps has to be from 1 to 1000, and --duration from 0.04 to 3600 seconds")

    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    for library in (transformers, diffusers):  # the bar that remains counts the reference's steps
        library.utils.logging.disable_progress_bar()
    try:
        folder = hub.find(chosen.checkpoint)
        if not (folder / "model_index.json").is_file():
            raise WeightsError(f"{folder} is not in the diffusers layout, the only one the reference reads.")
        model = audioldm2.load(chosen.ours or folder, device="cpu", dtype="float32")
    except (ValueError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    with torch.no_grad():
        if chosen.networks:
            stages = stages_of_networks(folder)
        else:
            stages = stages_of_a_sound(folder, request_of(chosen, model))
        gc.collect()  # the reference is not needed any more, and its modules hold each other
        at_least = chosen.at_least if chosen.at_least is not None else 100 if chosen.networks else 60
        return 0 if report(stages, model, at_least) else 1


def request_of(chosen: argparse.Namespace, model: AudioLDM2) -> Request:
    request = Request(
        prompt=chosen.prompt,
        negative_prompt=chosen.negative_prompt,
        seconds=chosen.duration,
        sampler=chosen.sampler,
        steps=chosen.steps,
        guidance=chosen.guidance,
        seed=chosen.seed,
    )
    if request.guided:
        cut = cut_negative_prompt(model.t5_tokenizer, request.prompt, request.negative_prompt)
        if cut != request.negative_prompt:
            print(f"the reference cuts the negative prompt to the prompt's length; both sides get {cut!r}")
            request = replace(request, negative_prompt=cut)
    return request


if __name__ == "__main__":
    sys.exit(main())
