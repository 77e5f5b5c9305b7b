"""Plans for chips that are not there, of tiny shapes: needs libtpu (`make plan-env`), or JAX's CUDA
plug-in."""

import dataclasses
import importlib.util
import json
import re

import pytest

import vlm_jax
from tests.planning.conftest import CONFIG
from vlm_jax.planning import planner
from vlm_jax.planning.compiled import CompiledProgram
from vlm_jax.planning.topologies import Topology

pytestmark = pytest.mark.plan
on_tpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is missing: `make plan-env`"
)
on_gpu = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="JAX's CUDA plug-in is missing: pip install -e '.[plan-gpu]'",
)


@on_tpu
def test_every_program_compiles_for_a_slice(folder):
    programs = "prefill", "decode", "read_images", "read_prefix", "logits", "edit"
    found = vlm_jax.plan(
        folder,
        topology="v5e:2x2",
        model=2,
        programs=(*programs, "shared_prefill", "shared_decode"),
        generation={"batch_size": 4, "max_new_tokens": 8},
        prefixes=2,
        by_kind=True,
    )
    assert found.fits
    assert set(programs) <= set(found.programs)
    assert all(one.compiler_seconds and one.flops for one in found.programs.values())
    assert found.programs["decode"].collectives["all-reduce"] >= 2 * 2, "two a layer"
    assert found.programs["edit"].collectives == {}
    kinds = found.programs["prefill"].by_kind
    assert {"products", "kernels", "all-reduce"} <= set(kinds)
    assert all(one.accessed >= 0 for one in kinds.values()), "copies have what others leave"
    assert (found.suggestion.topology, found.suggestion.model) == ("v5e:1x1", 1)


@on_tpu
def test_each_host_of_a_slice_runs_the_program_of_one(folder, monkeypatch):
    """A replica that a host holds: v5e:4x4 is four times v5e:2x2, on its own devices too."""
    settings = dict(programs="decode", generation={"batch_size": 4, "max_new_tokens": 8})

    def decode(name: str, model: int) -> CompiledProgram:
        found = vlm_jax.plan(folder, topology=name, model=model, **settings).programs["decode"]
        return dataclasses.replace(found, compile_seconds=0.0)

    two, one = decode("v5e:2x2", 2), decode("v5e:2x2", 1)
    assert two.collectives["all-reduce"] > one.collectives["all-reduce"] >= 1
    assert [decode("v5e:4x4", 2), decode("v5e:4x4", 1)] == [two, one]
    monkeypatch.setattr(Topology, "of_replica", lambda slice, model: slice.devices[:4])
    assert decode("v5e:4x4", 2) == two


@on_gpu
def test_prompts_on_gpus_attend_by_cudnn(folder, monkeypatch):
    texts, compile = {}, planner.compile_program

    class Kept:
        def __init__(self, lowered):
            self.lowered = lowered

        def compile(self):
            compiled = self.lowered.compile()
            texts[len(texts)] = compiled.as_text()
            return compiled

    monkeypatch.setattr(planner, "compile_program", lambda lower, chip: compile(Kept(lower), chip))
    found = vlm_jax.plan(
        folder,
        topology="h100:1",
        programs=("prefill", "decode"),
        generation={"batch_size": 4, "max_new_tokens": 8},
    )
    assert found.fits
    calls = [len(re.findall(r'custom_call_target="__cudnn\$fmha', text)) for text in texts.values()]
    assert calls == [CONFIG["text_config"]["num_hidden_layers"], 0], "one a layer of a prompt"


@on_tpu
def test_what_does_not_fit_says_so(tmp_path):
    text = {**CONFIG["text_config"], "vocab_size": 1 << 22, "hidden_size": 4096}
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "text_config": text}))
    generation = {"batch_size": 1, "max_new_tokens": 4}
    found = vlm_jax.plan(tmp_path, topology="v5e:1x1", programs="decode", generation=generation)
    assert not found.fits
    assert "of 16.9" in found.programs["decode"].reason
    assert found.suggestion.model >= 4


@on_tpu
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
