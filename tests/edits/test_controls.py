"""Every control matches what it promises, and shows it."""

import numpy as np
import pytest

from tests.edits.dense import head, one, product, random_layer, relative
from vlm_jax.edits.qk import QKEdit, edit_layers
from vlm_jax.edits.qk.certificate import summary

LAYER = random_layer(0, heads=6, kv_heads=2)
# No few modes hold most of the energy.
SLOW = np.linspace(1, 0.7, 16)


def edit(layer=LAYER, num_layers=1, **fields):
    spec = QKEdit(**{"band": (0, 0), "k": 3, "strength": 0.5, **fields})
    return one(edit_layers(lambda _: layer, num_layers, spec))


def changes(edited, n, layer=LAYER):
    """dQ [H, D] and dM [D, D] of head n."""
    q, k = head(layer, n)
    dq = edited.arrays["wq_dnh"][:, n].T - q
    return dq, dq.T @ k


def singular(m, count):
    return np.linalg.svd(m, compute_uv=False)[:count]


@pytest.fixture(scope="module")
def plain():
    return edit()


@pytest.mark.parametrize("control", ["R1", "R2", "R3", "R4", "R5", "C1", "C3"])
def test_reports_show_true_quantities_beside_the_edit_s_own(control, plain):
    edited = edit(control=control)
    for n in range(6):
        for name, source in (("edit", edited), ("reference", plain)):
            q, _ = head(LAYER, n)
            m = product(LAYER, n)
            dq, dm = changes(source, n)
            shown = edited.heads[n][name]
            assert shown["dw_norm"] == pytest.approx(np.linalg.norm(dq), rel=1e-9)
            assert shown["dm_norm"] == pytest.approx(np.linalg.norm(dm), rel=1e-9)
            assert shown["dw_relative"] == pytest.approx(np.linalg.norm(dq) / np.linalg.norm(q))
            removed = 1 - np.sum((m + dm) ** 2) / np.sum(m**2)
            assert shown["energy_removed"] == pytest.approx(removed, abs=1e-10)
            assert np.linalg.matrix_rank(dq, tol=1e-10) == shown["rank"]


def test_r1_suppresses_as_many_weaker_modes():
    edited = edit(control="R1")
    for n in range(6):
        before = singular(product(LAYER, n), 16)
        modes = edited.heads[n]["modes"]
        assert len(set(modes)) == 3
        assert min(modes) >= 3
        expected = before.copy()
        expected[modes] *= 0.5
        after = singular(edited.arrays["wq_dnh"][:, n] @ head(LAYER, n)[1], 16)
        assert after == pytest.approx(np.sort(expected)[::-1], abs=1e-13)


def test_r2_suppresses_a_frame_of_the_query_space():
    edited = edit(control="R2", strength=1.0)
    for n in range(6):
        q, _ = head(LAYER, n)
        dq, _ = changes(edited, n)
        assert np.linalg.matrix_rank(q + dq, tol=1e-10) == 13
        basis = np.linalg.qr(q.T)[0]
        assert np.linalg.norm(dq - dq @ basis @ basis.T) < 1e-12


@pytest.mark.parametrize("strength", [0.5, 1.0, -0.5])
def test_r3_has_the_singular_values_and_norm_of_the_edit(strength):
    plain, control = edit(strength=strength), edit(strength=strength, control="R3")
    for n in range(6):
        (dq, dm), (expected_q, expected_m) = changes(control, n), changes(plain, n)
        expected = singular(expected_m, 3)
        assert np.abs(singular(dm, 3) - expected).max() / expected[0] < 1e-13
        ratio = np.linalg.norm(dq) / np.linalg.norm(expected_q)
        assert abs(ratio - 1) < 1e-13
        cosine = np.sum(dq * expected_q) / np.linalg.norm(dq) / np.linalg.norm(expected_q)
        assert abs(cosine) < 0.9


def test_r4_matches_energy_with_weaker_modes():
    layer = random_layer(1, heads=6, fall=SLOW)
    edited = edit(layer, control="R4")
    for report in edited.heads:
        assert report["matched"]
        assert min(report["modes"]) >= report["k"]
        touched = report["edit"]["energy_touched"]
        assert touched == pytest.approx(report["reference"]["energy_touched"], rel=1e-9)


def test_r4_says_when_it_cannot_match():
    edited = edit(random_layer(2, heads=6, fall=np.arange(1, 17.0) ** -2), control="R4")
    for report in edited.heads:
        assert not report["matched"]
        assert report["edit"]["energy_touched"] < report["reference"]["energy_touched"]
    assert not summary(edited.heads)["matched"]


