"""The two conversions, streaming: memory follows the largest tensor, not the model.

Both go on where an interrupted one stopped, if the source is still the same.
"""

import collections
import os
import pathlib
from collections.abc import Collection, Iterator

import numpy as np

from convert import safetensors_io, source_layout
from convert.finished import Finished
from convert.hf_folder import HFFolder, open_hf
from convert.safetensors_io import Entry
from convert.shards import INDEX
from convert.source_layout import SourceLayout
from convert.table import Binding, Tensor, bind
from vlm_jax.checkpoint import (
    MANIFEST,
    SOURCE_LAYOUT,
    ConvertedFolder,
    FolderWriter,
    ModelFolder,
    TensorInfo,
    identity_of,
    open_folder,
    resumable_folder,
    trained_card,
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
            finite, and nothing is left behind; or the target cannot be made, or the source cannot
            be read to its end, and what was done is kept for the next call.
    """
    folder = open_hf(source) if pathlib.Path(source).is_dir() else None
    if folder is None:
        converted = (pathlib.Path(source) / MANIFEST).is_file()
        why = "it is converted already" if converted else "it needs config.json and weights"
        raise CheckpointError(f"{source} is no Hugging Face folder: {why}.")
    headers = (header.text for header in folder.files.values())
    identity = identity_of(folder.sources(), b"import", *headers)
    with (
        resumable_folder(target, source, identity) as temporary,
        FolderWriter(temporary) as writer,
        _progress("importing", folder, writer.stored, progress) as meter,
    ):
        for path, array in folder.stream(p for p in folder.tensors if p not in writer.stored):
            writer.add(path, array, checked=True)
            meter.advance(array.nbytes)
        files: dict[str, bytes | pathlib.Path] = dict(folder.companions())
        files[SOURCE_LAYOUT] = source_layout.of_folder(folder).to_json()
        writer.finish(files, {"source": {"format": "huggingface", "files": list(folder.files)}})


def export_hf(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    names: str = "as_source",
    progress: bool = True,
) -> None:
    """Converts a folder of ours to a Hugging Face one.

    A folder that came from one gets its files back: names, headers, shards and index are the
    source's, byte for byte, with the parameters as they are now. One that was trained here gets hub
    names and shards of at most 5 GB, and a model card.

    Args:
        source, target, progress: as for `import_hf`; a source that is a Hugging Face folder already
            is copied.
        names: how tensors are called. "as_source" is what the source called them; "hub" the names
            of released checkpoints, which serving stacks read; "saved" those that transformers 5
            gives to a model that was made in it.

    Raises:
        CheckpointError: the source's parameters are not those of its config, or other names are
            asked of a Hugging Face folder, or as `import_hf`.
    """
    folder = open_folder(source)
    if isinstance(folder, HFFolder):
        if names != "as_source":
            raise CheckpointError(
                f"{source} is a Hugging Face folder already, which export copies; to give it other "
                "names, make a converted folder of it first (--job=convert) and export that."
            )
        folder.copy(target, {})
        return
    if not isinstance(folder, ConvertedFolder):
        raise CheckpointError(f"{source} is neither a converted nor a Hugging Face folder.")
    binding = bind(folder.config)
    _check_parameters(folder, binding)
    where = str(folder.path / SOURCE_LAYOUT)
    layout = (
        source_layout.fresh(binding, folder.tensors)
        if folder.source_layout is None
        else source_layout.from_json(folder.source_layout, where)
    )
    if names != "as_source":
        layout = layout.renamed(lambda name: binding.spell(name, names))
    taken = {name.casefold() for name in (*layout.files, INDEX)}
    if clash := [name for name in folder.companions() if name.casefold() in taken]:
        raise CheckpointError(
            f"{folder.path} holds {clash[0]}, which the export writes: a converted folder keeps no "
            "weights beside its own; remove that file."
        )
    identity = identity_of(folder.sources(), b"export", layout.to_json())
    with resumable_folder(target, source, identity) as temporary:
        finished = Finished(temporary)
        _write_shards(folder, binding, layout, temporary, finished, progress)
        files: dict[str, bytes | pathlib.Path] = dict(folder.companions())
        if folder.source_layout is None:  # what came from elsewhere is given back as it was
            files |= trained_card(folder)
        if layout.index is not None:
            files[INDEX] = layout.index
        write_files(temporary, files)
        finished.forget()


def _write_shards(
    folder: ConvertedFolder,
    binding: Binding,
    layout: SourceLayout,
    target: pathlib.Path,
    finished: Finished,
    progress: bool,
) -> None:
    """Writes the files of a layout that are not there, reading in the order of their bytes."""
    entries: dict[str, Entry] = {}
    for header in layout.files.values():
        entries |= header.entries
    infos = {name: TensorInfo(entry.shape, entry.dtype) for name, entry in entries.items()}
    where = str(folder.path / SOURCE_LAYOUT)
    names: dict[str, Tensor] = binding.match(infos, where)
    missing = {f: h for f, h in layout.files.items() if not finished.has(f, h.file_bytes)}
    wanted = {name for header in missing.values() for name in header.entries if name in names}
    stored = {tensor.path for name, tensor in names.items() if name not in wanted}
    # Experts of a layer lie apart on disk and together in ours: their array is held until its
    # slices are written, others no longer than they are needed.
    ours = [names[name] for name in entries if name in wanted]
    slices = collections.Counter(tensor.path for tensor in ours if tensor.expert is not None)
    order = dict.fromkeys((t.path, t.name if t.expert is None else None) for t in ours)
    arrays: Iterator[tuple[str, np.ndarray]] = folder.stream(path for path, _ in order)
    held: dict[str, np.ndarray] = {}

    def tensor(name: str) -> Iterator[np.ndarray]:
        if name not in names:
            if name not in layout.buffers:
                raise CheckpointError(f"{where} lacks the bytes of tensor {name!r}.")
            return iter([np.frombuffer(layout.buffers[name], np.uint8)])
        path = names[name].path
        array = held.pop(path, None)
        if array is None:
            _, array = next(arrays)
            meter.advance(array.nbytes)
        slices[path] -= 1
        if slices[path] > 0:
            held[path] = array
        return names[name].to_disk(array)

    with _progress("exporting", folder, stored, progress) as meter:
        for file, header in missing.items():
            partial = target / f".{file}.partial"
            crc32 = safetensors_io.write(partial, header, tensor)
            partial.rename(target / file)
            finished.add(file, crc32)


def _progress(label: str, folder: ModelFolder, stored: Collection[str], enabled: bool) -> Progress:
    """A meter of the bytes that are still to be done."""
    sizes = {path: info.nbytes for path, info in folder.tensors.items()}
    before = sum(sizes[path] for path in stored)
    if before:
        label += f" ({before / sum(sizes.values()):.0%} was done before)"
    return Progress(sum(sizes.values()) - before, "B", label, enabled=enabled)


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
