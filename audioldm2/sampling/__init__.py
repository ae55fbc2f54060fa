"""The noise schedule, the samplers and guidance."""
