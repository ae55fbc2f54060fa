"""The few operations that have more than one kernel, and what chooses between them."""
