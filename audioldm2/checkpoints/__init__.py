"""Where checkpoints lie, how they are read, checked, written and loaded."""
