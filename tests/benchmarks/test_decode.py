"""What a share of the measured stream may be called."""

import pytest

pytest.importorskip("torch")

from benchmarks.decode import judge_memory


@pytest.mark.parametrize(
    ("before", "after", "reached", "verdict"),
    [
        (10.0, 10.5, 8.0, "met"),
        (10.0, 10.5, 5.0, "missed"),
        (10.0, 10.5, 12.0, "unclear"),
        (5.0, 10.0, 8.0, "unclear"),
    ],
)
def test_a_share_of_the_stream_is_judged_only_against_a_steady_stream(
    before, after, reached, verdict
):
    result = {
        "peaks_before": {"stream_gbs": before},
        "peaks_after": {"stream_gbs": after},
        "batches": [{"batch": 1, "ours_best_gbs": reached}, {"batch": 8, "ours_best_gbs": reached}],
    }
    judge_memory(result)
    one, eight = (found["R6"] for found in result["batches"])
    assert one["verdict"] == verdict
    assert one["share"] == reached / max(before, after)
    assert eight["verdict"] == ""
