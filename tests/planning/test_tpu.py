"""Plans for TPUs that are not there: needs libtpu (`make plan-env`), and tiny shapes."""

import importlib.util
import json

import pytest

import vlm_jax
from tests.planning.conftest import CONFIG

pytestmark = [
    pytest.mark.plan,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is missing: `make plan-env`"
    ),
]


def test_every_program_compiles_for_a_slice(folder):
    programs = "prefill", "decode", "read_images", "read_prefix", "logits", "edit"
    found = vlm_jax.plan(
        folder,
        topology="v5e:2x2",
        model=2,
        programs=(*programs, "shared_prefill", "shared_decode"),
        generation={"batch_size": 4, "max_new_tokens": 8},
        prefixes=2,
    )
    assert found.fits
    assert set(programs) <= set(found.programs)
    assert all(one.compiler_seconds and one.flops for one in found.programs.values())
    assert found.programs["decode"].collectives["all-reduce"] >= 2 * 2, "two a layer"
    assert found.programs["edit"].collectives == {}
    assert (found.suggestion.topology, found.suggestion.model) == ("v5e:1x1", 1)


def test_what_does_not_fit_says_so(tmp_path):
    text = {**CONFIG["text_config"], "vocab_size": 1 << 22, "hidden_size": 4096}
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "text_config": text}))
    generation = {"batch_size": 1, "max_new_tokens": 4}
    found = vlm_jax.plan(tmp_path, topology="v5e:1x1", programs="decode", generation=generation)
    assert not found.fits
    assert "of 16.9" in found.programs["decode"].reason
    assert found.suggestion.model >= 4


def test_decode_copies_no_weights(tmp_path):
    """8 heads of 128 a chip fill TPU's tiles, where the usual order of dims is the wrong one."""
    text = dict(hidden_size=2048, num_attention_heads=16, num_key_value_heads=16, head_dim=128)
    root = {**CONFIG, "text_config": {**CONFIG["text_config"], **text}}
    (tmp_path / "config.json").write_text(json.dumps(root))
    generation = {"batch_size": 4, "max_new_tokens": 8}
    found = vlm_jax.plan(
        tmp_path, topology="v5e:1x2", model=2, programs="decode", generation=generation
    )
    weights = 3 * 2 * 2048 * 8 * 128 * 2  # of queries, keys and values of two layers
    assert found.programs["decode"].temp_bytes < weights / 2
