"""The oldest releases that pyproject.toml allows: see `make ends`."""

import pathlib
import re
import tomllib
from importlib.metadata import version

from packaging.version import Version

from scripts.oldest import oldest

PROJECT = pathlib.Path(__file__).parents[1] / "pyproject.toml"


def test_a_lower_bound_is_a_constraint_once():
    project = {
        "dependencies": ["a[x]>=1.2,<3; python_version > '3'", "b-c>=2"],
        "optional-dependencies": {"one": ["a>=1.2", "d"], "two": ["e==3", "a[y]"]},
    }
    assert oldest(project) == ["a==1.2", "b-c==2"]


def test_every_dependency_has_an_oldest_release_and_what_is_installed_is_no_older():
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    bounds = dict(line.split("==") for line in oldest(project))
    for name in (re.match(r"[\w.-]+", each)[0] for each in project["dependencies"]):
        assert Version(version(name)) >= Version(bounds[name]), name
