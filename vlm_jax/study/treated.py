"""A loaded model with the methods that `config.method` names."""

import pathlib
from collections.abc import Mapping
from typing import Any

from vlm_jax.api import VLM
from vlm_jax.edits.qk import METHODS as EDIT_METHODS
from vlm_jax.errors import ConfigError
from vlm_jax.settings import plain
from vlm_jax.study.arms import IDENTIFIED, heads_file

EDIT = "qk"


def treated(model: VLM, config: Any) -> VLM:
    """Returns the model with `config.method` applied: one method, or several that act together.

    An entry is a method's name or a mapping of `method` and its settings; one that names none is
    `config.edit` with some settings changed, as in `config.arms`.

    Raises:
        ConfigError: a method or a setting is unknown, or a value cannot be.
        EditError: an edit does not fit the model.
    """
    section = plain(config.get("method", ""))
    if section in (None, "", (), [], {}):
        return model
    listed = section if isinstance(section, list | tuple) else [section]
    wrong = [one for one in listed if not isinstance(one, str | Mapping)]
    if wrong:
        raise ConfigError(
            "config.method must be a method's name or its settings, or a list of such, not "
            f"{wrong[0]!r}."
        )
    heads = heads_file(config, model.source_folder("config.method"))
    for entry in ({"method": one} if isinstance(one, str) else dict(one) for one in listed):
        settings = {key: _hashable(plain(value)) for key, value in entry.items()}
        method = settings.pop("method", EDIT)
        if method in (EDIT, *EDIT_METHODS):
            given = {"seed": config.seed, **plain(config.edit), **settings}
            if method != EDIT:
                given["method"] = method
            settings, method = {key: _hashable(value) for key, value in given.items()}, EDIT
        elif settings.get("heads") == IDENTIFIED and pathlib.Path(heads).is_file():
            settings["heads"] = heads
        model = model.apply(method, **settings)
    return model


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
