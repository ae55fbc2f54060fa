"""Fixtures that run commands."""

from tests.support.command_line import folder, run, sound  # noqa: F401
from tests.support.training import few_samples  # noqa: F401
