"""What every model folder offers, whatever its format, and how one is opened."""

import abc
import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import jax
import msgspec
import numpy as np

from vlm_jax.checkpoint.atomic import identity_of, new_folder, resumable_folder
from vlm_jax.config import VLMConfig
from vlm_jax.edit_record import EditRecord, read_certificate
from vlm_jax.errors import CheckpointError

MANIFEST = "vlm_jax.json"
PARAMS = "params"
SUBFOLDERS = ("additional_chat_templates", "qformer_tokenizer")
"""Where transformers keeps templates beyond the first, and the tokenizer of a Q-Former's words."""
_CHECK_ELEMENTS = 1 << 20  # of a finiteness check: a block that stays in cache

# An exponent of all ones is NaN or infinity: above it in the bits without their sign.
_EXPONENTS = {"float16": (np.uint16, 0x7C00), "bfloat16": (np.uint16, 0x7F80)}

Replacement = np.ndarray | jax.Array | Callable[[], np.ndarray | jax.Array]
# A further file: its content, or what makes it once all tensors are written; None leaves one out.
Extra = bytes | pathlib.Path | Callable[[], bytes | pathlib.Path] | None


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a stored tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class StoredTensor(msgspec.Struct):
    """Shape and dtype of a stored tensor, as our own files have them."""

    shape: list[Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]]
    dtype: Literal["float32", "float16", "bfloat16", "float64"]

    @property
    def info(self) -> TensorInfo:
        """As the rest of the package has it."""
        return TensorInfo(tuple(self.shape), np.dtype(self.dtype))


