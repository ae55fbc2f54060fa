"""Where weights lie and how networks run: placement, dtypes, memory, compilation, tiling of long sounds."""
