"""The script that prints which settings fit on which GPU."""

from pathlib import Path

import pytest

from scripts import memory_table
from tests.unit.training.test_memory_plan import measured_as


def test_table_has_a_line_for_each_card(tiny_folder: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []
    monkeypatch.setattr(memory_table, "rehearse", lambda *given: calls.append(given) or measured_as(*given))
    assert memory_table.main(["--model", str(tiny_folder), "--stages", "lora", "--batch", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == [f"{card} GB" for card in memory_table.CARDS]
    assert "as the recipe is" in lines[-1] and "accumulate 2" in lines[2]
    assert len(calls) == 1  # kept from card to card


def test_stages_that_have_no_plan_are_refused(capsys):
    with pytest.raises(SystemExit):
        memory_table.main(["--stages", "vae"])
