"""A small vision-language model and its synthetic world, where effects are proved offline.

`scenes` draws pictures of named objects with strong co-occurrence, `language` captions and
questions them, `train` trains a model of a published architecture on them, and `benchmark` hands
both to the general scorers. The trained folders under `models/` are ordinary checkpoints: nothing
outside this room knows that they are small.
"""
