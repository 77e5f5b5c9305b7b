"""The plain edit against the dense route."""

import numpy as np
import pytest

from tests.edits.dense import BF16, head, one, plain, product, random_layer, relative, suppressed
from vlm_jax.edits.qk import LayerWeights, QKEdit, Rope, edit_layers
from vlm_jax.edits.qk.certificate import summary
from vlm_jax.edits.qk.factor import factor_layers

ONE = {"band": (0, 0)}


def edit(layer, route="auto", rope=None, **fields):
    return one(edit_layers(lambda _: layer, 1, QKEdit(**ONE, **fields), route=route, rope=rope))


@pytest.mark.parametrize("route", ["gram64", "qr64"])
def test_spectrum_is_that_of_the_dense_product(route):
    layer = random_layer(0)
    factors = factor_layers([LayerWeights.of(0, layer)], route=route)
    for n in range(4):
        dense = np.linalg.svd(product(layer, n), compute_uv=False)[:16]
        assert np.max(np.abs(factors.heads[0][n].values - dense)) / dense[0] < 1e-14


@pytest.mark.parametrize("strength", [0.5, 1.0, -0.7])
def test_three_forms_of_the_map_back_agree(strength):
    layer = random_layer(1)
    edited = edit(layer, k=3, strength=strength)
    factors = factor_layers([LayerWeights.of(0, layer)]).heads[0]
    for n in range(4):
        q, k = head(layer, n)
        ours = edited.arrays["wq_dnh"][:, n].T
        u = np.linalg.svd(q.T @ k)[0][:, :3]
        left, r_q = factors[n].left[:, :3], factors[n].r_q
        operator = np.eye(16) - strength * r_q.T @ left @ left.T @ np.linalg.inv(r_q.T)
        assert relative(ours, plain(q, k, 3, strength)) < 1e-13
        assert relative(ours, q @ (np.eye(96) - strength * u @ u.T)) < 1e-13
        assert relative(ours, operator @ q) < 1e-13


@pytest.mark.parametrize("method", ["plain", "symmetric"])
def test_the_pseudo_inverse_agrees_where_keys_have_full_rank(method):
    layer = random_layer(21)
    fields = {"method": method, "k": 2, "strength": 0.6}
    ours = edit(layer, map_back="pinv", **fields)
    assert ours.arrays["wq_dnh"].tobytes() == edit(layer, **fields).arrays["wq_dnh"].tobytes()


@pytest.mark.parametrize("control", ["", "R1", "R3"])
def test_the_pseudo_inverse_deletes_queries_beside_the_keys(control):
    layer = random_layer(22)
    layer["wk_dkh"][..., 12:] = layer["wk_dkh"][..., :4]
    fields = {"k": 3, "strength": 0.6, "control": control}
    projected = edit(layer, **fields).arrays["wq_dnh"]
    edited = edit(layer, map_back="pinv", **fields)
    rotation = Rope(1e4 ** (-np.arange(8) / 8), np.array([5])).rotations(16)[0]
    for n in range(4):
        q, k = head(layer, n)
        ours = edited.arrays["wq_dnh"][:, n].T
        if not control:
            assert relative(ours, plain(q, k, edited.heads[n]["k"], 0.6)) < 1e-12
        pinv = np.linalg.pinv(k, rcond=1e-10)
        assert relative(ours, (projected[:, n] @ k @ pinv).T) < 1e-12
        assert relative(ours.T @ k, projected[:, n] @ k) < 1e-12
        assert relative(ours.T @ rotation @ k, projected[:, n] @ rotation @ k) > 0.01
        change = ours - q
        assert edited.heads[n]["edit"]["dw_norm"] == pytest.approx(np.linalg.norm(change))
        assert edited.heads[n]["edit"]["rank"] == np.linalg.matrix_rank(change, 1e-9)


def test_the_pseudo_inverse_at_strength_zero_changes_nothing():
    layer = random_layer(22)
    layer["wk_dkh"][..., 12:] = layer["wk_dkh"][..., :4]
    edited = edit(layer, map_back="pinv", control="C5")
    assert edited.arrays["wq_dnh"].tobytes() == layer["wq_dnh"].tobytes()


