"""A model by name: a folder first, then what ships, then the hub, without a network."""

import os
import pathlib
import shutil

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from vlm_jax import checkpoint, hub
from vlm_jax.errors import CheckpointError

REPO, COMMIT = "someone/small-vlm", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, with no way to the hub."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return folder


def put(cache: pathlib.Path, *files: pathlib.Path) -> pathlib.Path:
    """Puts files into a cache as a download leaves them: blobs, and a snapshot of links to them."""
    repo = cache / f"models--{REPO.replace('/', '--')}"
    snapshot = repo / "snapshots" / COMMIT
    for folder in (repo / "blobs", repo / "refs", snapshot):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(files):
        shutil.copyfile(file, repo / "blobs" / str(number))
        os.symlink(f"../../blobs/{number}", snapshot / file.name)
    return snapshot


def test_a_folder_goes_before_a_shipped_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("llava-0") == hub.SHIPPED / "llava-0"
    (tmp_path / "llava-0").mkdir()
    assert hub.resolve("llava-0") == pathlib.Path("llava-0")


def test_a_cached_model_is_opened_without_a_network(cache, tiny_llava):
    files = [path for path in sorted(tiny_llava.iterdir()) if path.is_file()]
    snapshot = put(cache, *files)
    for name in (REPO, f"{REPO}@main", f"{REPO}@{COMMIT}"):
        assert hub.resolve(name) == snapshot
    opened = checkpoint.open_folder(hub.resolve(REPO))
    path = next(iter(opened.tensors))
    assert (opened.read(path) == checkpoint.open_folder(tiny_llava).read(path)).all()


def test_not_cached_and_no_network_is_one_line(cache):
    with pytest.raises(CheckpointError) as error:
        hub.resolve(REPO)
    assert str(error.value).startswith(f"{REPO} is no folder here and not whole in the hub's cache")
    assert "\n" not in str(error.value)


def test_only_plain_weights_and_texts_are_asked_for(monkeypatch, tmp_path):
    asked = {}

    def download(repo, **options):
        asked.update(options, repo=repo)
        return str(hub.SHIPPED / "llava-0")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_has_weights", lambda folder: True)
    hub.resolve(f"{REPO}@v1.0")
    assert (asked["repo"], asked["revision"]) == (REPO, "v1.0")
    offered = [
        "README.md", "LICENSE.txt", "config.json", "model-00001-of-2.safetensors",
        "model.safetensors.index.json", "merges.txt",
        "chat_template.jinja", "pytorch_model.bin", "modeling_x.py", "x.pkl", "x.pt", "x.gguf",
        "consolidated.safetensors", "original/model.safetensors", "picture.png",
    ]  # fmt: skip
    kept = huggingface_hub.utils.filter_repo_objects(
        offered, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert list(kept) == offered[:7]


def _response(status: int):
    try:
        import httpx2 as httpx
    except ImportError:  # huggingface_hub uses what httpx2 came from before 2.0
        import httpx

    return httpx.Response(status, request=httpx.Request("GET", "https://example.org"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda: errors.GatedRepoError("a\nb", response=_response(403)), "asks for consent: "),
        (
            lambda: errors.RepositoryNotFoundError("a\nb", response=_response(404)),
            "There is no folder someone/small-vlm, and the hub has no model of that name",
        ),
        (
            lambda: errors.RevisionNotFoundError("a\nb", response=_response(404)),
            "has no revision None on the hub",
        ),
        (lambda: OSError(28, "No space left\non device"), "No space left on device"),
        (lambda: RuntimeError("proxy\nsays no"), "RuntimeError: proxy says no"),
    ],
)
def test_what_the_hub_refuses_is_one_line(error, message, monkeypatch, tmp_path):
    def download(repo, **options):
        raise error()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        hub.resolve(REPO)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_other_formats_are_named(cache, tiny_llava):
    put(cache, tiny_llava / "config.json")
    with pytest.raises(CheckpointError, match=r"has no config.json with \*.safetensors"):
        hub.resolve(REPO)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lava-0", "lava-0 is not a folder (did you mean 'llava-0'?)"),
        ("./nothing/here", "nothing/here is not a folder"),
        ("/nothing/here", "/nothing/here is not a folder"),
        ("out/qwen", "out/qwen is not a folder"),  # beside a folder "out", so meant as one
        ("file", "file is a file"),
    ],
)
def test_a_path_is_never_looked_for_on_the_hub(name, message, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError) as error:
        hub.resolve(name)
    assert message in str(error.value)


def test_a_shipped_folder_is_called_by_its_name(tmp_path):
    assert hub.called(hub.resolve("llava-0")) == "llava-0"
    assert hub.called(tmp_path / "llava-0") == str(tmp_path / "llava-0")
