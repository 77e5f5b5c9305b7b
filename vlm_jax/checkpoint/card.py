"""The model card of a folder: what it was made from, what was done, how to load it.

The card is the folder's README.md. In an edited folder the base model's stays beside ours under
another name, and comes back when the last edit is taken back:

    README.md                 ->  README.md         (ours)
                                  README.base.md    (the base model's)
"""

import os
import re
from collections.abc import Mapping, Sequence

from vlm_jax.checkpoint.folder import Extra, ModelFolder
from vlm_jax.errors import CheckpointError
from vlm_jax.foreign import read_bytes

README = "README.md"
_KEPT = "README.base{}.md"
_MAX_BYTES = 1 << 20
_MARK = re.compile(
    r"<!-- written by vlm_jax; card of the base model: (README\.base[.\d]*\.md|) -->"
)
_FRONT = re.compile(r"\A---\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)
# What a card carries over from that of the base model: one line each, of harmless characters.
_CARRIED = re.compile(
    r"^(license|license_name|license_link): *([\w.:/+-][\w .:/+-]*)$", re.MULTILINE
)
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")  # a model's folder in the hub's cache

_LOADING = (
    "## How to load it",
    "",
    "    import vlm_jax",
    '    vlm = vlm_jax.load("path/of/this/folder")',
    "",
    "Where the weights are `*.safetensors`, transformers and vLLM load it as they load the base "
    "model; where they are under `params/`, `vlm-jax --job=export` writes such a folder.",
    "",
)


def edited_card(source: ModelFolder, certificate: str, what: str) -> dict[str, Extra]:
    """Returns the files of an edited copy's card, for `ModelFolder.copy`.

    Args:
        source: the folder that is edited.
        certificate: file in the copy that says what was done.
        what: the same in a few words.
    """
    entry = f"- {what} (certificate: `{certificate}`)"
    files, text = source.companions(), _text(source)
    found = _MARK.search(text)
    if found:  # edited before: one more line
        card = _listing(text, [*_others(text, certificate), entry]).encode()
        kept = source.path / found[1]
        return {README: card, **({found[1]: kept} if found[1] and kept.is_file() else {})}
    kept = ""
    if README in files:
        free = (_KEPT.format(suffix) for suffix in ("", *(f".{n}" for n in range(len(files)))))
        kept = next(name for name in free if name not in files)
    card = _listing(_card(source, text, kept), [entry]).encode()
    return {README: card, **({kept: files[README]} if kept else {})}


def original_card(edited: ModelFolder, certificate: str) -> dict[str, Extra]:
    """Returns what becomes of an edited folder's card when an edit is taken back.

    Args:
        edited: the folder.
        certificate: of that edit.
    """
    text = _text(edited)
    found = _MARK.search(text)
    if not found:
        return {}
    others = _others(text, certificate)
    if others:
        return {README: _listing(text, others).encode()}
    kept = edited.companions().get(found[1])
    return {README: kept} if kept is None else {README: kept, found[1]: None}


def trained_card(source: ModelFolder) -> dict[str, bytes]:
    """Returns the card of the export of a model that was made here; none if it has one."""
    if README in source.companions():
        return {}
    _, name = _origin(source)
    recipe = source.path / "recipe.json"
    how = " on the scenes of its testbed; `recipe.json` says how." if recipe.is_file() else "."
    lines = [
        *_front({}),
        f"# {name}",
        "",
        f"A {source.config.family} model, made by vlm_jax{how} No weight of it was edited since.",
        "",
        *_LOADING,
    ]
    return {README: "\n".join(lines).encode()}


def _origin(folder: ModelFolder) -> tuple[str, str]:
    """A folder's path, and the name of the model in it: the hub's where it is of its cache."""
    path = os.path.realpath(folder.path)
    cached = _CACHED.search(path)
    return path, f"{cached[1]}/{cached[2]}" if cached else os.path.basename(path)


def _front(fields: Mapping[str, str]) -> list[str]:
    """The lines at the head of a card that a hub reads."""
    usual = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    return ["---", *(f"{name}: {value}" for name, value in ({**fields, **usual}).items()), "---"]


def _text(folder: ModelFolder) -> str:
    """The folder's card; nothing where there is none that can be read."""
    path = folder.path / README
    try:
        return read_bytes(path, _MAX_BYTES).decode("utf-8", "replace") if path.exists() else ""
    except CheckpointError:
        return ""


def _others(text: str, certificate: str) -> list[str]:
    """The lines of a card about edits other than one."""
    lines = re.findall(r"^- .* \(certificate: `.*`\)$", text, re.MULTILINE)
    return [line for line in lines if not line.endswith(f"(certificate: `{certificate}`)")]


def _listing(text: str, entries: Sequence[str]) -> str:
    """A card with other lines about edits."""
    head, start, rest = text.partition("<!-- edits -->\n")
    _, end, tail = rest.partition("<!-- end of edits -->\n")
    return "".join([head, start, *(f"{entry}\n" for entry in entries), end, tail])


def _card(source: ModelFolder, base_card: str, kept: str) -> str:
    """A card without a line about edits yet."""
    path, base = _origin(source)
    front = _FRONT.match(base_card)
    carried: Mapping[str, str] = dict(_CARRIED.findall(front[1])) if front else {}
    fields = dict(carried) | ({"base_model": base} if _CACHED.search(path) else {})
    licence = carried.get("license_name", carried.get("license"))
    if licence:
        terms = f"That of the base model: {licence}."
    else:
        terms = "That of the base model; the folder that was edited names none in its card."
    if kept:
        terms += f" The base model's own card is [{kept}]({kept})."
    return "\n".join(
        [
            *_front(fields),
            f"<!-- written by vlm_jax; card of the base model: {kept} -->",
            f"# {base}, edited",
            "",
            f"The base model is {base}. Only the weights that the certificates name differ from "
            "it; configuration, tokenizer, processor and chat template are the base model's.",
            "",
            "## What was done to the weights",
            "",
            "<!-- edits -->",
            "<!-- end of edits -->",
            "",
            *_LOADING,
            "## Licence",
            "",
            terms,
            "",
        ]
    )
