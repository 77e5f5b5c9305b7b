"""Edits of a model's weights, one file or folder each."""
