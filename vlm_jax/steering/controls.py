"""Controls of head methods: the same intervention elsewhere, named by one word of a config.

| word | heads acted on |
|---|---|
| "" | those that the method names |
| random | as many in every layer, drawn at random |
| other | the other end of the ranking; the classes with their gains exchanged |
| inert | as many whose effect is nearest to zero; none of classes |
| all | every head of every layer |
| no_sinks | those that the method names, attention sinks left out |

Random heads are drawn from all heads of a layer, the named ones included: under the hypothesis that
only layers matter, the named set is then one more such draw, and its rank among them is a p-value.
"""

import numpy as np

from vlm_jax.errors import ConfigError
from vlm_jax.steering.heads import Head, HeadSets, per_layer

CONTROLS = ("", "random", "other", "inert", "all", "no_sinks")
CLASS_CONTROLS = tuple(word for word in CONTROLS if word != "inert")
"""Those of methods whose heads are of classes and not of a ranking."""
SINK_MASS = 0.9
"""Mean mass before the first image above which a head is a sink.

The mass on BOS alone is not read; that on everything before the image bounds it from above.
"""


def layer_order(seed: int, layer: int, width: int) -> np.ndarray:
    """A random order of a layer's heads, from (seed, layer) alone."""
    return np.random.default_rng((seed, layer)).permutation(width)


def random_heads(heads: tuple[Head, ...], shape: tuple[int, int], seed: int) -> tuple[Head, ...]:
    """Returns as many heads of every layer, drawn from all of that layer without replacement.

    Heads (0, 3), (0, 5) and (4, 1) become two heads of layer 0 and one of layer 4; a drawn head
    may be one of those given. A layer's draw is of (seed, layer) alone.

    Raises:
        ConfigError: a draw could only give the heads themselves.
    """
    counts = per_layer(heads)
    if all(count == shape[1] for count in counts.values()):
        raise ConfigError(
            "control='random': the method acts on all heads of its layers, so random heads of "
            "these layers are the same; lower count."
        )
    return tuple(
        (layer, int(head))
        for layer, count in sorted(counts.items())
        for head in sorted(layer_order(seed, layer, shape[1])[:count])
    )


def without_sinks(heads: tuple[Head, ...], sets: HeadSets) -> tuple[Head, ...]:
    """The heads that are no attention sinks.

    Raises:
        ConfigError: it was not measured which are, or all of them are.
    """
    sinks = sink_mask(sets)
    kept = tuple(head for head in heads if not sinks[head])
    if not kept:
        raise ConfigError(f"control='no_sinks': all heads that {sets.name!r} names are sinks.")
    return kept


def sink_mask(sets: HeadSets) -> np.ndarray:
    """Returns a mask, bool [L, N], that is True at attention sinks.

    These have more than `SINK_MASS` of their mass on tokens before the first image.

    Raises:
        ConfigError: it was not measured which they are.
    """
    if sets.system_mass_ln is None:
        raise ConfigError(
            f"control='no_sinks' needs each head's mass before the image, which {sets.name!r} does "
            "not say; use a file of --job=identify as heads."
        )
    return np.asarray(sets.system_mass_ln) > SINK_MASS


def choose_heads(
    sets: HeadSets, count: int | None, control: str = "", seed: int = 0
) -> tuple[Head, ...]:
    """Returns the heads that a method with a ranking, or its control, acts on.

    Args:
        sets: the ranking.
        count: how many of its first heads; by default what the ranking says, or all that it lists.
        control: a word of `CONTROLS`.
        seed: of random heads.

    Raises:
        ConfigError: there are not as many, or the control cannot be.
    """
    if control == "all":
        return tuple(np.ndindex(*sets.shape))
    what = {"other": "insensitive", "inert": "inert"}.get(control, "sensitive")
    named = getattr(sets, what)
    wanted = sets.count if count is None else count
    wanted = len(sets.sensitive) if wanted is None else wanted
    if wanted < 1 or wanted > len(named):
        raise ConfigError(
            f"heads {sets.name!r} list {len(named)} {what} heads, so count={wanted} cannot be."
        )
    heads = tuple(named[:wanted])
    if control == "no_sinks":
        return without_sinks(heads, sets)
    return random_heads(heads, sets.shape, seed) if control == "random" else heads


def shuffled(values_ln: np.ndarray, seed: int) -> np.ndarray:
    """Values of heads dealt out anew within each layer: same layers, counts and classes.

    Raises:
        ConfigError: all heads of every layer have one value, so that nothing would change.
    """
    if np.all(values_ln == values_ln[:, :1]):
        raise ConfigError("control='random': every layer has one gain for all of its heads.")
    width = values_ln.shape[1]
    rows = [row[layer_order(seed, layer, width)] for layer, row in enumerate(values_ln)]
    return np.stack(rows)
