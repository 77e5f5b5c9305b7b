"""Adds to pyproject.toml what it cannot say: `configs/` is installed as `vlm_jax/configs/`."""

import warnings

from setuptools import find_packages, setup

# Of folders in the working folder that are called as a package is: ours are the packages.
warnings.filterwarnings("ignore", message="Editable installation")
setup(
    packages=[
        *find_packages(include=["vlm_jax*", "convert*"]),
        "vlm_jax.configs",
        "vlm_jax.configs.papers",
        # Folders of files alone, which Python could import as packages.
        "convert.plugin",
        "vlm_jax.report.web",
        "vlm_jax.testbed.models",
    ],
    package_dir={"vlm_jax.configs": "configs"},
)
