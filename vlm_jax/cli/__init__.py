"""The command `vlm-jax`: flags and a config become one call of a job, an error one line.

`main` is the command, `configs` finds and changes settings, `listing` says what there is, and
`help` shows it.
"""

from vlm_jax.cli.main import main

__all__ = ["main"]
