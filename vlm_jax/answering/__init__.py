"""How many questions become few programs and little work: what `VLM.answer` runs.

Equal questions are asked once, questions on one image share what was read up to its last token,
batches hold rows of like size, and host threads decode images ahead of the device.
"""

from vlm_jax.answering.hosted import answer_hosted
from vlm_jax.answering.loop import Answer, Asking, Engine, answer
from vlm_jax.answering.meeting import Failure
from vlm_jax.answering.plan import BatchPlan, batch_rows, make_plan
from vlm_jax.answering.store import DeviceStore

__all__ = [
    "Answer",
    "Asking",
    "BatchPlan",
    "DeviceStore",
    "Engine",
    "Failure",
    "answer",
    "answer_hosted",
    "batch_rows",
    "make_plan",
]
