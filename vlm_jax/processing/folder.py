"""Reading tokenizer, image processor and stop ids from a model folder, without a network.

The files are looked at before transformers gets them: regular ones of bounded size, JSON objects,
settings of the types and ranges that make sense. transformers is imported where it is needed: it
brings torch along where that is installed, and most jobs read neither words nor pixels.
"""

import os
import pathlib
from typing import Annotated, Any

import msgspec

from vlm_jax.config import VLMConfig
from vlm_jax.errors import CheckpointError
from vlm_jax.foreign import convert, read_bytes, read_json

# Any one of these rows of files makes a tokenizer.
_TOKENIZER_FILES = (
    ("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",), ("vocab.txt",),
)  # fmt: skip
# All that transformers may look into.
_JSON_FILES = (
    "config.json", "tokenizer.json", "vocab.json", "tokenizer_config.json", "added_tokens.json",
    "special_tokens_map.json", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json", "generation_config.json", "chat_template.json",
)  # fmt: skip
_OTHER_FILES = ("merges.txt", "tokenizer.model", "vocab.txt", "chat_template.jinja")

_MAX_GROWTH = 1 << 16  # of a text; published rules replace a sign by a few

_Side = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
_Pixels = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
_Level = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
_Scale = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
_TokenId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class _ImageSettings(msgspec.Struct):
    """Settings of the image processors that cutters use; those not named are not read by them."""

    image_processor_type: str | None = None
    size: _Side | dict[str, _Pixels | None] | None = None
    crop_size: _Side | dict[str, _Side | None] | None = None
    min_pixels: _Pixels | None = None
    max_pixels: _Pixels | None = None
    patch_size: _Side | dict[str, _Side] | None = None
    merge_size: _Side | None = None
    temporal_patch_size: _Side | None = None
    resample: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None
    rescale_factor: _Scale | None = None
    image_mean: _Level | list[_Level] | None = None
    image_std: _Scale | list[_Scale] | None = None
    do_resize: bool | None = None
    do_center_crop: bool | None = None
    do_rescale: bool | None = None
    do_normalize: bool | None = None
    do_convert_rgb: bool | None = None
    do_pad: bool | None = None


class _ProcessorSettings(msgspec.Struct):
    image_processor: _ImageSettings | None = None


class _Words(msgspec.Struct):
    """Settings of tokenizers that are looked at only when a text is read."""

    model_max_length: float | None = None
    added_tokens_decoder: dict[str, dict[str, Any]] = {}


class _Normalizer(msgspec.Struct):
    """What is done to a text before its tokens are looked up."""

    content: str = ""
    normalizers: list["_Normalizer"] = []


class _Tokenizer(msgspec.Struct):
    normalizer: _Normalizer | None = None


class _Generation(msgspec.Struct):
    eos_token_id: _TokenId | list[_TokenId] | None = None


def read_tokenizer(folder: pathlib.Path):
    """Returns the folder's tokenizer; raises `CheckpointError` if it has none or a broken one."""
    if not any(all(os.path.lexists(folder / name) for name in row) for row in _TOKENIZER_FILES):
        choices = ", or ".join(" with ".join(row) for row in _TOKENIZER_FILES)
        raise CheckpointError(f"{folder} has no tokenizer; it needs {choices}.")
    import transformers

    _check_files(folder)
    tokenizer = _load(transformers.AutoTokenizer.from_pretrained, folder, "tokenizer")
    # Our errors say which prompt is too long; this key of transformers keeps its warning away.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def read_image_processor(folder: pathlib.Path):
    """Returns the folder's image processor on PIL and NumPy, whatever else is installed.

    Raises:
        CheckpointError: there is none, or a setting of it is of a wrong type or out of range.
    """
    _check_files(folder)
    settings = []
    if os.path.lexists(folder / "preprocessor_config.json"):
        settings.append(read_json(folder / "preprocessor_config.json", _ImageSettings))
    if os.path.lexists(folder / "processor_config.json"):
        nested = read_json(folder / "processor_config.json", _ProcessorSettings).image_processor
        settings += [] if nested is None else [nested]
    if not settings:
        raise CheckpointError(f"{folder} has no preprocessor_config.json.")
    from transformers import AutoImageProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    # A name that transformers does not know (R1-Onevision's file has it).
    if any(one.image_processor_type == "Qwen2_5_VLImageProcessor" for one in settings):
        return _load(Qwen2VLImageProcessorPil.from_pretrained, folder, "image processor")
    return _load(AutoImageProcessor.from_pretrained, folder, "image processor", backend="pil")


def _check_files(folder: pathlib.Path) -> None:
    """Refuses files that would be waited for, or that are no JSON objects of bounded depth."""
    for name in _JSON_FILES:
        if os.path.lexists(folder / name):
            kind = _Words if name == "tokenizer_config.json" else dict[str, Any]
            read_json(folder / name, kind)
    if os.path.lexists(folder / "tokenizer.json"):
        _check_growth(folder / "tokenizer.json")
    for name in _OTHER_FILES:
        if os.path.lexists(folder / name):
            read_bytes(folder / name)
    more = folder / "additional_chat_templates"
    for path in sorted(more.iterdir()) if more.is_dir() else ():
        read_bytes(path)


def _check_growth(path: pathlib.Path) -> None:
    """Refuses a tokenizer that may make a text of memory's size of a short one."""
    left = [read_json(path, _Tokenizer).normalizer]
    growth = 1
    while left and growth <= _MAX_GROWTH:
        one = left.pop()
        if one is not None:
            growth *= max(1, len(one.content))
            left += one.normalizers
    if growth > _MAX_GROWTH:
        raise CheckpointError(
            f"{path}: what its normalizers put for a character is more than {_MAX_GROWTH} long."
        )


def _load(load, folder: pathlib.Path, what: str, **options):
    try:
        # `trust_remote_code` off: a model folder is data, and code in it is never run.
        return load(str(folder), local_files_only=True, trust_remote_code=False, **options)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # whatever their readers meet in a broken file, panics included
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise CheckpointError(f"The {what} of {folder} cannot be read: {said}") from error


def read_generation(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the fields of the folder's `generation_config.json`; none where it has no such file.

    Raises:
        CheckpointError: the file is no JSON object.
    """
    path = folder / "generation_config.json"
    return read_json(path, dict[str, Any]) if os.path.lexists(path) else {}


def read_stop_ids(folder: pathlib.Path, config: VLMConfig, tokenizer) -> tuple[int, ...]:
    """Returns the ids that end an answer, sorted.

    `generation_config.json` overrides `config.json`, as it does for transformers' `generate`; the
    tokenizer's end of sequence is always among them, because a config's default may be of another
    vocabulary.
    """
    path = folder / "generation_config.json"
    named = read_json(path, _Generation).eos_token_id if os.path.lexists(path) else None
    if named is None:
        named = convert(config.eos_ids, list[_TokenId], f"{folder / 'config.json'}: eos_token_id")
    ids = set(named) if isinstance(named, list) else {named}
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return tuple(sorted(ids))
