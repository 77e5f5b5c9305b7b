"""The query-key edit of a model folder; the result is a folder of the same format.

An edited folder carries a certificate, which its weights are checked against whenever they are
read, and a sidecar, which takes the edit back or makes it at another strength without the source.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from vlm_jax.checkpoint import CERTIFICATE, SIDECAR, Extra, ModelFolder, digest, edited_card
from vlm_jax.config import VLMConfig
from vlm_jax.edits.base import MadeEdit, WeightEdit
from vlm_jax.edits.qk import sidecar_file
from vlm_jax.edits.qk.certificate import summary
from vlm_jax.edits.qk.layers import EditedLayer, edit_layers
from vlm_jax.edits.qk.original import OriginalFolder
from vlm_jax.edits.qk.rope import Rope
from vlm_jax.edits.qk.sidecar import Sidecar
from vlm_jax.edits.qk.spec import QKEdit
from vlm_jax.errors import CheckpointError, EditError
from vlm_jax.evals.results import package_versions
from vlm_jax.families import find
from vlm_jax.progress import Progress
from vlm_jax.settings import read

LAYER_ARRAYS = ("wq_dnh", "bq_nh", "wk_dkh", "bk_kh", "attn_norm_d", "q_norm_h", "k_norm_h")
_DIGITS = 8  # of a head's numbers in the certificate


def read_edit(config: Mapping[str, Any], seed: int = 0, where: str = "config.edit") -> QKEdit:
    """Returns the edit that a config section describes.

    Args:
        config: the section.
        seed: of an edit whose section names none.
        where: the section's name in messages.

    Raises:
        ConfigError: a key is unknown, a value is out of range, or two contradict each other.
    """
    return read(QKEdit, {"seed": seed, **config}, where)


def edit_folder(
    source: ModelFolder, target: str | os.PathLike[str], spec: QKEdit
) -> dict[str, Any]:
    """Writes a copy of a model folder with edited query weights, a certificate and a sidecar.

    Only the query and key weights of the edited layers are read, one layer at a time; queries are
    edited in float64 and rounded once to their stored dtype. Every other tensor travels byte by
    byte. An edit that was killed goes on: layers are edited again, which is the smaller part, and
    compared with what was written; the rest of the copy is done once.

    Returns:
        The certificate that is written beside the weights.

    Raises:
        EditError: the source is edited already, or the edit does not fit the model.
        CheckpointError: a tensor is damaged, or the target exists, is the source or inside it, or
            cannot be written, or is half-written by another edit.
    """
    with Progress(len(edited_layers(source, spec)), "layers", label="edit") as progress:
        edit = FolderEdit(source, spec, progress)
        files: dict[str, Extra] = {
            CERTIFICATE: edit.certificate_bytes,
            SIDECAR: edit.sidecar_bytes,
            **edited_card(source, CERTIFICATE, f"Query-key edit: {_settings(spec)}."),
        }
        source.copy(target, edit.replacements(), files, recipe=edit.recipe())
    return edit.certificate()


def _settings(spec: QKEdit) -> str:
    """An edit's settings, those that are as usual left out."""
    fields = dataclasses.fields(spec)
    values = {field.name: getattr(spec, field.name) for field in fields}
    usual = {field.name: field.default for field in fields}
    told = {n: v for n, v in values.items() if n in ("k", "strength", "band") or v != usual[n]}
    return ", ".join(f"{name}={value!r}" for name, value in told.items())


def revert_folder(source: ModelFolder, target: str | os.PathLike[str]) -> None:
    """Writes the model that an edited folder was made from, bit for bit; needs no source.

    Raises:
        CheckpointError: the folder is not edited, its sidecar is missing or does not bring the
            certified weights back, or the target cannot be made.
    """
    OriginalFolder(source).copy(target, {})


def restrength_folder(
    source: ModelFolder, target: str | os.PathLike[str], strength: float
) -> dict[str, Any]:
    """Writes an edited folder's edit at another strength, as if made from the original weights.

    The sidecar brings the original queries back first, so nothing is rounded twice.

    Returns:
        The new certificate.

    Raises:
        EditError: the strength is out of range.
        CheckpointError: as `revert_folder`.
    """
    original = OriginalFolder(source)
    try:
        spec = read_edit(original.edit.fields.get("edit", {}))
    except (TypeError, KeyError) as error:
        raise CheckpointError(
            f"{original.edit.path} is damaged: its edit cannot be read ({error}). Make the edit "
            "again."
        ) from None
    return edit_folder(original, target, dataclasses.replace(spec, strength=strength))


