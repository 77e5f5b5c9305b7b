"""The two conversions, streaming: memory follows the largest tensor, not the model."""

import os
import pathlib
from collections.abc import Iterator

import numpy as np

from convert import safetensors_io, source_layout
from convert.families import bind
from convert.hf_folder import INDEX, HFFolder, open_hf
from convert.safetensors_io import Entry
from convert.source_layout import SourceLayout
from convert.table import Binding, Tensor
from vlm_jax.checkpoint import (
    SOURCE_LAYOUT,
    ConvertedFolder,
    FolderWriter,
    TensorInfo,
    new_folder,
    open_folder,
    write_files,
)
from vlm_jax.errors import CheckpointError
from vlm_jax.progress import Progress


def import_hf(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, progress: bool = True
) -> None:
    """Converts a Hugging Face folder to ours.

    Args:
        source: the folder, with config.json and safetensors.
        target: the new folder; must not exist. It appears when it is complete.
        progress: whether to report on stderr.

    Raises:
        ConfigError, CheckpointError: the source is no such folder, incomplete, damaged or not
            finite, or the target cannot be made. Nothing is left behind.
    """
    folder = open_hf(source) if pathlib.Path(source).is_dir() else None
    if folder is None:
        raise CheckpointError(
            f"{source} is no Hugging Face folder: it needs config.json and weights."
        )
    total = sum(info.nbytes for info in folder.tensors.values())
    with new_folder(target, source) as temporary, Progress(
        total, "B", "importing", enabled=progress
    ) as meter:  # fmt: skip
        writer = FolderWriter(temporary)
        for path, array in folder.stream():
            writer.add(path, array)
            meter.advance(array.nbytes)
        files: dict[str, bytes | pathlib.Path] = dict(folder.companions())
        files[SOURCE_LAYOUT] = source_layout.of_folder(folder).to_json()
        writer.finish(files, {"source": {"format": "huggingface", "files": list(folder.files)}})


def export_hf(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, progress: bool = True
) -> None:
    """Converts a folder of ours to a Hugging Face one.

    A folder that came from one gets its files back: names, headers, shards and index are the
    source's, byte for byte, with the parameters as they are now. One that was trained here gets hub
    names and shards of at most 5 GB.

    Args: as `import_hf`; a source that is a Hugging Face folder already is copied.

    Raises:
        CheckpointError: the source's parameters are not those of its config, or the target cannot
            be made. Nothing is left behind.
    """
    folder = open_folder(source)
    if isinstance(folder, HFFolder):
        folder.copy(target, {})
        return
    if not isinstance(folder, ConvertedFolder):
        raise CheckpointError(f"{source} is neither a converted nor a Hugging Face folder.")
    binding = bind(folder.config)
    _check_parameters(folder, binding)
    layout = (
        source_layout.fresh(binding, folder.tensors)
        if folder.source_layout is None
        else source_layout.from_json(folder.source_layout)
    )
    total = sum(info.nbytes for info in folder.tensors.values())
    with new_folder(target, source) as temporary, Progress(
        total, "B", "exporting", enabled=progress
    ) as meter:  # fmt: skip
        _write_shards(folder, binding, layout, temporary, meter)
        files: dict[str, bytes | pathlib.Path] = dict(folder.companions())
        if layout.index is not None:
            files[INDEX] = layout.index
        write_files(temporary, files)


def _write_shards(
    folder: ConvertedFolder,
    binding: Binding,
    layout: SourceLayout,
    target: pathlib.Path,
    meter: Progress,
) -> None:
    """Writes every file of a layout, reading the parameters in the order of their bytes."""
    entries: dict[str, Entry] = {}
    for header in layout.files.values():
        entries |= header.entries
    infos = {name: TensorInfo(entry.shape, entry.dtype) for name, entry in entries.items()}
    names: dict[str, Tensor] = binding.match(infos, str(folder.path / SOURCE_LAYOUT))
    arrays: Iterator[tuple[str, np.ndarray]] = folder.stream(
        names[name].path for name in entries if name in names
    )

    def tensor(name: str) -> Iterator[np.ndarray]:
        if name not in names:
            return iter([np.frombuffer(layout.buffers[name], np.uint8)])
        _, array = next(arrays)
        meter.advance(array.nbytes)
        return names[name].to_disk(array)

    for file, header in layout.files.items():
        safetensors_io.write(target / file, header, tensor)


def _check_parameters(folder: ConvertedFolder, binding: Binding) -> None:
    needed = {path: tensor.shape for path, tensor in binding.by_path.items()}
    stored = {path: info.shape for path, info in folder.tensors.items()}
    wrong = sorted(p for p in needed.keys() | stored.keys() if needed.get(p) != stored.get(p))
    if wrong:
        lines = [f"{p} is {stored.get(p, 'missing')}, needs {needed.get(p, 'none')}" for p in wrong]
        raise CheckpointError(
            f"{folder.path} does not hold the {folder.config.family} model that its config.json "
            f"describes: {'; '.join(lines)}."
        )
