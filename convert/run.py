"""The conversions, and what is checked without them, as jobs of `launch.py`."""

import convert as _convert
from vlm_jax.errors import UserError
from vlm_jax.study.request import Request


def convert(request: Request) -> None:
    """Converts `--source`, a Hugging Face folder, to `--target`."""
    target = request.need("target")
    _convert.import_hf(request.need("source"), target)
    print(f"Converted model: {target}")


def export(request: Request) -> None:
    """Exports `--source`, a converted folder, to `--target` as a Hugging Face folder."""
    target = request.need("target")
    _convert.export_hf(request.need("source"), target)
    print(f"Hugging Face model: {target}")


def verify(request: Request) -> None:
    """Holds an edited folder against its original and its certificate (`vlm-jax verify A B`).

    Raises:
        UserError: two folders are not named, or the edited one is not as certified.
    """
    if len(request.sources) != 2:
        raise UserError("verify takes two folders: vlm-jax verify <original> <edited>.")
    found = _convert.verify_hf(*request.sources)
    print(found)
    found.check()
    print(f"\n{found.edited} is {found.original}, changed as certified and nowhere else.")
