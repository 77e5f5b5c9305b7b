"""Methods that act together: what docs/methods/index.md says of every pair is what happens."""

import numpy as np
import pytest

import vlm_jax
from tests import tiny
from tests.decoding.test_strategies import IMAGES, PROMPTS, SETTINGS, oracle, tokens
from tests.docs.test_site import script
from vlm_jax.decoding import named
from vlm_jax.decoding.named import read_named

OPTIONS = {"max_new_tokens": 3, "min_new_tokens": 3}


@pytest.fixture(scope="module")
def site():
    return script("settings")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model of two layers: every set of methods is compiled."""
    layers = dict(num_hidden_layers=2)
    folder = tmp_path_factory.mktemp("together") / "llava"
    return vlm_jax.load(tiny.llava(folder, text=layers, vision=layers))


@pytest.fixture(scope="module")
def trials(site, small):
    decoder = small.config.decoder
    return site.trials(decoder.num_layers, decoder.num_heads, decoder.hidden_size)


@pytest.fixture(scope="module")
def refusals(site, small):
    return site.refusals(small)


def treated(vlm, trials, labels):
    for name, settings in (trials[label] for label in labels):
        vlm = vlm.apply(name, **settings)
    return vlm


def test_what_is_refused_is_refused_in_both_orders(refusals):
    pairs = {(one, other) for one in refusals for other in refusals[one]}
    assert pairs == {(other, one) for one, other in pairs}
    assert ("opera", "air(zero_trace='running')") in pairs
    assert ("functional_heads(passes=2)", "cgd") in pairs
    assert not any("\n" in error for others in refusals.values() for error in others.values())


def sets_of(labels, refusals):
    """Sets of methods that act together, so that each is in one."""
    left = list(labels)
    while left:
        chosen: list[str] = []
        for label in [*left, *labels]:
            if label not in chosen and not any(label in refusals[one] for one in chosen):
                chosen.append(label)
        yield chosen
        left = [label for label in left if label not in chosen]


@pytest.mark.slow
@pytest.mark.parametrize("method", named.names())
def test_all_else_acts_together_in_any_order(small, site, trials, refusals, method):
    """A method of decoding beside an edit and every method of attention that goes with it."""
    able = [
        label
        for label, (name, _) in trials.items()
        if site.known()[name].kind == "attention" and label not in refusals[method]
    ]
    seen = set()
    for chosen in sets_of(able, refusals):
        together = ["qk", *chosen, method]
        ask = lambda labels: treated(small, trials, labels).ask(IMAGES[:2], PROMPTS[:2], OPTIONS)
        found, back = ask(together), ask(together[::-1])
        assert all(one.tokens for one in found)
        assert [one.tokens for one in found] == [one.tokens for one in back]
        seen |= set(chosen)
    assert seen == set(able)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_strategy_reads_the_edited_and_steered_model(llava_vlm, name):
    """Greedy answers are those of whole passes of it, view by view.

    The steering acts on all rows alike, as whole passes need.
    """
    vectors = np.random.default_rng(3).standard_normal((3, 64))
    model = (
        llava_vlm.apply("qk", strength=1.0, band=(0, 2))
        .apply("farsight", mode="budget", sigma=0.05)
        .apply("activation_addition", vectors=vectors, strength=0.5)
    )
    strategy = read_named(name, SETTINGS[name])
    found = tokens(model, strategy)
    assert found == oracle(model, name)
    assert found != tokens(llava_vlm, strategy)
