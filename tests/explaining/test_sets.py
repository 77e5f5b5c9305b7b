"""Analyses of sets of heads: minimal editing and patterns, on a tiny model with head sets."""

import dataclasses
import html
import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from tests.reference import IMAGES
from vlm_jax.base_model import with_language_model
from vlm_jax.errors import CheckpointError, ConfigError
from vlm_jax.evals.base import Example
from vlm_jax.explaining import ANALYSES, Subject
from vlm_jax.explaining.patterns import _other
from vlm_jax.settings import read
from vlm_jax.steering.heads import HeadSets

SENSITIVE, INSENSITIVE = ((1, 0), (2, 3)), ((0, 1), (1, 2))


@pytest.fixture(scope="module")
def subject(llava_vlm, tmp_path_factory):
    path = tmp_path_factory.mktemp("heads") / "heads.json"
    sets = HeadSets("", (3, 4), sensitive=SENSITIVE, insensitive=INSENSITIVE, count=2)
    path.write_text(json.dumps({"sets": sets.document()}))
    examples = [Example(n, (IMAGES[1][0],), prompt) for n, prompt in enumerate(["What?", "Why?"])]
    return dataclasses.replace(Subject.of_model(llava_vlm, examples), heads=str(path))


def found(name, subject, **settings):
    analysis = ANALYSES.find(name)
    return analysis.run(subject, read(analysis.settings, {"max_new_tokens": 3, **settings}, name))


def test_editing_is_told_with_its_intervals(subject):
    one = found("editing", subject, rows=4, draws=50)
    document = json.loads(json.dumps(one.document(), allow_nan=False))
    values = one.values()
    signed = one.maps.signed_mln
    heads = tuple(np.array(INSENSITIVE).T)
    np.testing.assert_allclose(values["U(enhanced)"], -signed[:, heads[0], heads[1]].sum(1))
    np.testing.assert_allclose(values["Delta_A"], 0.2 * values["U(enhanced)"], atol=1e-9)
    np.testing.assert_allclose(
        values["Delta_C"],
        values["Delta_A"] - 0.2 * (values["U(attenuated)"] + values["U(unlisted)"]),
        atol=1e-9,
    )
    quantity = document["quantities"]["Delta_D"]
    assert quantity["low"] <= quantity["mean"] <= quantity["high"]
    assert quantity["mean"] == pytest.approx(values["Delta_D"].mean())
    assert document["sets"]["attenuated"] == [list(head) for head in SENSITIVE]
    assert 0.3 < document["rank_correlation_with_ablation"] <= 1
    np.testing.assert_allclose(np.sum(document["share_of_all"]), 1)
    assert np.mean(document["absolute"]) > np.mean(document["absolute_of_mean"])
    (table,) = one.tables()
    assert [row[0] for row in table.rows][-4:] == [f"Delta_{p}" for p in "ABCD"]
    assert repr(one) == one.table() == table.text() == repr(table)
    assert one._repr_html_().count("<tr>") == 1 + len(table.rows)
    assert table.notes[0] in html.unescape(one._repr_html_())


def test_patterns_of_a_model_with_itself_are_equal(subject, tiny_llava):
    same = found("patterns", subject, other=str(tiny_llava), count=2)
    np.testing.assert_allclose(same.cosine_eh, 1, atol=1e-5)
    np.testing.assert_allclose(same.divergence_eh, 0, atol=1e-6)
    assert list(same.by_set()) == ["sensitive", "insensitive", "random, of the same layers"]
    blind = found("patterns", subject, count=2)
    assert blind.cosine_eh.shape == (2, 6)
    assert (blind.cosine_eh < 0.99999).all()
    assert (blind.divergence_eh < np.log(2)).all()
    assert blind.divergence_eh.max() > 1e-3
    assert json.loads(json.dumps(blind.document()))["sets"]["sensitive"]["heads"] == [
        [1, 0],
        [2, 3],
    ]
    assert blind.tables()[0].rows[0][0] == "sensitive"


def test_a_language_model_reads_without_images(subject, llava_vlm, tiny_llava, tmp_path):
    """The model's own decoder as a folder changes nothing but whether images are seen."""
    tensors = safetensors.numpy.load_file(tiny_llava / "model.safetensors")
    begins = "language_model.model."
    text = {"model." + n.removeprefix(begins): a for n, a in tensors.items() if begins in n}
    text["model.embed_tokens.weight"] = text["model.embed_tokens.weight"][:-8]
    fields = json.loads((tiny_llava / "config.json").read_text())["text_config"]
    fields |= {"model_type": "llama", "vocab_size": len(text["model.embed_tokens.weight"])}

    def write(name: str, **changed) -> pathlib.Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(fields | changed))
        safetensors.numpy.save_file(text, folder / "model.safetensors")
        return folder

    def differing(folder: pathlib.Path) -> list[str]:
        other, sees = _other(subject, str(folder))
        assert not sees
        one = llava_vlm.params
        return [path for path in one if (one[path] != other.params[path]).any()]

    assert differing(write("same")) == []
    text["model.layers.1.self_attn.q_proj.weight"] = -text["model.layers.1.self_attn.q_proj.weight"]
    assert differing(write("other")) == ["decoder/layers/1/wq_dnh"]
    with pytest.raises(ConfigError, match=r"rope_theta 7\.0, .* not made of this language model"):
        with_language_model(llava_vlm, write("theta", rope_theta=7.0))
    del text["model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"lacks the tensor model\.layers\.0\.mlp\.up_proj"):
        with_language_model(llava_vlm, write("lacks"))


def test_sets_that_are_not_there_are_one_clear_error(subject):
    bare = dataclasses.replace(subject, heads="")
    for name in ("editing", "patterns"):
        with pytest.raises(ConfigError, match="--job=identify"):
            found(name, bare)
    with pytest.raises(ConfigError, match="lists no perception heads"):
        found("editing", subject, sets="classes")
