"""One line of progress for long work: done, rate and time left."""

import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

_TERMINAL_SECONDS = 1.0
_LOG_SECONDS = 10.0  # a file should not fill with progress
_BYTES = ("B", "kB", "MB", "GB", "TB")


class Progress:
    """Counts work and reports it on stderr; a context manager.

    On a terminal one line is rewritten every second; elsewhere a line is added every ten. The last
    line says how long the whole took. Work shorter than a second prints only that. What is printed
    meanwhile to the same terminal takes a line of its own. A notebook shows a bar.

    The rate and the time left are of the work behind the first step, which may wait for a compiler:
    5 answers after 20 s, the first of them after 16 s, is 1 answer a second.

    Args:
        total: how much there is to do; None if unknown.
        unit: what is counted, e.g. "images"; "B" counts bytes and shows them as MB or GB.
        label: what is being done.
        enabled: False counts in silence.
        brief: whether work of less than a second is not worth a line.
        stream: where to write; stderr by default.
    """

    def __init__(
        self,
        total: int | None,
        unit: str,
        label: str = "",
        *,
        enabled: bool = True,
        brief: bool = False,
        stream: TextIO | None = None,
    ):
        self.total, self.unit, self.label, self.enabled = total, unit, label, enabled
        self.done = self.failed = 0
        self._brief = brief
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._interval = _TERMINAL_SECONDS if self._terminal else _LOG_SECONDS
        self._begun = self._shown = time.monotonic()
        self._first: tuple[float, int] | None = None  # when the first step ended, and what it did
        self._width = 0
        self._printed: dict[str, TextIO] = {}
        self._bar: Any = None
        if enabled and stream is None and _in_notebook():
            import tqdm.auto

            sized = {"unit": "B", "unit_scale": True, "unit_divisor": 1000} if unit == "B" else {}
            self._bar = tqdm.auto.tqdm(total=total, desc=label, **{"unit": f" {unit}", **sized})

    def __enter__(self) -> "Progress":
        self._begun = self._shown = time.monotonic()
        for name in ("stdout", "stderr") if self._terminal and self.enabled else ():
            stream = getattr(sys, name)
            if stream.isatty():
                self._printed[name] = stream
                setattr(sys, name, _Printed(stream, self._clear))
        return self

    def __exit__(self, kind, error, trace) -> None:
        while self._printed:
            setattr(sys, *self._printed.popitem())
        self.close(failed=kind is not None)

    def advance(self, count: int = 1, *, failed: int = 0) -> None:
        """Adds finished work, and how much of it failed; reports if it is time to."""
        self.done += count
        self.failed += failed
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        self._first = self._first or (now, self.done)
        if now - self._shown >= self._interval:
            self._shown = now
            self._show(self._line(now), last=False)

    def close(self, failed: bool = False) -> None:
        """Prints the last line; a failure leaves what was shown."""
        if self._bar is not None:
            self._bar.close()
            return
        seconds = time.monotonic() - self._begun
        if not failed and not (self._brief and seconds < _TERMINAL_SECONDS):
            whole = self.done - self.failed
            line = f"{self._prefix()}{self._amount(whole)} in {duration(seconds)}"
            lost = f", {self.failed} failed" if self.failed else ""
            self._show(f"{line} ({self._rate(whole, seconds)}){lost}", last=True)
        elif self._terminal and self._width:
            self._write("\n")

    def _line(self, now: float) -> str:
        assert self._first is not None  # a line is shown behind a step
        parts = [self._amount(self.done)]
        if self.total:
            done = _bytes(self.done) if self.unit == "B" else str(self.done)
            parts = [f"{done} of {self._amount(self.total)}", f"{self.done / self.total:.0%}"]
        parts += [f"{self.failed} failed"] * bool(self.failed)
        begun, before = self._first
        if self.done > before:
            seconds, done = now - begun, self.done - before
            parts.append(self._rate(done, seconds))
            if self.total:
                left = seconds * max(self.total - self.done, 0) / done
                parts.append(f"{duration(left)} left")
        return self._prefix() + ", ".join(parts)

    def _prefix(self) -> str:
        return f"{self.label}: " if self.label else ""

    def _rate(self, done: int, seconds: float) -> str:
        rate = done / max(seconds, 1e-9)
        if self.unit == "B":
            return f"{_bytes(rate)}/s"
        return f"{rate:.3g} {self.unit}/s" if rate < 999.5 else f"{rate:.0f} {self.unit}/s"

    def _amount(self, count: int) -> str:
        if self.unit == "B":
            return _bytes(count)
        return f"{count} {self.unit.removesuffix('s') if count == 1 else self.unit}"

    def _show(self, line: str, last: bool) -> None:
        if self._terminal:
            if not last:  # a line that wraps cannot be written over
                line = line[: shutil.get_terminal_size().columns - 1]
            # Spaces cover what a longer line left behind.
            self._write("\r" + line.ljust(self._width) + ("\n" if last else ""))
            self._width = len(line)
        else:
            self._write(line + "\n")

    def _clear(self) -> None:
        """Takes the line away, until it is time to show it again."""
        if self._width:
            self._write("\r" + " " * self._width + "\r")
            self._width = 0

    def _write(self, text: str) -> None:
        if self.enabled:
            self._stream.write(text)
            self._stream.flush()


class _Printed:
    """A stream whose texts begin where the progress line was, not behind it."""

    def __init__(self, stream: TextIO, clear: Callable[[], None]):
        self._stream, self._clear = stream, clear

    def write(self, text: str) -> int:
        """Writes a text."""
        self._clear()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _in_notebook() -> bool:
    """Whether this process is the kernel of a Jupyter notebook."""
    shell = sys.modules.get("IPython")
    found = None if shell is None else shell.get_ipython()
    return type(found).__name__ == "ZMQInteractiveShell"


def _bytes(count: float) -> str:
    for unit in _BYTES[:-1]:
        if count < 999.5:  # rounds to 1000 with three digits
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} {_BYTES[-1]}"


def duration(seconds: float) -> str:
    """A length of time as words: "8.2 s", "3 min 05 s", "1 h 07 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60} h {minutes % 60:02} min"
        if minutes >= 60
        else f"{minutes} min {rest:02} s"
    )
