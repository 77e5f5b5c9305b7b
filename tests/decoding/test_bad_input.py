"""What cannot be asked of methods of decoding: one line that names it, before anything compiles."""

import numpy as np
import pytest

from tests.reference import picture
from vlm_jax.decoding import DecodeSettings
from vlm_jax.decoding.named import read_named
from vlm_jax.errors import UserError

IMAGE, OTHER = picture(56, 70, 1), picture(60, 60, 2)
PARTS = {"detector": lambda image, word: [], "tagger": bool, "matcher": lambda texts, image: []}
wide = lambda image, prompt: np.ones((image.height, image.width + 1))
gray = lambda image, prompt: np.full((image.height, image.width), 0.5)

# method, its settings, those of the call, its images, and what the line says
CASES = {
    "no such method": ("vdc", {}, {}, [IMAGE], r"no method 'vdc' \(did you mean 'vcd'"),
    "no image to contrast": ("vcd", {}, {}, [], "method 'vcd' contrasts images"),
    "no image to leave out": ("m3id", {}, {}, [], "method 'm3id' contrasts images"),
    "no image to rank by": ("cgd", {"scorer": len}, {}, [], "ranked by one image"),
    "two images to rank by": ("cgd", {"scorer": len}, {}, [IMAGE, OTHER], "but the sample has 2"),
    "no image to look at": ("halc", PARTS, {}, [], "looked for in one image"),
    "no scorer": ("cgd", {}, {}, [IMAGE], "'cgd' needs a scorer"),
    "a scorer that is no function": ("cgd", {"scorer": 3}, {}, [IMAGE], "must be a function"),
    "a scorer of no module": ("cgd", {"scorer": "no.such:f"}, {}, [IMAGE], "cannot be imported"),
    "a scorer of no folder": ("cgd", {"scorer": "no/such"}, {}, [IMAGE], "no/such"),
    "a value for a scorer": ("cgd", {"scorer": "math:pi"}, {}, [IMAGE], "'math:pi' is no function"),
    "a mask of another shape": ("agla", {"mask": wide}, {}, [IMAGE], r"shape \(70, 56\)"),
    "a mask of grays": ("agla", {"mask": gray}, {}, [IMAGE], "mask must return zeros and ones"),
    "a layer that is not there": ("dola", {"layers": [0, 3]}, {}, [IMAGE], "names 3.*0 to 2"),
    "a first layer outside": ("pai", {"first_layer": 3}, {}, [IMAGE], "first_layer is 3.*0 to 2"),
    "a strength below": ("vcd", {"alpha": -1}, {}, [IMAGE], "alpha must be"),
    "a share above": ("vcd", {"beta": 2}, {}, [IMAGE], "beta must be"),
    "no number": ("icd", {"alpha": float("nan")}, {}, [IMAGE], "alpha must be a finite number"),
    "a control of another": ("vcd", {"control": "same"}, {}, [IMAGE], "'clean'"),
    "an unknown setting": ("vcd", {"alhpa": 1}, {}, [IMAGE], "did you mean 'alpha'"),
    "beams that draw": (
        "vcd", {}, {"num_beams": 2, "temperature": 1.0}, [IMAGE], "beam search draws nothing"
    ),
    "a search that draws": ("opera", {}, {"temperature": 1.0}, [IMAGE], "temperature"),
    "beams of beams": ("opera", {}, {"num_beams": 2}, [IMAGE], "has beams of its own"),
    "nouns that are drawn": ("halc", PARTS, {"temperature": 1.0}, [IMAGE], "decodes greedily"),
    "more candidates than words": ("opera", {"candidates": 10**6}, {}, [IMAGE], "1000000 candidat"),
    "more beams than words": ("vcd", {}, {"num_beams": 10**6}, [IMAGE], "1000000 beams"),
    "no beams": ("opera", {"num_beams": 0}, {}, [IMAGE], "num_beams must be"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_is_one_clear_line(llava_vlm, case):
    name, settings, options, images, message = CASES[case]
    before = llava_vlm.generator.compilations
    with pytest.raises(UserError, match=message) as caught:
        llava_vlm.apply(name, **settings).ask([images], ["What?"], {"max_new_tokens": 2} | options)
    assert "\n" not in str(caught.value)
    assert llava_vlm.generator.compilations == before


def test_views_that_do_not_fill_a_batch_are_refused(llava_vlm):
    """Rows of a batch are views of samples, W neighbouring ones each."""
    batch = llava_vlm.processor.batch([[IMAGE]] * 3, ["What?"] * 3)
    settings = DecodeSettings(max_new_tokens=2)
    with pytest.raises(ValueError, match=r"3 rows.*2 views") as caught:
        llava_vlm.generator(llava_vlm.params, batch, settings, strategy=read_named("vcd", {}))
    assert "\n" not in str(caught.value)
