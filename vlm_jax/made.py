"""When, by which command and of which commit a result was made."""

import datetime
import pathlib
import shlex
import shutil
import subprocess
import sys
from typing import Any


def made() -> dict[str, Any]:
    """When and by which command something was made, and of which commit of this program.

    The commit is None where the program does not run from a checkout.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
    }


def _commit() -> str | None:
    root = pathlib.Path(__file__).parents[1]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    asked = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    found = subprocess.run(asked, capture_output=True, text=True, timeout=30)
    return found.stdout.strip() or None