class ModelFolder(abc.ABC):
    """A checkpoint on disk, read in our parameter paths and layouts.

    Attributes:
        path: the folder.
        config: its architecture.
        tensors: our path -> shape and stored dtype, of every parameter.
    """

    path: pathlib.Path
    config: VLMConfig
    tensors: Mapping[str, TensorInfo]

    @abc.abstractmethod
    def stream(self, paths: Iterable[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """Reads parameters (all by default) in the order given, holding few at a time.

        Yields:
            (path, array in our layout and its stored dtype)

        Raises:
            CheckpointError: a path is unknown, the files are damaged, or an edited tensor is not
                the one that the folder's certificate names.
        """

    @abc.abstractmethod
    def load(
        self,
        dtype: np.typing.DTypeLike | None = None,
        shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    ) -> dict[str, jax.Array]:
        """Reads all parameters onto devices.

        Args:
            dtype: of the arrays; None keeps what is stored.
            shardings: where each goes; None puts all on the default device.

        Raises:
            CheckpointError: a tensor has NaN or infinity in it (named), is edited and not the one
                that the folder's certificate names, or the files are damaged.
        """

    @abc.abstractmethod
    def copy(
        self,
        target: str | os.PathLike[str],
        replace: Mapping[str, Replacement],
        extra_files: Mapping[str, Extra] | None = None,
        *,
        restored: Collection[str] = (),
        recipe: bytes | None = None,
    ) -> None:
        """Writes the same checkpoint, in the same format, with some parameters replaced.

        Replacements come first and one at a time, so that one that fails does so before the bulk of
        the model is copied. A copy that was killed goes on in the next call of the same recipe:
        replacements are made again and must be what was written.

        Args:
            target: the new folder; must not exist.
            replace: our path -> the new array in our layout, or a function that makes it when its
                turn comes. It is rounded to the stored dtype.
            extra_files: further files by name, e.g. a certificate of the change; a function is
                called when all tensors are written, None leaves a companion out.
            restored: those of `replace` that take an earlier replacement back.
            recipe: all that the replacements depend on besides this folder. Without one, a copy
                that has replacements cannot be told from another, and begins anew.

        Raises:
            CheckpointError: a path is unknown, an array is misshapen or not finite, and nothing is
                left behind; or the target cannot be made, or is half-written by another recipe.
        """

    @abc.abstractmethod
    def companions(self) -> dict[str, pathlib.Path]:
        """The files beside the weights (config, tokenizer, processor, templates), by name."""

    @abc.abstractmethod
    def sources(self) -> list[pathlib.Path]:
        """Files whose size and time identify this folder.

        They decide whether an interrupted copy of it may go on.
        """

    @functools.cached_property
    def certificate(self) -> EditRecord | None:
        """The certificate of the edit that made this folder, or None."""
        return read_certificate(self.path)

    def certified(self, path: str, array: np.ndarray) -> np.ndarray:
        """Returns a parameter that was read, once its certificate (if any) has agreed to it."""
        if self.certificate is not None:
            self.certificate.check(path, array)
        return array

    def read(self, path: str) -> np.ndarray:
        """Reads one parameter in our layout and its stored dtype."""
        return next(self.stream([path]))[1]

    def check_paths(self, paths: Iterable[str]) -> None:
        """Raises `CheckpointError` if the folder lacks some of the paths."""
        unknown = [path for path in paths if path not in self.tensors]
        if unknown:
            raise CheckpointError(f"{self.path} has no parameters {', '.join(unknown)}.")

    def copied(
        self, target: str | os.PathLike[str], replace: Iterable[str], recipe: bytes | None
    ) -> contextlib.AbstractContextManager[pathlib.Path]:
        """The folder that `copy` fills, with what an interrupted call has put there."""
        paths = sorted(replace)
        if paths and recipe is None:
            return new_folder(target, self.path)
        texts = b"copy", recipe or b"", "\n".join(paths).encode()
        identity = identity_of(self.sources(), *texts)
        return resumable_folder(target, self.path, identity, replaces_others=False)

    def replacement(self, path: str, given: Replacement) -> np.ndarray:
        """Returns a replacement of `copy` as an array, rounded to the stored dtype.

        Raises:
            CheckpointError: it has another shape than the stored tensor.
        """
        info = self.tensors[path]
        array = np.asarray(given() if callable(given) else given)
        if array.shape != info.shape:
            raise CheckpointError(
                f"the replacement of {path!r} is {list(array.shape)}, but {self.path} needs "
                f"{list(info.shape)}."
            )
        with np.errstate(over="ignore"):  # the next line says which tensor overflowed
            array = array.astype(info.dtype, copy=False)
        check_finite(array, path, "its replacement")
        return array


def place(
    array: np.ndarray,
    path: str,
    dtype: np.typing.DTypeLike | None,
    sharding: jax.sharding.Sharding,
    where: pathlib.Path,
    part: tuple[Sequence[int], Sequence[slice]] | None = None,
) -> jax.Array:
    """Puts a parameter that was read onto its devices, in the dtype asked for (None keeps its own).

    Args:
        array: what was read.
        path: of the parameter.
        dtype: that it gets.
        sharding: where it goes.
        where: the folder, for errors.
        part: where only what this process's devices need was read: the shape of the whole, and
            which part of it the array is.

    Raises:
        CheckpointError: it overflows the dtype.
    """
    if dtype is not None and np.dtype(dtype) != array.dtype:
        with np.errstate(over="ignore"):  # the next line says which tensor overflowed
            array = array.astype(dtype)
        check_finite(array, path, f"{where} as {np.dtype(dtype).name}")
    if part is None:
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
    shape, read = part

    def piece(index: Any) -> np.ndarray:
        bounds = [one.indices(size)[:2] for one, size in zip(index, shape, strict=True)]
        return array[
            tuple(slice(a - own.start, b - own.start) for (a, b), own in zip(bounds, read))
        ]

    return jax.make_array_from_callback(tuple(shape), sharding, piece)


def with_extra(
    companions: Mapping[str, bytes | pathlib.Path], extra: Mapping[str, Extra] | None
) -> dict[str, bytes | pathlib.Path]:
    """Companion files with those of `copy` added, or left out."""
    files = dict(companions)
    for name, content in (extra or {}).items():
        if content is None:
            files.pop(name, None)
        else:
            files[name] = content() if callable(content) else content
    return files


def write_files(folder: pathlib.Path, files: Mapping[str, bytes | pathlib.Path]) -> None:
    """Writes files by name: bytes as they are, paths as copies.

    Raises:
        CheckpointError: a name is not a plain file name, or is one that the format itself writes.
    """
    for name, content in files.items():
        parts = pathlib.PurePath(name).parts
        if name in (MANIFEST, PARAMS) or not parts or parts[0] == "/" or ".." in parts:
            raise CheckpointError(f"{name!r} is no name for a companion file of a model folder.")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            shutil.copyfile(content, path)


def check_finite(array: np.ndarray, path: str, where: object) -> None:
    """Refuses NaN and infinity.

    Raises:
        CheckpointError: names the tensor and the place.
    """
    flat = array.reshape(-1)
    kind = _EXPONENTS.get(array.dtype.name)
    for start in range(0, flat.size, _CHECK_ELEMENTS):
        block = flat[start : start + _CHECK_ELEMENTS]
        if kind is None:
            finite = bool(np.isfinite(block).all())
        else:
            # Ten times as fast as isfinite, which has no vector code for these two.
            finite = int((block.view(kind[0]) & 0x7FFF).max()) < kind[1]
        if not finite:
            raise not_finite(path, where)


def not_the_same(path: str, where: object) -> CheckpointError:
    """The error for a replaced tensor that an interrupted copy wrote otherwise."""
    return CheckpointError(
        f"tensor {path!r} of {where}, which an interrupted run wrote, is not what is made now; "
        "what was done is removed: the same command begins anew."
    )


def not_finite(path: str, where: object) -> CheckpointError:
    """The error for a tensor with NaN or infinity in it."""
    return CheckpointError(
        f"tensor {path!r} of {where} holds NaN or infinity; the checkpoint is broken or has "
        "overflowed its dtype. Get a sound copy."
    )


def companion_files(folder: pathlib.Path, wanted: Callable[[str], bool]) -> dict[str, pathlib.Path]:
    """The plain files of a folder whose name is wanted, and those of the folders that models have.

    Hidden files and other subfolders are left out: they are a download's bookkeeping. Links are
    followed, because a hub's cache is made of them: what is copied is a file of its own.
    """
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    for more in filter(pathlib.Path.is_dir, (folder / name for name in SUBFOLDERS)):
        files |= {f"{more.name}/{p.name}": p for p in sorted(more.iterdir()) if p.is_file()}
    return {name: path for name, path in files.items() if not name.startswith(".") and wanted(name)}
