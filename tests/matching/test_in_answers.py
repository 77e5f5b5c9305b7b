"""Matching models from folders inside answers: AGLA by a BLIP, CGD by a CLIP, as a config says."""

import json

import numpy as np
import PIL.Image
import pytest

from configs import base
from tests.matching.conftest import make
from tests.reference import picture
from vlm_jax.jobs import generate
from vlm_jax.matching import open_matcher
from vlm_jax.matching.blip import BlipMatcher
from vlm_jax.study.request import Request

PROMPT, NEW = "Is there a cat?", 4


def asked(vlm, **settings):
    options = {"max_new_tokens": NEW, "seed": 1}
    treated = vlm.apply(settings.pop("method"), **settings)
    return treated.ask([[picture(60, 90, 1)]], [PROMPT], options)[0].tokens


@pytest.mark.slow
def test_a_blip_masks_for_agla_and_a_clip_scores_for_cgd(llava_vlm, tmp_path, monkeypatch):
    """The folders by the job `generate`; the same as functions that are given their models."""
    # A random BLIP may find that nothing fits, and would keep the whole image.
    monkeypatch.setattr(BlipMatcher, "__call__", lambda self, texts, image: [0.5])
    picture(60, 90, 1).save(tmp_path / "image.png")
    small = {"samples": 2, "candidates": 1, "temperature": 3.0, "top_k": 0, "segment_tokens": 2}
    blip, clip = make(tmp_path / "blip", "blip"), make(tmp_path / "clip", "clip")
    methods = {
        "agla": {"method": "agla", "mask": str(blip), "beta": 0.01},
        "cgd": {"method": "cgd", "scorer": str(clip), **small},
    }
    matcher = open_matcher(blip)
    assert isinstance(matcher, BlipMatcher)
    functions = {"agla": {"mask": matcher.mask}, "cgd": {"scorer": open_matcher(clip)}}
    for name, method in methods.items():
        config = base.get_config()
        config.method = method
        config.prompt, config.images = PROMPT, (str(tmp_path / "image.png"),)
        config.max_new_tokens, config.seed, config.batch_size = NEW, 1, 1
        workdir = tmp_path / name
        generate.run(Request(config, source=llava_vlm.folder.path, workdir=workdir))
        (line,) = map(json.loads, (workdir / "answers.jsonl").read_text().splitlines())
        given = asked(llava_vlm, **{**method, **functions[name]})
        assert given == asked(llava_vlm, **method)
        (text,) = llava_vlm.processor.decode([list(given)], np.array([len(given)]))
        assert line["text"] == text
    mask = matcher.mask(PIL.Image.open(tmp_path / "image.png"), PROMPT)
    assert 0 < mask.mean() < 1
