"""Adapters: a few trained numbers beside the weights of a model, which stay as they are.

`lora` computes with them, `adapter` holds one in memory, `names` maps layers to the names in files,
`reading` and `writing` are the files, `merging` folds adapters into weights, `model` is what a loaded model
does with them.
"""
