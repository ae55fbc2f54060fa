"""Options and requests: defaults, rules, their sentences, and that nothing but an ArgumentError is raised."""

import math
import pickle
import re
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audioldm2.errors import ArgumentError, require_number, require_texts, require_whole
from audioldm2.options import LARGEST_SEED, GenerationOptions, SamplingOptions, from_keywords, negatives
from audioldm2.request import Request
from audioldm2.sampling.samplers import SAMPLERS
from audioldm2.sampling.schedule import NoiseSchedule
from audioldm2.sound_shape import SoundShape
from tests.support.sizes import full_or

SHAPE = SoundShape(sample_rate=16000, hop=160, downsampling=4, latent_channels=8, mels=64)  # as published
SCHEDULE = NoiseSchedule()
DEFAULTS = dict(
    prompt="a dog", negative_prompt=None, audio_length_in_s=None, num_inference_steps=25, guidance_scale=3.5,
    num_waveforms_per_prompt=1, sampler="dpmpp_2m", eta=0.0, karras=False, guidance_interval=None,
    guidance_rescale=0.0, seed=0, latents=None,
)  # fmt: skip


def request(**changes) -> Request:
    arguments = DEFAULTS | changes
    prompt = arguments.pop("prompt")
    return Request.resolve(prompt, from_keywords(GenerationOptions, None, arguments), SHAPE, SCHEDULE)


def refused(**changes) -> str:
    with pytest.raises(ValueError) as caught:
        request(**changes)
    return str(caught.value)


# ---- what is made explicit


def test_defaults_are_filled_in():
    found = request()
    assert (found.prompts, found.negative_prompts, found.seeds) == (["a dog"], [""], [0])
    assert (found.seconds, found.latent_frames, found.candidates) == (10.0, 250, 1)
    assert {name: getattr(found.options, name) for name in DEFAULTS if name != "prompt"} == {
        name: value for name, value in DEFAULTS.items() if name != "prompt"
    }


@pytest.mark.parametrize(
    ("scale", "guided"), [(-1, False), (0, False), (1, False), (1.01, True), (100, True)]
)
def test_guidance_is_off_up_to_one(scale: float, guided: bool):
    assert request(guidance_scale=scale).options.guided == guided


def test_negative_prompt_serves_all_or_one_prompt_each():
    assert request(prompt=("a", "b"), negative_prompt="noise").negative_prompts == ["noise", "noise"]
    assert request(prompt=["a", "b"], negative_prompt=["x", ""]).negative_prompts == ["x", ""]
    assert request(prompt=["", "b"]).prompts == ["", "b"]


def test_accepts_numpy_numbers():
    found = request(
        num_inference_steps=np.int64(7), guidance_scale=np.float32(2.5), seed=np.uint8(3), eta=np.float16(0),
        audio_length_in_s=np.float64(2), num_waveforms_per_prompt=np.int32(2),
        guidance_rescale=Fraction(1, 2),
    )  # fmt: skip
    options = found.options
    assert (options.num_inference_steps, options.guidance_scale, found.seeds) == (7, 2.5, [3])
    assert {type(each) for each in (options.num_inference_steps, found.seeds[0], found.candidates)} == {int}
    assert {type(each) for each in (options.guidance_scale, options.guidance_rescale, found.seconds)} == {
        float
    }


# ---- seconds, frames and samples


def frames_of_the_reference(seconds: float) -> tuple[int, int]:
    """Mel frames and samples, as `AudioLDM2Pipeline.__call__` of diffusers computes them."""
    factor = np.prod([5, 4, 2, 2, 2]) / 16000
    height = int(seconds / factor)
    if height % 4 != 0:
        height = int(np.ceil(height / 4)) * 4
    return height, int(seconds * 16000)


@settings(max_examples=full_or(2000, 300), deadline=None)
@given(st.floats(0.01, 600) | st.integers(1, 60000).map(lambda n: n / 100))
@example(0.01)
@example(10.24)
@example(0.29)  # 0.29 / 0.01 is 28.999..., so the sound is 8 ms short, there as here
@example(81952 / 16000)
def test_duration_gives_the_frames_and_samples_of_the_reference(seconds: float):
    found = request(audio_length_in_s=seconds)
    assert (found.latent_frames * 4, SHAPE.samples(found.seconds)) == frames_of_the_reference(seconds)
    assert found.latent_frames == math.ceil(int(seconds / 0.01) / 4)


