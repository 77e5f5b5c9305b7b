"""Renders chat templates in a process of their own, bounded in time, memory and output."""

import atexit
import json
import os
import pathlib
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

_WORKER = pathlib.Path(__file__).with_name("template_worker.py")
_SECONDS = 60  # of the clock; the worker's own limit is of CPU time
_OUTPUT = 1 << 20  # characters beyond those of the values


class TemplateError(Exception):
    """A template was refused, or refuses what it was given; says why."""


class Renderer:
    """A worker process that is started when first needed, and anew after one that was ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._endless: set[str] = set()

    def render(self, template: str, values: Mapping[str, Any]) -> str:
        """Returns the text that a template makes of JSON values, and of others as text.

        Raises:
            TemplateError: it fails, or takes too much time, memory or room.
        """
        room = _OUTPUT + 4 * len(json.dumps(values, default=str))
        fields = {"template": template, "values": dict(values), "limit": room}
        request = json.dumps(fields, default=str)
        with self._lock:
            if template in self._endless:
                raise TemplateError("it takes too much time or memory")
            if self._process is None or self._process.poll() is not None:
                self._end()
                self._process = _start()
            try:
                line = self._exchange(self._process, request.encode() + b"\n")
            except BaseException:  # an interrupt: the next one would read this one's answer
                self._end()
                raise
            if line is None:
                self._end()
                self._endless.add(template)  # not for each prompt of a run
                raise TemplateError("it takes too much time or memory")
        answer = json.loads(line)
        if "error" in answer:
            raise TemplateError(answer["error"])
        return answer["text"]

    def close(self) -> None:
        """Ends the worker; a later `render` starts another."""
        with self._lock:
            self._end()

    def leave(self) -> None:
        """Leaves the worker to the process that this one was forked from."""
        self._process, self._lock = None, threading.Lock()

    def _exchange(self, process: subprocess.Popen[bytes], request: bytes) -> bytes | None:
        """Returns the answer's line, or None where the worker has ended or takes too long."""
        assert process.stdin is not None
        assert process.stdout is not None
        end, said = time.monotonic() + _SECONDS, bytearray()
        try:
            process.stdin.write(request)
            process.stdin.flush()
        except OSError:
            return None
        while not said.endswith(b"\n"):
            ready = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))[0]
            piece = process.stdout.read1(1 << 16) if ready else b""  # type: ignore[attr-defined]
            if not piece:
                return None
            said += piece
        return bytes(said)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.communicate()


def _start() -> subprocess.Popen[bytes]:
    import jinja2
    import markupsafe

    places = {str(pathlib.Path(str(m.__file__)).parents[1]) for m in (jinja2, markupsafe)}
    # Isolated: neither the working folder nor the environment says what is imported.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(_WORKER), *sorted(places)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a terminal's Ctrl-C, and a notebook's, go to the whole group
    )


renderer = Renderer()
"""The one that all models of this process share."""
atexit.register(renderer.close)
os.register_at_fork(after_in_child=renderer.leave)
