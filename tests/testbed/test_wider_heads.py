"""scripts/wider_heads.py: heads of twice the width that compute what the narrow ones did."""

import json
import pathlib
import runpy

import numpy as np
import pytest
import safetensors.numpy

from tests.reference import Reference
from vlm_jax import hub
from vlm_jax.testbed.scenes import draw_scenes

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "wider_heads.py"


@pytest.mark.parametrize("name", ["llava-0", "qwen2_5_vl-0"])
def test_logits_are_those_of_the_narrow_heads(name, tmp_path):
    pytest.importorskip("torch")
    import PIL.Image

    narrow, wide = hub.resolve(name), tmp_path / "wide"
    runpy.run_path(str(SCRIPT))["main"](str(narrow), str(wide))
    tensors = {f: safetensors.numpy.load_file(f / "model.safetensors") for f in (narrow, wide)}
    (query,) = [k for k in tensors[wide] if k.endswith("layers.0.self_attn.q_proj.weight")
                and "vision" not in k]  # fmt: skip
    assert len(tensors[wide][query]) == 2 * len(tensors[narrow][query]) == 256
    config = json.loads((wide / "config.json").read_text())["text_config"]
    assert config.get("head_dim", config["hidden_size"] // config["num_attention_heads"]) == 32
    picture = PIL.Image.fromarray(draw_scenes("broken", "test", 0, np.arange(1)).images[0])
    found = []
    for folder in (narrow, wide):
        asked = Reference.from_folder(folder)
        image = [asked.image_token_id] * 49
        if name.startswith("qwen"):
            image = [3, *image, 4]
        found.append(asked.logits([*range(8, 12), *image, *range(12, 40)], [picture]))
    assert np.abs(found[0]).max() > 1
    np.testing.assert_allclose(found[1], found[0], atol=2e-4)