def test_latents_set_the_duration():
    for frames in range(1, 600):
        found = request(latents=torch.zeros(1, 8, frames, 16))
        assert found.latent_frames == frames
        assert found.seconds == pytest.approx(frames * 0.04)


def test_rejects_durations_out_of_range():
    assert request(audio_length_in_s=0.01).latent_frames == 1
    for seconds in (0, -1, 0.0099, 1e-300, 86_401, 1e300):
        assert refused(audio_length_in_s=seconds).startswith(
            f"audio_length_in_s is {seconds!r}; it has to be "
        )


# ---- seeds


def test_generators_follow_seed_and_candidate():
    found = request(prompt=["a", "b"], seed=[3, 100], num_waveforms_per_prompt=2)
    assert [generator.initial_seed() for generator in found.generators()] == [3, 4, 100, 101]
    assert all(generator.device.type == "cpu" for generator in found.generators())
    alone = request(prompt="b", seed=101).generators()[0]
    assert torch.equal(torch.randn(5, generator=alone), torch.randn(5, generator=found.generators()[3]))


def test_seed_serves_all_prompts_and_none_draws_one():
    assert request(prompt=["a", "b"], seed=7).seeds == [7, 7]
    drawn = [request(seed=None).seeds[0] for _ in range(50)]
    assert len(set(drawn)) == 50 and all(0 <= seed < 2**31 for seed in drawn)


def test_random_seed_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    for generator in request(seed=None).generators():
        torch.randn(3, generator=generator)
    assert torch.equal(torch.get_rng_state(), before)


def test_largest_seed_is_followed_by_zero():
    found = request(seed=LARGEST_SEED, num_waveforms_per_prompt=2)
    assert [generator.initial_seed() for generator in found.generators()] == [LARGEST_SEED, 0]


# ---- every sentence


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(prompt=3), "prompt is 3; it has to be a text or a list of at least one text."),
        (
            dict(prompt=None),
            "prompt is None; it has to be a text or a list of at least one text, unless there is an "
            "audio_prompt.",
        ),
        (dict(prompt=b"a"), "prompt is b'a'; it has to be a text or a list of at least one text."),
        (dict(prompt=[]), "prompt is []; it has to be a text or a list of at least one text."),
        (dict(prompt=["a", 3]), "prompt[1] is 3; it has to be a text."),
        (
            dict(negative_prompt=3),
            "negative_prompt is 3; it has to be a text or a list of at least one text.",
        ),
        (dict(negative_prompt=[None]), "negative_prompt[0] is None; it has to be a text."),
        (
            dict(prompt=["a", "b"], negative_prompt=["x"]),
            "negative_prompt has 1 entries for 2 prompts; "
            "it has to have one for each prompt, or be one text for all.",
        ),
        (
            dict(num_waveforms_per_prompt=0),
            "num_waveforms_per_prompt is 0; it has to be a whole number of at least 1.",
        ),
        (
            dict(num_waveforms_per_prompt=True),
            "num_waveforms_per_prompt is True; it has to be a whole number of at least 1.",
        ),
        (dict(audio_length_in_s="10"), "audio_length_in_s is '10'; it has to be a finite number."),
        (dict(audio_length_in_s=math.nan), "audio_length_in_s is nan; it has to be a finite number."),
        (dict(audio_length_in_s=math.inf), "audio_length_in_s is inf; it has to be a finite number."),
        (dict(num_inference_steps=0), "num_inference_steps is 0; it has to be a whole number of at least 1."),
        (
            dict(num_inference_steps=2.0),
            "num_inference_steps is 2.0; it has to be a whole number of at least 1.",
        ),
        (
            dict(num_inference_steps=1001),
            "num_inference_steps is 1001; it has to be a whole number from 1 to 1000.",
        ),
        (
            dict(num_inference_steps=3, sampler="pndm"),
            "num_inference_steps is 3; it has to be a whole number from 4 to 1000 for pndm.",
        ),
        (dict(sampler="ddpm"), f"sampler is 'ddpm'; it has to be one of {', '.join(SAMPLERS)}."),
        (dict(sampler=["ddim"]), f"sampler is ['ddim']; it has to be one of {', '.join(SAMPLERS)}."),
        (dict(karras=1), "karras is 1; it has to be True or False."),
        (dict(eta=None), "eta is None; it has to be a finite number."),
        (dict(sampler="ddim", eta=2), "eta is 2.0; it has to be a number from 0 to 1."),
        (dict(eta=0.5), "eta is 0.5; it has to be 0 for dpmpp_2m (samplers that take eta: ddim)."),
        (dict(guidance_scale="3"), "guidance_scale is '3'; it has to be a finite number."),
        (dict(guidance_rescale=1.5), "guidance_rescale is 1.5; it has to be a number from 0 to 1."),
        (dict(guidance_rescale=-0.5), "guidance_rescale is -0.5; it has to be a number from 0 to 1."),
        (dict(guidance_interval=(1, "x")), "guidance_interval[1] is 'x'; it has to be a number."),
        (
            dict(guidance_interval=(math.inf, 2)),
            "guidance_interval[0] is inf; it has to be a finite number.",
        ),
        (dict(seed=-1), f"seed is -1; it has to be a whole number from 0 to {2**63 - 1}."),
        (dict(seed=2**63), f"seed is {2**63}; it has to be a whole number from 0 to {2**63 - 1}."),
        (dict(seed="0"), f"seed is '0'; it has to be a whole number from 0 to {2**63 - 1}."),
        (
            dict(seed=[0, 1]),
            "seed has 2 entries for 1 prompts; it has to have one for each prompt, or be one for all.",
        ),
        (dict(seed=[True]), f"seed[0] is True; it has to be a whole number from 0 to {2**63 - 1}."),
        (
            dict(latents=[[0.0]]),
            "latents is a list; it has to be a float tensor (prompts * waveforms, channels, time, mel).",
        ),
        (
            dict(latents=torch.zeros(1, 8, 25, 16, dtype=torch.int64)),
            "latents has dtype torch.int64; "
            "it has to be a float tensor (prompts * waveforms, channels, time, mel).",
        ),
        (
            dict(latents=torch.zeros(1, 8, 25, 16).to_sparse()),
            "latents is sparse, nested or without data; "
            "it has to be a float tensor (prompts * waveforms, channels, time, mel).",
        ),
        (
            dict(latents=torch.full((1, 8, 25, 16), math.nan)),
            "latents holds NaN or infinite values; it has to hold finite values only.",
        ),
        (
            dict(latents=torch.zeros(1, 8, 25, 16), audio_length_in_s=2),
            "latents has shape (1, 8, 25, 16); it has to have shape (1, 8, 50, 16) "
            "for 2 seconds of these prompts and waveforms.",
        ),
        (
            dict(latents=torch.zeros(8, 25, 16)),
            "latents has shape (8, 25, 16); it has to have shape (1, 8, 250, 16) "
            "for 10 seconds of these prompts and waveforms.",
        ),
    ],
)
def test_sentences_of_argument_errors(changes: dict, sentence: str):
    assert refused(**changes) == sentence


