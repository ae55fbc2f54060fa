"""Settings that every test shares."""

import pytest
import torch


@pytest.fixture(autouse=True)
def same_randomness_each_time():
    """Tests draw from the global generator; each starts from the same seed, alone or in any order."""
    torch.manual_seed(0)
