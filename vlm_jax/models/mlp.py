"""The MLP of a decoder's layer: one SwiGLU, or a mixture of experts.

They are base classes of layers, so that their parameters have the layer's own paths.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vlm_jax.config import DecoderConfig, MoE
from vlm_jax.models.layers import ACTIVATIONS, linear, matrix, weight, zeros


def swiglu(x: Array, gate_fd: Array, up_fd: Array, down_df: Array) -> Array:
    """Returns down(silu(gate x) * up x)."""
    return linear(ACTIVATIONS["silu"](linear(x, gate_fd)) * linear(x, up_fd), down_df)


class Dense(nnx.Module):
    """A SwiGLU."""

    def declare_mlp(self, config: DecoderConfig, kind: None, rngs: nnx.Rngs) -> None:
        """Declares the parameters."""
        d, f = config.hidden_size, config.intermediate_size
        self.w_gate_fd = matrix(rngs, f, d)
        self.w_up_fd = matrix(rngs, f, d)
        self.w_down_df = matrix(rngs, d, f)

    def mlp(self, normed_btd: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Returns what the MLP adds."""
        return swiglu(normed_btd, self.w_gate_fd[...], self.w_up_fd[...], self.w_down_df[...])


class Experts(nnx.Module):
    """A few of many SwiGLUs for each token, and one for all (DeepSeekMoE, arXiv 2401.06066)."""

    def declare_mlp(self, config: DecoderConfig, kind: MoE, rngs: nnx.Rngs) -> None:
        """Declares the parameters."""
        d, x, f, s = config.hidden_size, kind.count, kind.width, kind.shared_width
        self.moe = kind
        self.router_xd = matrix(rngs, x, d)
        self.router_bias_x = zeros(x) if kind.bias else None
        self.w_gate_xfd = weight(rngs, x, f, d, fan_in=d)
        self.w_up_xfd = weight(rngs, x, f, d, fan_in=d)
        self.w_down_xdf = weight(rngs, x, d, f, fan_in=f)
        self.shared_gate_fd = matrix(rngs, s, d) if s else None
        self.shared_up_fd = matrix(rngs, s, d) if s else None
        self.shared_down_df = matrix(rngs, d, s) if s else None

    def mlp(self, normed_btd: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Returns what the chosen experts and the shared one add."""
        x_td = normed_btd.reshape(-1, normed_btd.shape[-1])
        bias_x = None if self.router_bias_x is None else self.router_bias_x[...]
        weights_tk, ids_tk = choose(self.moe, x_td, self.router_xd[...], bias_x)
        stacks = self.w_gate_xfd[...], self.w_up_xfd[...], self.w_down_xdf[...]
        out_td = run_experts(x_td, weights_tk, ids_tk, *stacks)
        out_btd = out_td.reshape(normed_btd.shape)
        if self.shared_gate_fd is None:
            return out_btd
        assert self.shared_up_fd is not None
        assert self.shared_down_df is not None
        shared = self.shared_gate_fd[...], self.shared_up_fd[...], self.shared_down_df[...]
        return out_btd + swiglu(normed_btd, *shared)


def choose(
    moe: MoE, x_td: Float[Array, "T D"], router_xd: Array, bias_x: Array | None
) -> tuple[Float[Array, "T K"], Int[Array, "T K"]]:
    """Returns the weights and the numbers of each token's experts, in float32.

    The bias moves the choice alone, never the weights (DeepSeek-V3, arXiv 2412.19437, section 2.1).
    With groups, experts outside a token's best groups are not chosen; a group is as good as its
    best expert under a softmax, as its best two under a sigmoid.
    """
    wide = jnp.promote_types(x_td.dtype, jnp.float32)
    logits_tx = jnp.einsum(
        "td,xd->tx", x_td.astype(wide), router_xd.astype(wide), precision=jax.lax.Precision.HIGHEST
    )
    softmax = moe.scoring == "softmax"
    scores_tx = jax.nn.softmax(logits_tx, axis=-1) if softmax else jax.nn.sigmoid(logits_tx)
    ranked_tx = scores_tx if bias_x is None else scores_tx + bias_x.astype(wide)
    if moe.groups > 1:
        grouped_tgx = ranked_tx.reshape(len(x_td), moe.groups, -1)
        best_tgx = jax.lax.top_k(grouped_tgx, 1 if softmax else 2)[0]
        kept_tg = jax.lax.top_k(jnp.sum(best_tgx, axis=-1), moe.groups_kept)[1]
        is_kept_tg = jnp.any(kept_tg[..., None] == jnp.arange(moe.groups), axis=1)
        grouped_tgx = jnp.where(is_kept_tg[..., None], grouped_tgx, -jnp.inf)
        ranked_tx = grouped_tgx.reshape(scores_tx.shape)
    ids_tk = jax.lax.top_k(ranked_tx, moe.chosen)[1]
    weights_tk = jnp.take_along_axis(scores_tx, ids_tk, axis=-1)
    if moe.normalise:
        weights_tk = weights_tk / (jnp.sum(weights_tk, axis=-1, keepdims=True) + 1e-20)
    return weights_tk * moe.scale, ids_tk


LARGEST_BLOCK = 64
"""Rows of a block of tokens with one expert."""


def run_experts(
    x_td: Float[Array, "T D"],
    weights_tk: Float[Array, "T K"],
    ids_tk: Int[Array, "T K"],
    gate_xfd: Float[Array, "X F D"],
    up_xfd: Float[Array, "X F D"],
    down_xdf: Float[Array, "X D F"],
) -> Float[Array, "T D"]:
    """Returns the weighted sum of each token's experts.

    Tokens are sorted by expert into blocks of rows with one expert each; a loop over the blocks
    that there are reads an expert where it is in the stack. A single token has blocks of one row:
    its K experts are all that is read.

    Example, 3 tokens with experts (0 2) (2 1) (2 0) in blocks of 2 rows: token 0, token 2 | token
    1, padding | token 0, token 1 | token 2, padding, of experts 0, 1, 2 and 2.
    """
    count, slots = len(gate_xfd), ids_tk.size
    # One row a block as long as few tokens share an expert, then about an expert's share of them.
    block = 1
    while block < LARGEST_BLOCK and slots > count * block:
        block *= 2
    blocks_at_most = slots // block + min(count, slots)
    flat_s = ids_tk.ravel()
    order_s = jnp.argsort(flat_s, stable=True)
    sorted_s = flat_s[order_s]
    size_x = jnp.zeros(count, jnp.int32).at[flat_s].add(1)
    blocks_x = -(-size_x // block)
    end_x, first_x = jnp.cumsum(blocks_x), jnp.cumsum(size_x) - size_x
    rank_s = jnp.arange(slots, dtype=jnp.int32) - first_x[sorted_s]
    row_s = (end_x - blocks_x)[sorted_s] * block + rank_s
    token_r = jnp.zeros(blocks_at_most * block, jnp.int32).at[row_s].set(order_s // ids_tk.shape[1])
    rows_rd = x_td[token_r]
    expert_j = jnp.searchsorted(end_x, jnp.arange(blocks_at_most), side="right")

    def run(j: Array, out_rd: Array) -> Array:
        expert = lambda stack: jax.lax.dynamic_index_in_dim(stack, expert_j[j], keepdims=False)
        rows = jax.lax.dynamic_slice_in_dim(rows_rd, j * block, block)
        out = swiglu(rows, expert(gate_xfd), expert(up_xfd), expert(down_xdf))
        return jax.lax.dynamic_update_slice_in_dim(out_rd, out, j * block, axis=0)

    out_rd = jax.lax.fori_loop(0, end_x[-1], run, jnp.zeros_like(rows_rd))
    out_sd = jnp.zeros_like(x_td, shape=(slots, x_td.shape[1])).at[order_s].set(out_rd[row_s])
    out_tkd = out_sd.reshape(*ids_tk.shape, -1).astype(weights_tk.dtype)
    return jnp.einsum("tk,tkd->td", weights_tk, out_tkd).astype(x_td.dtype)
