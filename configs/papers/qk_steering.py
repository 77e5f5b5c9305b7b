"""QK product steering (arXiv 2606.20419): CHAIR before and after, beside matched random modes.

Its abstract gives -4.0 % of C_S, relative, as the mean over three models with grouped-query
attention, and next to nothing for random modes; models, k, strength, band and decoding are not
published, so that no number stands beside ours. `:testbed` is the shipped models. Set the
benchmark's images and truth as in `--config=chair`.

A relative change of 4 % at a C_S of 35 % needs 4,000 to 8,000 images: see the line that says before
the run what can be found.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import chair, testbed


def get_config(size: str = "") -> ConfigDict:
    if size not in ("", "testbed"):
        raise ValueError(f"papers/qk_steering takes no argument or testbed, not {size!r}.")
    config: Any = chair.get_config()
    config.control_draws = 19
    controls = ("R1", "R3", "C1")
    config.arms = ConfigDict({"qk": {}, **{f"qk_{one}": {"control": one} for one in controls}})
    return testbed.shrunk(config) if size else config