@pytest.mark.parametrize("interval", [3, "ab", (), (1,), (1, 2, 3), (2, 1), (1, 1), (-1, 2), {0: 1, 1: 2}])
def test_rejects_intervals_that_are_not_two_rising_numbers(interval: object):
    assert refused(guidance_interval=interval) == (
        f"guidance_interval is {interval!r}; it has to be two numbers (lo, hi) with 0 <= lo < hi: "
        "guidance is on where lo < noise / signal <= hi."
    )


def test_infinite_interval_end_becomes_the_largest_float():
    lo, hi = request(guidance_interval=[0, math.inf]).options.guidance_interval
    assert (lo, hi) == (0.0, sys.float_info.max)


def test_messages_shorten_long_values():
    digits = 10**5000  # of more digits than Python writes
    assert refused(seed=digits).startswith("seed is a int too long to show; it has to be a whole number")
    assert refused(audio_length_in_s=digits).startswith(
        "audio_length_in_s is a int too long to show; it has to"
    )
    assert len(refused(prompt=["a", ["x"] * 1000])) < 150
    assert len(refused(sampler="x" * 10**6)) < 300


# ---- any value of any type

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 30),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.sampled_from([*SAMPLERS]),
    st.complex_numbers(),
    st.decimals(),
    st.fractions(),
    st.just(10**400),
    st.just(object()),
    st.just(float),
    st.just(range(2)),
    st.sampled_from([np.int64(3), np.float32(0.5), np.float16(2), np.float64("nan"), np.longdouble(1)]),
    st.just(np.bool_(True)),
    st.sampled_from([np.zeros(()), np.zeros(2), np.array(["a"]), np.zeros((1, 8, 25, 16))]),
    st.sampled_from(
        [
            torch.zeros(()), torch.zeros(2), torch.tensor(3), torch.tensor(True), torch.zeros(1, 8, 25, 16),
            torch.zeros(1, 8, 250, 16), torch.zeros(1, 8, 0, 16), torch.zeros(1, 8, 25, 16, device="meta"),
            torch.zeros(1, 8, 25, 16, dtype=torch.float8_e5m2), torch.zeros(1, 8, 25, 16).to_sparse(),
            torch.zeros(1, 8, 25, 16, dtype=torch.complex64), torch.full((1, 8, 250, 16), math.inf),
            torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        ]
    ),
)  # fmt: skip
ANYTHING = st.recursive(
    ODD,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=2), inner, max_size=2)
        | st.sets(st.integers(), max_size=2)
    ),
    max_leaves=4,
)


