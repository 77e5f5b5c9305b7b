"""Decoding alone: the program and the arguments that generation uses, from where prefill ended."""

# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.protocol import Route
from vlm_jax.attention.steering import Readings, State, Steering
from vlm_jax.batch import Batch
from vlm_jax.decoding import DecodeSettings, Generator
from vlm_jax.decoding.generate import Generated
from vlm_jax.decoding.search import Search
from vlm_jax.decoding.strategies import Strategy
from vlm_jax.models import Cache, Params, Watched


@dataclasses.dataclass(frozen=True)
class Decoding:
    """A decode loop of `new_tokens` steps.

    Attributes:
        tokens_bn: the tokens that it must return, [B, new_tokens].
        program: the jitted loop.
        args: all its arguments but the parameters; the cache among them is consumed.
        statics: its static arguments.
    """

    params: Params
    new_tokens: int
    tokens_bn: np.ndarray
    program: Any
    args: tuple
    statics: dict[str, Any]

    @classmethod
    def record(
        cls,
        generator: Generator,
        params: Params,
        batch: Batch,
        new_tokens: int,
        steering: Steering | None = None,
        strategy: Strategy | Search | None = None,
        **asked: Any,
    ) -> Decoding:
        """Generates once and keeps what the loop was called with.

        The first token is prefill's, so this many steps need room for one token more.
        """
        program, kept = generator.programs.decode, {}

        def listen(params, *args, **statics):
            kept["args"], kept["statics"] = jax.tree.map(jnp.copy, args), statics
            return program(params, *args, **statics)

        generator.programs.decode = listen
        try:
            settings = DecodeSettings(max_new_tokens=new_tokens + 1, **asked)
            made = generator(params, batch, settings, steering=steering, strategy=strategy)
        finally:
            generator.programs.decode = program
        tokens = made.tokens_bn[:, :new_tokens]
        return cls(params, new_tokens, tokens, program, kept["args"], kept["statics"])

    @property
    def cache(self) -> Cache:
        """Where prefill ended."""
        return self.args[1]

    def repeated(self, rows: int) -> Decoding:
        """The same loop over copies of its first row."""
        wide = lambda tree: jax.tree.map(
            lambda leaf: jnp.repeat(leaf[:1], rows, axis=0) if leaf.ndim else leaf, tree
        )
        read, cache, inputs = self.args
        inputs = dataclasses.replace(inputs, seeds_b=wide(inputs.seeds_b))
        return dataclasses.replace(
            self,
            tokens_bn=np.repeat(self.tokens_bn[:1], rows, axis=0),
            args=(wide(read), wide(cache), inputs),
        )

    def steered(self, steering: Steering) -> Decoding:
        """The same loop with a method on from its first step, for methods that remember nothing.

        Its tokens are those of a first run.
        """
        (logits_bv, _), cache, inputs = self.args
        layers, heads = jax.tree.leaves(steering)[0].shape[1:]
        nothing = jnp.zeros((logits_bv.shape[0], layers, heads), jnp.float32)
        readings = Readings(*[nothing] * len(dataclasses.fields(Readings)))
        cache = dataclasses.replace(cache, states=(State(),) * layers)
        inputs = dataclasses.replace(inputs, steering=jax.tree.map(jnp.asarray, steering))
        made = dataclasses.replace(self, args=((logits_bv, Watched(readings)), cache, inputs))
        tokens, fired = made.read(*made.prepare())
        if fired == 0:
            raise RuntimeError("The method that is to be timed did nothing in any decode row.")
        return dataclasses.replace(made, tokens_bn=tokens)

    def prepare(self) -> tuple:
        """Copies the arguments, as the program consumes its cache."""
        return (jax.block_until_ready(jax.tree.map(jnp.copy, self.args)),)

    def read(self, args: tuple) -> tuple[np.ndarray, float]:
        """Decodes; returns the tokens and how often a method acted, summed over heads."""
        *found, _ = self.program(self.params, *args, **self.statics)
        made, acted = Generated(*found), 0.0
        if made.readings is not None:
            acts = (made.readings.fired_bn, made.readings.perception_bn, made.readings.reasoning_bn)
            acted = float(sum(jnp.sum(act) for act in acts))
        return np.asarray(made.tokens_bn)[:, : self.new_tokens], acted

    def run(self, args: tuple) -> np.ndarray:
        """Decodes; returns the tokens [B, new_tokens]."""
        return np.asarray(self.program(self.params, *args, **self.statics)[0])[:, : self.new_tokens]

    def route(self) -> Route:
        """The loop as something to time."""
        return Route(self.run, self.prepare)

    def check(self, tokens_bn: np.ndarray) -> None:
        """Raises RuntimeError unless a run's tokens are these."""
        same(tokens_bn, self.tokens_bn)

    def temporary_bytes(self) -> int:
        """Memory that the compiled loop needs beside its arguments."""
        lowered = self.program.lower(self.params, *self.args, **self.statics)
        return lowered.compile().memory_analysis().temp_size_in_bytes


def same(tokens_bn: np.ndarray, expected_bn: np.ndarray) -> None:
    """Raises RuntimeError unless the tokens of a timed run are the expected ones."""
    if tokens_bn.shape != expected_bn.shape or not np.array_equal(tokens_bn, expected_bn):
        raise RuntimeError("A timed run's tokens are not those of the untimed reference.")
