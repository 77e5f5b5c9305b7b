"""Head identification on a shipped testbed: head sets, resumption, and what it refuses."""

import dataclasses
import json
import pathlib

import numpy as np
import PIL.Image
import pytest

import vlm_jax
from configs import identify as config_file
from vlm_jax.analysis.effects import spearman
from vlm_jax.analysis.findings import describe
from vlm_jax.attention.steering import Readings
from vlm_jax.errors import AnswersError, ConfigError, UserError
from vlm_jax.families import read_config
from vlm_jax.jobs import identify
from vlm_jax.jobs.identify import read_settings
from vlm_jax.steering.methods import build
from vlm_jax.study.chunks import Chunks
from vlm_jax.study.request import Request
from vlm_jax.testbed.scenes import draw_scenes

SHAPE = (6, 8)


def model_folder() -> pathlib.Path:
    models = pathlib.Path(vlm_jax.__file__).parent / "testbed" / "models"
    found = sorted(path for path in models.glob("llava-*") if path.is_dir())
    if not found:
        pytest.skip("no testbed model is shipped")
    return found[0]


@pytest.fixture(scope="module")
def small_config():
    config = config_file.get_config()
    config.benchmarks.captions.n = 24
    config.identify.chunk = 16
    config.identify.rows = 128
    config.identify.scopes = ("row",)
    config.identify.mean_ablation = True
    config.compile_cache = "off"
    return config


