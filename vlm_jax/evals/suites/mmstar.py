"""MMStar: multiple choice over six capabilities that need the picture (Chen et al., 2024)."""

from collections.abc import Mapping
from typing import ClassVar

from vlm_jax.evals.choices import ChoiceSuite
from vlm_jax.evals.records import Record


class MmStar(ChoiceSuite):
    """1,500 questions; `macro_accuracy` is the mean over the 18 axes, as lmms-eval has it."""

    name = "mmstar"
    harness_names: ClassVar[Mapping[str, str]] = {"lmms_eval": "mmstar", "vlmevalkit": "MMStar"}

    @classmethod
    def recognises(cls, row: Record) -> bool:
        """A question with a category of two levels."""
        return {"question", "answer", "category"} <= row.fields.keys() and bool(
            {"l2_category", "l2-category"} & row.fields.keys()
        )


SUITE = MmStar
