"""bfloat16 is as good as the reference's bfloat16, both against the reference's float32."""

import numpy as np

import vlm_jax
from tests.reference import IMAGES, PROMPTS, Reference, prompt_ids

SLACK = 1.1
"""Two roundings of the same computation differ by chance by a few per cent on tiny models."""


def test_error_is_no_worse_than_the_references(vlm, read, request):
    folder = request.getfixturevalue("tiny_llava" if vlm.config.family == "llava" else "tiny_qwen")
    narrow = vlm_jax.load(folder, dtype="bfloat16")
    assert {str(array.dtype) for array in narrow.params.values()} == {"bfloat16"}
    ours, _ = narrow.logits(IMAGES, PROMPTS)
    assert ours.dtype == np.float32
    reference = Reference.from_folder(folder, dtype="bfloat16")
    errors = {"ours": [], "theirs": []}
    for row, exact in enumerate(read.theirs):
        theirs = reference.logits(prompt_ids(read.batch, row), IMAGES[row])
        errors["theirs"].append(np.abs(theirs - exact).ravel())
        errors["ours"].append(np.abs(ours[row, : len(exact)] - exact).ravel())
    mean = {name: np.concatenate(parts).mean() for name, parts in errors.items()}
    assert mean["ours"] <= SLACK * mean["theirs"], mean
    assert mean["theirs"] < 0.1
