"""The settings of a sweep: every combination of listed values, each an arm."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_jax.decoding import named
from vlm_jax.edits.qk import CONTROLS as EDIT_CONTROLS
from vlm_jax.edits.qk import METHODS as EDIT_METHODS
from vlm_jax.edits.qk import QKEdit
from vlm_jax.errors import ConfigError
from vlm_jax.report.sweep import setting_name
from vlm_jax.settings import refuse_unknown
from vlm_jax.steering.controls import CONTROLS as HEAD_CONTROLS
from vlm_jax.steering.methods import METHODS, settings_of
from vlm_jax.study.arms import Arm, ArmReader, check_folders

_RANGES = ("band", "rebalance_layers", "projection_layers")


@dataclasses.dataclass(frozen=True)
class Grid:
    """The settings of a sweep.

    Attributes:
        arms: one a setting.
        settings: arm -> swept field -> value.
        entries: arm -> what a config would say of it.
        left_out: combinations that cannot be, with the reason.
    """

    arms: tuple[Arm, ...]
    settings: Mapping[str, Mapping[str, Any]]
    entries: Mapping[str, Mapping[str, Any]]
    left_out: tuple[str, ...] = ()

    @property
    def tested(self) -> tuple[Arm, ...]:
        """The arms that are no controls."""
        return tuple(arm for arm in self.arms if not arm.is_control)

    @property
    def steers(self) -> bool:
        """Whether methods of attention or of decoding are swept, not edits of weights."""
        return bool(self.arms[0].methods)

    @property
    def control_words(self) -> tuple[str, ...]:
        """The controls that the swept methods have."""
        methods = {entry["method"] for entry in self.entries.values() if "method" in entry}
        words: dict[str, None] = {}
        for method in sorted(methods):
            if method in named.names():
                words |= dict.fromkeys(named.controls(method))
            else:
                words |= dict.fromkeys(HEAD_CONTROLS if method in METHODS else EDIT_CONTROLS)
        return tuple(word for word in (words or EDIT_CONTROLS) if word)

    def controls(self, name: str, words: Sequence[str], reader: ArmReader) -> tuple[Arm, ...]:
        """A setting's controls, one a word and named by it.

        Raises:
            ConfigError: the setting cannot have one.
        """
        return tuple(
            reader.arm(
                word,
                {**self.entries[name], "control": word},
                f"config.choose.controls, {word} of {name}",
            )
            for word in words
        )


def read_grid(sweep: Mapping[str, Any], reader: ArmReader) -> Grid:
    """Makes every combination of the values that `config.sweep` lists.

    Its fields are those of `config.edit`; where `method` lists methods of attention or of decoding,
    those of the methods. Combinations that contradict themselves, such as an odd k in the
    antisymmetric channel, are left out with the reason.

    Raises:
        ConfigError: nothing is listed, a field is unknown, or no combination is possible.
    """
    fields = _fields(sweep)
    lists: dict[str, list[Any]] = {}
    for name, values in sweep.items():
        refuse_unknown([name], sorted(fields), "config.sweep")
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise ConfigError(f"config.sweep.{name} must list values, not {values!r}.")
        if name in _RANGES and not all(isinstance(value, Sequence) for value in values):
            raise ConfigError(
                f"config.sweep.{name} must list (first, last) pairs, not {tuple(values)!r}."
            )
        if values:
            lists[name] = list(values)
    if not lists:
        raise ConfigError(
            "config.sweep lists no value; name some, such as config.sweep.strength=(0.25,0.5), or "
            "use --config=configs/sweep.py or configs/sweep_methods.py."
        )
    # The control varies fastest, so that a setting and its controls are neighbours in the table.
    order = sorted(lists, key=lambda name: (name == "control", name != "method"))
    arms, settings, entries, left_out = [], {}, {}, []
    for combination in itertools.product(*(lists[name] for name in order)):
        values = dict(zip(order, combination))
        varied = {key: v for key, v in values.items() if len(lists[key]) > 1 or key == "control"}
        name = setting_name(varied) or values.get("method", "edit")
        try:
            arms.append(reader.arm(name, values, name))
            settings[name], entries[name] = varied, values
        except ConfigError as error:
            left_out.append(str(error))
    grid = Grid(tuple(arms), settings, entries, tuple(left_out))
    if not grid.tested:
        if arms or not left_out:
            raise ConfigError("config.sweep holds controls alone; its control must list '' too.")
        raise ConfigError(f"config.sweep holds no possible setting: {left_out[0]}")
    check_folders(arms)
    return grid


def _fields(sweep: Mapping[str, Any]) -> set[str]:
    """The fields that a sweep may list."""
    listed = sweep.get("method", ())
    words = [listed] if isinstance(listed, str) else list(listed)
    acting = {
        **{word: settings_of for word in METHODS.names()},
        **dict.fromkeys(named.names(), named.settings),
    }
    methods = [word for word in words if word in acting]
    edits = [word for word in words if word not in acting]
    if methods and edits:
        raise ConfigError(
            f"config.sweep.method lists {methods[0]!r} and {edits[0]!r}: one sweep is of edits of "
            f"weights ({', '.join(EDIT_METHODS)}) or of other methods ({', '.join(acting)})."
        )
    if methods:
        return {"method"}.union(*(acting[word](word) for word in methods))
    return {field.name for field in dataclasses.fields(QKEdit)}
