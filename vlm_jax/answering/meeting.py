"""Checks that the processes of one replica run the same batch.

Where a model lies on the devices of several processes, each of them reads all images itself and
gives its devices their part, so all must hold the same inputs; what one process cannot read fails
in all. With one process a replica nothing is checked.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vlm_jax.batch import Batch
from vlm_jax.errors import PromptError, UserError
from vlm_jax.parallel.team import Team, team_of
from vlm_jax.processing import Draft


@dataclasses.dataclass(frozen=True)
class Failure:
    """A sample that could not be read.

    Attributes:
        index: which sample of the call.
        reason: one sentence that names the sample, and the file where one is to blame.
    """

    index: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A batch on the host; rows of questions that failed hold another's prompt.

    Attributes:
        batch: None where every question failed; that of prefixes may hold features on devices.
        failures: by place among the batch's questions.
    """

    batch: Batch | None
    failures: Mapping[int, Failure]


@dataclasses.dataclass(frozen=True)
class Meeting:
    """Compares what the processes of a replica have read; with one process it does nothing.

    Attributes:
        team: the processes.
    """

    team: Team

    @classmethod
    def of(cls, mesh: Mesh) -> "Meeting":
        """Returns the meeting of the processes of a mesh."""
        return cls(team_of(mesh))

    def drafts(
        self, measure: Callable[[Callable[[int, PromptError], None]], list[Draft]]
    ) -> tuple[list[Draft], list[Failure]]:
        """Measures samples.

        Args:
            measure: gives the drafts of those that can be read, and passes the number and the error
                of others to its argument, or raises.

        Raises:
            UserError: the processes were asked different things.
        """
        drafts: list[Draft] = []

        def read() -> list[tuple[int, str]]:
            failed: list[tuple[int, str]] = []
            drafts.extend(measure(lambda index, error: failed.append((index, str(error)))))
            return failed

        reasons: dict[int, str] = {}
        for failed in self.team.agree(read):
            for index, reason in failed:
                reasons.setdefault(index, reason)
        drafts = [draft for draft in drafts if draft.number not in reasons]
        if not self.team.alone:
            self.team.check_same(_digest_of_drafts(drafts), "prompts or images")
        return drafts, [Failure(index, reason) for index, reason in sorted(reasons.items())]

    def batch(self, prepare: Callable[[], Prepared]) -> Prepared:
        """Returns what every process prepared.

        Raises:
            UserError: they read different images.
        """
        if self.team.alone:
            return prepare()
        made: list[Prepared] = []

        def work() -> dict[str, Any]:
            made.append(prepare())
            failed = [(place, f.index, f.reason) for place, f in made[0].failures.items()]
            return {"failed": failed, "digest": _digest_of_batch(made[0].batch)}

        told = self.team.agree(work)
        failures = {place: Failure(i, why) for one in told for place, i, why in one["failed"]}
        digests = {one["digest"] for one in told}
        if None in digests:  # every question failed there, and so does in all
            return Prepared(None, failures)
        # Rows of what failed hold whatever each process had in its place.
        if not failures and len(digests) > 1:
            raise UserError(
                f"processes {', '.join(map(str, self.team.members))} share a replica of the model, "
                "but read different images; give them the same files, on one file system."
            )
        return Prepared(made[0].batch, failures)


def _digest_of_drafts(drafts: list[Draft]) -> int:
    found = 0
    for draft in drafts:
        sizes = draft.number, draft.prefix_ids, draft.length, draft.groups
        found = zlib.crc32(np.array([*sizes, *draft.ids, *draft.words], np.int64).tobytes(), found)
    return found


def _digest_of_batch(batch: Batch | None) -> int | None:
    if batch is None:
        return None
    found = 0
    for leaf in jax.tree.leaves(batch):
        found = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data, found)
    return found
