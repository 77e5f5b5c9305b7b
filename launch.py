"""The command line of a checkout: `python launch.py` is `vlm-jax` once the package is installed."""

from vlm_jax.__main__ import main

if __name__ == "__main__":
    main()
