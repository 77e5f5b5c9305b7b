"""Jitted generation: prefill, then one `while_loop` until every row has ended."""

from typing import TYPE_CHECKING

from vlm_jax.decoding.settings import DecodeSettings

if TYPE_CHECKING:
    from vlm_jax.decoding.generate import Generated, Generator
    from vlm_jax.decoding.loop import StepCounts

__all__ = ["DecodeSettings", "Generated", "Generator", "StepCounts"]


def __getattr__(name: str):
    # Configs read the settings, and must not load JAX.
    if name in ("Generated", "Generator"):
        from vlm_jax.decoding import generate

        return getattr(generate, name)
    if name == "StepCounts":
        from vlm_jax.decoding import loop

        return loop.StepCounts
    raise AttributeError(f"module 'vlm_jax.decoding' has no attribute {name!r}")
