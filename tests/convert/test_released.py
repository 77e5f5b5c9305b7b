"""The tables against the reference classes at the released sizes: names, shapes and counts."""

import json
import math

import pytest
import torch
import transformers

from convert import layout
from convert.table import bind
from tests.released import CONFIGS, PARAMETERS, PUBLISHED
from vlm_jax import families
from vlm_jax.families import parse_config
from vlm_jax.models.network import abstract

CLASSES = {
    "instructblip": transformers.InstructBlipForConditionalGeneration,
    "internvl": transformers.InternVLForConditionalGeneration,
    "llava": transformers.LlavaForConditionalGeneration,
    "llava_next": transformers.LlavaNextForConditionalGeneration,
    "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": transformers.Qwen3VLForConditionalGeneration,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_table_is_the_reference(name, tmp_path):
    root = CONFIGS[name]
    (tmp_path / "config.json").write_text(json.dumps(root))
    with torch.device("meta"):
        model = CLASSES[root["model_type"]](transformers.AutoConfig.from_pretrained(tmp_path))
    binding = bind(parse_config(root))
    reference = {binding.canonical(n): tuple(p.shape) for n, p in model.named_parameters()}
    assert {t.name: t.disk_shape for t in binding.by_path.values()} == reference
    count = sum(math.prod(tensor.shape) for tensor in binding.by_path.values())
    assert count == PARAMETERS[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_table_fills_our_model(name):
    config = parse_config(CONFIGS[name])
    _, params = abstract(config)
    ours = {path: tuple(leaf.shape) for path, leaf in params.items()}
    assert {path: t.shape for path, t in bind(config).by_path.items()} == ours


@pytest.mark.parametrize("family", families.families())
def test_a_path_spells_its_dims(family):
    """The letters at the end of a path are the dims of its pattern, in order."""
    fused = {"e": {"e", "c y x", "c t y x", "p"}, "3": {"s"}}
    fused |= {"d": {"d", "a b d"}, "p": {"p", "a p", "a q", "p q"}}
    fused |= {"h": {"h", "o"}, "f": {"f", "m", "s"}}
    for row in families.find(family).rows:
        letters = row.path.rsplit("_", 1)[1]
        terms = [" ".join(group) for group in layout.groups(row.pattern.split("->")[1])]
        assert len(letters) == len(terms), row
        for letter, term in zip(letters, terms):
            assert term in fused.get(letter, {letter}), row
