"""The models of the page: what they cost, and which one is loaded."""

from types import SimpleNamespace

import pytest

from audioldm2.errors import ArgumentError
from audioldm2.ui.models import PUBLISHED, Models, cost


def test_each_published_model_says_its_size_and_its_licence():
    for name in PUBLISHED:
        assert "GB to fetch" in cost(name) and "not for commercial use" in cost(name)
    assert "nothing to fetch" in cost("demo")


@pytest.mark.slow
def test_one_model_is_kept_and_only_offered_names_are_looked_for():
    loaded = []

    def load(name: str):
        loaded.append(name)
        return SimpleNamespace(sound=None, schedule=None, speaks=name == "b")

    models = Models(["a", "b", "a"], load)
    assert models.names == ["a", "b"]
    with pytest.raises(ArgumentError, match="which is not loaded"):
        models.known("a")
    first = models.get("a")
    assert models.get("a") is first and not models.known("a").speaks
    models.get("b")
    models.get("a")
    assert loaded == ["a", "b", "a"] and models.known("b").speaks
    for name in ("../../etc", "c"):
        with pytest.raises(ArgumentError, match="has to be one of a, b"):
            models.get(name)
    assert loaded == ["a", "b", "a"]
