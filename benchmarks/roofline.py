"""What the released models need of a chip at least: bytes, and the time that these bytes take.

    python -m benchmarks.roofline

Computed from the architectures, the sharding table and data-sheet peaks; nothing here is measured.
A floor supposes that every byte moves at the memory's full rate and every product at the full rate
of the chip; good engines reach 65 to 75 % of it in decoding and about half in prefill.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from tests.released import CONFIGS
from vlm_jax.config import DecoderConfig, QwenVisionConfig, VLMConfig
from vlm_jax.families import parse_config
from vlm_jax.models import abstract
from vlm_jax.planning.chips import CHIPS, USABLE, Chip
from vlm_jax.planning.sizes import fewest_chips, param_bytes, token_bytes

WIDTH = 2
"""Bytes of a bfloat16 value."""


def attention_weights(c: DecoderConfig) -> int:
    """Weights of the attention of a layer; of latent attention, queries have no latent of their own
    in any released size."""
    if (latent := c.latent) is None:
        return 2 * c.hidden_size * c.head_dim * (c.num_heads + c.num_kv_heads)
    queries = c.hidden_size * c.num_heads * c.head_dim
    down = c.hidden_size * (latent.rank + latent.rope_dim)
    up = latent.rank * c.num_heads * (latent.nope_dim + latent.value_dim)
    return queries + down + up + c.num_heads * latent.value_dim * c.hidden_size


def mlp_weights(c: DecoderConfig, layer: int) -> int:
    """Weights of a layer's MLP that a token is multiplied with: its experts, and the shared one."""
    if (experts := c.layer(layer).mlp) is None:
        return 3 * c.hidden_size * c.intermediate_size
    width = experts.chosen * experts.width + experts.shared_width
    return 3 * c.hidden_size * width + experts.count * c.hidden_size


def layers_weights(c: DecoderConfig) -> int:
    """Weights of the matrices of all decoder layers that a token is multiplied with."""
    return sum(attention_weights(c) + mlp_weights(c, layer) for layer in range(c.num_layers))


def linear_weights(c: DecoderConfig) -> int:
    """Weights that every generated token is multiplied with: all layers and the head."""
    return layers_weights(c) + c.hidden_size * c.vocab_size


def prefill_flops(c: DecoderConfig, length: int) -> float:
    """Operations of reading a prompt: causal attention, and the head for the last row only."""
    linear = 2 * layers_weights(c) * length
    value = c.latent.value_dim if c.latent else c.head_dim
    attention = c.num_layers * c.num_heads * (c.head_dim + value) * length**2
    return linear + attention + 2 * c.hidden_size * c.vocab_size


def suffix_flops(c: DecoderConfig, start: int, length: int) -> float:
    """Operations of reading `length` tokens behind `start` that have been read."""
    head = 2 * c.hidden_size * c.vocab_size
    return prefill_flops(c, start + length) - prefill_flops(c, start) + head


def decode_bytes(c: DecoderConfig, rows: int, context: float, width: int = WIDTH) -> float:
    """Bytes that a decode step of dense layers reads: linear weights, and each row's cache."""
    return width * linear_weights(c) + rows * context * token_bytes(c, 1, width)


def experts_read(c: DecoderConfig, rows: int) -> float:
    """Share of its experts that a layer reads in a step of rows that choose at random.

    1 - (1 - chosen / count)^rows; of 64 experts with 6 a token 0.094 for one row, 0.55 for 8, 0.96
    for 32.
    """
    experts = next((one.mlp for one in c.layers if one.mlp is not None), None)
    return 1.0 if experts is None else 1 - (1 - experts.chosen / experts.count) ** rows


def vision_flops(config: VLMConfig, patches: int) -> float:
    """Operations of tower and projector on so many patches (LLaVA: of whole images)."""
    v, sizes = config.vision, {path: math.prod(a.shape) for path, a in abstract(config)[1].items()}
    merged = v.merge_size**2 if isinstance(v, QwenVisionConfig) else 1
    ends = sizes["vision/patch_de"] + (sizes["projector/w1_fe"] + sizes["projector/w2_df"]) / merged
    linear = 4 * v.hidden_size**2
    if isinstance(v, QwenVisionConfig):
        linear += 3 * v.hidden_size * v.intermediate_size
        full = len(v.full_attention_layers)
        window = (v.window_units * v.merge_size) ** 2
        keys = window * (v.num_layers - full) + patches * full
    else:
        linear += 2 * v.hidden_size * v.intermediate_size
        keys = v.num_patches * v.num_layers
    return 2 * patches * (v.num_layers * linear + ends) + 4 * v.hidden_size * patches * keys