def test_r5_has_the_singular_values_of_the_edit():
    control, plain = edit(control="R5"), edit()
    for n in range(6):
        expected = singular(changes(plain, n)[1], 3)
        realised = singular(changes(control, n)[1], 3)
        assert np.abs(realised - expected).max() / expected[0] < 1e-11
        assert control.heads[n]["matched"]


@pytest.mark.parametrize("method", ["plain", "symmetric"])
@pytest.mark.parametrize("strength", [0.5, -0.5])
def test_c1_rescales_to_the_same_energy(method, strength):
    fields = {"method": method, "k": 4, "strength": strength}
    control, reference = edit(control="C1", **fields), edit(**fields)
    for n in range(6):
        q, k = head(LAYER, n)
        edited = control.arrays["wq_dnh"][:, n].T
        assert relative(edited, q * (edited[0, 0] / q[0, 0])) < 1e-12
        expected = np.linalg.norm(reference.arrays["wq_dnh"][:, n] @ k)
        assert np.linalg.norm(edited.T @ k) == pytest.approx(expected, rel=1e-10)


def test_c2_amplifies():
    flipped, expected = edit(control="C2"), edit(strength=-0.5)
    assert flipped.arrays["wq_dnh"].tobytes() == expected.arrays["wq_dnh"].tobytes()
    assert flipped.heads[0]["spectrum_after"][0] > flipped.heads[0]["spectrum_before"][0]


def test_c3_takes_the_weakest_modes():
    for report in edit(control="C3").heads:
        assert report["modes"] == [13, 14, 15]


def test_c4_takes_as_many_layers_elsewhere():
    band = {"band": (0.36, 0.61)}
    assert QKEdit(**band).layers(28) == tuple(range(10, 18))
    assert QKEdit(**band, control="C4").layers(28) == tuple(range(8))
    assert QKEdit(**band, control="C4-early").layers(28) == tuple(range(8))
    assert QKEdit(**band, control="C4-late").layers(28) == tuple(range(20, 28))
    with pytest.raises(ValueError, match="would share"):
        QKEdit(band=(2, 9), control="C4").layers(28)


def test_c6_edits_half_of_the_heads():
    drawn = {tuple(r["head"] for r in edit(control="C6", seed=s).heads) for s in range(6)}
    assert len(drawn) > 1
    assert all(len(heads) == 3 for heads in drawn)
    edited = edit(control="C6")
    kept = [r["head"] for r in edited.heads]
    for n in range(6):
        same = (edited.arrays["wq_dnh"][:, n] == LAYER["wq_dnh"][:, n]).all()
        assert same == (n not in kept)


@pytest.mark.parametrize("control", ["R1", "R2", "R3", "R4", "R5", "C6"])
def test_random_controls_follow_their_seed(control):
    layer = random_layer(3, heads=6, fall=SLOW)
    first, again, other = (edit(layer, control=control, seed=s).arrays["wq_dnh"] for s in (0, 0, 1))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize("control", ["R1", "R3", "R4", "R5", "C1", "C3"])
@pytest.mark.parametrize("method", ["symmetric", "antisymmetric", "alignment"])
def test_controls_serve_every_method(method, control):
    fields = {"method": method, "k": 4, "alignment_class": "directional"}
    edited = edit(control=control, **fields)
    reference = edit(**fields)
    for ours, theirs in zip(edited.heads, reference.heads, strict=True):
        assert ours["reference"] == pytest.approx(theirs["edit"])
        if control == "R3":
            assert ours["edit"]["dw_norm"] == pytest.approx(theirs["edit"]["dw_norm"], rel=1e-12)
            assert ours["edit"]["dm_norm"] == pytest.approx(theirs["edit"]["dm_norm"], rel=1e-12)
        if control in ("R1", "C3"):
            assert ours["edit"]["rank"] == theirs["edit"]["rank"]


def test_summary_puts_control_and_edit_side_by_side():
    total = summary(edit(control="R3").heads)
    assert total["heads"] == 6
    assert total["edit"]["dw_norm"] == pytest.approx(total["reference"]["dw_norm"], rel=1e-12)
    assert total["matched"]


def test_control_without_spare_modes_is_refused():
    with pytest.raises(ValueError, match="needs 10 modes beside"):
        edit(k=10, control="R1")
