"""What is known of the published checkpoints, and how a checkpoint finds the facts that apply to it."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from audioldm2 import NoiseSchedule, convert
from audioldm2.checkpoints import storage
from audioldm2.models import build_on_meta
from audioldm2.prompt.tokenizers import ClapTokenizer, T5Tokenizer
from audioldm2.verification import Subject, published
from audioldm2.verification.identity import identity
from audioldm2.verification.published import BASE, LARGE_FACTS, MUSIC, PUBLISHED, TOKEN_TABLE, keys_hash
from audioldm2.verification.settings import settings
from audioldm2.verification.subject import DIFFUSERS, ORIGINAL

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the published files' lists of keys")
LISTS = {
    "text_encoder": "text_encoder.clap",
    "text_encoder_2": "text_encoder_2.t5",
    "projection_model": "projection_model.base",
    "language_model": "language_model.gpt2",
    "unet": "unet.base",
    "vae": "vae",
    "vocoder": "vocoder",
}
LISTS_OF = {
    "cvssp/audioldm2": LISTS,
    "cvssp/audioldm2-large": LISTS | {"unet": "unet.large"},
    "audioldm2-speech": LISTS
    | {
        "text_encoder_2": "text_encoder_2.vits",
        "projection_model": "projection_model.speech",
        "unet": "unet.speech",
    },
}
FOLDERS = {
    "cvssp/audioldm2": "cvssp_audioldm2",
    "cvssp/audioldm2-music": "cvssp_audioldm2-music",
    "cvssp/audioldm2-large": "cvssp_audioldm2-large",
    "audioldm2-speech": "anhnct_audioldm2_speech_DERIVED",
}
BY_NAME = {facts.name: facts for facts in PUBLISHED}


def listed(path: str) -> Iterable[tuple[str, list[int]]]:
    return [
        (key, each["shape"]) for key, each in json.loads((DATA / "keys" / f"{path}.json").read_text()).items()
    ]


def opened(facts: published.Facts, source: str, origin: str = "") -> Subject:
    """A subject with the configs of a published checkpoint and no weights."""
    checkpoint = storage.Checkpoint(
        configs=dict(facts.configs),
        states={},
        schedule={},
        clap_mel={},
        tokenizers={},
        source=origin or source,
    )
    return Subject(source, Path(source), ORIGINAL, checkpoint, torch.device("cpu"))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("facts", "total"), [(BASE, 1_118_354_316), (MUSIC, 1_118_354_316), (LARGE_FACTS, 1_489_423_116)]
)
def test_parameter_counts_are_those_of_our_networks(facts, total):
    found = {
        name: sum(parameter.numel() for parameter in build_on_meta(name, config).parameters())
        for name, config in facts.configs.items()
    }
    assert found == facts.parameters
    assert sum(found.values()) + TOKEN_TABLE == total


def test_slices_have_ten_samples_within_their_sounds():
    for recorded in (*BASE.slices, *LARGE_FACTS.slices):
        samples = recorded.latents[2] * 4 * 160
        assert len(recorded.values) == 10 and recorded.first + 10 <= samples
        assert all(-1 < value < 1 for value in recorded.values)


@pytest.mark.parametrize(
    ("source", "origin", "expected"),
    [
        ("cvssp/audioldm2", "", ["cvssp/audioldm2"]),
        ("cvssp/audioldm2-music", "", ["cvssp/audioldm2-music"]),
        ("./audioldm2-full.pth", "", ["cvssp/audioldm2"]),
        ("./mine", "/somewhere/audioldm2-music-665k.pth", ["cvssp/audioldm2-music"]),
        ("./mine", "", ["cvssp/audioldm2", "cvssp/audioldm2-music"]),
    ],
)
def test_twins_of_one_architecture_are_told_apart_by_name(source, origin, expected):
    assert [facts.name for facts in opened(BASE, source, origin).candidates] == expected


@pytest.mark.parametrize("facts", PUBLISHED, ids=lambda facts: facts.name)
def test_architecture_is_recognised_whatever_the_name(facts):
    names = [each.name for each in opened(facts, "./mine").candidates]
    assert facts.name in names and len(names) == (2 if facts.configs is BASE.configs else 1)


def test_named_checkpoint_with_another_architecture_fails():
    subject = opened(BASE, "./mine")
    subject.named = "cvssp/audioldm2-large"
    found = identity(subject)
    assert found.status == "failed"
    assert (
        found.problems[0].startswith("'unet': transformers is")
        and "depth is 1, expected 2" in found.problems[0]
    )


def test_hash_of_keys_ignores_order_and_constant_buffers_and_nothing_else():
    rows = [("a.weight", (2, 3)), ("b.bias", (3,))]
    more = [*rows[::-1], ("x.position_ids", (1, 5)), ("encoder.embed_tokens.weight", (9, 9))]
    assert keys_hash(rows) == keys_hash(more)
    assert keys_hash(rows) != keys_hash([("a.weight", (3, 2)), ("b.bias", (3,))])
    assert keys_hash(rows) != keys_hash(rows[:1])


# Beside the published lists ---------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize("name", LISTS_OF)
def test_key_lists_of_the_diffusers_layout_have_these_hashes(name):
    found = {folder: keys_hash(listed(f"hf/{path}")) for folder, path in LISTS_OF[name].items()}
    assert found == BY_NAME[name].folders


@needs_data
@pytest.mark.parametrize("facts", PUBLISHED, ids=lambda facts: facts.name)
def test_key_lists_of_original_files_have_these_hashes(facts):
    files = [alias for alias in facts.aliases if (DATA / "keys" / "original" / f"{alias}.json").is_file()]
    assert files
    for file in files:
        summary = json.loads((DATA / "keys" / "original" / f"{file}.summary.json").read_text())
        count, digest = keys_hash(listed(f"original/{file}"))
        assert (count, summary["unique_storage_bytes"], digest) == facts.original


@pytest.mark.exhaustive
@needs_data
@pytest.mark.parametrize("name", FOLDERS)
def test_published_configs_find_their_facts(name):
    """Read as a folder of which only the configs are there: the networks are built without memory."""
    folder = DATA / "configs" / FOLDERS[name]
    try:
        checkpoint = convert.read_diffusers(folder, source=name.replace("-speech", "-speech-ljspeech"))
    except RuntimeError as error:  # the derived speech folder lacks its scaling factor and its phonemes
        assert "speech" in name, error
        pytest.skip(str(error))
    subject = Subject(str(folder), folder, DIFFUSERS, checkpoint, torch.device("cpu"))
    assert [facts.name for facts in subject.candidates] == [name]
    assert identity(subject).status == settings(subject).status == "passed"
    assert storage.schedule_of(checkpoint, name) == NoiseSchedule() == BY_NAME[name].schedule
    assert set(subject.broken) == set(checkpoint.configs)  # no weights are there


@needs_data
def test_published_vocabularies_give_these_ids():
    folders = {"clap_tokenizer": "roberta", "t5_tokenizer": "t5"}
    for name, kind in (("clap_tokenizer", ClapTokenizer), ("t5_tokenizer", T5Tokenizer)):
        tokenizer = kind.from_folder(DATA / "tokenizers" / folders[name])
        for text, ids in BASE.tokens[name].items():
            assert tuple(tokenizer.encode(text)) == ids


def test_schedule_has_the_published_ends():
    schedule = BASE.schedule
    assert 1 - schedule.alpha_bar_at(0) == pytest.approx(0.0015)
    assert math.isclose(1 - schedule.alpha_bar_at(999) / schedule.alpha_bar_at(998), 0.0195)
