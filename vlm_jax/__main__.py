"""The command `vlm-jax`, also `python -m vlm_jax`."""

import os
import signal


def _leave(signal_number: int, frame: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


# Before the imports, and again behind the job: what is interrupted there has nothing to lose.
signal.signal(signal.SIGINT, _leave)

from vlm_jax.cli import main  # noqa: E402

__all__ = ["main"]

if __name__ == "__main__":
    main()
