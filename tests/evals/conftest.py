"""Small ground truths and answer files for the scorers' tests."""

import json
from pathlib import Path

import pytest

from vlm_jax.evals.records import image_id, read_rows
from vlm_jax.evals.truth import ObjectTruth, read_object_truth
from vlm_jax.evals.vocabulary import Vocabulary, read_synonyms


@pytest.fixture
def write(tmp_path):
    """Writes a file of text or of rows as JSON lines and returns its path."""

    def _write(name: str, content) -> Path:
        path = tmp_path / name
        if not isinstance(content, str):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_text(content, encoding="utf-8")
        return path

    return _write


@pytest.fixture(scope="session")
def official(real_data) -> Vocabulary:
    return read_synonyms(real_data / "chair" / "synonyms.txt")


@pytest.fixture(scope="session")
def coco_truth(real_data) -> ObjectTruth:
    return read_object_truth(real_data / "chair" / "gt_objects_coco2014_pattern.tsv.gz")


@pytest.fixture(scope="session")
def real_captions(real_data):
    """File name under `chair/captions` -> [(image id, caption)], in file order."""
    root = real_data / "chair" / "captions"
    return {
        path.relative_to(root).as_posix(): [
            (
                image_id(row.fields["image_id"]),
                row.fields.get("caption", row.fields.get("text")),
            )
            for row in read_rows(path)
        ]
        for path in sorted(root.glob("*/*"))
    }
