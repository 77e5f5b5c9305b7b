"""Vectors added to the residual stream (activation addition, VTI)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array

from vlm_jax.attention.parts.base import Part, Rows, Values, choice, host, part
from vlm_jax.batch import Kind

WHERE = "all", "image", "text", "answer"


@part
class Vectors(Part):
    """Adds a vector to what each layer left, at some rows; 0 is the identity.

    Attributes:
        add: float32 [b, L, D], added to the output of layer l.
        where: rows of prompts: "all"; "image"; "text" after the last image; "answer", the last row,
            which predicts the first token. Rows of generated tokens are of all but "image".
        positions: these rows of the prompt alone, counted from its first token, or from behind its
            last if negative, in place of `where`; generated rows are left alone.
        keep_norm: rescales what was added to, so that its norm is what it was.
        relative: multiplies the vector by the norm of what it is added to.
    """

    add: Values
    where: Literal["all", "image", "text", "answer"] = choice(default="all", words=WHERE)
    positions: tuple[int, ...] = choice(default=())
    keep_norm: bool = choice(default=False)
    relative: bool = choice(default=False)

    identity: ClassVar[Mapping[str, float]] = {"add": 0}
    dims: ClassVar[str] = "LD"
    attends: ClassVar[bool] = False

    def acts(self):
        """See `Part.acts`."""
        return host(self.add) != 0

    @property
    def on_prefix(self) -> bool:
        """See `Part.on_prefix`."""
        return bool(self.positions) or self.where in ("all", "image")

    @property
    def whole_prompts(self) -> str | None:
        """See `Part.whole_prompts`."""
        if self.positions:
            return "Vectors at positions count the tokens of a prompt"
        return None

    def residual(self, x_btd, rows: Rows | None):
        """See `Part.residual`."""
        wide = x_btd.astype(jnp.promote_types(x_btd.dtype, jnp.float32))
        norm = lambda a: jnp.sqrt(jnp.sum(a * a, axis=-1, keepdims=True))
        moved = wide + self.add[:, None] * (norm(wide) if self.relative else 1.0)
        if self.keep_norm:
            moved = moved * norm(wide) / jnp.maximum(norm(moved), 1e-12)
        acts_bt1 = (
            self._rows(x_btd, rows)[..., None] & jnp.any(self.add != 0, axis=-1)[:, None, None]
        )
        return jnp.where(acts_bt1, moved, wide).astype(x_btd.dtype)

    def _rows(self, x_btd: Array, rows: Rows | None) -> Array:
        """Which rows are acted on, bool [B, T]."""
        if rows is None:
            acts = not self.positions and self.where != "image"
            return jnp.full(x_btd.shape[:2], acts)
        places = jnp.arange(x_btd.shape[1])
        if self.positions:
            assert rows.last_b is not None
            chosen = jnp.asarray(self.positions)
            at = jnp.where(chosen < 0, rows.last_b[:, None] + 1 + chosen, chosen)
            return jnp.any(places == at[..., None], axis=1) & rows.real_bt
        if self.where == "answer":
            last_b = rows.last_b
            never = jnp.zeros(x_btd.shape[:2], bool)
            return never if last_b is None else places == last_b[:, None]
        if self.where == "image":
            return rows.kinds_bt == Kind.IMAGE
        return rows.real_bt if self.where == "all" else rows.after_image_bt
