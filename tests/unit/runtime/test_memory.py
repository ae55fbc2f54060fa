"""How much memory is available, how many sounds fit, and the message when none does."""

import os

import pytest
import torch

from audioldm2.models.vae import VAEConfig
from audioldm2.ops import heap
from audioldm2.runtime import memory

CPU = torch.device("cpu")


def control_group(folder, limit, used, files):
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\nactive_file {files - 1}\ninactive_file 1\n")
    return memory._left_in_control_group(folder)


def test_cached_files_of_a_container_count_as_available(tmp_path):
    assert control_group(tmp_path, limit=6000, used=5900, files=4300) == 6000 - (5900 - 4300)
    assert control_group(tmp_path, limit=1000, used=1500, files=100) == 0
    assert control_group(tmp_path, limit="max", used=5900, files=4300) is None
    assert memory._left_in_control_group(tmp_path / "none") is None


def test_sounds_at_once_is_as_many_as_fit(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)
    assert memory.sounds_at_once(200, CPU, seconds=10) == 4  # of the 800 that are used
    with pytest.raises(
        ValueError, match=r"audio_length_in_s is 20; it has to be at most about 10 seconds: 20 need some"
    ):
        memory.sounds_at_once(1600, CPU, seconds=20)
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)
    assert memory.sounds_at_once(10**15, CPU, seconds=10) == 1


def test_encoding_needs_what_was_measured_and_a_little_more():
    """MB a second of the published model, with scripts/benchmark/memory_curve.py --stages encode: 12.7."""
    needed = [memory.bytes_to_encode(VAEConfig(), 100 * seconds, 64, torch.float32) for seconds in (1, 20)]
    assert 1.1 < needed[0] / 12.7e6 < 1.5 and needed[1] == 20 * needed[0]


def test_sentence_for_a_given_sound_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1e9)
    with pytest.raises(ValueError) as caught:
        memory.require_to_fit(1_600_000_000, CPU, 20, "audio")
    assert str(caught.value) == (
        "audio lasts 20 seconds; it has to last at most about 10 seconds: 20 need some 1.6 GB beside the "
        "model, and 0.8 GB can be used on cpu."
    )
    assert memory.require_to_fit(800_000_000, CPU, 20, "audio") == 800_000_000
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)
    assert memory.require_to_fit(10**15, CPU, 20, "audio") is None


@pytest.mark.skipif(heap._malloc_trim() is None, reason="this C library has no malloc_trim")
def test_trim_heap_returns_freed_memory_to_the_system():
    small = [torch.ones(2000) for _ in range(20_000)]  # 160 MB in blocks that glibc keeps
    held, last = resident(), small[-1]  # above the hole, so that the heap cannot shrink by itself
    del small
    memory.trim_heap()
    assert held - resident() > 100e6
    assert last.sum() == 2000


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
