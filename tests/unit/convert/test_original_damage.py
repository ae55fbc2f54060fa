"""Damaged files: whatever byte is wrong, the outcome is tensors or a WeightsError, and no code runs."""

import os
import pickle
import random
import re
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import audioldm2
from audioldm2 import convert
from audioldm2.checkpoints import storage
from audioldm2.errors import WeightsError
from tests.support import checkpoints, originals
from tests.support.checkpoints import assert_same_states
from tests.support.originals import conversion_error, convert_file, table_of
from tests.support.sizes import full_or


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> bytes:
    """The bytes of a whole file without an average."""
    file = originals.save(tmp_path_factory.mktemp("small") / "a.pth", table_of("t5"))
    assert_same_states(convert_file(file), originals.make("t5").states)
    return file.read_bytes()


@pytest.fixture
def file(small, tmp_path) -> Path:
    """A copy of it, to be damaged at will."""
    path = tmp_path / "file.pth"
    path.write_bytes(small)
    return path


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_rejects_file_cut_anywhere(file, suffix):
    """At every fortieth of its length, and in each of its last 64 bytes."""
    if suffix == "safetensors":
        file = file.with_suffix(".safetensors")
        save_file({key: each.clone() for key, each in table_of("t5").items()}, file)
    size = file.stat().st_size
    for length in [*(size - i for i in range(1, 65)), *(size * i // 40 for i in reversed(range(40)))]:
        os.truncate(file, length)  # shorter each time
        assert f"{file} is truncated or damaged" in conversion_error(file)


def parts_of(file: Path) -> dict[str, range]:
    """Return where the parts of a zip file lie."""
    with zipfile.ZipFile(file) as archive:
        first = next(each for each in archive.infolist() if each.filename.endswith("data.pkl"))
        return {
            "its first bytes": range(first.header_offset, first.header_offset + 60),
            "its pickle": range(first.header_offset + 60, first.header_offset + 60 + first.file_size),
            "its directory": range(archive.start_dir, file.stat().st_size),
            "its tensors": range(first.header_offset + 200 + first.file_size, archive.start_dir),
        }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*noise schedule")
@pytest.mark.parametrize(
    ("part", "times", "outcomes"),
    [
        ("its first bytes", full_or(10, 5), {"tensors", "sentence"}),
        ("its pickle", full_or(20, 8), {"tensors", "sentence"}),
        ("its directory", full_or(20, 8), {"tensors", "sentence"}),
        ("its tensors", full_or(10, 3), {"tensors"}),
    ],
)
def test_flipped_bit_converts_or_raises_weights_error(file, part, times, outcomes):
    """A wrong bit in a weight that stays a number cannot be detected; every other outcome is an error."""
    places, found = random.Random(part), set()
    where = parts_of(file)[part]
    for _ in range(times):
        place, bit = places.choice(where), 1 << places.randrange(8)
        flip(file, place, bit)
        try:
            convert_file(file)
            found.add("tensors")
        except WeightsError as error:
            assert str(file) in str(error)
            found.add("sentence")
        flip(file, place, bit)
    assert found == outcomes
    assert_same_states(convert_file(file), originals.make("t5").states)


def flip(file: Path, place: int, bit: int) -> None:
    with open(file, "r+b") as opened:
        opened.seek(place)
        (byte,) = opened.read(1)
        opened.seek(place)
        opened.write(bytes([byte ^ bit]))


def repack(file: Path, method: int = zipfile.ZIP_STORED, without: str = "?") -> None:
    """Write the archive again without the members whose name has this end."""
    content = file.read_bytes()
    source = file.with_name("source.zip")
    source.write_bytes(content)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(file, "w", method) as new:
        for each in old.infolist():
            if not each.filename.endswith(without):
                new.writestr(each.filename, old.read(each))
    source.unlink()


@pytest.mark.parametrize("member", ["/data/5", "/data/17", "/data.pkl", "/version"])
def test_rejects_archive_without_a_member(file, member):
    repack(file, without=member)
    assert f"{file} is truncated or damaged" in conversion_error(file)


def test_repacked_archive_converts_alike(file):
    repack(file)
    assert_same_states(convert_file(file), originals.make("t5").states)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*noise schedule")
@pytest.mark.parametrize("factor", ["stored", "given"])
def test_compressed_archive_converts_alike_or_is_rejected(file, factor):
    """If it were mapped, the compressed bytes would be read as weights."""
    repack(file, zipfile.ZIP_DEFLATED)
    more = {"config": {"vae": {"scaling_factor": originals.SCALING_FACTOR}}} if factor == "given" else {}
    try:
        found = convert_file(file, **more)
    except WeightsError as error:
        assert str(file) in str(error)
    else:
        assert_same_states(found, originals.make("t5").states)


NO_ARCHIVES = {
    "empty": b"",
    "zeros": bytes(10_000),
    "a page": b"<html>404</html>" * 9,
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 4\n",
    "a pickle": pickle.dumps({"state_dict": {"betas": 1}}),
    "half an archive": b"PK\x03\x04" + bytes(300),
}


@pytest.mark.parametrize("content", NO_ARCHIVES)
def test_rejects_file_that_is_no_archive(tmp_path, content):
    (tmp_path / "file.pth").write_bytes(NO_ARCHIVES[content])
    kinds = "truncated or damaged|not a plain file of tensors|is a web page|is a Git LFS pointer"
    assert re.search(kinds, conversion_error(tmp_path / "file.pth"))


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "code was run"))


