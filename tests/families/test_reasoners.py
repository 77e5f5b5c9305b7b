"""Ocean-R1 and R1-Onevision: Qwen2.5-VL folders with words, files and answers of their own."""

import json
from typing import Any

import numpy as np
import pytest

from tests import tiny
from tests.reference import picture
from tests.released import CONFIGS
from vlm_jax.cli import configs
from vlm_jax.errors import ConfigError
from vlm_jax.evals.final_answer import answered
from vlm_jax.evals.pope import parse_answer
from vlm_jax.evals.suites.chair import Chair
from vlm_jax.evals.truth import ObjectTruth
from vlm_jax.families import parse_config
from vlm_jax.families.qwen2_5_vl import TEMPLATE
from vlm_jax.processing import Processor
from vlm_jax.steering.methods.functional_heads import functional_heads


def test_a_folder_without_a_template_has_qwens(tmp_path, caplog):
    own = Processor.from_folder(tiny.qwen2_5_vl(tmp_path / "own"))
    bare = Processor.from_folder(tiny.qwen2_5_vl(tmp_path / "bare", template=None))
    for prompt, images in (("What?", 1), (["A?", "B", "C?"], 0)):
        assert bare.template(prompt, images) == own.template(prompt, images)
    assert "no chat template: Qwen2.5-VL's is used" in caplog.text
    assert "<|vision_start|><|image_pad|><|vision_end|>" in TEMPLATE


def test_an_image_processor_of_a_name_that_transformers_does_not_know(tmp_path):
    folder = tiny.qwen2_5_vl(tmp_path / "hf")
    plain = Processor.from_folder(folder)
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    text = json.dumps(settings | {"image_processor_type": "Qwen2_5_VLImageProcessor"})
    path.write_text(text)
    renamed = Processor.from_folder(folder)
    made: list[Any] = [p.batch([[picture(90, 140)]], ["What?"]).images for p in (plain, renamed)]
    np.testing.assert_array_equal(made[0].patches_bgue, made[1].patches_bgue)
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("text", "said", "truncated"),
    [
        ("<think>a cat?</think> <answer>A dog.</answer>", "A dog.", False),
        ("<answer>1</answer> no: <answer> 2</answer><answer>", " 2", False),
        ("<think>a</think><think>b</think> A dog.", " A dog.", False),
        ("<think>a cat or", "", True),
        ("A dog.", "A dog.", False),
    ],
)
def test_what_is_said_after_thinking(text, said, truncated):
    found = answered(text)
    assert (text[found.start : found.end], found.truncated) == (said, truncated)


def test_thoughts_are_no_answers():
    assert parse_answer("<think>no cat, no</think> Yes.", "yes", "reasoning") == "yes"
    assert parse_answer("<think>yes, I see", "yes", "reasoning") == "unknown"
    truth = ObjectTruth({1: frozenset({"dog"})}, ("dog", "cat"))
    suite = Chair(None, truth)
    [example] = suite.examples()
    judged = suite.judge(example, "<think>A cat?</think> There is a dog.")
    assert judged.details["hallucinated"] == []
    [grounded] = judged.details["grounded"]
    assert "<think>A cat?</think> There is a dog."[grounded["start"] : grounded["end"]] == "dog"
    cut = suite.judge(example, "<think>A cat and a dog")
    assert (cut.details["grounded"], cut.counts["truncated"]) == ([], 1)


@pytest.mark.parametrize(("name", "preset"), [("ocean_r1", "ocean-r1"), ("r1_onevision",) * 2])
def test_configs_name_the_published_settings(name, preset):
    config: Any = configs.read(f"pope_{name}")
    arm = config.arms.gains.to_dict()
    assert arm["preset"] == preset.replace("_", "-")
    assert config.benchmarks.pope.parser == "reasoning"
    assert config.max_new_tokens >= 1024
    seven, three = (parse_config(CONFIGS[f"Qwen2.5-VL-{size}"]) for size in ("7B", "3B"))
    assert functional_heads(seven, preset=arm["preset"]) is not None
    with pytest.raises(ConfigError, match="is of a model with 28 layers of 28 heads"):
        functional_heads(three, preset=arm["preset"])
