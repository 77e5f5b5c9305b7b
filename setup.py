"""Adds to pyproject.toml what it cannot say: `configs/` is installed as `vlm_jax/configs/`."""

from setuptools import find_packages, setup

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