def test_edited_product_is_the_target_and_so_is_its_spectrum():
    layer = random_layer(2)
    edited = edit(layer, k=4, strength=0.6)
    for n in range(4):
        q, k = head(layer, n)
        target = suppressed(q.T @ k, 4, 0.6)
        realised = edited.arrays["wq_dnh"][:, n] @ k
        assert np.linalg.norm(realised - target) / np.linalg.norm(q.T @ k) < 1e-13
        before = np.linalg.svd(q.T @ k, compute_uv=False)[:16]
        expected = np.sort(np.concatenate([0.4 * before[:4], before[4:]]))[::-1]
        after = np.linalg.svd(realised, compute_uv=False)[:16]
        assert np.max(np.abs(after - expected)) / before[0] < 1e-14
        report = edited.heads[n]
        assert np.max(np.abs(np.array(report["spectrum_after"]) - expected)) / before[0] < 1e-14
        removed = 1 - np.sum(expected**2) / np.sum(before**2)
        assert report["edit"]["energy_removed"] == pytest.approx(removed, abs=1e-12)


@pytest.mark.parametrize("offset", [0, 1, 37, 4096])
def test_edit_acts_on_queries_alike_at_every_offset(offset):
    layer = random_layer(3)
    rope = Rope(1e4 ** (-np.arange(8) / 8), np.array([offset]))
    edited = edit(layer, k=4, strength=0.5)
    rotation = rope.rotations(16)[0]
    for n in range(4):
        q, k = head(layer, n)
        u = np.linalg.svd(q.T @ k)[0][:, :4]
        expected = (np.eye(96) - 0.5 * u @ u.T) @ q.T @ rotation @ k
        realised = edited.arrays["wq_dnh"][:, n] @ rotation @ k
        assert np.linalg.norm(realised - expected) / np.linalg.norm(q.T @ k) < 1e-13


def test_editing_one_head_leaves_everything_else_alone():
    layer = random_layer(4, dtype=BF16)
    keys = layer["wk_dkh"].tobytes()
    edited = edit(layer, heads=(2,))
    assert set(edited.arrays) == {"wq_dnh"}
    assert layer["wk_dkh"].tobytes() == keys
    after, before = edited.arrays["wq_dnh"], layer["wq_dnh"]
    for n in (0, 1, 3):
        assert after[:, n].tobytes() == before[:, n].tobytes()
    assert after[:, 2].tobytes() != before[:, 2].tobytes()
    x = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32)
    logits = [
        np.einsum("th,sh->ts", x @ w[:, 3].astype(np.float32), x @ head(layer, 3)[1].T)
        for w in (before, after)
    ]
    assert (logits[0] == logits[1]).all()


