"""Jitted generation: prefill, then one `while_loop` until every row has ended."""

from vlm_jax.decoding.generate import Generated, Generator
from vlm_jax.decoding.loop import StepCounts
from vlm_jax.decoding.sampling import Sampling

__all__ = ["Generated", "Generator", "Sampling", "StepCounts"]
