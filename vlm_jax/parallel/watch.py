"""Connects processes before the runtime starts, and ends them all when one of them is gone.

The runtime waits minutes for a process that was killed, and then ends the others with a dump. Here
process 0 holds a connection to every other process; the system closes those of a process that ends,
and whoever reads at the other end says so in one line and ends too:

    process 1 is killed -> process 0 reads the end of its connection, tells 2 and 3 "1 is gone" and
    exits; they say the same and exit.

A machine that loses its power closes nothing: there the runtime's own timeout ends the others.
"""

import atexit
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping

from vlm_jax.errors import ConfigError

MEETING_SECONDS = 300.0
_HELLO = struct.Struct("!8sII")  # what this is, how many processes, which one
_MARK = b"vlm_jax1"
_GO, _LEFT, _GONE = b"go", b"left", b"gone"
_NOTE = struct.Struct("!4sI")  # a word, and which process it is about


def meet(coordinator: str, count: int, index: int, seconds: float = MEETING_SECONDS) -> "Lookout":
    """Returns the lookout for the others, once all processes are there.

    Args:
        coordinator: "host:port" of process 0. The port is free again when this returns, so that
            the runtime can listen there.
        count: how many processes there are.
        index: which one this is.
        seconds: how long the others are waited for.

    Raises:
        ConfigError: the port is taken, process 0 cannot be reached, some did not come, or two
            processes disagree about their numbers.
    """
    deadline = time.monotonic() + seconds
    if index == 0:
        return Lookout(0, _receive(coordinator, count, seconds, deadline))
    return Lookout(index, {0: _reach(coordinator, count, index, seconds, deadline)})


class Lookout:
    """Connections to other processes, each read by a thread.

    Args:
        index: which process this is.
        others: process -> the connection to it.
    """

    def __init__(self, index: int, others: Mapping[int, socket.socket]):
        self._index, self._others = index, dict(others)
        self._left: set[int] = set()

    def begin(self) -> None:
        """Watches from now on, until the interpreter ends in order."""
        # Registered before the runtime's own last steps, so that it comes after them.
        atexit.register(self.leave)
        for process, connection in self._others.items():
            connection.settimeout(None)
            threading.Thread(target=self._read, args=(process, connection), daemon=True).start()

    def leave(self) -> None:
        """Tells the others that this process ends in order."""
        self._tell(_LEFT, self._index)

    def _read(self, process: int, connection: socket.socket) -> None:
        while True:
            note = _read_exactly(connection, _NOTE.size)
            word, about = _NOTE.unpack(note) if note else (_GONE, process)
            if word == _LEFT:
                self._left.add(process)
            elif word == _GONE and process not in self._left:
                self._end(about)
            if not note:
                return

    def _end(self, gone: int) -> None:
        """Ends this process, whatever it waits for."""
        self._tell(_GONE, gone)
        line = (
            f"error: process {gone} is gone (killed, or out of memory), so the others end too. The "
            "same command, started again in all processes, goes on with what is done.\n"
        )
        sys.stdout.flush()
        os.write(2, line.encode())
        os._exit(1)

    def _tell(self, word: bytes, about: int) -> None:
        for connection in self._others.values():
            try:
                connection.sendall(_NOTE.pack(word, about))
            except OSError:  # that one is gone
                continue


def _receive(
    coordinator: str, count: int, seconds: float, deadline: float
) -> dict[int, socket.socket]:
    """The connections of all others to process 0."""
    port = int(coordinator.rpartition(":")[2])
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        listener = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"Port {port} of --coordinator={coordinator} cannot be used here "
            f"({getattr(error, 'strerror', None) or error}); choose another, in all processes."
        ) from None
    found: dict[int, socket.socket] = {}
    with listener:
        while len(found) < count - 1:
            listener.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                missing = [str(n) for n in range(1, count) if n not in found]
                raise ConfigError(
                    f"Of {count} processes {', '.join(missing)} did not come to {coordinator} "
                    f"within {seconds:g} s. Start all of them, with one --num_processes."
                ) from None
            connection.settimeout(5)
            hello = _read_exactly(connection, _HELLO.size)
            mark, said, process = _HELLO.unpack(hello) if hello else (b"", 0, 0)
            if mark != _MARK:  # somebody else's
                connection.close()
                continue
            if said != count or not 0 < process < count or process in found:
                raise ConfigError(
                    f"A process came with --num_processes={said} --process_id={process}, which "
                    f"does not fit the {count} processes here"
                    f"{' (it is there already)' if process in found else ''}; number them from 0."
                )
            found[process] = connection
    for connection in found.values():
        connection.sendall(_GO)
    return found


def _reach(
    coordinator: str, count: int, index: int, seconds: float, deadline: float
) -> socket.socket:
    """The connection to process 0, when it says that all are there."""
    host, _, port = coordinator.rpartition(":")
    while True:
        try:
            connection = socket.create_connection((host.strip("[]"), int(port)), timeout=5)
            break
        except (OSError, OverflowError) as error:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"Process 0 cannot be reached at --coordinator={coordinator} "
                    f"({getattr(error, 'strerror', None) or error}), tried for {seconds:g} s. "
                    "Start it there, or name the host that it runs on."
                ) from None
            time.sleep(0.2)
    connection.sendall(_HELLO.pack(_MARK, count, index))
    connection.settimeout(max(deadline - time.monotonic(), 0.01) + 5)
    if _read_exactly(connection, len(_GO)) != _GO:
        raise ConfigError(
            f"Process 0 at {coordinator} ended before all processes were there, or is none of "
            "ours; see what it says."
        )
    return connection


def _read_exactly(connection: socket.socket, size: int) -> bytes:
    """The next bytes of a connection; nothing where it ends before, or takes too long."""
    read = b""
    while len(read) < size:
        try:
            more = connection.recv(size - len(read))
        except OSError:
            return b""
        if not more:
            return b""
        read += more
    return read