@dataclasses.dataclass(frozen=True)
class Placed:
    """A model over `model` chips, by the sharding table.

    Attributes:
        weights: bytes of weights on a chip.
        always: bytes of weights of them that every decode step reads.
        experts: bytes of weights of experts, of which a step reads a share.
        kv: bytes of a token's cache on a chip.
    """

    config: DecoderConfig
    model: int
    weights: float
    always: float
    experts: float
    kv: float

    def read(self, rows: int) -> float:
        """Bytes of weights on a chip that a decode step of so many rows reads."""
        return self.always + self.experts * experts_read(self.config, rows)

    def bytes_at(self, rows: int, context: int) -> float:
        """Bytes on a chip with the caches of `rows` rows."""
        return self.weights + rows * context * self.kv

    def step_seconds(self, chip: Chip, rows: int, context: int) -> float:
        """Floor of a decode step; the collectives between chips are not in it."""
        memory = (self.read(rows) + rows * context * self.kv) / chip.bandwidth
        return max(memory, 2 * rows * linear_weights(self.config) / self.model / chip.flops)

    def prefill_seconds(self, chip: Chip, length: int) -> float:
        """Floor of reading one prompt, without its images."""
        return prefill_flops(self.config, length) / self.model / chip.flops


def place(config: VLMConfig, model: int) -> Placed:
    """Lays the weights out over `model` chips."""
    weights = always = experts = 0.0
    decoder = config.decoder
    for path, size in param_bytes(config, model, WIDTH).items():
        weights += size
        table = path.endswith("embed_vd") and not decoder.tie_embeddings
        if path.startswith("decoder/") and not table:
            letters = path.rsplit("_", 1)[-1]
            of_experts = letters.startswith("x") and "f" in letters  # the router is read whole
            experts += size * of_experts
            always += size * (not of_experts)
    return Placed(decoder, model, weights, always, experts, token_bytes(decoder, model, WIDTH))


def smallest(config: VLMConfig, chip: Chip, rows: int = 8, context: int = 2048) -> Placed:
    """The fewest chips, a power of two, that hold the weights and so many rows' caches."""
    model = fewest_chips(config, chip, rows, context)
    if model is None:
        raise ValueError("The model does not fit 64 of these chips.")
    return place(config, model)


def released(name: str) -> VLMConfig:
    """A released architecture."""
    return parse_config(CONFIGS[name])


def chips_table() -> str:
    """Memory and floors of every released size on every chip."""
    lines = [
        "| model | chip | chips | weights a chip, GB | caches a chip, GB (8 x 2,048) "
        "| decode, ms a step: 1 row | 8 rows | 32 rows | prefill, ms: 640 | 1,500 | 4,096 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in CONFIGS:
        config = released(name)
        for label, chip in CHIPS.items():
            placed = smallest(config, chip)
            steps = [f"{1e3 * placed.step_seconds(chip, rows, 2048):.2f}" for rows in (1, 8)]
            many = placed.bytes_at(32, 2048) <= USABLE * chip.memory
            steps.append(f"{1e3 * placed.step_seconds(chip, 32, 2048):.2f}" if many else "no room")
            reads = [
                f"{1e3 * placed.prefill_seconds(chip, length):.1f}" for length in (640, 1500, 4096)
            ]
            cells = [name, label, str(placed.model), f"{placed.weights / 1e9:.1f}"]
            cells += [f"{8 * 2048 * placed.kv / 1e9:.2f}", *steps, *reads]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def sizes_table() -> str:
    """What every released size is made of."""
    lines = [
        "| model | weights, GB | read a step, GB: 1 row | 8 rows | cache a token, KiB "
        "| GFLOP a token |",
        "|---|---|---|---|---|---|",
    ]
    for name in CONFIGS:
        config = released(name)
        placed = place(config, 1)
        lines.append(
            f"| {name} | {placed.weights / 1e9:.2f} | {placed.read(1) / 1e9:.2f} "
            f"| {placed.read(8) / 1e9:.2f} | {placed.kv / 1024:.0f} "
            f"| {2 * layers_weights(config.decoder) / 1e9:.2f} |"
        )
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "roofline": chips_table,
    "sizes": sizes_table,
}
"""Name in a page's mark -> what is put there."""


if __name__ == "__main__":
    print(sizes_table(), chips_table(), sep="\n\n")