@pytest.mark.slow
@settings(max_examples=full_or(1200, 300), deadline=None)
@given(st.dictionaries(st.sampled_from([*DEFAULTS]), ANYTHING, min_size=1, max_size=3))
@example({"audio_length_in_s": 1.7e308})
@example({"guidance_interval": [0, torch.zeros(2)]})
@example({"guidance_interval": (np.zeros(2), 1)})
def test_any_value_gives_a_request_or_names_an_argument(changes: dict):
    try:
        found = request(**changes)
    except ValueError as error:
        names = [re.escape(name) for name in changes] + ["steps="] * ("num_inference_steps" in changes)
        names += ["eta=", "karras="] * ("sampler" in changes) + ["latents"] * ("audio_length_in_s" in changes)
        names += ["num_inference_steps", "steps="] * ("sampler" in changes)
        names += ["negative_prompt", "seed", "latents"] * ("prompt" in changes)
        names += ["latents"] * ("num_waveforms_per_prompt" in changes)
        assert re.match(rf"({'|'.join(names)})", str(error)), str(error)
        assert len(str(error)) < 400 and str(error).endswith("."), str(error)
        return
    options = found.options
    assert found.latent_frames >= 1 and found.candidates >= 1 and 1 <= options.num_inference_steps <= 1000
    assert len(found.prompts) == len(found.negative_prompts) == len(found.seeds) >= 1
    assert all(isinstance(text, str) for text in found.prompts + found.negative_prompts)
    assert all(type(seed) is int and 0 <= seed <= LARGEST_SEED for seed in found.seeds)
    assert math.isfinite(options.guidance_scale)
    assert 0 <= options.guidance_rescale <= 1 and 0 <= options.eta <= 1


@settings(max_examples=full_or(500, 150), deadline=None)
@given(ANYTHING, st.integers(1, 3))
def test_single_checks_raise_argument_errors_only(value: object, prompts: int):
    for call in (
        lambda: require_texts("text", value),
        lambda: negatives(value, prompts),
        lambda: require_whole("count", value, 1, 9),
        lambda: require_number("scale", value),
    ):
        try:
            call()
        except ArgumentError as error:
            assert re.match("text|negative_prompt|count|scale", str(error)), str(error)


@pytest.mark.slow
@settings(max_examples=full_or(500, 150), deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "num_inference_steps": ANYTHING | st.integers(1, 1000),
            "sampler": ANYTHING | st.sampled_from([*SAMPLERS]),
            "eta": ANYTHING | st.sampled_from([0.0, 0.5, 1]),
            "karras": ANYTHING | st.booleans(),
            "guidance_scale": ANYTHING,
            "guidance_interval": ANYTHING,
            "guidance_rescale": ANYTHING,
        },
    )
)
def test_sampling_options_take_anything_or_name_the_argument(arguments: dict):
    try:
        SamplingOptions(**arguments).check_schedule(SCHEDULE)
    except ArgumentError as error:
        assert re.match(
            "num_inference_steps|sampler|eta|karras|guidance_(scale|interval|rescale)", error.name
        )


def test_options_whole_and_by_keyword():
    base = GenerationOptions(num_inference_steps=7, seed=3)
    found = from_keywords(GenerationOptions, base, {"seed": 4})
    assert (found.num_inference_steps, found.seed) == (7, 4)
    with pytest.raises(TypeError, match="unknown option 'num_steps'; did you mean 'num_inference_steps'"):
        from_keywords(GenerationOptions, None, {"num_steps": 3})
    with pytest.raises(ArgumentError, match="options is 3; it has to be of the type GenerationOptions"):
        from_keywords(GenerationOptions, 3, {})


def test_argument_errors_carry_name_value_and_what_is_allowed():
    with pytest.raises(ArgumentError) as caught:
        request(num_inference_steps=0)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.name, error.value) == ("num_inference_steps", 0)
    assert error.allowed == "be a whole number of at least 1"
    assert error.sentence("--steps") == "--steps is 0; it has to be a whole number of at least 1."
