"""Models by name: a folder, a model that ships with the package, or one of the Hugging Face hub."""

import os
import pathlib
import re

from vlm_jax.errors import CheckpointError
from vlm_jax.files import expanded
from vlm_jax.settings import nearest

SHIPPED = pathlib.Path(__file__).parent / "testbed" / "models"
# Weights as plain arrays, JSON, and the texts of tokenizers and templates: never pickles or code.
# The card and the licence go where the model goes.
_WANTED = ("*.safetensors", "*.json", "*.txt", "*.jinja", "README.md", "LICENSE*")
_SMALL = ("config.json", "preprocessor_config.json", "processor_config.json")
# Second copies of the weights in other layouts.
_UNWANTED = ("consolidated*", "*/*.safetensors")
_NAME = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w./-]+))?")


def shipped() -> list[str]:
    """The names of the models that ship with the package."""
    return sorted(path.name for path in SHIPPED.iterdir() if (path / "config.json").is_file())


def called(folder: pathlib.Path) -> str:
    """Returns how a user calls a model's folder: a shipped one by its name."""
    return folder.name if folder.parent == SHIPPED else str(folder)


def resolve(name: str | os.PathLike[str], weights: bool = True) -> pathlib.Path:
    """Returns the folder of a model.

    "out/edited" is a folder if there is one; "llava-0" a shipped model; "owner/name", or
    "owner/name@revision", a model of the hub, downloaded to the hub's cache unless it is there.

    Args:
        name: of the model.
        weights: whether they are needed; without, only small files are downloaded.

    Raises:
        CheckpointError: it is none of these, or the hub cannot give it; says what to do.
    """
    if not isinstance(name, str | os.PathLike) or not os.fspath(name):
        raise CheckpointError(
            "a model is named by the path of a folder, a hub name (owner/name) or one of "
            f"{', '.join(shipped())}, not by {name!r}."
        )
    folder = pathlib.Path(expanded(name))
    text = os.fspath(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{folder} is a file; a model is a folder of files.")
    if text in shipped():
        return SHIPPED / text
    found = _NAME.fullmatch(text)
    # Where the part before "/" is a folder here, a path is meant: nothing of it is sent out.
    if found is None or folder.parent.is_dir():
        hint = nearest(text, shipped())
        raise CheckpointError(
            f"{folder} is not a folder{hint}; a model is a folder, a hub name (owner/name) or one "
            f"of {', '.join(shipped())}."
        )
    return _download(found["repo"], found["revision"], weights)


def _download(repo: str, revision: str | None, weights: bool) -> pathlib.Path:
    """The folder of a hub model in the hub's cache; a download that was stopped goes on."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    try:
        path = huggingface_hub.snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(_WANTED if weights else _SMALL),
            ignore_patterns=list(_UNWANTED),
            # Releases before 2.2 ask for the list of files of a commit even where all is cached.
            local_files_only=constants.HF_HUB_OFFLINE,
        )
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{repo} asks for consent: accept its terms on its hub page, then run "
            "`hf auth login`, or set HF_TOKEN."
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{repo} has no revision {revision!r} on the hub.") from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"There is no folder {repo}, and the hub has no model of that name that you may read "
            "(a private one needs `hf auth login`)."
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise CheckpointError(
            f"{repo} is no folder here and not whole in the hub's cache, and the hub cannot be "
            "reached: download it where there is a network (`hf download`) and name the folder; "
            "HF_HUB_OFFLINE=0 ends offline mode."
        ) from None
    except Exception as error:  # of the network, the disk, the proxy, the hub: all end the download
        what = " ".join(str(error).split())
        raise CheckpointError(
            f"{repo} cannot be downloaded: {type(error).__name__}: {what} The same command goes on "
            "with what is there."
        ) from error
    folder = pathlib.Path(path)
    if weights and not _has_weights(folder):
        raise CheckpointError(
            f"{repo} has no config.json with *.safetensors on the hub; weights in other formats "
            "are not read. A copy in safetensors may be found under another name."
        )
    return folder


def _has_weights(folder: pathlib.Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
