"""A family is one file: found by its model type, in this package or in another."""

import importlib.metadata
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vlm_jax
from convert import export_hf, import_hf
from tests import tiny
from tests.released import CONFIGS
from vlm_jax import plugins
from vlm_jax.edits.qk.folder import image_rope
from vlm_jax.errors import ConfigError
from vlm_jax.families import families, find, lookup, parse_config


@pytest.fixture
def installed(monkeypatch):
    """Makes entry points appear as if packages that name them were installed."""

    def install(*targets: str) -> None:
        points = [
            importlib.metadata.EntryPoint(name, value, lookup.FAMILIES.group)
            for name, value in (target.split(" = ") for target in targets)
        ]
        real = plugins.installed
        fake = lambda group: points if group == lookup.FAMILIES.group else real(group)
        monkeypatch.setattr(plugins, "installed", fake)
        lookup._loaded.cache_clear()

    yield install
    lookup._loaded.cache_clear()


def test_every_family_says_what_it_is():
    found = families()
    assert {"llava", "qwen2_5_vl"} <= set(found)
    for name, line in found.items():
        assert find(name).name == name
        assert line
        assert "\n" not in line
        for model_type in find(name).model_types:
            assert find(model_type).name == name


def test_an_unknown_model_type_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"c.json: model_type 'blip' .*llava.*qwen2_5_vl"):
        parse_config({"model_type": "blip"}, "c.json")
    for odd in (None, 3, ["llava"], {}):
        with pytest.raises(ConfigError, match="is not supported"):
            parse_config({"model_type": odd})


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("LLaVA-1.5-7B", (24, 24)), ("LLaVA-NeXT-7B-vicuna", (1, 2340)), ("Shikra-7B", (16, 16)),
        ("InternVL3.5-8B", (1, 3328)), ("InstructBLIP-7B", (1, 32)), ("MiniGPT-4-7B", (1, 32)),
    ],
)  # fmt: skip
def test_an_image_of_usual_size_has_so_many_tokens(name, grid):
    config = parse_config(CONFIGS[name])
    assert find(config.family).image_grid(config) == grid
    seen = image_rope(config).offsets_oa.ravel()
    assert (seen.min(), seen.max()) == (1, grid[0] * grid[1] + 64)  # the last by the first word


def test_a_family_of_another_package_converts_and_answers(installed, tmp_path):
    installed("outside = tests.families.outside:FAMILY")
    assert families()["outside"] == "A family of the tests"
    plain = tiny.qwen2_5_vl(tmp_path / "plain")
    folder = tiny.qwen2_5_vl(tmp_path / "outside")
    tensors = load_file(folder / "model.safetensors")
    save_file({f"outside.{k}": v for k, v in tensors.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "outside_vl_2"}))

    import_hf(folder, tmp_path / "ours")
    export_hf(tmp_path / "ours", tmp_path / "back")
    again = (tmp_path / "back" / "model.safetensors").read_bytes()
    assert again == (folder / "model.safetensors").read_bytes()

    theirs = vlm_jax.load(plain, dtype="float32").logits(None, ["Hello"])[0]
    ours = vlm_jax.load(tmp_path / "ours", dtype="float32").logits(None, ["Hello"])[0]
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_a_package_that_cannot_be_imported_hurts_no_other_family(installed, caplog):
    installed("broken = no_such_package.family:FAMILY", "five = math:pi")
    assert find("llava").name == "llava"
    assert not caplog.messages
    with pytest.raises(ConfigError, match="'outside_vl' is not supported"):
        find("outside_vl")
    assert "llava" in families()
    broken, five = caplog.messages
    assert "'broken' of no_such_package.family:FAMILY cannot be imported" in broken
    assert "'five' of math:pi is none: 3.14" in five


def test_no_package_replaces_a_family_of_ours(installed, monkeypatch):
    from tests.families.outside import FAMILY

    monkeypatch.setattr(FAMILY.__class__, "name", "llava")
    installed("llava = tests.families.outside:FAMILY")
    assert find("llava").line.startswith("LLaVA")


def test_a_package_that_becomes_importable_is_found(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="'late' is not supported"):
        find("late")
    about = tmp_path / "late-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: late\nVersion: 1\n")
    (about / "entry_points.txt").write_text(
        f"[{lookup.FAMILIES.group}]\nlate = late_family:FAMILY\n"
    )
    (tmp_path / "late_family.py").write_text(
        "from vlm_jax.families import find\n\n\n"
        "class Late(type(find('llava'))):\n"
        "    name, model_types = 'late', ('late',)\n\n\n"
        "FAMILY = Late()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert find("late").name == "late"