def as_pickle(content: object, file: Path) -> None:
    file.write_bytes(pickle.dumps(content))


def before_1_6(content: object, file: Path) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("place", ["state_dict", "beside it"])
@pytest.mark.parametrize("save", [torch.save, before_1_6, as_pickle], ids=["zip", "old", "pickle"])
def test_rejects_pickle_with_code_without_running_it(tmp_path, save, place):
    marker = tmp_path / "marker"
    trap, table = Trap(marker), {"betas": torch.ones(1)}
    content = (
        {"state_dict": table | {"betas": trap}} if place == "state_dict" else {"state_dict": table, "a": trap}
    )
    save(content, tmp_path / "file.pth")
    message = conversion_error(tmp_path / "file.pth")
    assert "holds objects beside its tensors" in message and "would run code when read" in message
    with pytest.raises(WeightsError):
        audioldm2.load(tmp_path / "file.pth", device="cpu")
    assert not marker.exists()
    pickle.loads(pickle.dumps(trap))
    assert marker.exists()  # the trap works


def test_damaged_header_in_diffusers_layout_loads_or_raises_weights_error(tmp_path):
    checkpoints.write_diffusers(tmp_path / "diffusers")
    path = tmp_path / "diffusers" / "projection_model" / "diffusion_pytorch_model.safetensors"
    reading = convert.read_diffusers(tmp_path / "diffusers").states["projection"]
    content, places, found = path.read_bytes(), random.Random(0), set()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(150):
        damaged = bytearray(content)
        damaged[places.randrange(header)] ^= 1 << places.randrange(8)
        path.unlink()  # a file that is mapped must not change
        path.write_bytes(damaged)
        try:
            found.add(len(reading()))
        except WeightsError as error:
            assert str(path.parent) in str(error)
            found.add("sentence")
    assert "sentence" in found


def test_rejects_diffusers_network_cut_anywhere(tmp_path):
    checkpoints.write_diffusers(tmp_path / "diffusers")
    path = tmp_path / "diffusers" / "vocoder" / "model.safetensors"
    reading, size = convert.read_diffusers(tmp_path / "diffusers").states["hifigan"], path.stat().st_size
    for length in [*(size - i for i in range(1, 65)), *(size * i // 40 for i in reversed(range(40)))]:
        os.truncate(path, length)
        with pytest.raises(WeightsError, match=rf"{re.escape(str(path))} is truncated or damaged"):
            reading()


@pytest.mark.slow
def test_rejects_converted_network_cut_anywhere(folder, tmp_path):
    checkpoint = convert.read_original(folder / "48k.pth")
    checkpoint.tokenizers = {}
    storage.write(checkpoint, tmp_path / "out")
    path = tmp_path / "out" / "clap_audio.safetensors"
    reading, size = storage.read(tmp_path / "out").states["clap_audio"], path.stat().st_size
    for length in [*(size - i for i in range(1, 65)), *(size * i // 40 for i in reversed(range(40)))]:
        os.truncate(path, length)
        with pytest.raises(WeightsError, match=rf"{re.escape(str(path))} is truncated or damaged"):
            reading()