def image_rope(config: VLMConfig) -> Rope:
    """The decoder's rotation at the offsets text sees an image of usual size at.

    How many tokens that has is the family's to say (`Family.image_grid`): 24 x 24 in LLaVA-1.5,
    3328 in a row in InternVL-3.5.
    """
    decoder, grid = config.decoder, find(config.family).image_grid(config)
    pairs = np.arange(0, decoder.head_dim, 2) / decoder.head_dim
    return Rope.of_image(decoder.rope_theta**-pairs / decoder.rope_factor, decoder.rope_axes, grid)


def read_layer(source: ModelFolder, layer: int) -> dict[str, np.ndarray]:
    """Returns the arrays of a decoder layer that an edit reads, by the names of `LAYER_ARRAYS`.

    Those that the architecture has not (biases, norms of queries and keys) are absent; dtypes are
    as stored.
    """
    prefix = _prefix(layer)
    paths = [prefix + name for name in LAYER_ARRAYS if prefix + name in source.tensors]
    return {path.removeprefix(prefix): array for path, array in source.stream(paths)}


class FolderEdit:
    """One edit of a folder, made layer by layer as somebody asks for its tensors.

    Args:
        source: the folder.
        spec: the edit.
        progress: advanced by every layer.

    Raises:
        EditError: the source is edited already, or the edit does not fit the model.
    """

    def __init__(self, source: ModelFolder, spec: QKEdit, progress: Progress):
        self._source, self._spec, self._progress = source, spec, progress
        self._layers = edited_layers(source, spec)
        self._rope = image_rope(source.config)
        self._waiting: dict[str, np.ndarray] = {}
        self._hashes: dict[str, dict[str, str]] = {}
        self._sidecars: dict[int, Sidecar] = {}
        self._heads: dict[int, list[dict[str, Any]]] = {}

    def replacements(self) -> dict[str, Callable[[], np.ndarray]]:
        """Path -> function that gives the edited tensor, of every tensor that changes."""
        names = ("wq_dnh",) if self._spec.bias == "weights" else ("wq_dnh", "bq_nh")
        return {
            f"{_prefix(layer)}{name}": lambda layer=layer, name=name: self._take(layer, name)
            for layer in self._layers
            for name in names
        }

    def recipe(self) -> bytes:
        """What the edited weights depend on besides the source."""
        fields = {"edit": dataclasses.asdict(self._spec), **_made_by()}
        return json.dumps(fields, sort_keys=True, default=_plain).encode()

    def certificate(self) -> dict[str, Any]:
        """The certificate, once every layer is made."""
        heads = [head for _, numbers in sorted(self._heads.items()) for head in numbers]
        of = self._source.edit.fields if isinstance(self._source, OriginalFolder) else None
        before = {path: hashes["before"] for path, hashes in self._hashes.items()}
        after = {path: hashes["after"] for path, hashes in self._hashes.items()}
        rope = self._rope
        return {
            "kind": "QK product edit",
            "edit": dataclasses.asdict(self._spec),
            "layers": sorted(self._heads),
            "summary": summary(heads),
            "tensors": dict(sorted(self._hashes.items())),
            "source": {
                "name": self._source.path.name if of is None else of["source"]["name"],
                "sha256": _structure(self._source, before),
            },
            "result": {"sha256": _structure(self._source, after)},
            "rope": {
                "offsets": np.asarray(rope.offsets_oa).tolist(),
                "axes": ["time", "row", "column"]
                if np.shape(rope.offsets_oa)[1] == 3
                else ["token"],
            },
            **_made_by(),
            "heads": heads,
        }

    def certificate_bytes(self) -> bytes:
        """The certificate's file, a line a head."""
        fields = self.certificate()
        heads = ",\n  ".join(json.dumps(_rounded(head)) for head in fields["heads"])
        text = json.dumps({**fields, "heads": []}, indent=1, default=_plain)
        opened = text.removesuffix('"heads": []\n}')
        return f'{opened}"heads": [\n  {heads}\n ]\n}}\n'.encode()

    def sidecar_bytes(self) -> bytes:
        """The sidecar's file."""
        return sidecar_file.to_bytes(self._sidecars)

    def _take(self, layer: int, name: str) -> np.ndarray:
        path = _prefix(layer) + name
        if path not in self._waiting:
            self._make(layer)
        return self._waiting.pop(path)

    def _make(self, layer: int) -> None:
        arrays = read_layer(self._source, layer)
        num_layers = self._source.config.decoder.num_layers
        edited: EditedLayer = next(
            edit_layers(lambda _: arrays, num_layers, self._spec, rope=self._rope, only=(layer,))
        )
        for name, array in edited.arrays.items():
            path = _prefix(layer) + name
            self._hashes[path] = {
                "before": digest(arrays[name]),
                "after": digest(array),
            }
            self._waiting[path] = array
        self._sidecars[layer], self._heads[layer] = edited.sidecar, edited.heads
        self._progress.advance()


