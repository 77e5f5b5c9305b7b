"""Teams of processes: they exchange values, and an error in one is raised in all.

All processes of a job are a team, and so are those that share one replica of a model. The latter
work in step: they run the same programs on the same inputs in the same order, since a program over
the devices of several processes waits for each of them. Whatever one of them decides by itself (a
file that cannot be read, a full disk) is therefore told at the next place where all meet.
"""

import functools
import json
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vlm_jax.errors import UserError

T = TypeVar("T")

_MOMENT = 2.0  # seconds
_SMALLEST = 1 << 10  # bytes of a message: sizes are rounded up to powers of two, to compile rarely


class Team:
    """Some of a job's processes, this one among them.

    Every method is called by all members, in the same order.

    Args:
        members: indices of the processes, rising.
    """

    def __init__(self, members: tuple[int, ...]):
        self.members = members
        self._failed = False  # in a member, and all have been told

    @property
    def alone(self) -> bool:
        """Whether this process is the only member."""
        return len(self.members) == 1

    @property
    def leads(self) -> bool:
        """Whether this process is the first member, which writes and speaks for the others."""
        return self.alone or jax.process_index() == self.members[0]

    def exchange(self, value: Any) -> list[Any]:
        """Gives every member the JSON values of all, by member."""
        if self.alone:
            return [value]
        message = np.frombuffer(json.dumps(value).encode(), np.uint8)
        lengths = self._gather(np.array([message.size], np.int32))[:, 0]
        padded = np.zeros(max(_SMALLEST, 1 << (int(lengths.max()) - 1).bit_length()), np.uint8)
        padded[: message.size] = message
        return [
            json.loads(one[:length].tobytes()) for one, length in zip(self._gather(padded), lengths)
        ]

    def agree(self, work: Callable[[], T]) -> list[T]:
        """Does work in every member and gives the results of all, by member.

        An error in one member is an error in all, wherever they are, so that none waits for one
        that is gone; an outer call may therefore hold inner ones.

        Args:
            work: gives a JSON value.

        Raises:
            UserError: another member failed; an error of this one passes as it is.
        """
        try:
            value = work()
        except Exception as error:
            if not self._failed:
                self._failed = not self.alone
                self.exchange({"error": str(error) or type(error).__name__})
            raise
        messages = self.exchange({"value": value})
        for process, message in zip(self.members, messages):
            if "error" in message:
                self._failed = True
                raise UserError(f"process {process} failed: {message['error']}")
        return [message["value"] for message in messages]

    def in_step(self, work: Callable[[], T]) -> T:
        """Runs work on every member (all must run the same programs), returns this one's result.

        Raises:
            UserError: another member failed; an error of this one passes as it is.
        """
        made: list[T] = []
        self.agree(lambda: made.append(work()))
        return made[0]

    def check_same(self, value: Any, what: str) -> None:
        """Refuses members that differ, whose common answers would be of neither.

        Args:
            value: a JSON value, equal in all members.
            what: that it stands for, in the message.

        Raises:
            UserError: it is not equal; all members raise.
        """
        found = self.exchange(value)
        other = next((p for p, one in zip(self.members, found) if one != found[0]), None)
        if other is not None:
            raise UserError(
                f"processes {self.members[0]} and {other} share a replica of the model, but read "
                f"different {what}; give them the same files, on one file system."
            )

    def _gather(self, array: np.ndarray) -> np.ndarray:
        """Stacks the members' arrays, which are of one shape, in front."""
        by_process, everywhere = _shardings(self.members)
        try:
            own = jax.make_array_from_process_local_data(
                by_process, array[None], (len(self.members), *array.shape)
            )
            return np.asarray(_copy(everywhere)(own))
        except jax.errors.JaxRuntimeError as error:
            # Another process is gone. Where it is watched, this one is ended with a line of its
            # own before it can go on.
            time.sleep(_MOMENT)
            what = str(error).splitlines()[0]
            raise UserError(f"the other processes cannot be reached any more: {what}") from error


@functools.cache
def team(members: tuple[int, ...]) -> Team:
    """Returns the team of some processes, one object however often it is asked for."""
    return Team(members)


def team_of(mesh: Mesh) -> Team:
    """Returns the team of the processes whose devices a mesh holds."""
    return team(tuple(sorted({device.process_index for device in mesh.devices.flat})))


def devices_of(members: Iterable[int]) -> list[list[Any]]:
    """Returns the devices of each process."""
    owned: dict[int, list[Any]] = {}
    for device in jax.devices():
        owned.setdefault(device.process_index, []).append(device)
    return [owned[process] for process in members]


@functools.cache
def _shardings(members: tuple[int, ...]) -> tuple[NamedSharding, NamedSharding]:
    """How what each member has of its own is laid out, and what all have."""
    mesh = Mesh(np.array(devices_of(members)), ("process", "device"))
    return NamedSharding(mesh, PartitionSpec("process")), NamedSharding(mesh, PartitionSpec())


@functools.cache
def _copy(sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda array: array, out_shardings=sharding)
