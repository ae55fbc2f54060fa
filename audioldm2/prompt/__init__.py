"""A prompt to plain tensors: tokenizers, encoding, conditioning."""
