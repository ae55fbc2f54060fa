"""From a prompt to plain tensors: tokenizers, encoding, conditioning."""
