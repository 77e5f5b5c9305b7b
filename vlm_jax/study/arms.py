"""Arms of a comparison: the edits and attention methods that a config names, and their draws."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlm_jax import checkpoint
from vlm_jax.api import VLM
from vlm_jax.attention.steering import Steering
from vlm_jax.config import VLMConfig
from vlm_jax.decoding import named
from vlm_jax.decoding.search import Search
from vlm_jax.decoding.strategies import Strategy
from vlm_jax.edits import energy_rescale, head_gains
from vlm_jax.edits.qk import METHODS as EDIT_METHODS
from vlm_jax.edits.qk import QKEdit, Sidecar, edit_many
from vlm_jax.edits.qk.certificate import summary
from vlm_jax.edits.qk.folder import image_rope, low_rank_edit, read_edit, read_layer
from vlm_jax.errors import ConfigError, EditError
from vlm_jax.files import slug
from vlm_jax.methods import steered
from vlm_jax.parallel import processes
from vlm_jax.progress import Progress
from vlm_jax.settings import refuse_unknown
from vlm_jax.steering.config import entries, is_random, read_method, with_seed, without_control
from vlm_jax.steering.methods import METHODS
from vlm_jax.treatments import Edited, Reranked, Treatment, decoded, steering_of, strategy_of

UNEDITED = "unedited"
AS_EDITED = "as edited"
IDENTIFIED = "identified"
RANDOM_CONTROLS = ("R1", "R2", "R3", "R4", "R5", "C6")
_RESERVED = (UNEDITED, AS_EDITED, "frontier")
_FIELDS = tuple(field.name for field in dataclasses.fields(QKEdit))

Section = Any
"""What a config says of an arm: one entry, several that act together, or a method's name."""


