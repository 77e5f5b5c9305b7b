"""Arms of a comparison: the edits that a config names, their random draws, and edited models."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from vlm_jax import checkpoint
from vlm_jax.api import VLM
from vlm_jax.errors import ConfigError, EditError
from vlm_jax.jobs.edit import image_rope, read_edit, read_layer
from vlm_jax.progress import Progress
from vlm_jax.steering.qk import QKEdit, Sidecar, edit_many
from vlm_jax.steering.qk.certificate import summary

UNEDITED = "unedited"
RANDOM_CONTROLS = ("R1", "R2", "R3", "R4", "R5", "C6")
_RESERVED = (UNEDITED, "frontier")
_FIELDS = tuple(field.name for field in dataclasses.fields(QKEdit))


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of a comparison.

    Attributes:
        name: distinct within the comparison, also as a folder name.
        edits: one a draw; none is the source as it is.
    """

    name: str
    edits: tuple[QKEdit, ...] = ()

    @property
    def is_random(self) -> bool:
        """Whether the arm is a control whose seed matters."""
        return bool(self.edits) and self.edits[0].control in RANDOM_CONTROLS

    @property
    def original(self) -> QKEdit | None:
        """The edit that the arm controls for; None for one that is no control."""
        if not self.edits or not self.edits[0].control:
            return None
        return dataclasses.replace(self.edits[0], control="", seed=0)

    def folders(self) -> list[str]:
        """A folder name a draw, the same for a draw whatever the number of draws."""
        if not self.is_random:
            return [slug(self.name)]
        return [f"{slug(self.name)}/seed_{edit.seed}" for edit in self.edits]


def read_arms(
    arms: Mapping[str, Any], edit: Mapping[str, Any], *, seed: int, draws: int
) -> list[Arm]:
    """Returns the unedited arm and the config's: each is `config.edit` with some keys changed.

    Args:
        arms: name -> changes; a random control may also say how many `draws` it has.
        edit: what the changes are made to.
        seed: of the first draw; the next ones count up.
        draws: of a random control that does not say.

    Raises:
        ConfigError: a name, a key or a value is wrong.
    """
    listed = [Arm(UNEDITED)]
    for name, changes in arms.items():
        if name in _RESERVED:
            raise ConfigError(f"config.arms.{name}: this name is taken; name the arm otherwise.")
        where = f"config.arms.{name}"
        listed.append(make_arm(name, {**dict(edit), **dict(changes)}, where, seed, draws))
    # A ConfigDict sorts its keys; a reader wants edits before the controls that stand for them.
    listed[1:] = sorted(listed[1:], key=lambda arm: arm.original is not None)
    check_folders(listed)
    return listed


def make_arm(name: str, values: Mapping[str, Any], where: str, seed: int, draws: int) -> Arm:
    """Makes an arm of the fields of an edit, and of `draws` for a random control.

    Raises:
        ConfigError: a key is unknown or a value out of range; the message begins with `where`.
    """
    values = dict(values)
    asked = values.pop("draws", None)
    for key in values:
        if key not in _FIELDS:
            raise ConfigError(
                f"{where} has no key {key!r}; it knows {', '.join(sorted((*_FIELDS, 'draws')))}."
            )
    try:
        first = read_edit(values, seed=seed)
    except EditError as error:
        raise ConfigError(f"{where}: {error}") from None
    if first.control not in RANDOM_CONTROLS:
        if asked is not None:
            raise ConfigError(
                f"{where}.draws: control {first.control!r} is not random, so draws would be equal; "
                f"draws are for {', '.join(RANDOM_CONTROLS)}."
            )
        return Arm(name, (first,))
    count = draws if asked is None else asked
    if not isinstance(count, int) or count < 1:
        raise ConfigError(f"{where}.draws must be a whole number, at least 1, not {count!r}.")
    return Arm(name, tuple(dataclasses.replace(first, seed=first.seed + n) for n in range(count)))


