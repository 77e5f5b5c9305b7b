"""`python -m vlm_jax`: the command line."""

from vlm_jax.cli import main

main()
