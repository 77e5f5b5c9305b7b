"""Edited folders of both formats: what changes, certificates, reverts, refusals."""

import functools
import hashlib
import json
import pathlib
import shutil

import numpy as np
import pytest

import convert
from configs import edit as edit_config
from convert import safetensors_io
from tests import tiny
from tests.reference import IMAGES, LOGITS_BAR, PROMPTS, Reference, prompt_ids
from vlm_jax import checkpoint
from vlm_jax.checkpoint import CERTIFICATE, SIDECAR, open_folder
from vlm_jax.edits.qk import QKEdit, Sidecar, edit_layers
from vlm_jax.edits.qk.folder import (
    FolderEdit,
    edit_folder,
    image_rope,
    read_layer,
    restrength_folder,
    revert_folder,
)
from vlm_jax.edits.qk.folder import _rounded as rounded
from vlm_jax.edits.qk.original import OriginalFolder
from vlm_jax.errors import CheckpointError, ConfigError, EditError, UserError
from vlm_jax.jobs import edit
from vlm_jax.processing.positions import expand
from vlm_jax.study.request import Request

MAKERS = {"llava": tiny.llava, "qwen2_5_vl": tiny.qwen2_5_vl}
SPEC = QKEdit(band=(1, 2), k=2, strength=0.7)
EDITED = {f"decoder/layers/{n}/wq_dnh" for n in (1, 2)}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Gives a folder of a family, dtype and format; never to be changed."""
    folders = {}

    def make(family: str, dtype: str = "bfloat16", form: str = "huggingface") -> pathlib.Path:
        key = family, dtype, form
        if key not in folders and form == "converted":
            target = tmp_path_factory.mktemp("sources") / "model"
            convert.import_hf(make(family, dtype), target, progress=False)
            folders[key] = target
        elif key not in folders:
            shards = {"float32": 1, "bfloat16": 3, "float16": 2}[dtype]
            target = tmp_path_factory.mktemp("sources") / "model"
            folders[key] = MAKERS[family](target, dtype=dtype, shards=shards)
        return folders[key]

    return make


@pytest.fixture(params=["huggingface", "converted"])
def form(request):
    return request.param


@pytest.fixture
def qwen(made, form):
    return made("qwen2_5_vl", "bfloat16", form)


@pytest.fixture(scope="session")
def edited_once(made, tmp_path_factory):
    """Gives the edited folder of a format; never to be changed."""

    @functools.cache
    def make(form: str) -> pathlib.Path:
        target = tmp_path_factory.mktemp("edited") / form
        edit_folder(open_folder(made("qwen2_5_vl", "bfloat16", form)), target, SPEC)
        return target

    return make


@pytest.fixture
def edited(edited_once, form, tmp_path):
    """An edited folder of one's own."""
    return pathlib.Path(shutil.copytree(edited_once(form), tmp_path / "edited"))


def tensors(folder) -> dict[str, np.ndarray]:
    return {path: array.copy() for path, array in open_folder(folder).stream()}


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def differing(one, other) -> set[str]:
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    assert all(first[path].dtype == second[path].dtype for path in first)
    return {path for path in first if first[path].tobytes() != second[path].tobytes()}


def certificate(folder: pathlib.Path) -> dict:
    def refuse(text):
        raise AssertionError(f"{text} is not JSON")

    return json.loads((folder / CERTIFICATE).read_text(), parse_constant=refuse)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("control", ["", "C5"])
def test_strength_zero_changes_no_byte(made, family, dtype, form, control, tmp_path):
    source = made(family, dtype, form)
    strength = 0.5 if control else 0.0
    spec = QKEdit(band=(0, 2), k=2, strength=strength, control=control)
    edit_folder(open_folder(source), tmp_path / "same", spec)
    assert differing(source, tmp_path / "same") == set()
    if form == "huggingface":
        after = files(tmp_path / "same")
        assert after.keys() - files(source).keys() == {CERTIFICATE, SIDECAR, "README.md"}
        assert {name: after[name] for name in files(source)} == files(source)
    numbers = certificate(tmp_path / "same")
    assert all(hashes["before"] == hashes["after"] for hashes in numbers["tensors"].values())
    assert numbers["source"]["sha256"] == numbers["result"]["sha256"]


