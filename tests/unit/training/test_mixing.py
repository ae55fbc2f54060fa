"""Old sounds among new ones."""

import pytest
import torch
from torch import Tensor

from audioldm2.errors import ArgumentError
from audioldm2.training.mixing import Mixed, Old, as_old, parse_mix
from audioldm2.training.spoken import Spoken


class Counted:
    """Clip i is filled with `sign * (i + 1)`."""

    def __init__(self, sign: int) -> None:
        self.sign = sign

    def batch(self, step: int, size: int) -> tuple[Tensor, list[str]]:
        numbers = [self.sign * (index + 1) for index in range(step * size, (step + 1) * size)]
        return torch.tensor(numbers).float().unsqueeze(1), [str(number) for number in numbers]

    def captions(self) -> list[str]:
        return [str(self.sign)]


def test_share_is_exact_and_both_sources_are_read_in_order():
    mixed = Mixed(Counted(1), Counted(-1), 0.3)
    batches = [mixed.batch(step, 4) for step in range(10)]
    wave = torch.cat([wave for wave, _ in batches]).squeeze(1)
    old, new = -wave[wave < 0], wave[wave > 0]
    assert old.tolist() == list(range(1, 13)) and new.tolist() == list(range(1, 29))
    assert [caption for _, captions in batches for caption in captions] == [f"{int(x)}" for x in wave]
    assert torch.equal(mixed.batch(7, 4)[0], batches[7][0])
    assert mixed.captions() == ["1", "-1"]


def test_captions_of_old_clips_are_marked():
    mixed = Mixed(Counted(1), Counted(-1), 0.3)
    captions = mixed.batch(0, 10)[1] + mixed.captions()
    assert all(isinstance(each, Old) == each.startswith("-") for each in captions)
    voice = as_old(Spoken("a voice", "one", "wʌn"))
    assert isinstance(voice, Old) and (voice, voice.transcription, voice.phonemes) == (
        "a voice",
        "one",
        "wʌn",
    )


@pytest.mark.parametrize("share", [0.0, 1.0, 2.5])
def test_share_is_between_none_and_all(share: float):
    with pytest.raises(ArgumentError, match="it has to have a share above 0 and below 1"):
        Mixed(Counted(1), Counted(-1), share)


@pytest.mark.parametrize(
    "text, folder, share",
    [
        ("old", "old", 0.25),
        ("old:0.5", "old", 0.5),
        ("C:/old", "C:/old", 0.25),
        ("C:/old:0.1", "C:/old", 0.1),
    ],
)
def test_mix_names_a_folder_and_a_share(text: str, folder: str, share: float):
    assert parse_mix(text) == (folder, share)
