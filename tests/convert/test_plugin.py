"""The file that users of torch get: the tokens of our own steering, and nothing when it is off."""

import importlib.util
import json

import numpy as np
import PIL.Image
import pytest
import torch

import vlm_jax
from configs import base
from convert import run
from convert.plugin_files import plugin_parts
from tests.reference import Reference, prompt_ids
from vlm_jax import hub
from vlm_jax.attention.steering import EnergyRescale, Reallocation, Steering
from vlm_jax.errors import ConfigError
from vlm_jax.study.request import Request
from vlm_jax.testbed import language
from vlm_jax.testbed.scenes import draw_scenes

SCENES = draw_scenes("broken", "dev", 0, np.arange(6))
PICTURES = [PIL.Image.fromarray(image) for image in SCENES.images]
PROMPTS = [language.CAPTION_PROMPT] * 4 + [language.question(3), language.question(5)]
TOKENS = 24

# Strong enough to change what these small models say.
GAINS = {"reasoning_to": 0.1, "perception_from": 0.3, "reasoning_gain": 2.0, "perception_gain": 2.5}
METHODS = {
    "air": [{"method": "air", "heads": "identified"}, {"method": "functional_heads", **GAINS}],
    "adhh": {"method": "adhh", "heads": "all", "threshold": 0.5},
    "whole": {
        "method": "air",
        "heads": "all",
        "renormalise": True,
        "text_includes_system": True,
        "text_gain": 0.4,
    },
    "last": {"method": "functional_heads", "rows": "last", **GAINS},
    "cached": {"method": "functional_heads", "mode": "prefill_cached", **GAINS},
    "static": {
        "method": "functional_heads",
        "mode": "dataset_static",
        **GAINS,
    },
}
# Every method, and both families; both families every day.
CASES = [("llava-0", "air"), *(("qwen2_5_vl-0", name) for name in METHODS)]
FAST = (("llava-0", "air"), ("qwen2_5_vl-0", "adhh"))


def export(source, target, **settings):
    config = base.get_config()
    config.method = settings.pop("method", None)
    config.export.update(settings)
    run.export(Request(config=config, source=hub.resolve(source), target=target))


def classified(source, folder):
    """A file of heads with two of each class; the one that ships names none."""
    document = json.loads((hub.resolve(source) / "heads.json").read_text())
    document["sets"] |= {"perception": [[0, 1], [1, 2]], "reasoning": [[4, 3], [5, 0]]}
    path = folder / "classified.json"
    path.write_text(json.dumps(document))
    return path


def load_plugin(folder):
    spec = importlib.util.spec_from_file_location("steering_plugin", folder / "steering.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prompts_of(vlm):
    """Ids of each prompt with its image's tokens in place."""
    batch = vlm.processor.batch([[picture] for picture in PICTURES], PROMPTS)
    return [prompt_ids(batch, row) for row in range(len(PROMPTS))]


def inputs_of(reference, ids):
    """What the model is given: prompts padded on the left, and pictures."""
    rows = [reference.inputs(row, [picture]) for row, picture in zip(ids, PICTURES)]
    length = max(map(len, ids))
    padded = lambda name: torch.cat(
        [torch.nn.functional.pad(row[name], (length - row[name].shape[1], 0)) for row in rows]
    )
    wide = ("input_ids", "attention_mask", "mm_token_type_ids")
    return {name: padded(name) if name in wide else torch.cat([r[name] for r in rows])
            for name in rows[0]}  # fmt: skip


def torch_tokens(reference, vlm, batch):
    """Greedy tokens of torch, one prompt at a time or padded on the left as one batch."""
    ids, stops, found = prompts_of(vlm), list(vlm.processor.stop_ids), []
    if batch == 1:
        found = [
            reference.greedy(row, [picture], TOKENS, stops) for row, picture in zip(ids, PICTURES)
        ]
    else:
        reference._forget()
        given = inputs_of(reference, ids)
        made = reference.model.generate(
            **given, max_new_tokens=TOKENS, do_sample=False, eos_token_id=stops
        )
        found = made[:, given["input_ids"].shape[1] :].tolist()
    ends = [next((i for i, token in enumerate(row) if token in stops), None) for row in found]
    return [row[:end] for row, end in zip(found, ends)]


def our_tokens(vlm):
    made = vlm.answer([[picture] for picture in PICTURES], PROMPTS, max_new_tokens=TOKENS)
    return [list(one.tokens) for one in sorted(made, key=lambda one: one.index)]


@pytest.mark.parametrize(
    ("source", "name"),
    [pytest.param(*case, marks=() if case in FAST else pytest.mark.slow) for case in CASES],
)
def test_torch_says_what_we_say(source, name, tmp_path):
    method = METHODS[name]
    if name == "static":
        method = {**method, "heads": str(classified(source, tmp_path))}
    export(source, tmp_path / "hf", plugin=True, method=method)
    folder = tmp_path / "hf"
    entries = method if isinstance(method, list) else [method]
    vlm = plain = vlm_jax.load(folder)
    for entry in entries:
        settings = {k: v for k, v in entry.items() if k != "method"}
        if settings.get("heads") == "identified":
            settings["heads"] = str(folder / "heads.json")
        vlm = vlm.apply(entry["method"], **settings)
    ours = our_tokens(vlm)
    reference = Reference.from_folder(folder)
    ids = prompts_of(vlm)[0]
    before = reference.logits(ids, PICTURES[:1])
    steered = load_plugin(folder).apply(reference.model)
    with torch.no_grad():
        assert torch_tokens(reference, vlm, batch=1) == ours
        assert torch_tokens(reference, vlm, batch=6) == ours
    assert not np.array_equal(reference.logits(ids, PICTURES[:1]), before)
    steered.remove()
    assert np.array_equal(reference.logits(ids, PICTURES[:1]), before)
    if name != "static":
        assert ours != our_tokens(plain)


def test_the_folder_beside_it_is_that_of_a_plain_export(tmp_path):
    export("llava-0", tmp_path / "plain")
    export("llava-0", tmp_path / "steered", plugin=True, method={"method": "air", "heads": "all"})
    files = {path.name: path.read_bytes() for path in (tmp_path / "steered").iterdir()}
    settings = json.loads(files.pop("steering.json"))
    assert settings["shape"] == [6, 8]
    assert set(settings["parts"]) == {"reallocation", "projection"}
    assert b"torch" in files.pop("steering.py")
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "plain").iterdir()}


def test_what_the_file_cannot_do_is_refused(tmp_path):
    ones = np.ones((1, 2, 2), np.float32)
    with pytest.raises(ConfigError, match="cannot hold energy_rescale: the file for torch does"):
        plugin_parts(Steering(energy_rescale=EnergyRescale(ones, ones)))
    summed = Reallocation(ones, ones, ones, trigger_reduce="batch_sum")
    with pytest.raises(ConfigError, match="trigger_reduce='batch_sum'; the file for torch does"):
        plugin_parts(Steering(reallocation=summed))
    for method, message in (
        (None, "takes config.method along, which names none"),
        ({"k": 2}, "config.method does something else"),
        ("vcd", "config.method does something else"),
    ):
        with pytest.raises(ConfigError, match=message):
            export("llava-0", tmp_path / "x", plugin=True, method=method)
    assert not (tmp_path / "x").exists()