@pytest.mark.parametrize("family", MAKERS)
def test_only_the_queries_of_the_band_change(made, family, form, tmp_path):
    source = made(family, "bfloat16", form)
    edit_folder(open_folder(source), tmp_path / "edited", SPEC)
    assert differing(source, tmp_path / "edited") == EDITED
    layer = {p.rsplit("/", 1)[1]: a for p, a in tensors(source).items() if "decoder/layers/1/" in p}
    (expected,) = edit_layers(lambda _: layer, 2, QKEdit(band=(1, 1), k=2, strength=0.7))
    found = open_folder(tmp_path / "edited").read("decoder/layers/1/wq_dnh")
    assert found.tobytes() == expected.arrays["wq_dnh"].tobytes()


def test_operator_biases_move_too(qwen, tmp_path):
    spec = QKEdit(band=(1, 1), k=2, bias="operator")
    edit_folder(open_folder(qwen), tmp_path / "edited", spec)
    assert differing(qwen, tmp_path / "edited") == {
        "decoder/layers/1/wq_dnh",
        "decoder/layers/1/bq_nh",
    }
    revert_folder(open_folder(tmp_path / "edited"), tmp_path / "back")
    assert differing(qwen, tmp_path / "back") == set()


def test_only_queries_and_keys_of_the_band_are_read_a_layer_at_a_time(made, tmp_path, monkeypatch):
    source = open_folder(made("qwen2_5_vl"))
    read, waiting = [], []
    stream, make = convert.HFFolder.stream, FolderEdit._make

    def recorded(self, paths=None):
        read.extend(paths := list(self.tensors if paths is None else paths))
        return stream(self, paths)

    def counted(self, layer):
        make(self, layer)
        waiting.append(len(self._waiting))

    monkeypatch.setattr(convert.HFFolder, "stream", recorded)
    monkeypatch.setattr(FolderEdit, "_make", counted)
    edit_folder(source, tmp_path / "edited", QKEdit(band=(0, 2), k=2))
    names = ("wq_dnh", "bq_nh", "wk_dkh", "bk_kh", "attn_norm_d")
    assert sorted(read) == sorted(f"decoder/layers/{n}/{name}" for n in range(3) for name in names)
    assert waiting == [1, 1, 1]


@pytest.mark.parametrize("family", MAKERS)
def test_torch_reads_the_edited_export_as_we_do(made, family, tmp_path, request):
    vlm = request.getfixturevalue("llava_vlm" if family == "llava" else "qwen_vlm")
    source = request.getfixturevalue("tiny_llava" if family == "llava" else "tiny_qwen")
    convert.import_hf(source, tmp_path / "ours", progress=False)
    spec = QKEdit(band=(0, 2), k=3, strength=1.0)
    edit_folder(open_folder(tmp_path / "ours"), tmp_path / "edited", spec)
    convert.export_hf(tmp_path / "edited", tmp_path / "hf", progress=False)
    shardings = {path: array.sharding for path, array in vlm.params.items()}
    steered = vlm.with_params(open_folder(tmp_path / "hf").load("float32", shardings))
    row, before = (m.logits([IMAGES[1]], [PROMPTS[1]])[0][0] for m in (steered, vlm))
    ids = prompt_ids(vlm.processor.batch([IMAGES[1]], [PROMPTS[1]]), 0)
    theirs = Reference.from_folder(tmp_path / "hf").logits(ids, IMAGES[1])
    assert np.abs(row - theirs).max() <= LOGITS_BAR
    assert np.abs(row - before).max() > 100 * LOGITS_BAR


def test_formats_agree_on_the_certificate(made, tmp_path):
    for form in ("huggingface", "converted"):
        source = made("qwen2_5_vl", "bfloat16", form)
        edit_folder(open_folder(source), tmp_path / form, SPEC)
    assert (tmp_path / "huggingface" / CERTIFICATE).read_bytes() == (
        tmp_path / "converted" / CERTIFICATE
    ).read_bytes()
    sidecars = [(tmp_path / form / SIDECAR).read_bytes() for form in ("huggingface", "converted")]
    assert sidecars[0] == sidecars[1]


