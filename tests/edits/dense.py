"""The readable oracle: D x D products and pseudo-inverses in float64 NumPy."""

import ml_dtypes
import numpy as np

BF16 = ml_dtypes.bfloat16


def random_layer(seed, dims=96, heads=4, kv_heads=2, width=16, dtype=np.float64, fall=None):
    """Weights whose spectra fall like a power law, so that modes are told apart."""
    rng = np.random.default_rng(seed)
    fall = np.arange(1, width + 1.0) ** -0.7 if fall is None else fall

    def weight(count):
        basis = [np.linalg.qr(rng.standard_normal((dims, width)))[0] for _ in range(count)]
        turn = [np.linalg.qr(rng.standard_normal((width, width)))[0] for _ in range(count)]
        return np.stack([b * fall @ t for b, t in zip(basis, turn, strict=True)], 1).astype(dtype)

    return {
        "wq_dnh": weight(heads),
        "wk_dkh": weight(kv_heads),
        "bq_nh": rng.standard_normal((heads, width)).astype(np.float32),
        "bk_kh": rng.standard_normal((kv_heads, width)).astype(np.float32),
        "attn_norm_d": np.exp(0.3 * rng.standard_normal(dims)).astype(np.float32),
    }


def head(layer, n):
    """Q and K of query head n, [H, D] in float64."""
    wq, wk = layer["wq_dnh"].astype(np.float64), layer["wk_dkh"].astype(np.float64)
    group = n // (wq.shape[1] // wk.shape[1])
    return wq[:, n].T, wk[:, group].T


def product(layer, n):
    q, k = head(layer, n)
    return q.T @ k


def suppressed(m, k, a):
    """M' with the k strongest modes at (1 - a) of their strength."""
    u, s, vt = np.linalg.svd(m)
    return m - a * (u[:, :k] * s[:k]) @ vt[:k]


def plain(q, k_hd, k, a):
    """Q' = (M' K^+)^T."""
    return (suppressed(q.T @ k_hd, k, a) @ np.linalg.pinv(k_hd)).T


def channel_target(m, k, channel):
    """The k strongest modes of one channel of M, summed."""
    if channel == "symmetric":
        values, vectors = np.linalg.eigh((m + m.T) / 2)
        top = np.argsort(-np.abs(values))[:k]
        return (vectors[:, top] * values[top]) @ vectors[:, top].T
    u, s, vt = np.linalg.svd((m - m.T) / 2)
    return (u[:, :k] * s[:k]) @ vt[:k]


def channel(q, k_hd, k, a, name, rcond):
    """Q' by ridge least squares with keys fixed."""
    target = channel_target(q.T @ k_hd, k, name)
    ridge = (rcond * np.linalg.norm(k_hd, 2)) ** 2
    gram = k_hd @ k_hd.T + ridge * np.eye(len(k_hd))
    return q - a * np.linalg.solve(gram, k_hd @ target.T)


def relative(actual, expected):
    return np.linalg.norm(np.asarray(actual, np.float64) - expected) / np.linalg.norm(expected)


def one(edits):
    (edited,) = list(edits)
    return edited
