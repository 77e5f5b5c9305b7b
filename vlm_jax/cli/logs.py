"""What libraries and the package log, as lines on stderr: "warning: ...", no dates or threads."""

import logging
import sys
import warnings

from absl import logging as absl_logging


class Lines(logging.Handler):
    """Prints records on whatever `sys.stderr` is then, so that none lands in a progress line."""

    def __init__(self):
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one."""
        try:
            print(f"{record.levelname.lower()}: {self.format(record)}", file=sys.stderr, flush=True)
        except Exception:  # a log that cannot be written is no reason to stop
            self.handleError(record)


def _as_a_line(message: Warning | str, category, filename, lineno, file=None, line=None) -> None:
    """Logs a warning of Python's, without the line of code that gave it."""
    logging.getLogger("py.warnings").warning("%s", " ".join(str(message).split()))


def start(verbosity: int) -> None:
    """Shows what is logged from a verbosity of absl's on: -1 warnings, 0 information, 1 more."""
    absl_logging.set_verbosity(verbosity)
    level = {-2: logging.ERROR, -1: logging.WARNING, 0: logging.INFO}
    lowest = logging.CRITICAL if verbosity < 0 else logging.DEBUG
    warnings.showwarning = _as_a_line
    logging.basicConfig(level=level.get(verbosity, lowest), handlers=[Lines()], force=True)