def test_certificate_says_what_was_done(qwen, edited):
    numbers = certificate(edited)
    assert numbers["edit"]["strength"] == 0.7
    assert numbers["layers"] == [1, 2]
    assert [(h["layer"], h["head"]) for h in numbers["heads"]] == [
        (n, h) for n in (1, 2) for h in range(4)
    ]
    for path in EDITED:
        for when, folder in (("before", qwen), ("after", edited)):
            raw = open_folder(folder).read(path).tobytes()
            assert numbers["tensors"][path][when] == hashlib.sha256(raw).hexdigest()
    assert numbers["tensors"].keys() == EDITED
    head = numbers["heads"][3]
    assert len(head["rho"]["values"]) == len(numbers["rope"]["offsets"]) == 10
    assert 0 < head["rho"]["median"] <= 1
    assert numbers["summary"]["rho"] == pytest.approx(
        np.median([h["rho"]["median"] for h in numbers["heads"]]), rel=1e-6
    )
    assert 0 < head["rounding_noise"] < 0.1
    assert head["seed"] == 0
    before, after = (np.array(head[f"spectrum_{when}"]) for when in ("before", "after"))
    lost = 1 - np.sum(after**2) / np.sum(before**2)
    assert head["edit"]["energy_removed"] == pytest.approx(lost, rel=1e-5)
    assert np.abs(head["alignment"]).max() <= 1
    assert -1 <= head["symmetry"] <= 1
    assert 0 < head["overlap"] < 1
    assert head["residual"] == 0  # of a plain edit, which is always realised
    wq = open_folder(qwen).read("decoder/layers/1/wq_dnh").astype(np.float64)[:, 3]
    change = open_folder(edited).read("decoder/layers/1/wq_dnh").astype(np.float64)[:, 3] - wq
    share = np.linalg.norm(change) / np.linalg.norm(wq)
    assert head["edit"]["dw_relative"] == pytest.approx(share, rel=1e-2)  # before rounding
    assert len({numbers["source"]["sha256"], numbers["result"]["sha256"]}) == 2
    assert numbers["versions"].keys() >= {"vlm_jax", "jax", "numpy"}
    with_file = open_folder(edited).certificate
    assert with_file is not None
    assert with_file.fields == numbers


@pytest.mark.parametrize("family", MAKERS)
def test_offsets_are_those_of_text_behind_an_image(made, family):
    config = open_folder(made(family)).config
    offsets = np.asarray(image_rope(config).offsets_oa)
    grid = (24, 24)
    mrope = config.decoder.mrope_section is not None
    ids = [1, 9, *[2] * 80]
    expanded = expand(ids, 9, [np.arange(576)], [grid], mrope)
    image, text = np.flatnonzero(expanded.tokens_t == 9), 1 + 576
    seen = {
        tuple(expanded.positions_t3[text + t] - expanded.positions_t3[i])
        for t in (0, 64)
        for i in image
    }
    found = {tuple(o) if mrope else (o[0],) * 3 for o in offsets.tolist()}
    assert len(found) == 10
    assert found <= seen


def test_certificate_and_sidecar_travel(edited, tmp_path, form):
    if form == "huggingface":
        convert.import_hf(edited, tmp_path / "moved", progress=False)
    else:
        convert.export_hf(edited, tmp_path / "moved", progress=False)
    for name in (CERTIFICATE, SIDECAR):
        assert (tmp_path / "moved" / name).read_bytes() == (edited / name).read_bytes()
    params = open_folder(tmp_path / "moved").load("float32")
    for path, array in open_folder(edited).load("float32").items():
        assert np.asarray(params[path]).tobytes() == np.asarray(array).tobytes(), path
    revert_folder(open_folder(tmp_path / "moved"), tmp_path / "back")
    restrength_folder(open_folder(tmp_path / "moved"), tmp_path / "again", 0.7)
    assert differing(edited, tmp_path / "again") == set()


