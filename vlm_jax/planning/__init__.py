"""Which hardware a model needs, found out before any is rented.

XLA compiles the programs that jobs run for TPUs and GPUs that are not there: memory a chip,
collectives and whether it compiles at all are then facts. What cannot be had so is time and numbers
on the chip.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm_jax.planning.planner import HardwarePlan, Planner, PlanSettings, plan

__all__ = ["HardwarePlan", "PlanSettings", "Planner", "plan"]


def __getattr__(name: str):
    # Data sheets and sizes are read without all that plans need.
    if name in __all__:
        from vlm_jax.planning import planner

        return getattr(planner, name)
    raise AttributeError(f"module 'vlm_jax.planning' has no attribute {name!r}")