@dataclasses.dataclass(frozen=True)
class Draw:
    """One way to run the model: what is done to it, with one seed.

    Attributes:
        seed: of what is random in it.
        edit: of the weights, or None; worked out with those of all other arms.
        treatments: what acts besides.
        methods: those, as the config writes them.
    """

    seed: int
    edit: QKEdit | None = None
    treatments: tuple[Treatment, ...] = ()
    methods: tuple[Mapping[str, Any], ...] = ()

    @property
    def steering(self) -> Steering | None:
        """What it does to attention."""
        return steering_of(self.treatments)

    @property
    def strategy(self) -> Strategy | Search | None:
        """How it chooses tokens, if not from the model's own logits alone."""
        return strategy_of(self.treatments)

    @property
    def reranked(self) -> bool:
        """Whether answers are put together of segments."""
        return any(isinstance(one, Reranked) for one in self.treatments)

    @property
    def identity(self) -> dict[str, Any]:
        """JSON values that say which draw made an answer."""
        named: dict[str, Any] = {"edit": repr(self.edit)}
        if self.treatments:
            named["treatments"] = [one.identity() for one in self.treatments]
        return named

    def apply(self, model: VLM, planned: Mapping[QKEdit, "Planned"]) -> VLM:
        """Returns the model with all of this done to it; compiles nothing for an edit."""
        first = () if self.edit is None else (planned[self.edit].treatment,)
        for treatment in (*first, *self.treatments):
            model = treatment.apply(model)
        return model


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of a comparison.

    Attributes:
        name: distinct within the comparison, also as a folder name.
        draws: at least one; one with nothing to do is the source as it is.
        place: where answers go, instead of a folder of its name.
        benchmarks: the names of those that it answers; None is all.
    """

    name: str
    draws: tuple[Draw, ...] = (Draw(0),)
    place: str = ""
    benchmarks: tuple[str, ...] | None = None

    @property
    def edits(self) -> tuple[QKEdit, ...]:
        """The edit of every draw; none where weights stay as they are."""
        return tuple(draw.edit for draw in self.draws if draw.edit is not None)

    @property
    def methods(self) -> tuple[Mapping[str, Any], ...]:
        """The attention methods of the first draw."""
        return self.draws[0].methods

    @property
    def acts(self) -> bool:
        """Whether anything is done to the model."""
        return any(draw.edit is not None or draw.treatments for draw in self.draws)

    @property
    def is_random(self) -> bool:
        """Whether the arm is a control whose seed matters."""
        edited = bool(self.edits) and self.edits[0].control in RANDOM_CONTROLS
        return edited or is_random(self.methods)

    @property
    def is_control(self) -> bool:
        """Whether the arm stands beside another."""
        edited = bool(self.edits) and bool(self.edits[0].control)
        return edited or any(entry.get("control") for entry in self.methods)

    @property
    def stands_for(self) -> str:
        """Returns the key that an arm shares with its controls: all of it but control and seed."""
        edits = [dataclasses.asdict(edit) | {"control": "", "seed": 0} for edit in self.edits[:1]]
        return json.dumps([edits, without_control(self.methods)], sort_keys=True, default=str)

    def folders(self) -> list[str]:
        """A folder name a draw, the same for a draw whatever the number of draws."""
        if not self.is_random:
            return [self.place or slug(self.name)]
        return [f"{slug(self.name)}/seed_{draw.seed}" for draw in self.draws]


@dataclasses.dataclass(frozen=True)
class ArmReader:
    """Makes arms of config sections, for one model.

    Attributes:
        edit: the edit that entries change, `config.edit`.
        model: whose heads are steered.
        seed: of the first draw; the next ones count up.
        draws: of a random control that does not say.
        heads: file that `heads='identified'` stands for.
        as_it_is: name of the first arm, the source as it is.
    """

    edit: Mapping[str, Any]
    model: VLMConfig
    seed: int = 0
    draws: int = 1
    heads: str = ""
    as_it_is: str = UNEDITED

    @classmethod
    def of(cls, config: Any, source: checkpoint.ModelFolder) -> "ArmReader":
        """A reader for a job's config and model."""
        heads = heads_file(config, source)
        own = AS_EDITED if is_edited(source) else UNEDITED
        return cls(config.edit, source.config, config.seed, config.control_draws, heads, own)

    def arms(self, sections: Mapping[str, Section]) -> list[Arm]:
        """Returns the arm of the source as it is and those of `config.arms`.

        Raises:
            ConfigError: a name, a key or a value is wrong.
        """
        listed = [Arm(self.as_it_is)]
        for name, section in sections.items():
            where = f"config.arms.{name}"
            if name in _RESERVED:
                raise ConfigError(f"{where}: this name is taken; name the arm otherwise.")
            listed.append(self.arm(name, section, where))
        check_folders(listed)
        return _beside_controls(listed)

    def arm(self, name: str, section: Section, where: str) -> Arm:
        """Makes an arm: of an entry, or of several that act together.

        An entry whose `method` is an attention method or a strategy says its settings; any other is
        `config.edit` with some keys changed. A random control may say how many `draws` it has.

        Raises:
            ConfigError: a key is unknown or a value out of range; the message begins with `where`.
        """
        try:
            edits, methods = _by_kind(section)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        if not edits and not methods:
            raise ConfigError(f"{where} says nothing to do; {{}} is config.edit as it is.")
        asked = [entry.pop("draws") for entry in (*edits, *methods) if "draws" in entry]
        edit = self._edit(edits[0], where) if edits else None
        count = self._count(where, asked, edit, methods)
        first = next((entry["seed"] for entry in methods if "seed" in entry), self.seed)
        return Arm(name, tuple(self._draw(where, edit, methods, first, n) for n in range(count)))

    def _edit(self, changes: Mapping[str, Any], where: str) -> QKEdit:
        values = {**dict(self.edit), **changes}
        refuse_unknown(values, (*_FIELDS, "draws"), where)
        if values["method"] not in EDIT_METHODS:
            raise ConfigError(
                f"{where}.method must be an edit of weights ({', '.join(EDIT_METHODS)}) or an "
                f"attention method ({', '.join(METHODS.names())}), not {values['method']!r}."
            )
        return read_edit(values, self.seed, where)

    def _count(self, where: str, asked: list, edit: QKEdit | None, methods: list) -> int:
        """How many draws an arm has."""
        if (edit is None or edit.control not in RANDOM_CONTROLS) and not is_random(methods):
            if asked:
                controls = [] if edit is None else [edit.control]
                controls += [entry.get("control", "") for entry in methods]
                raise ConfigError(
                    f"{where}.draws: control {' and '.join(map(repr, controls))} is not random, so "
                    f"draws would be equal; draws are for {', '.join(RANDOM_CONTROLS)} of edits "
                    "and random of attention methods."
                )
            return 1
        count = asked[0] if asked else self.draws
        if len(set(asked)) > 1:
            raise ConfigError(f"{where}.draws is both {asked[0]} and {asked[1]}; say it once.")
        if not isinstance(count, int) or count < 1:
            raise ConfigError(f"{where}.draws must be a whole number, at least 1, not {count!r}.")
        return count

    def _draw(self, where: str, edit: QKEdit | None, methods: list, first: int, n: int) -> Draw:
        drawn = None if edit is None else dataclasses.replace(edit, seed=edit.seed + n)
        listed = with_seed(methods, first + n)
        treatments: list[Treatment] = []
        try:
            for entry in listed:
                treatment = self._treatment(entry)
                treatment.check_beside(treatments)
                treatments.append(treatment)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        seed = first + n if drawn is None else drawn.seed
        return Draw(seed, drawn, tuple(treatments), tuple(listed))

    def _treatment(self, entry: Mapping[str, Any]) -> Treatment:
        settings = {key: value for key, value in entry.items() if key != "method"}
        name = entry["method"]
        if name in named.names():
            return decoded(name, settings)
        return steered(name, settings, read_method(self._with_heads(entry), self.model))

    def _with_heads(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """The entry with the file that `heads='identified'` stands for."""
        if entry.get("heads") != IDENTIFIED:
            return dict(entry)
        if not pathlib.Path(self.heads).is_file():
            raise ConfigError(
                f"heads={IDENTIFIED!r} needs the file {self.heads}; make it with --job=identify "
                "(of images of your own: --config=chair_identify), or name another by config.heads."
            )
        return {**entry, "heads": self.heads}


def _by_kind(section: Section) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Separates the entry of an edit, if there is one, from those of other methods.

    Raises:
        ConfigError: there are two edits.
    """
    others = (*METHODS.names(), *named.names())
    listed = entries(section)
    methods = [entry for entry in listed if entry.get("method") in others]
    edits = [entry for entry in listed if entry.get("method") not in others]
    if len(edits) > 1:
        raise ConfigError(
            f"methods {edits[0].get('method')!r} and {edits[1].get('method')!r} are both edits of "
            f"weights; name one, and other methods of {', '.join(others)}."
        )
    return edits, methods


def _beside_controls(arms: Sequence[Arm]) -> list[Arm]:
    """Each arm followed by its controls; a config sorts all of them by name."""
    listed: dict[str, Arm] = {}
    for arm in (arm for arm in arms if not arm.is_control):
        controls = [one for one in arms if one.is_control and one.stands_for == arm.stands_for]
        listed |= {one.name: one for one in (arm, *controls)}
    return list({**listed, **{arm.name: arm for arm in arms}}.values())


def is_edited(source: checkpoint.ModelFolder) -> bool:
    """Whether a folder's weights are those of an edit."""
    folds = (head_gains.CERTIFICATE, energy_rescale.CERTIFICATE)
    return source.certificate is not None or any((source.path / f).exists() for f in folds)


def heads_file(config: Any, source: checkpoint.ModelFolder) -> str:
    """The file of head sets that `config.heads` names; it need not exist."""
    return str(config.heads).replace("{source}", str(source.path))


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


def pair_controls(arms: Iterable[Arm]) -> list[tuple[str, str, bool]]:
    """Pairs each control with the arm that it stands for: (arm, control, whether it is random)."""
    arms = list(arms)
    own = {arm.stands_for: arm.name for arm in arms if arm.acts and not arm.is_control}
    return [
        (own[arm.stands_for], arm.name, arm.is_random)
        for arm in arms
        if arm.is_control and arm.stands_for in own
    ]


@dataclasses.dataclass(frozen=True)
class Planned:
    """An edit that is worked out but not made.

    Attributes:
        treatment: makes the weights that an edited folder would hold, of changes in low-rank form.
        sizes: what the certificate's `summary` says of it.
        spectra: the strongest singular values of every head's product, before and after.
    """

    treatment: Edited
    sizes: Mapping[str, Any]
    spectra: Sequence[Mapping[str, Any]] = ()


def plan_edits(source: checkpoint.ModelFolder, specs: Iterable[QKEdit]) -> dict[QKEdit, Planned]:
    """Works out many edits of a folder, factoring each layer once for all of them.

    Only low-rank changes are kept, so that hundreds of edits of a large model fit into memory.

    Raises:
        EditError: the folder is edited already, or an edit does not fit the model.
    """
    wanted = list(dict.fromkeys(specs))
    if not wanted:
        return {}
    if source.certificate is not None:
        raise EditError(
            f"{source.path} is edited already; compare edits of the original folder, or set "
            "config.arms={} to measure this one as it is."
        )
    num_layers = source.config.decoder.num_layers
    rope = image_rope(source.config) if any(spec.rope_avg for spec in wanted) else None
    touched = set().union(*(spec.layers(num_layers) for spec in wanted))
    sidecars: list[dict[int, Sidecar]] = [{} for _ in wanted]
    heads: list[list[dict[str, Any]]] = [[] for _ in wanted]
    spectra: list[list[dict[str, Any]]] = [[] for _ in wanted]
    label, speaks = f"{len(wanted)} edit{'s' * (len(wanted) > 1)}", processes.primary()
    with Progress(len(touched), "layers", label=label, enabled=speaks) as progress:
        read = lambda layer: read_layer(source, layer)
        for edited in edit_many(read, num_layers, wanted, rope=rope):
            for index, layer in edited.items():
                sidecars[index][layer.layer] = layer.sidecar
                heads[index] += [_magnitudes(head) for head in layer.heads]
                if not wanted[index].control:
                    spectra[index] += [_spectrum(layer.layer, head) for head in layer.heads]
            progress.advance()
    return {
        spec: Planned(
            Edited("qk", dataclasses.asdict(spec), low_rank_edit(source, layers)),
            {"layers": sorted(layers), **summary(numbers)},
            own,
        )
        for spec, layers, numbers, own in zip(wanted, sidecars, heads, spectra)
    }


_MODES = 32
"""Singular values of a head that are kept for a report."""


def _spectrum(layer: int, head: Mapping[str, Any]) -> dict[str, Any]:
    digits = lambda values: [float(f"{value:.4g}") for value in values[:_MODES]]
    before, after = digits(head["spectrum_before"]), digits(head["spectrum_after"])
    return {"layer": layer, "before": before, "after": after}


def _magnitudes(head: Mapping[str, Any]) -> dict[str, Any]:
    return {name: head[name] for name in ("edit", "reference", "matched", "norm") if name in head}
