"""SEED-Bench: multiple choice about images, not its part on videos (Li et al., 2023)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from vlm_jax.evals.base import Example
from vlm_jax.evals.choices import ChoiceSuite
from vlm_jax.evals.records import Record


class SeedBench(ChoiceSuite):
    """The 14,233 questions about images."""

    name = "seedbench"
    harness_names: ClassVar[Mapping[str, str]] = {
        "lmms_eval": "seedbench",
        "vlmevalkit": "SEEDBench_IMG",
    }

    @classmethod
    def recognises(cls, row: Record) -> bool:
        """A question with its options in columns "choice_a" to "choice_d"."""
        return {"choice_a", "choice_b", "question", "answer"} <= row.fields.keys()

    def example(self, row: Record) -> Example | None:
        """A question about an image."""
        return None if row.fields.get("data_type") == "video" else super().example(row)

    def document(self, example: Example) -> dict[str, Any]:
        """A question in the fields of the official file."""
        found = {f"choice_{k.lower()}": v for k, v in example.meta["options"].items()}
        return {"question_id": example.id, **super().document(example), **found}

    def lmms_metrics(self) -> Mapping[str, str]:
        """lmms-eval takes the first character."""
        return {"accuracy": "seed_image"} if self.parser == "first" else {}

    def identify(self, row: Record) -> Any:
        """The question's id, which may have a letter in it."""
        key = super().identify(row)
        return str(key)


SUITE = SeedBench
