"""Benchmarks: readers, scorers and statistics in plain Python and NumPy.

Scoring never needs a model or JAX: answers and truth are files, tallies are integers that add up
in any order, and ratios with their intervals are formed once, at the end.
"""
