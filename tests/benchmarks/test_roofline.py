"""The floors of the released sizes, against figures that were worked out by hand."""

import pytest

from benchmarks import roofline
from benchmarks.roofline import CHIPS, place, released, smallest
from vlm_jax.parallel.sharding import reads_images
from vlm_jax.planning.sizes import param_bytes


@pytest.mark.parametrize(
    ("name", "chip", "rows", "milliseconds"),
    [
        ("Qwen2.5-VL-7B", "H100 SXM", 1, 4.26),
        ("Qwen2.5-VL-7B", "H100 SXM", 8, 4.50),
        ("Qwen2.5-VL-7B", "H100 SXM", 32, 5.34),
        ("Qwen2.5-VL-7B", "H200", 8, 3.14),
        ("Qwen2.5-VL-7B", "TPU v5p", 1, 5.16),
        ("Qwen2.5-VL-7B", "TPU v6e", 8, 9.20),
        ("Qwen2.5-VL-3B", "H100 SXM", 1, 1.86),
        ("Qwen2.5-VL-3B", "TPU v5e", 1, 7.63),
        ("LLaVA-1.5-7B", "H100 SXM", 32, 14.2),
    ],
)
def test_the_floor_of_a_step_is_its_bytes(name, chip, rows, milliseconds):
    seconds = place(released(name), 1).step_seconds(CHIPS[chip], rows, 2048)
    assert 1e3 * seconds == pytest.approx(milliseconds, rel=0.005)


@pytest.mark.parametrize(
    ("name", "chip", "length", "milliseconds"),
    [
        ("Qwen2.5-VL-7B", "H100 SXM", 640, 8.5),
        ("Qwen2.5-VL-7B", "H200", 4096, 57.5),
        ("Qwen2.5-VL-7B", "TPU v5p", 1500, 43.6),
        ("Qwen2.5-VL-7B", "TPU v6e", 4096, 61.9),
        ("Qwen2.5-VL-3B", "H100 SXM", 1500, 8.8),
    ],
)
def test_the_floor_of_a_prompt_is_its_operations(name, chip, length, milliseconds):
    seconds = place(released(name), 1).prefill_seconds(CHIPS[chip], length)
    assert 1e3 * seconds == pytest.approx(milliseconds, rel=0.01)


@pytest.mark.parametrize(("patches", "tera"), [(1024, 1.34), (2304, 3.08), (5184, 7.24)])
def test_the_windowed_tower_is_linear_in_most_layers(patches, tera):
    flops = roofline.vision_flops(released("Qwen2.5-VL-7B"), patches)
    assert flops / 1e12 == pytest.approx(tera, rel=0.01)


def test_what_follows_a_prefix_is_what_is_left_of_the_whole():
    decoder = released("Qwen2.5-VL-7B").decoder
    whole = roofline.prefill_flops(decoder, 451)
    head = 2 * decoder.hidden_size * decoder.vocab_size
    parts = roofline.prefill_flops(decoder, 411) + roofline.suffix_flops(decoder, 411, 40)
    assert parts == pytest.approx(whole + head)
    assert roofline.suffix_flops(decoder, 411, 40) / 1e12 == pytest.approx(0.53, rel=0.02)


@pytest.mark.parametrize(
    ("name", "chip", "chips"),
    [
        ("Qwen2.5-VL-7B", "TPU v5e", 2),
        ("Qwen2.5-VL-7B", "TPU v6e", 1),
        ("Qwen2.5-VL-72B", "H100 SXM", 4),
        ("Qwen2.5-VL-72B", "H200", 2),
    ],
)
def test_the_smallest_mesh_holds_weights_and_caches(name, chip, chips):
    placed = smallest(released(name), CHIPS[chip])
    assert placed.model == chips
    assert placed.bytes_at(8, 2048) <= roofline.USABLE * CHIPS[chip].memory
    if chips > 1:
        half = place(released(name), chips // 2).bytes_at(8, 2048)
        assert half > roofline.USABLE * CHIPS[chip].memory


def test_sharded_weights_add_up():
    config = released("Qwen2.5-VL-7B")
    one, four, eight = (place(config, model) for model in (1, 4, 8))
    # The tower, norms and output biases are on every chip; 4 key heads do not divide over 8 chips.
    tower = sum(size for path, size in param_bytes(config, 1).items() if reads_images(path))
    assert tower == pytest.approx(2 * 0.68e9, rel=0.01)
    decoder = one.weights - tower
    assert decoder < 4 * (four.weights - tower) < 1.01 * decoder
    assert four.kv == one.kv / 4
    assert eight.kv == one.kv


def test_a_step_reads_the_experts_that_its_rows_choose():
    """Kimi-VL: 26 layers of 64 experts of 1,408, 6 a token; a latent of 512 and 64 a token."""
    config = released("Kimi-VL-A3B")
    one = place(config, 1)
    assert one.kv == 2 * 27 * (512 + 64)
    assert one.experts == 2 * 26 * 64 * 3 * 2048 * 1408
    assert one.read(1) - one.always == pytest.approx(one.experts * 6 / 64)
    assert one.read(8) - one.always == pytest.approx(one.experts * 0.5451, rel=1e-3)
    assert one.read(1) < one.read(8) < one.read(1000) <= one.always + one.experts
    # All of it lies on the chips, divided over the experts' widths; the latent cache is not.
    four = place(config, 4)
    assert four.experts == one.experts / 4
    assert four.kv == one.kv


def test_a_token_is_multiplied_with_what_kimi_calls_its_activated_parameters():
    decoder = released("Kimi-VL-A3B").decoder
    table = decoder.vocab_size * decoder.hidden_size
    assert (roofline.linear_weights(decoder) + table) / 1e9 == pytest.approx(2.9, abs=0.15)
