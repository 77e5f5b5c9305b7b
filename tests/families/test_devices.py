"""The decoders of new families on eight devices."""

import numpy as np
import pytest

from tests import tiny
from tests.families.on_devices import collectives_of_experts
from tests.families.test_kimi_vl import kimi_vl
from tests.families.tiny_deepseek import deepseek_vl2
from tests.parallel.answers import answers

FOLDERS = {
    "deepseek_vl2": lambda folder: deepseek_vl2(folder, "base"),
    "kimi_vl": kimi_vl,
    "qwen3_vl": tiny.qwen3_vl,
}


def test_the_weights_of_split_experts_are_never_gathered(eight):
    gathers, reductions = eight(collectives_of_experts)
    assert gathers == []
    assert reductions  # the experts are split: what each device has of a sum is added up


@pytest.mark.slow
@pytest.mark.parametrize("family", FOLDERS)
def test_answers_of_eight_devices_are_those_of_one(eight, tmp_path, family):
    folder = FOLDERS[family](tmp_path / "hf")
    expected, found = eight(answers, folder, 1, 1), eight(answers, folder, 2, 4)
    assert found["tokens"] == expected["tokens"]
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=1.5e-5, rtol=0)