def flip(folder: pathlib.Path, path: str, target: pathlib.Path) -> pathlib.Path:
    """A copy with the lowest bit of one value of a tensor flipped, and nothing else."""
    source = open_folder(folder)
    array = source.read(path).copy()
    bits = array.reshape(-1).view(np.uint16)
    bits[bits.size // 2] ^= 1
    source.copy(target, {path: array})
    return target


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_a_changed_edited_tensor_is_refused(edited, tmp_path, dtype):
    path = "decoder/layers/2/wq_dnh"
    target = flip(edited, path, tmp_path / "flipped")
    for read in (
        lambda: open_folder(target).load(dtype),
        lambda: open_folder(target).read(path),
        lambda: revert_folder(open_folder(target), tmp_path / "back"),
    ):
        with pytest.raises(CheckpointError, match=f"tensor '{path}' of .*Make the edit again"):
            read()
    assert not (tmp_path / "back").exists()
    open_folder(target).read("decoder/layers/1/wq_dnh")


def test_a_changed_edited_tensor_is_refused_by_conversion(made, tmp_path):
    edit_folder(open_folder(made("qwen2_5_vl")), tmp_path / "edited", SPEC)
    flip(tmp_path / "edited", "decoder/layers/1/wq_dnh", tmp_path / "flipped")
    with pytest.raises(CheckpointError, match="layers/1/wq_dnh"):
        convert.import_hf(tmp_path / "flipped", tmp_path / "ours", progress=False)
    assert not (tmp_path / "ours").exists()


def test_tensors_that_were_not_edited_are_free_to_change(edited, tmp_path):
    flip(edited, "decoder/layers/1/wv_dkh", tmp_path / "flipped")
    assert len(open_folder(tmp_path / "flipped").load()) == len(open_folder(edited).tensors)


def test_loading_an_edited_folder_reads_every_tensor_once(edited, form, monkeypatch):
    if form == "huggingface":
        owner, name = safetensors_io, "read_strips"
    else:
        from vlm_jax.checkpoint import orbax_store

        owner, name = orbax_store.Reader, "_load"
    read = []
    true = getattr(owner, name)

    def recorded(*args):
        if form == "huggingface":
            read.append(args[2])
        else:
            read.extend(args[2])
        return true(*args)

    folder = open_folder(edited)
    monkeypatch.setattr(owner, name, recorded)
    folder.load("float32")
    assert sorted(read) == sorted(set(read))
    assert len(read) == len(folder.tensors)


@pytest.mark.parametrize(
    "fields",
    [{}, {"strength": 1.0}, {"strength": -2.0}, {"control": "R3"}, {"control": "C1"}],
    ids=str,
)
def test_revert_gives_the_source_back(qwen, form, fields, tmp_path):
    spec = QKEdit(**{"band": (0, 2), "k": 2, **fields})
    edit_folder(open_folder(qwen), tmp_path / "edited", spec)
    assert differing(qwen, tmp_path / "edited")
    revert_folder(open_folder(tmp_path / "edited"), tmp_path / "back")
    assert differing(qwen, tmp_path / "back") == set()
    assert files(tmp_path / "back") == files(qwen)
    assert open_folder(tmp_path / "back").certificate is None


@pytest.mark.parametrize("fields", [{}, {"control": "R4"}, {"method": "symmetric"}], ids=str)
def test_another_strength_is_the_edit_made_at_that_strength(qwen, fields, tmp_path):
    spec = {"band": (1, 1), "k": 2, **fields}
    edit_folder(open_folder(qwen), tmp_path / "edited", QKEdit(strength=0.3, **spec))
    restrength_folder(open_folder(tmp_path / "edited"), tmp_path / "again", 0.9)
    edit_folder(open_folder(qwen), tmp_path / "direct", QKEdit(strength=0.9, **spec))
    assert differing(tmp_path / "again", tmp_path / "direct") == set()
    assert files(tmp_path / "again") == files(tmp_path / "direct")
    assert certificate(tmp_path / "again")["source"]["name"] == "model"


def test_an_edited_folder_is_seen_as_its_source(qwen, edited, form):
    original = OriginalFolder(open_folder(edited))
    assert {path: a.tobytes() for path, a in original.stream()} == {
        path: a.tobytes() for path, a in open_folder(qwen).stream()
    }
    expected = open_folder(qwen).load("float32")
    for path, array in original.load("float32").items():
        assert np.asarray(array).tobytes() == np.asarray(expected[path]).tobytes(), path
    assert original.companions().keys() == open_folder(qwen).companions().keys()


def job(source, target, **settings):
    config = edit_config.get_config()
    config.edit.band = (1, 2)
    config.edit.k = 2
    config.edit.strength = 0.7
    for name, value in settings.items():
        config[name] = value
    edit.run(Request(config=config, source=source, target=target))


def test_the_job_edits_reverts_and_changes_the_strength(made, tmp_path, capsys):
    source = made("qwen2_5_vl")
    job(source, tmp_path / "edited")
    assert differing(source, tmp_path / "edited") == EDITED
    job(tmp_path / "edited", tmp_path / "back", revert=True)
    assert files(tmp_path / "back") == files(source)
    job(tmp_path / "edited", tmp_path / "weaker", restrength=0.2)
    assert certificate(tmp_path / "weaker")["edit"]["strength"] == 0.2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Edited 8 heads of layers 1, 2: ||dW|| ")
    assert lines[2] == f"Original model: {tmp_path / 'back'}"
    fold = {"method": "energy_rescale"}
    for both in ({"revert": True, "restrength": 0.2}, {"restrength": 0.0, "fold": fold}):
        with pytest.raises(ConfigError, match=" and ".join(f"config.{name}" for name in both)):
            job(tmp_path / "edited", tmp_path / "no", **both)
    with pytest.raises(EditError, match=r"edited already.*--job=restrength.*--job=revert"):
        job(tmp_path / "edited", tmp_path / "no")
    with pytest.raises(CheckpointError, match="is not edited"):
        job(source, tmp_path / "no", revert=True)
    with pytest.raises(ConfigError, match=r"strength must be .* at most 1, not 1\.5"):
        job(tmp_path / "edited", tmp_path / "no", restrength=1.5)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 17}, "k=17 is above the rank .* at most 16"),
        ({"k": 33, "method": "symmetric"}, "k=33 is above the rank .* at most 32"),
        ({"k": 3, "method": "antisymmetric"}, "k=3 is odd"),
        ({"strength": 1.2}, "strength must be a finite number at most 1, not 1.2"),
        ({"strength": float("nan")}, "strength must be a finite number.*not nan"),
        ({"strength": "0.5"}, "strength must be a finite number.*not '0.5'"),
        ({"band": (1, 3)}, r"ends at layer 3, but the model has layers 0 to 2"),
        ({"band": (0.9, 1.0)}, "holds none of the 3 layers"),
        ({"heads": (4,)}, "names head 4, but layer 1 has heads 0 to 3"),
        ({"heads": ((0, 1),)}, "head 1 of layer 0, but the edit touches layers 1 to 2"),
        ({"control": "C4"}, "would share"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"control": "R9"}, "control must be one of.*not 'R9'"),
    ],
)
def test_bad_edits_are_refused(made, tmp_path, fields, message):
    source = open_folder(made("qwen2_5_vl"))
    with pytest.raises(UserError, match=message):
        edit_folder(source, tmp_path / "edited", QKEdit(**{"band": (1, 2), "k": 2, **fields}))
    assert list(tmp_path.iterdir()) == []