def test_head_reads_the_key_of_its_group():
    layer = random_layer(5, heads=6, kv_heads=2)
    edited = edit(layer, k=2, strength=1.0)
    for n in range(6):
        q, k = layer["wq_dnh"][:, n].T, layer["wk_dkh"][:, n // 3].T
        assert relative(edited.arrays["wq_dnh"][:, n].T, plain(q, k, 2, 1.0)) < 1e-13
        assert edited.heads[n]["kv_head"] == n // 3


@pytest.mark.parametrize("dtype", [BF16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("control", ["C5", "C1"])
def test_strength_zero_returns_the_same_bits(dtype, control):
    layer = random_layer(6, dtype=dtype)
    layer["wq_dnh"][::7] = -0.0
    edited = edit(layer, strength=0.0, control=control)
    assert edited.arrays["wq_dnh"].tobytes() == layer["wq_dnh"].tobytes()
    assert edited.arrays["wq_dnh"].dtype == dtype
    assert edited.heads[0]["spectrum_after"] == pytest.approx(edited.heads[0]["spectrum_before"])


@pytest.mark.parametrize(
    "fields", [{"method": "symmetric"}, {"bias": "operator"}, {"fold_norm": True}]
)
def test_strength_zero_returns_the_same_bits_in_every_form(fields):
    layer = random_layer(6)
    arrays = edit(layer, strength=0.0, **fields).arrays
    assert {name: a.tobytes() for name, a in arrays.items()} == {
        name: layer[name].tobytes() for name in arrays
    }


def test_operator_bias_passes_through_the_head_operator():
    layer = random_layer(7)
    edited = edit(layer, k=3, strength=0.8, bias="operator")
    for n in range(4):
        q, _ = head(layer, n)
        edited_q = edited.arrays["wq_dnh"][:, n].T
        operator = edited_q @ np.linalg.pinv(q)
        bias = layer["bq_nh"][n].astype(np.float64)
        x = np.random.default_rng(n).standard_normal(96)
        expected = operator @ (q @ x + bias)
        wide = {**layer, "bq_nh": layer["bq_nh"].astype(np.float64)}
        moved = edit(wide, k=3, strength=0.8, bias="operator").arrays["bq_nh"][n]
        assert relative(edited_q @ x + moved, expected) < 1e-13
        assert relative(edited.arrays["bq_nh"][n], operator @ bias) < 1e-6


def test_augmented_bias_is_one_more_input():
    layer = random_layer(8)
    layer = {**layer, "bq_nh": layer["bq_nh"] * 0.05, "bk_kh": layer["bk_kh"] * 0.05}
    wide = {name: array.astype(np.float64) for name, array in layer.items()}
    edited = edit(wide, k=3, strength=0.5, bias="augmented")
    for n in range(4):
        q, k = head(layer, n)
        q = np.concatenate([q, wide["bq_nh"][n][:, None]], 1)
        k = np.concatenate([k, wide["bk_kh"][n // 2][:, None]], 1)
        expected = plain(q, k, edited.heads[n]["k"], 0.5)
        assert relative(edited.arrays["wq_dnh"][:, n].T, expected[:, :-1]) < 1e-12
        assert relative(edited.arrays["bq_nh"][n], expected[:, -1]) < 1e-12


def test_norm_gain_is_folded_and_divided_out():
    layer = random_layer(9)
    gain = layer["attn_norm_d"].astype(np.float64)
    edited = edit(layer, k=3, strength=0.5, fold_norm=True)
    for n in range(4):
        q, k = head(layer, n)
        expected = plain(q * gain, k * gain, 3, 0.5) / gain
        assert relative(edited.arrays["wq_dnh"][:, n].T, expected) < 1e-12


def test_query_and_key_norm_gains_join_the_product():
    rng = np.random.default_rng(0)
    gains = {
        "q_norm_h": np.exp(rng.standard_normal(16)),
        "k_norm_h": np.exp(rng.standard_normal(16)),
    }
    layer = {**random_layer(10), **gains}
    edited = edit(layer, k=3, strength=0.5)
    for n in range(4):
        q, k = head(layer, n)
        m = (gains["q_norm_h"][:, None] * q).T @ (gains["k_norm_h"][:, None] * k)
        u = np.linalg.svd(m)[0][:, :3]
        assert relative(edited.arrays["wq_dnh"][:, n].T, q @ (np.eye(96) - 0.5 * u @ u.T)) < 1e-12
        assert edited.heads[n]["qk_norm"] is True


def test_what_a_norm_of_queries_leaves_of_an_edit_is_certified():
    """Beside normalised queries of many inputs, and the dense product of what they are scaled to.

    One temperature for all queries is nothing behind their norm.
    """
    rng = np.random.default_rng(1)
    layer = random_layer(10) | {"q_norm_h": np.exp(rng.standard_normal(16))}
    gain = layer["attn_norm_d"].astype(np.float64)
    x_xd = rng.standard_normal((20000, 96)) * gain
    rms = lambda q_xh: np.sqrt(np.mean(q_xh**2))
    product = lambda q, k: (layer["q_norm_h"][:, None] * q).T @ k
    for control in ("", "C1"):
        edited = edit(layer, k=3, strength=1.0, control=control)
        for n in range(4):
            (q, k), ours = head(layer, n), edited.arrays["wq_dnh"][:, n].T
            norm, grown = edited.heads[n]["norm"], rms(x_xd @ q.T) / rms(x_xd @ ours.T)
            assert norm["reinflation"] == pytest.approx(grown, rel=0.02)
            assert norm["reinflation"] > 1.005
            energy = [np.sum(product(one, k) ** 2) for one in (q, norm["reinflation"] * ours)]
            removed = 1 - energy[1] / energy[0]
            assert norm["energy_removed"] == pytest.approx(removed, abs=1e-9)
            assert norm["energy_removed"] < edited.heads[n]["edit"]["energy_removed"]
            assert (abs(removed) < 1e-9) == (control == "C1")
        assert summary(edited.heads)["norm"]["energy_removed"] == pytest.approx(
            np.median([one["norm"]["energy_removed"] for one in edited.heads])
        )
    assert "norm" not in edit(random_layer(10), k=3).heads[0]


@pytest.mark.parametrize(("route", "tolerance"), [("gram64", 1e-12), ("qr32", 1e-5)])
@pytest.mark.parametrize("condition", [1e2, 1e4, 1e8])
@pytest.mark.parametrize("sizes", [{}, {"dims": 512, "width": 64, "heads": 2, "kv_heads": 1}])
def test_change_is_the_dense_one_at_every_conditioning(route, tolerance, condition, sizes):
    """Float32 QR holds where float32 Gram matrices would not; float64 ones give way to QR."""
    width = sizes.get("width", 16)
    layer = random_layer(11, fall=np.logspace(0, -np.log10(condition), width), **sizes)
    edited = edit(layer, route=route, k=4, strength=0.5)
    for n, report in enumerate(edited.heads):
        q, k = head(layer, n)
        u = np.linalg.svd(q.T @ k)[0][:, : report["k"]]
        change = edited.arrays["wq_dnh"][:, n].T - q
        assert relative(change, -0.5 * q @ u @ u.T) < tolerance


def test_rank_deficient_keys_keep_the_part_of_queries_they_cannot_see():
    layer = random_layer(13)
    layer["wk_dkh"][:, :, 12:] = 0
    edited = edit(layer, k=4, strength=1.0)
    for n in range(4):
        q, k = head(layer, n)
        u = np.linalg.svd(q.T @ k)[0][:, :4]
        assert relative(edited.arrays["wq_dnh"][:, n].T, q @ (np.eye(96) - u @ u.T)) < 1e-12
        assert np.linalg.norm(edited.arrays["wq_dnh"][:, n, 12:]) > 0.1


def test_published_weight_layout_gives_the_same_edit():
    """[N H, D] rows read as (n h) are the transpose of [D, N, H]."""
    layer = random_layer(14, dtype=np.float32)
    rows = np.ascontiguousarray(layer["wq_dnh"].transpose(1, 2, 0)).reshape(64, 96)
    key_rows = np.ascontiguousarray(layer["wk_dkh"].transpose(1, 2, 0)).reshape(32, 96)
    back = {
        "wq_dnh": rows.reshape(4, 16, 96).transpose(2, 0, 1),
        "wk_dkh": key_rows.reshape(2, 16, 96).transpose(2, 0, 1),
    }
    assert not back["wq_dnh"].flags.c_contiguous
    ours, theirs = edit(layer), edit(back)
    assert theirs.arrays["wq_dnh"].tobytes() == ours.arrays["wq_dnh"].tobytes()
    q, k = rows[16:32].astype(np.float64), key_rows[:16].astype(np.float64)
    edited_rows = ours.arrays["wq_dnh"].transpose(1, 2, 0).reshape(64, 96)
    assert relative(edited_rows[16:32], plain(q, k, ours.heads[1]["k"], 0.5)) < 1e-6


def test_energy_cut_takes_the_fewest_modes():
    layer = random_layer(15)
    edited = edit(layer, energy=0.8)
    for n in range(4):
        squares = np.linalg.svd(product(layer, n), compute_uv=False)[:16] ** 2
        share = np.cumsum(squares) / squares.sum()
        assert edited.heads[n]["k_asked"] == int(np.argmax(share >= 0.8)) + 1
    shared = edit(layer, energy=0.8, per_head=False)
    assert len({report["k_asked"] for report in shared.heads}) == 1


def test_tied_modes_are_not_cut_apart():
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((96, 16)))[0] for _ in range(2))
    values = np.array([4, 3, 2, 2, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02])
    layer = {"wq_dnh": (left * values)[:, None], "wk_dkh": right[:, None]}
    edited = edit(layer, k=3, strength=1.0)
    assert (edited.heads[0]["k_asked"], edited.heads[0]["k"]) == (3, 4)
    expected = left[:, 4:] @ left[:, 4:].T @ layer["wq_dnh"][:, 0]
    assert np.abs(edited.arrays["wq_dnh"][:, 0] - expected).max() < 1e-13


def test_flat_spectrum_keeps_the_number_of_modes():
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((96, 16)))[0] for _ in range(2))
    layer = {"wq_dnh": left[:, None], "wk_dkh": right[:, None]}
    assert edit(layer, k=3).heads[0]["k"] == 3


def test_soft_filter_follows_its_law():
    layer = random_layer(16)
    edited = edit(layer, k=16, strength=1.0, soft=2.0)
    for n in range(4):
        q, k = head(layer, n)
        before = np.linalg.svd(q.T @ k, compute_uv=False)[:16]
        expected = before / (1 + 2.0 * (before / before[0]) ** 2)
        after = np.linalg.svd(edited.arrays["wq_dnh"][:, n] @ k, compute_uv=False)[:16]
        assert np.max(np.abs(after - np.sort(expected)[::-1])) / before[0] < 1e-13


def test_concentrated_heads_are_those_above_the_median():
    layer = random_layer(17, heads=6, kv_heads=2)
    every = edit(layer)
    share = {report["head"]: report["energy_fraction"] for report in every.heads}
    middle = np.median(list(share.values()))
    kept = [report["head"] for report in edit(layer, heads="concentrated").heads]
    assert kept == [n for n, e in share.items() if e >= middle]


@pytest.mark.parametrize(
    ("word", "member"),
    [
        ("content", lambda c: abs(c) >= 0.1),
        ("attract", lambda c: c >= 0.1),
        ("repel", lambda c: c <= -0.1),
        ("directional", lambda c: abs(c) < 0.1),
    ],
)
def test_alignment_selects_its_class(word, member):
    layer = random_layer(18)
    edited = edit(
        layer, method="alignment", alignment_class=word, alignment_min=0.1, k=3, strength=1
    )
    for n in range(4):
        q, k = head(layer, n)
        u, s, vt = np.linalg.svd(q.T @ k)
        cosine = np.einsum("dm,md->m", u[:, :16], vt[:16])
        assert np.abs(cosine - edited.heads[n]["alignment"]).max() < 1e-12
        chosen = [m for m in range(16) if member(cosine[m])][:3]
        assert edited.heads[n]["modes"] == chosen
        expected = q.T @ k - (u[:, chosen] * s[chosen]) @ vt[chosen]
        assert relative(edited.arrays["wq_dnh"][:, n] @ k, expected) < 1e-12


@pytest.mark.parametrize("fields", [{}, {"method": "alignment", "alignment_class": "repel"}])
def test_edit_without_certificate_is_the_same_edit(fields):
    layer = random_layer(20)
    spec = QKEdit(**ONE, **fields)
    bare = one(edit_layers(lambda _: layer, 1, spec, certify=False))
    assert bare.heads == []
    assert bare.arrays["wq_dnh"].tobytes() == edit(layer, **fields).arrays["wq_dnh"].tobytes()


def test_report_matches_dense_numbers():
    layer = random_layer(19, dtype=BF16)
    report = edit(layer, k=3, strength=0.5).heads[1]
    q, k = head(layer, 1)
    m = q.T @ k
    z_q, z_k = np.linalg.qr(q.T)[0], np.linalg.qr(k.T)[0]
    assert report["overlap"] == pytest.approx(np.sum((z_q.T @ z_k) ** 2) / 16, rel=1e-10)
    assert report["symmetry"] == pytest.approx(np.trace(m @ m) / np.sum(m**2), rel=1e-9)
    change = plain(q, k, report["k"], 0.5) - q
    assert report["edit"]["dw_relative"] == pytest.approx(
        np.linalg.norm(change) / np.linalg.norm(q), rel=1e-10
    )
    assert report["edit"]["dm_norm"] == pytest.approx(np.linalg.norm(change.T @ k), rel=1e-10)
    realised = edit(layer, k=3, strength=0.5).arrays["wq_dnh"][:, 1].astype(np.float64).T - q
    noise = np.linalg.norm(realised - change) / np.linalg.norm(change)
    assert report["rounding_noise"] == pytest.approx(noise, rel=1e-9)
    assert 1e-4 < report["rounding_noise"] < 1e-1
