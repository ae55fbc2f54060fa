"""Sizes of a model that is trained from scratch."""

from dataclasses import replace

import pytest

from audioldm2.errors import WeightsError
from audioldm2.training.new_model import SMALL, configs_from


def test_sizes_override_those_of_small():
    configs = configs_from({"unet": {"depth": 2}}, "sizes.json")
    assert configs == SMALL | {"unet": replace(SMALL["unet"], depth=2)}


def test_rejects_unknown_networks_and_values():
    with pytest.raises(ValueError, match=r"sizes\.json has 'speech'; the networks are"):
        configs_from({"speech": {}}, "sizes.json")
    with pytest.raises(WeightsError, match=r"depth of 'unet' in sizes\.json is 'two'"):
        configs_from({"unet": {"depth": "two"}}, "sizes.json")
