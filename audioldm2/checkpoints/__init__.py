"""Find, read, check, write and load checkpoints.

`hub` finds where one lies, `tensor_files` reads and writes single files, `checkpoint` holds one in memory,
`storage` reads and writes the converted folder, `validate` checks configs, `load` is `audioldm2.load`.
"""
