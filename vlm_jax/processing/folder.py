"""Reading tokenizer, image processor and stop ids from a model folder, without a network."""

import json
import pathlib
from typing import Any

import transformers

from vlm_jax.config import VLMConfig
from vlm_jax.errors import CheckpointError

# Any one of these rows of files makes a tokenizer.
_TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",))


def read_tokenizer(folder: pathlib.Path):
    """Returns the folder's tokenizer; raises `CheckpointError` if it has none or a broken one."""
    if not any(all((folder / name).is_file() for name in row) for row in _TOKENIZER_FILES):
        choices = ", or ".join(" with ".join(row) for row in _TOKENIZER_FILES)
        raise CheckpointError(f"{folder} has no tokenizer; it needs {choices}.")
    return _load(transformers.AutoTokenizer.from_pretrained, folder, "tokenizer")


def read_image_processor(folder: pathlib.Path):
    """Returns the folder's image processor on PIL and NumPy, whatever else is installed."""
    if not (folder / "preprocessor_config.json").is_file():
        settings = folder / "processor_config.json"
        if not settings.is_file() or "image_processor" not in _read_json(settings):
            raise CheckpointError(f"{folder} has no preprocessor_config.json.")
    load = transformers.AutoImageProcessor.from_pretrained
    return _load(load, folder, "image processor", backend="pil")


def _load(load, folder: pathlib.Path, what: str, **options):
    try:
        # `trust_remote_code` off: a model folder is data, and code in it is never run.
        return load(str(folder), local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # transformers raises whatever its readers meet in a broken file
        raise CheckpointError(f"The {what} of {folder} cannot be read: {error}") from error


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(content).__name__}.")
    return content


def read_stop_ids(folder: pathlib.Path, config: VLMConfig, tokenizer) -> tuple[int, ...]:
    """Returns the ids that end an answer, sorted.

    `generation_config.json` overrides `config.json`, as it does for transformers' `generate`; the
    tokenizer's end of sequence is always among them, because a config's default may be of another
    vocabulary.
    """
    path = folder / "generation_config.json"
    named = _read_json(path).get("eos_token_id") if path.is_file() else None
    if named is None:
        named = config.eos_ids
    ids = set(named) if isinstance(named, (list, tuple)) else {named}
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    if not all(isinstance(i, int) and i >= 0 for i in ids):
        raise CheckpointError(f"{path}: eos_token_id must be ids of at least 0, not {named!r}.")
    return tuple(sorted(ids))
