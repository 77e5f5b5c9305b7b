"""The package's own model folder: Orbax parameters, companion files, a manifest written last."""

import json
import os
import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from vlm_jax.checkpoint.atomic import new_folder
from vlm_jax.checkpoint.folder import (
    MANIFEST,
    PARAMS,
    Extra,
    ModelFolder,
    Replacement,
    StoredTensor,
    TensorInfo,
    check_finite,
    companion_files,
    not_finite,
    not_the_same,
    place,
    with_extra,
    write_files,
)
from vlm_jax.checkpoint.group_index import INDEX
from vlm_jax.checkpoint.orbax_store import Reader, Writer
from vlm_jax.config import VLMConfig
from vlm_jax.edit_record import digest
from vlm_jax.errors import CheckpointError
from vlm_jax.families import read_config
from vlm_jax.foreign import convert, read_bytes, read_json

FORMAT_VERSION = 3
# How the files that a folder was converted from held its tensors; means nothing to this room.
SOURCE_LAYOUT = "source_layout.json"
_OWN_FIELDS = ("format_version", "family", "tensors")


class FolderWriter:
    """Fills a folder (a temporary one) parameter by parameter; a context manager.

    Attributes:
        stored: the paths that an interrupted run left in the folder; one that is given again must
            be the same.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._params = Writer(folder / PARAMS)
        self.stored = self._params.stored
        self._reader = Reader(folder / PARAMS, dict(self._params.tensors)) if self.stored else None

    def __enter__(self) -> "FolderWriter":
        return self

    def __exit__(self, *error) -> None:
        self._params.__exit__(*error)

    def add(self, path: str, array: np.ndarray | jax.Array, *, checked: bool = False) -> None:
        """Takes one parameter; the caller must not change the array afterwards.

        Args:
            path: of the parameter.
            array: on the host or on devices.
            checked: whether it is known to be finite.

        Raises:
            CheckpointError: it holds NaN or infinity, or is not what the folder holds already.
        """
        if self._reader is None or path not in self.stored:
            self._params.add(path, array, checked=checked)
            return
        ((_, stored),) = self._reader.stream([path])
        if digest(stored) != digest(np.asarray(array)):
            raise not_the_same(path, self._folder)

    def finish(
        self, files: Mapping[str, bytes | pathlib.Path], manifest: Mapping[str, Any]
    ) -> VLMConfig:
        """Completes the parameters, adds the companion files and, last, the manifest.

        Returns:
            The architecture that the written config.json describes.
        """
        self._params.finish()
        write_files(self._folder, files)
        config = read_config(self._folder)
        fields = {
            "format_version": FORMAT_VERSION,
            "family": config.family,
            **manifest,
            "tensors": {
                path: {"shape": list(info.shape), "dtype": info.dtype.name}
                for path, info in sorted(self._params.tensors.items())
            },
        }
        text = json.dumps(fields, indent=1) + "\n"
        (self._folder / MANIFEST).write_text(text, encoding="utf-8")
        return config


class ConvertedFolder(ModelFolder):
    """A folder that `FolderWriter` made."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        self.manifest, self.tensors = _read_manifest(self.path / MANIFEST)
        self.config = read_config(self.path)
        self._reader: Reader | None = None

    @property
    def source_layout(self) -> bytes | None:
        """How the converted files held the tensors, as the converter wrote it; None if unknown."""
        path = self.path / SOURCE_LAYOUT
        return read_bytes(path) if os.path.lexists(path) else None

    def sources(self) -> list[pathlib.Path]:
        """See `ModelFolder`."""
        return [self.path / "config.json", self.path / MANIFEST, self.path / PARAMS / INDEX]

    def companions(self) -> dict[str, pathlib.Path]:
        """See `ModelFolder`."""
        own = (MANIFEST, PARAMS, SOURCE_LAYOUT)
        return companion_files(self.path, lambda name: name not in own)

    def stream(self, paths: Iterable[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """See `ModelFolder`."""
        paths = list(self.tensors if paths is None else paths)
        self.check_paths(paths)
        for path, array in self._params.stream(paths):
            yield path, self.certified(path, array)

    def load(
        self,
        dtype: np.typing.DTypeLike | None = None,
        shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    ) -> dict[str, jax.Array]:
        """See `ModelFolder`."""
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        where = {path: device if shardings is None else shardings[path] for path in self.tensors}
        # Edited tensors pass through the host, where their stored bytes can be checked.
        edited = [] if self.certificate is None else list(self.certificate.tensors)
        params = {
            path: place(array, path, dtype, where[path], self.path)
            for path, array in self.stream(edited)
        }
        leaves = {
            path: jax.ShapeDtypeStruct(
                info.shape, info.dtype if dtype is None else dtype, sharding=where[path]
            )
            for path, info in self.tensors.items()
            if path not in params
        }
        params |= self._params.load(leaves)
        _check_arrays(params, self.path)
        return {path: params[path] for path in self.tensors}

    def copy(
        self,
        target: str | os.PathLike[str],
        replace: Mapping[str, Replacement],
        extra_files: Mapping[str, Extra] | None = None,
        *,
        restored: Collection[str] = (),
        recipe: bytes | None = None,
    ) -> None:
        """See `ModelFolder`."""
        self.check_paths(replace)
        with self.copied(target, replace, recipe) as temporary, FolderWriter(temporary) as writer:
            for path, given in replace.items():
                writer.add(path, self.replacement(path, given), checked=True)
            done = {*replace, *writer.stored}
            for path, array in self.stream(p for p in self.tensors if p not in done):
                writer.add(path, array)
            files = with_extra(self.companions(), extra_files)
            if self.source_layout is not None:
                files[SOURCE_LAYOUT] = self.source_layout
            kept = {name: v for name, v in self.manifest.items() if name not in _OWN_FIELDS}
            replaced = sorted({*kept.pop("replaced", []), *replace} - set(restored))
            writer.finish(files, {**kept, **({"replaced": replaced} if replaced else {})})

    @property
    def _params(self) -> Reader:
        if self._reader is None:
            self._reader = Reader(self.path / PARAMS, self.tensors)
        return self._reader


def save(
    target: str | os.PathLike[str],
    params: Mapping[str, jax.Array | np.ndarray],
    config: VLMConfig,
    companions: ModelFolder | Mapping[str, bytes | pathlib.Path],
    manifest: Mapping[str, Any] | None = None,
) -> None:
    """Writes a converted folder from arrays.

    Args:
        target: the new folder; must not exist.
        params: our path -> array.
        config: the architecture; `config.json` among the companions must describe the same.
        companions: files by name, or a folder whose companions are taken.
        manifest: further fields of the manifest.

    Raises:
        CheckpointError: a parameter is not finite, the companions lack `config.json` or it
            describes another model, or the target cannot be made. Nothing is left behind.
    """
    files = companions.companions() if isinstance(companions, ModelFolder) else companions
    if "config.json" not in files:
        raise CheckpointError(f"cannot write {target}: no config.json is among its companions.")
    with new_folder(target) as temporary, FolderWriter(temporary) as writer:
        for path, array in params.items():
            writer.add(path, array)
        if writer.finish(files, manifest or {}) != config:
            raise CheckpointError(
                f"cannot write {target}: the companions' config.json describes another model than "
                "the parameters."
            )


@jax.jit
def _all_finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()


def _check_arrays(params: Mapping[str, jax.Array], where: pathlib.Path) -> None:
    """Refuses NaN and infinity where the arrays are, without moving them."""
    on_device: dict[str, list[jax.Array]] = {}
    for path, array in params.items():
        own = [shard for shard in array.addressable_shards if shard.replica_id == 0]
        if own and own[0].device.platform == "cpu":
            # Host memory is looked at as it is: a program for each shape would take seconds.
            for shard in own:
                check_finite(np.asarray(shard.data), path, where)
        elif array.is_fully_addressable:
            on_device[path] = [_all_finite(array)]
        else:  # by itself: another process may have failed to read its part
            on_device[path] = [_all_finite(shard.data) for shard in own]
    for path, finite in jax.device_get(on_device).items():
        if not all(finite):
            raise not_finite(path, where)


class _Version(msgspec.Struct):
    format_version: int


class _Known(msgspec.Struct):
    """Fields of the manifest that this room reads; others are carried along."""

    tensors: dict[str, StoredTensor]
    replaced: list[str] = []


def _read_manifest(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Returns all fields of a manifest, and its tensors."""
    try:
        fields = read_json(path)
        version = convert(fields, _Version, str(path)).format_version
        known = convert(fields, _Known, str(path)) if version == FORMAT_VERSION else None
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} is damaged ({error}) The conversion must be done again."
        ) from None
    if known is None:
        raise CheckpointError(
            f"{path} has format version {version!r}, and this version of vlm_jax reads "
            f"{FORMAT_VERSION}: convert the model again."
        )
    return fields, {name: tensor.info for name, tensor in known.tensors.items()}
