"""The loss of given text: against the logits of a prompt, and an edit beside its controls."""

import json
import logging

import numpy as np
import pytest

import vlm_jax
from vlm_jax.analysis.likelihood import TokenLosses, passages
from vlm_jax.errors import ConfigError


def test_passages_are_spread_evenly_and_stay_within_their_text():
    texts = [list(range(7)), list(range(10, 14))]
    np.testing.assert_array_equal(passages(texts, 3, 9), [[0, 1, 2], [3, 4, 5], [10, 11, 12]])
    np.testing.assert_array_equal(passages(texts, 3, 2), [[0, 1, 2], [10, 11, 12]])
    assert passages(texts, 8, 2).shape == (0, 8)


def test_a_loss_is_what_the_logits_of_a_prompt_say(llava_vlm):
    prompt = "What is in the image, and what is not?"
    logits_btv, (length,) = llava_vlm.logits(None, [prompt])
    tokens_t = np.asarray(llava_vlm.processor.batch(None, [prompt]).tokens_bt)[0, :length]
    p_tv = np.exp(logits_btv[0, : length - 1].astype(np.float64))
    p_tv /= p_tv.sum(-1, keepdims=True)
    expected_t = -np.log(p_tv[np.arange(length - 1), tokens_t[1:]])
    tokens_pt = np.stack([tokens_t, tokens_t[::-1], tokens_t])
    found_pt = TokenLosses(llava_vlm.config, rows=2)(llava_vlm.params, tokens_pt)
    np.testing.assert_allclose(found_pt[0], expected_t, atol=1e-4)
    np.testing.assert_array_equal(found_pt[2], found_pt[0])


def test_an_edit_is_told_beside_its_controls(llava_vlm, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("What is in the image? A dog and a cat. " * 8)
    edit = {"k": 2, "strength": 1.0, "band": (0, 2)}
    options = {"length": 8, "passages": 3, "control_draws": 3, "draws": 50, "rows": 3}
    found = vlm_jax.explain(
        llava_vlm, "text_nll", texts=[str(path)], edit=edit, controls=("C5", "R1"), **options
    )
    document = json.loads(json.dumps(found.document(), allow_nan=False))
    arms = document["arms"]
    assert document["passages"] == 3
    assert arms["C5"]["change_by_draw"] == [0.0]
    assert arms["C5"]["edited_minus_it"] == arms["edited"]["change"]
    drawn = arms["R1"]["change_by_draw"]
    assert len(set(drawn)) == 3
    ours = arms["edited"]["change"]
    assert ours["low"] <= ours["mean"] <= ours["high"]
    assert ours["mean"] != 0
    assert arms["R1"]["rank_p"] == (1 + sum(one <= ours["mean"] for one in drawn)) / 4
    assert "rank_p" not in arms["C5"]
    (table,) = found.tables()
    assert [row[0] for row in table.rows] == ["unedited", "edited", "C5", "R1 (3 draws)"]


def test_a_text_longer_than_the_model_reads_gives_no_warning(llava_vlm, tmp_path, caplog):
    text, tokenizer = "What is in the image? A dog and a cat. ", llava_vlm.processor.tokenizer
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbf" + (text * 50).encode())
    options = {"length": 8, "passages": 1, "controls": (), "draws": 50, "edit": {"band": (0, 1)}}
    limit, tokenizer.model_max_length = tokenizer.model_max_length, 32
    logger = logging.getLogger("transformers")
    logger.propagate = True
    try:
        vlm_jax.explain(llava_vlm, "text_nll", texts=[str(tmp_path / "text.txt")], **options)
    finally:
        logger.propagate, tokenizer.model_max_length = False, limit
    assert not caplog.records


def test_texts_that_cannot_be_read_are_one_clear_error(llava_vlm, tmp_path):
    ask = lambda *texts: vlm_jax.explain(llava_vlm, "text_nll", texts=texts)
    with pytest.raises(ConfigError, match="name some in its setting texts"):
        ask()
    (tmp_path / "short.txt").write_text("Short.")
    with pytest.raises(ConfigError, match="no text is as long as a passage of 128 tokens"):
        ask(str(tmp_path / "short.txt"))
    (tmp_path / "picture").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="picture is no UTF-8 text"):
        ask(str(tmp_path / "picture"))
