"""The two conversions as jobs of `launch.py`."""

from convert.jobs import export_hf, import_hf
from vlm_jax.study.request import Request


def convert(request: Request) -> None:
    """Converts `--source`, a Hugging Face folder, to `--target`."""
    target = request.need("target")
    import_hf(request.need("source"), target)
    print(f"Converted model: {target}")


def export(request: Request) -> None:
    """Exports `--source`, a converted folder, to `--target` as a Hugging Face folder."""
    target = request.need("target")
    export_hf(request.need("source"), target)
    print(f"Hugging Face model: {target}")
