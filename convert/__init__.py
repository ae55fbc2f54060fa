"""Any checkpoint to ours, and ours to the diffusers layout: rows, not code.

Each network has a module with its rows (how its tensors are named there and here) and its configs (how its
sizes are told there and here), for the diffusers layout and for the original files. `keymap` applies rows,
`sources` reads files, `diffusers` and `original` know what lies where, `export` writes, `report` says what
was done.
"""

from .diffusers import PARTS, convert_state, read_diffusers
from .export import write_diffusers
from .original import differing_copies, read_original

__all__ = ["PARTS", "convert_state", "differing_copies", "read_diffusers", "read_original", "write_diffusers"]
