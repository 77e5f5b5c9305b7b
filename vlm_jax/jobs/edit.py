"""Edits the query weights of a model folder; the result is a folder of the same format."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vlm_jax import checkpoint
from vlm_jax.errors import ConfigError, EditError
from vlm_jax.evals.results import package_versions
from vlm_jax.jobs.request import Request
from vlm_jax.progress import Progress
from vlm_jax.steering.qk import EditedLayer, QKEdit, edit_layers
from vlm_jax.steering.qk.certificate import summary

CERTIFICATE = "qk_certificate.json"
_ARRAYS = ("wq_dnh", "bq_nh", "wk_dkh", "bk_kh", "attn_norm_d")


def run(request: Request) -> None:
    """Edits `--source` into `--target` as `config.edit` says, with a certificate beside it."""
    source = checkpoint.open_folder(request.need("source"))
    target = request.need("target")
    spec = read_edit(request.config.edit, seed=request.config.seed)
    edited = edit_folder(source, target, spec)
    totals = edited["summary"]
    print(
        f"Edited {totals['heads']} heads of layers {', '.join(map(str, edited['layers']))}: "
        f"||dW|| {totals['edit']['dw_norm']:.4g}, median energy removed "
        f"{100 * totals['edit']['energy_removed']:.1f} %."
    )
    print(f"Edited model: {target} (certificate: {CERTIFICATE})")


def read_edit(config: Mapping[str, Any], seed: int = 0) -> QKEdit:
    """Returns the edit that a config section describes.

    Raises:
        ConfigError: a key is unknown.
        EditError: a value is out of range.
    """
    values = dict(config)
    known = set(QKEdit.__dataclass_fields__)
    for key in values:
        if key not in known:
            raise ConfigError(
                f"config.edit has no key {key!r}; it knows {', '.join(sorted(known))}."
            )
    return QKEdit(**{"seed": seed, **values})


def edit_folder(
    source: checkpoint.ModelFolder, target: pathlib.Path, spec: QKEdit
) -> dict[str, Any]:
    """Writes a copy of a model folder with edited query weights.

    Only the query weights of the edited layers are read, edited in float64 and rounded once to
    their stored dtype; every other tensor travels byte by byte.

    Returns:
        The certificate that is written beside the weights.

    Raises:
        EditError: the source is edited already, or the edit does not fit the model.
        CheckpointError: the target exists or cannot be written.
    """
    if (source.path / CERTIFICATE).exists():
        raise EditError(
            f"{source.path} is edited already ({CERTIFICATE} is in it); edit the original folder, "
            "so that weights are rounded once and strengths mean what they say."
        )
    replace: dict[str, np.ndarray] = {}
    layers: list[EditedLayer] = []
    wanted = spec.layers(source.config.decoder.num_layers)
    with Progress(len(wanted), "layers", label="edit") as progress:
        for layer in edited_layers(source, spec):
            layers.append(layer)
            progress.advance()
            for name, array in layer.arrays.items():
                replace[f"decoder/layers/{layer.layer}/{name}"] = array
    certificate = {
        "kind": "QK product edit",
        "edit": {name: getattr(spec, name) for name in spec.__dataclass_fields__},
        "layers": [layer.layer for layer in layers],
        "summary": summary(head for layer in layers for head in layer.heads),
        "heads": [head for layer in layers for head in layer.heads],
        "source": source.path.name,
        "versions": package_versions(("vlm_jax", "jax", "jaxlib", "numpy")),
    }
    text = json.dumps(certificate, indent=1, default=_plain) + "\n"
    source.copy(target, replace, {CERTIFICATE: text.encode()})
    return certificate


def edited_layers(source: checkpoint.ModelFolder, spec: QKEdit) -> Iterator[EditedLayer]:
    """Yields the edited layers of a folder; reads the query and key weights of its band alone."""

    def read(layer: int) -> dict[str, np.ndarray]:
        prefix = f"decoder/layers/{layer}/"
        paths = [prefix + name for name in _ARRAYS if prefix + name in source.tensors]
        return {path.removeprefix(prefix): array for path, array in source.stream(paths)}

    return edit_layers(read, source.config.decoder.num_layers, spec)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
