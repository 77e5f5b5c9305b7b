"""The examples in the docstrings of the Python door run as they stand."""

import inspect
import re

import pytest

import vlm_jax
from vlm_jax import api, calls, captions, comparing, masses, methods, side_by_side, sweeping

EXAMPLES = {
    "api": api,
    "generate": vlm_jax.VLM.generate,
    "sweep": vlm_jax.VLM.sweep,
    "attention": vlm_jax.VLM.attention,
    "calls": calls,
    "chair": captions.chair,
    "explain": vlm_jax.explain,
    "comparing": comparing,
    "compare": comparing.compare,
    "masses": masses,
    "methods": methods,
    "side_by_side": side_by_side,
    "grid": sweeping.grid,
}


def blocks(documented) -> str:
    """The indented lines of a docstring, up to its sections."""
    # getdoc would take the indent of a module's examples for that of its whole text.
    whole = documented.__doc__ if inspect.ismodule(documented) else inspect.getdoc(documented)
    lines = re.split(r"^(?:Args|Returns|Raises):", whole, flags=re.M)[0].splitlines()
    code = [line.removeprefix("    ") for line in lines if line.startswith("    ")]
    assert code, documented
    return "\n".join(code)


LONG = {"generate", "sweep", "comparing"}
"""Also run, in other words, by README, docs/guide.md and examples/."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in EXAMPLES]
)
def test_examples_run(shipped_llava, scenes, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for file, image in zip(("photo.jpg", "a.jpg", "b.jpg", "c.jpg"), [*scenes, scenes[0]]):
        image.save(file)
    monkeypatch.setattr(vlm_jax, "load", lambda _: shipped_llava, raising=False)
    known = {
        "vlm_jax": vlm_jax,
        "vlm": shipped_llava,
        "steered": shipped_llava.apply("air", heads="identified", text_gain=0.5),
        "images": ["a.jpg", "b.jpg"],
        "prompts": "Describe.",
        "benchmark": vlm_jax.benchmark("testbed_chair", set="normal", split="dev", n=2),
        "compare": vlm_jax.compare,
        "chair": vlm_jax.chair,
        "explain": vlm_jax.explain,
        "read_call": calls.read_call,
        "grid": sweeping.grid,
    }
    exec(compile(blocks(EXAMPLES[name]), f"<{name}>", "exec"), known)  # the project's own words
