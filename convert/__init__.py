"""Any checkpoint to ours, and ours to the diffusers layout: rows, not code.

Each network has a module with its rows (the names of its tensors there and here) and its configs (the names
of its sizes there and here), for the diffusers layout and for the original files. `keymap` applies rows;
`sources`, `pickles` and `original_table` read files; `diffusers` and `original` know what lies where;
`export` writes; `report` describes what was done. README.md explains the formats.
"""

from .diffusers import PARTS, convert_state, read_diffusers
from .export import write_diffusers
from .original import differing_copies, read_original

__all__ = ["PARTS", "convert_state", "differing_copies", "read_diffusers", "read_original", "write_diffusers"]