def low_rank_edit(source: ModelFolder, layers: Mapping[int, Sidecar]) -> MadeEdit:
    """Returns an edit of a folder of the low-rank changes of its layers; it has no certificate."""

    def make(layer: int, name: str) -> np.ndarray:
        stored = read_layer(source, layer)
        wq_dnh, bq_nh = layers[layer].apply(stored["wq_dnh"], stored.get("bq_nh"))
        return {"wq_dnh": wq_dnh, "bq_nh": np.asarray(bq_nh)}[name]

    def changed(layer: int, sidecar: Sidecar) -> tuple[str, ...]:
        moves = sidecar.moves_bias and f"{_prefix(layer)}bq_nh" in source.tensors
        return ("wq_dnh", "bq_nh") if moves else ("wq_dnh",)

    replace = {
        f"{_prefix(layer)}{name}": lambda layer=layer, name=name: make(layer, name)
        for layer, sidecar in layers.items()
        for name in changed(layer, sidecar)
    }
    return MadeEdit(replace, bytes, lambda source, target: source.copy(target, replace))


def edited_layers(source: ModelFolder, spec: QKEdit) -> tuple[int, ...]:
    """The layers in which an edit of a folder changes heads; checks what needs no weights.

    Raises:
        EditError: the source is edited already, or the edit does not fit the model.
    """
    if source.certificate is not None:
        raise EditError(
            f"{source.path} is edited already ({CERTIFICATE} is in it), and edits do not add up: "
            "weights would be rounded twice and strengths lose their meaning. Edit the original "
            "folder, or take this edit along: --job=restrength --config.restrength=<a> makes it at "
            "another strength, --job=revert takes it back."
        )
    decoder = source.config.decoder
    layers = spec.layers(decoder.num_layers)
    spec.check_heads(layers)
    for layer in layers:
        spec.check_layer(layer, decoder.head_dim, decoder.qkv_bias)
    return tuple(n for n in layers if spec.heads_of(n, decoder.num_heads) != ())


def _made_by() -> dict[str, Any]:
    """What the last bits of an edit depend on besides its settings."""
    versions = package_versions(("vlm_jax", "jax", "jaxlib", "numpy"))
    return {"backend": jax.default_backend(), "versions": versions}


def _prefix(layer: int) -> str:
    return f"decoder/layers/{layer}/"


def _structure(source: ModelFolder, hashes: Mapping[str, str]) -> str:
    """A hash of all names, shapes and dtypes, and of the bytes of the edited tensors."""
    rows = [
        [path, list(info.shape), info.dtype.name, hashes.get(path)]
        for path, info in sorted(source.tensors.items())
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _rounded(value: Any) -> Any:
    """A head's numbers as JSON: floats shortened, null for what is no number."""
    if isinstance(value, Mapping):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        array = np.asarray(value)
        if array.dtype != np.float64 or not array.size or not np.isfinite(array).all():
            return [_rounded(item) for item in value]
        # A spectrum is rounded relative to its largest value, all at once: it is the bulk.
        largest = float(np.abs(array).max()) or 1.0
        return np.round(array, _DIGITS - 1 - math.floor(math.log10(largest))).tolist()
    if isinstance(value, float | np.floating):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return _plain(value) if isinstance(value, np.generic) else value


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def _make(source: ModelFolder, spec: QKEdit) -> MadeEdit:
    edit = FolderEdit(source, spec, Progress(None, "layers", enabled=False))
    write = lambda source, target: edit_folder(source, target, spec)
    return MadeEdit(edit.replacements(), edit.certificate_bytes, write)


EDIT = WeightEdit(
    "Suppresses the strongest modes of each head's query-key product, in its weights.",
    QKEdit,
    _make,
    random_control="R1",
)
