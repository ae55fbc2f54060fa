"""A sound to begin with: how it is prepared, which part of it is remade, and how it is put back."""
