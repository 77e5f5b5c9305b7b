"""The card of an edited folder: true, of the base model's licence, and gone when the edit is."""

import pathlib

import numpy as np
import pytest

from vlm_jax import checkpoint, hub
from vlm_jax.checkpoint import original_card
from vlm_jax.checkpoint.card import README
from vlm_jax.edits.head_gains import fold_gains
from vlm_jax.edits.qk import QKEdit
from vlm_jax.edits.qk.folder import edit_folder, restrength_folder, revert_folder

BASE = "---\nlicense: other\nlicense_name: tongyi-qianwen\nlicense_link: LICENSE\n---\n# A model\n"
EDIT = QKEdit(k=2, band=(1, 1))


@pytest.fixture
def base(tmp_path) -> pathlib.Path:
    """A shipped model as the hub's cache holds it, with a card of its own."""
    folder = tmp_path / "models--owner--name" / "snapshots" / "1a2b"
    checkpoint.open_folder(hub.SHIPPED / "llava-0").copy(folder, {})
    (folder / README).write_text(BASE)
    return folder


def lines(folder: pathlib.Path) -> list[str]:
    """What a card says was done."""
    text = (folder / README).read_text()
    return [line for line in text.splitlines() if line.startswith("- ")]


def test_a_card_says_what_was_done_and_goes_with_it(base, tmp_path):
    edited, stronger, both, back = (tmp_path / n for n in ("edited", "more", "both", "back"))
    edit_folder(checkpoint.open_folder(base), edited, EDIT)
    card = (edited / README).read_text()
    for said in ("license_name: tongyi-qianwen", "base_model: owner/name", "# owner/name, edited"):
        assert f"\n{said}\n" in card
    edits = [
        "- Query-key edit: k=2, strength=0.5, band=(1, 1). (certificate: `qk_certificate.json`)"
    ]
    assert lines(edited) == edits
    assert (edited / "README.base.md").read_text() == BASE
    restrength_folder(checkpoint.open_folder(edited), stronger, 1.0)
    assert (stronger / "README.base.md").read_text() == BASE
    assert lines(stronger) == [edits[0].replace("0.5", "1.0")]
    source = checkpoint.open_folder(edited)
    shape = source.config.decoder.num_layers, source.config.decoder.num_heads
    gains = np.where(np.arange(shape[1]) == 0, 0.5, np.ones(shape))
    fold_gains(source, both, gains)
    assert lines(both) == [*edits, f"- Fixed gains of {shape[0]} heads. "
                           "(certificate: `head_gains.json`)"]  # fmt: skip
    assert (both / "README.base.md").read_text() == BASE
    revert_folder(checkpoint.open_folder(both), tmp_path / "gains")
    assert len(lines(tmp_path / "gains")) == 1
    revert_folder(checkpoint.open_folder(edited), back)
    for path in base.iterdir():
        assert (back / path.name).read_bytes() == path.read_bytes()
    assert len(list(back.iterdir())) == len(list(base.iterdir()))


def test_a_card_of_a_model_without_one_names_no_licence(tmp_path):
    source = checkpoint.open_folder(hub.SHIPPED / "llava-0")
    edit_folder(source, tmp_path / "edited", EDIT)
    card = (tmp_path / "edited" / README).read_text()
    assert card.startswith("---\nlibrary_name:")
    assert "names none in its card" in card
    edited = checkpoint.open_folder(tmp_path / "edited")
    assert original_card(edited, "qk_certificate.json") == {README: None}
    assert not (tmp_path / "edited" / "README.base.md").exists()
