"""Prints the oldest release that pyproject.toml allows of each package, as constraints for pip.

    python scripts/oldest.py > oldest.txt
    pip install -e . -c oldest.txt

pip installs all of them together or says which two exclude each other: a bound that no
installation reaches promises what nobody tried. `make ends` runs the tests so.
"""

import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).parents[1]


def oldest(project: dict) -> list[str]:
    """Returns `name==version` for each requirement with a lower bound, sorted, each once."""
    extras = project["optional-dependencies"].values()
    named = [*project["dependencies"], *(each for extra in extras for each in extra)]
    bounds = (re.match(r"([\w.-]+)(?:\[[^]]*\])?>=([^,;\s]+)", each) for each in named)
    return sorted({f"{bound[1]}=={bound[2]}" for bound in bounds if bound})


if __name__ == "__main__":
    print(*oldest(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]), sep="\n")