def test_operator_bias_needs_a_bias(made, tmp_path):
    source = open_folder(made("llava"))
    for bias in ("operator", "augmented"):
        with pytest.raises(EditError, match=f"layer 1 has no query bias, which bias='{bias}'"):
            edit_folder(source, tmp_path / "edited", QKEdit(band=(1, 1), bias=bias))
    assert list(tmp_path.iterdir()) == []


def test_latent_attention_is_refused(made, tmp_path):
    folder = shutil.copytree(made("llava"), tmp_path / "mla")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["model_type"] = "deepseek_v2"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="'deepseek_v2' text model is not supported"):
        job(folder, tmp_path / "edited")
    assert not (tmp_path / "edited").exists()


def with_keys(made, target: pathlib.Path, change) -> pathlib.Path:
    source = open_folder(made("qwen2_5_vl", "float32"))
    path = "decoder/layers/1/wk_dkh"
    keys = source.read(path).copy()
    change(keys)
    source.copy(target, {path: keys})
    return target


def test_keys_that_are_not_finite_are_refused(made, tmp_path):
    folder = with_keys(made, tmp_path / "source", lambda keys: None)
    header = safetensors_io.read_header(folder / "model.safetensors")
    entry = header.entries["model.layers.1.self_attn.k_proj.weight"]
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(header.data_start + entry.start)
        file.write(np.float32("nan").tobytes())
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.k_proj\.weight.*NaN"):
        edit_folder(open_folder(folder), tmp_path / "edited", SPEC)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_keys_without_full_rank(made, tmp_path):
    def drop(keys):
        keys[:, :, 3:] = 0

    folder = open_folder(with_keys(made, tmp_path / "source", drop))
    edit_folder(folder, tmp_path / "edited", QKEdit(band=(1, 1), k=3))
    with pytest.raises(EditError, match="layer 1 head 0: k=4 is above the rank 3"):
        edit_folder(folder, tmp_path / "no", QKEdit(band=(1, 1), k=4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edited", "source"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (".", "is the source itself"),
        ("edited", "lies inside the source"),
        ("../taken", "exists already"),
        ("../file/edited", "cannot write"),
    ],
)
def test_bad_targets_are_refused(made, form, tmp_path, target, message):
    source = shutil.copytree(made("qwen2_5_vl", "bfloat16", form), tmp_path / "source")
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_bytes(b"")
    before = sorted(path.name for path in [*tmp_path.iterdir(), *source.iterdir()])
    with pytest.raises(CheckpointError, match=message):
        edit_folder(open_folder(source), source / target, SPEC)
    assert sorted(path.name for path in [*tmp_path.iterdir(), *source.iterdir()]) == before