@pytest.fixture(scope="module")
def workdir(small_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("identify")
    identify.run(Request(config=small_config, source=model_folder(), workdir=folder))
    return folder


def test_the_head_file_says_what_was_found(workdir):
    document = json.loads((workdir / "heads.json").read_text())
    assert document["tokens"]["hallucinated"] > 0
    assert document["tokens"]["grounded"] > 0
    assert document["captions"]["made"] == 24
    scope = document["scopes"]["row"]
    size_ln = np.asarray(scope["effect_size_ln"])
    assert size_ln.shape == tuple(document["sets"]["shape"])
    first = [tuple(head) for head in document["sets"]["sensitive"][:4]]
    assert first == [tuple(head) for head in scope["ranking"][:4]]
    ordered = [size_ln[head] for head in first]
    assert ordered == sorted(size_ln.ravel().tolist(), reverse=True)[:4]
    inert = [tuple(head) for head in document["sets"]["inert"]]
    assert np.abs([size_ln[head] for head in inert]).max() <= np.median(np.abs(size_ln)) + 1e-12
    assert scope["first_order"]["rank_correlation_of_contrast"] > 0.3
    assert document["seeds"] == {"run": 0}
    assert document["identity"]["source"]


def test_methods_read_the_head_file(workdir):
    config = read_config(model_folder())
    steering = build("air", config, heads=str(workdir / "heads.json"))
    document = json.loads((workdir / "heads.json").read_text())
    chosen = np.argwhere(np.isfinite(steering.reallocation.threshold[0])).tolist()
    assert sorted(chosen) == sorted(document["sets"]["sensitive"][:4])
    other = build("air", config, heads=str(workdir / "heads.json"), control="other")
    chosen = np.argwhere(np.isfinite(other.reallocation.threshold[0])).tolist()
    assert sorted(chosen) == sorted(document["sets"]["insensitive"][:4])


def test_means_are_a_control_of_zeros(workdir):
    """Another ablation of the same heads: alike in rank, not equal; over all measured rows."""
    document = json.loads((workdir / "heads.json").read_text())
    control, zero = document["mean_ablation"], document["scopes"]["row"]
    count = sum(document["tokens"].values())
    assert control["over"] == f"the rows that predict the {count} measured tokens"
    size_ln = np.asarray(control["effect_size_ln"])
    assert size_ln.shape == SHAPE
    assert np.abs(size_ln - zero["effect_size_ln"]).max() > 1e-3
    agreement = control["zero_ablation"]
    assert agreement["rank_correlation_of_effect_size"] == pytest.approx(
        spearman(size_ln, np.asarray(zero["effect_size_ln"]))
    )
    assert agreement["rank_correlation_of_contrast"] > 0.3
    assert 0 <= control["stability"]["jaccard_between_halves"] <= 1


def test_a_killed_run_goes_on(workdir, small_config, monkeypatch):
    """Only what is missing is measured again, in the round that it belongs to."""
    whole = (workdir / "heads.json").read_text()
    kept = {}
    for name in ("000001.npz", "000000.mean.npz"):
        chunk = workdir / "chunks" / name
        with np.load(chunk) as arrays:
            kept[name] = {key: arrays[key] for key in arrays.files}
        chunk.unlink()
    (workdir / "heads.json").unlink()
    measured = []
    monkeypatch.setattr(
        identify._Chunk,
        "measure",
        lambda self, _: measured.append(("zero", self.offset)) or kept["000001.npz"],
    )
    means = identify._Chunk.measure_means
    monkeypatch.setattr(
        identify._Chunk,
        "measure_means",
        lambda self, *rest: measured.append(("mean", self.offset)) or means(self, *rest),
    )
    identify.run(Request(config=small_config, source=model_folder(), workdir=workdir))
    assert measured == [("zero", 16), ("mean", 0)]
    assert (workdir / "heads.json").read_text() == whole
    with np.load(workdir / "chunks" / "000000.mean.npz") as arrays:
        np.testing.assert_array_equal(arrays["drop_mean"], kept["000000.mean.npz"]["drop_mean"])


def test_results_of_other_settings_are_refused(workdir, small_config):
    changed = small_config.copy_and_resolve_references()
    changed.max_new_tokens = 31
    with pytest.raises(AnswersError, match="another run: "):
        identify.run(Request(config=changed, source=model_folder(), workdir=workdir))


@pytest.mark.parametrize(
    ("section", "match"),
    [
        ({"scope": "row"}, "no setting 'scope'"),
        ({"scopes": ("rows",)}, "did you mean 'row'"),
        ({"scopes": ()}, "must list 1 value or more"),
        ({"count": 25}, "from 1 to 24"),
        ({"captions": "some"}, "captions must be one of"),
        ({"subtokens": "last"}, "subtokens must be one of"),
        ({"labels": "exact"}, "labels must be one of"),
        ({"scopes": ("all",), "mean_ablation": True}, "which config.identify.scopes does not name"),
        ({"mean_ablation": 1}, "mean_ablation must be True or False"),
        ({"chunk": 0}, "chunk must be a whole number"),
        ({"classes": {"perception_from": "high"}}, "classes.perception_from must be"),
    ],
)
def test_one_clear_error_for_each_bad_setting(section, match):
    with pytest.raises(ConfigError, match=match):
        read_settings(section, SHAPE)


def test_one_caption_benchmark_is_needed(small_config):
    request = lambda config: Request(config=config, source=model_folder(), workdir=None)
    with pytest.raises(UserError, match="--workdir"):
        identify.run(request(small_config))
    changed = config_file.get_config()
    changed.benchmarks.captions.kind = "testbed_pope"
    changed.benchmarks.captions.negatives = "random"
    with pytest.raises(ConfigError, match="asks for no captions"):
        identify._caption_benchmark(changed.benchmarks, "llava")
    with pytest.raises(ConfigError, match="exactly one benchmark"):
        identify._caption_benchmark({}, "llava")


def test_captions_without_hallucinations_are_said_to_be_too_few():
    shape = (2, 3)
    masses = {field.name: np.zeros((4, *shape)) for field in dataclasses.fields(Readings)}
    found = {
        "sample": np.arange(4),
        "hallucinated": np.zeros(4, bool),
        "drop_row": np.zeros((4, *shape)),
        "slope_row": np.zeros((4, *shape)),
        **masses,
    }
    with pytest.raises(ConfigError, match="0 hallucinated and 4 grounded"):
        describe(found, ("row",), 1, shape)


@pytest.fixture
def chunks(tmp_path):
    """Makes the chunks of a run in one folder."""

    def make(**identity):
        return Chunks(tmp_path, identity)

    first = make(seed=1, k=2)
    for number in range(2):
        first.write(number, {"a": np.arange(3) + number})
    return make


def test_chunks_of_another_run_say_what_differs(chunks):
    assert chunks(seed=1, k=2).join(range(2))["a"].tolist() == [0, 1, 2, 1, 2, 3]
    with pytest.raises(AnswersError, match="another run: seed was 1 and is 2"):
        chunks(seed=2, k=2)


@pytest.mark.parametrize("damage", [None, "", "{", "[" * 100_000])
def test_chunks_of_nobody_are_made_again(chunks, tmp_path, capsys, damage):
    key = tmp_path / "run.json"
    key.unlink() if damage is None else key.write_text(damage)
    found = chunks(seed=2, k=2)
    assert not found.has(0)
    assert "missing or damaged" in capsys.readouterr().err
    assert json.loads(key.read_text()) == {"seed": 2, "k": 2}


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", None])
def test_a_damaged_chunk_is_made_again(chunks, tmp_path, capsys, damage):
    path = tmp_path / "000001.npz"
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 255
    path.write_bytes(whole if damage is None else damage)
    found = chunks(seed=1, k=2)
    assert found.has(0)
    assert not found.has(1)
    assert "000001.npz is damaged" in capsys.readouterr().err


def test_images_that_cannot_be_read_are_left_out_up_to_the_limit(small_config, tmp_path, capsys):
    """One of five is cut short."""
    config = small_config.copy_and_resolve_references()
    config.identify.captions, config.identify.mean_ablation = "all", False
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    scenes = draw_scenes("broken", "dev", 0, np.arange(5))
    for number, scene in enumerate(scenes.images):
        PIL.Image.fromarray(scene).save(pictures / f"{number}.png")
    whole = (pictures / "3.png").read_bytes()
    (pictures / "3.png").write_bytes(whole[: len(whole) // 2])
    truth = tmp_path / "truth.tsv"
    truth.write_text("# categories: cup|dog\n" + "".join(f"{n}\t0\n" for n in range(5)))
    config.benchmarks = {
        "chair": {"kind": "chair", "images": str(pictures), "truth": (str(truth),)}
    }
    ask = lambda: identify.run(Request(config=config, source=model_folder(), workdir=tmp_path))
    ask()
    document = json.loads((tmp_path / "heads.json").read_text())
    assert list(document["failures"]) == ["3"]
    assert "3.png" in document["failures"]["3"]
    assert document["captions"]["made"] == 4
    assert "left out: 3: " in capsys.readouterr().out
    ask()  # from its chunks
    config.max_failures = 0.0
    with pytest.raises(UserError, match=r"1 of 5 items failed and config\.max_failures allows 0"):
        ask()
