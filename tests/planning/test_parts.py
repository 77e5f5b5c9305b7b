"""What methods leave in programs: nothing where they are absent. Nothing here runs."""

import vlm_jax
from vlm_jax.planning import planner

ADHH = {"method": "adhh", "heads": "all"}


def lowered(folder, monkeypatch, method=None) -> dict[str, str]:
    """The programs of a treated model, before XLA has them."""
    texts = {}

    def keep(recorder, name, lower):
        if name in ("prefill", "decode"):
            texts[name] = lower().as_text()

    monkeypatch.setattr(planner._Recorder, "_compile", keep)
    vlm_jax.plan(
        folder,
        topology="cpu:1",
        programs=("prefill", "decode"),
        method=method,
        generation={"batch_size": 2, "max_new_tokens": 4},
    )
    return texts


def test_what_is_absent_leaves_nothing(folder, monkeypatch):
    vanilla = lowered(folder, monkeypatch)
    assert set(vanilla) == {"prefill", "decode"}
    assert lowered(folder, monkeypatch, ["qk"]) == vanilla, "an edit of weights is no part"
    steered = lowered(folder, monkeypatch, ADHH)
    assert all(steered[name] != vanilla[name] for name in vanilla)
    other = lowered(folder, monkeypatch, {**ADHH, "threshold": 0.7})
    assert other == steered, "values are no part of it either"