def test_a_folder_with_a_broken_certificate_is_refused(edited):
    for content in (b"", b"[]", b'{"tensors": {"a": {}}}', b'{"tensors": 3}'):
        (edited / CERTIFICATE).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{CERTIFICATE} is damaged"):
            open_folder(edited).load()


def test_sidecars_that_do_not_belong_are_refused(qwen, edited, tmp_path):
    edit_folder(open_folder(qwen), tmp_path / "other", QKEdit(band=(1, 2), k=2, control="R3"))
    shutil.copyfile(tmp_path / "other" / SIDECAR, edited / SIDECAR)
    with pytest.raises(CheckpointError, match="belongs to another edit"):
        revert_folder(open_folder(edited), tmp_path / "back")
    (edited / SIDECAR).write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=f"{SIDECAR} is damaged"):
        revert_folder(open_folder(edited), tmp_path / "back")
    (edited / SIDECAR).unlink()
    with pytest.raises(CheckpointError, match=f"has no {SIDECAR}"):
        revert_folder(open_folder(edited), tmp_path / "back")
    assert not (tmp_path / "back").exists()
    open_folder(edited).load()


def test_sidecar_file_holds_bfloat16_exactly(qwen, edited):
    from vlm_jax.edits.qk import sidecar_file

    dtype = open_folder(qwen).tensors["decoder/layers/1/wq_dnh"].dtype
    stored = sidecar_file.read(edited, 1, {"wq_dnh": dtype, "bq_nh": dtype})
    assert isinstance(stored, Sidecar)
    layer = read_layer(open_folder(qwen), 1)
    (expected,) = edit_layers(lambda _: layer, 3, SPEC, only=(1,))
    for name, array in expected.sidecar.arrays().items():
        found = stored.arrays()[name]
        assert found.dtype == array.dtype, name
        assert found.tobytes() == array.tobytes(), name
    with pytest.raises(CheckpointError, match="0 arrays of layer 0"):
        sidecar_file.read(edited, 0, {})


def test_an_edit_that_names_heads_touches_their_layers_alone(made, tmp_path):
    source = made("qwen2_5_vl")
    spec = QKEdit(band=(0, 2), k=2, heads=((0, 1), (2, 3)))
    edit_folder(open_folder(source), tmp_path / "edited", spec)
    names = {f"decoder/layers/{n}/wq_dnh" for n in (0, 2)}
    assert differing(source, tmp_path / "edited") == names
    assert checkpoint.open_folder(tmp_path / "edited").certificate.tensors.keys() == names


def test_numbers_of_a_head_are_shortened_and_json():
    values = [12.3456789012, 1e-9, -0.00012345678901]
    found = rounded({"list": values, "one": 1.23456789012, "none": float("nan"), "k": 3})
    assert found["list"] == pytest.approx(values, abs=1e-6)
    assert found["list"][0] == 12.345679
    assert found["one"] == 1.2345679
    assert found["none"] is None
    assert found["k"] == 3
    assert rounded([float("inf"), 1.0]) == [None, 1.0]
    assert rounded([]) == []
    assert rounded([0.0, 0.0]) == [0.0, 0.0]