def check_folders(arms: Iterable[Arm]) -> None:
    """Refuses arms whose answers would share a folder."""
    taken: dict[str, str] = {}
    for arm in arms:
        other = taken.setdefault(slug(arm.name), arm.name)
        if other != arm.name:
            raise ConfigError(
                f"arms {other!r} and {arm.name!r} would share the folder {slug(arm.name)}; rename "
                "one."
            )


def slug(name: str) -> str:
    """A folder name for an arm or a benchmark."""
    return "".join(c if c.isalnum() or c in "-_.=+" else "_" for c in name)


def pair_controls(arms: Iterable[Arm]) -> list[tuple[str, str, bool]]:
    """Pairs each control with the arm that is its edit: (edit, control, whether it is random)."""
    arms = list(arms)
    edits = {
        dataclasses.replace(arm.edits[0], seed=0): arm.name
        for arm in arms
        if arm.edits and not arm.edits[0].control
    }
    return [
        (edits[arm.original], arm.name, arm.is_random)
        for arm in arms
        if arm.original is not None and arm.original in edits
    ]


@dataclasses.dataclass(frozen=True)
class Planned:
    """An edit that is worked out but not made.

    Attributes:
        layers: layer -> change in low-rank form.
        sizes: what the certificate's `summary` says of it.
    """

    layers: Mapping[int, Sidecar]
    sizes: Mapping[str, Any]


def plan_edits(source: checkpoint.ModelFolder, specs: Iterable[QKEdit]) -> dict[QKEdit, Planned]:
    """Works out many edits of a folder, factoring each layer once for all of them.

    Only low-rank changes are kept, so that hundreds of edits of a large model fit into memory.

    Raises:
        EditError: the folder is edited already, or an edit does not fit the model.
    """
    wanted = list(dict.fromkeys(specs))
    if wanted and source.certificate is not None:
        raise EditError(
            f"{source.path} is edited already; compare edits of the original folder, or set "
            "config.arms={} to measure this one as it is."
        )
    decoder = source.config.decoder
    num_layers = decoder.num_layers
    rope = image_rope(decoder) if any(spec.rope_avg for spec in wanted) else None
    touched = set().union(*(spec.layers(num_layers) for spec in wanted)) if wanted else set()
    sidecars: list[dict[int, Sidecar]] = [{} for _ in wanted]
    heads: list[list[dict[str, Any]]] = [[] for _ in wanted]
    if not wanted:
        return {}
    with Progress(len(touched), "layers", label=f"{len(wanted)} edits") as progress:
        read = lambda layer: read_layer(source, layer)
        for edited in edit_many(read, num_layers, wanted, rope=rope):
            for index, layer in edited.items():
                sidecars[index][layer.layer] = layer.sidecar
                heads[index] += [_magnitudes(head) for head in layer.heads]
            progress.advance()
    return {
        spec: Planned(layers, {"layers": sorted(layers), **summary(numbers)})
        for spec, layers, numbers in zip(wanted, sidecars, heads)
    }


def edit_model(model: VLM, source: checkpoint.ModelFolder, planned: Planned) -> VLM:
    """Returns the model with the weights that an edited folder would hold; compiles nothing."""
    params = dict(model.params)
    for layer, sidecar in planned.layers.items():
        stored = read_layer(source, layer)
        wq_dnh, bq_nh = sidecar.apply(stored["wq_dnh"], stored.get("bq_nh"))
        changed: dict[str, np.ndarray] = {"wq_dnh": wq_dnh}
        if sidecar.moves_bias and bq_nh is not None:
            changed["bq_nh"] = bq_nh
        for name, array in changed.items():
            path = f"decoder/layers/{layer}/{name}"
            old = params[path]
            # Rounded to the stored dtype first: what is measured is what an edited folder holds.
            params[path] = jax.device_put(array.astype(old.dtype), old.sharding)
    return model.with_params(params)


def _magnitudes(head: Mapping[str, Any]) -> dict[str, Any]:
    return {name: head[name] for name in ("edit", "reference", "matched") if name in head}
