"""The report as text and JSON, progress in words, and the interval of a mean."""

import json
import math

import pytest
import torch

from audioldm2.models.unet import UNetConfig
from audioldm2.verification import finding, statistics
from audioldm2.verification.finding import FAILED, MEASURED, PASSED, Finding, Progress
from audioldm2.verification.readings import readings_of

FINDINGS = [
    Finding("files", PASSED, "All is there."),
    Finding(
        "half",
        FAILED,
        "Not finite.",
        {"vae": {"float16": math.nan}},
        ("'vae' overflows.",),
        "Noise.",
        "Wait.",
    ),
    Finding("heads", MEASURED, "0.3.", {"interval": [-math.inf, 1.0]}),
]


def test_text_says_what_failed_what_it_means_and_what_to_do():
    text = "\n".join(finding.text_of(each) for each in FINDINGS)
    assert text.splitlines()[:2] == ["files       PASSED", "    All is there."]
    assert "    - 'vae' overflows." in text and "    It means: Noise." in text and "    Do: Wait." in text
    assert finding.closing_line(FINDINGS) == "FAILED: 1 passed, 1 failed, 1 measured"
    assert finding.closing_line(FINDINGS[:1]) == "PASSED: 1 passed"


def test_json_has_one_schema_and_no_nan():
    content = finding.report(FINDINGS, model="x", version="1", device="cpu", seconds=1.234, complete=True)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert set(content) == {
        *("audioldm2_verify", "model", "verdict", "complete", "seconds", "versions", "machine", "findings")
    }
    assert content["verdict"] == "failed" and content["seconds"] == 1.2
    for each in content["findings"]:
        assert set(each) == {"check", "status", "summary", "figures", "problems", "meaning", "advice"}
    assert content["findings"][1]["figures"] == {"vae": {"float16": "nan"}}
    partial = finding.report(FINDINGS[:1], model="x", version="1", device="cpu", seconds=1, complete=False)
    assert partial["verdict"] == "incomplete"


def test_progress_tells_the_time_left_first_and_then_now_and_then():
    lines: list[str] = []
    times = iter([0.0, 10.0, 12.0, 40.0, 41.0])
    progress = Progress("sounds", 5, lines.append, clock=lambda: next(times))
    for _ in range(4):
        progress.add()
    assert lines == ["sounds: 1 of 5, about 40 s left", "sounds: 3 of 5, about 27 s left"]
    assert [finding.duration(each) for each in (0.2, 89, 600, 7000)] == [
        "1 s",
        "89 s",
        "10 min",
        "1 h 57 min",
    ]


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (19, 2.09302), (100, 1.98397)],
)
def test_quantiles_of_student(degrees, expected):
    """Against printed tables."""
    assert statistics.student_t(degrees) == pytest.approx(expected, rel=4e-3)


def test_interval_covers_the_mean_as_often_as_it_says():
    draws = torch.randn(4000, 20, generator=torch.Generator().manual_seed(0)) + 0.3
    found = [statistics.mean_and_interval(row) for row in draws.tolist()]
    covered = sum(low <= 0.3 <= high for _, low, high in found) / len(found)
    assert covered == pytest.approx(0.95, abs=0.012)
    assert statistics.mean_and_interval([0.5]) == (0.5, -math.inf, math.inf)


def test_readings_begin_with_what_loads():
    published, trained = UNetConfig(heads=(8, 8, 8, 8)), UNetConfig()
    assert [(each.name, each.heads) for each in readings_of(published)] == [
        ("config", (8, 8, 8, 8)),
        ("trained", (4, 8, 12, 20)),
    ]
    assert [each.name for each in readings_of(trained)] == ["trained", "config"]
    own = UNetConfig(heads=(2, 2, 2, 2))
    assert [each.name for each in readings_of(own)] == ["as loaded"]
    assert [each.name for each in readings_of(own, (4, 4, 4, 4))] == ["as loaded", "recorded"]
