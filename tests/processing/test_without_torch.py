"""Processing runs where torch and torchvision are not installed, and gives the same batch."""

import subprocess
import sys

import numpy as np
import pytest

from tests.processing.conftest import picture

SCRIPT = """
import sys
sys.modules["torch"] = sys.modules["torchvision"] = None  # as if not installed
import numpy as np
from vlm_jax.processing import Processor
batch = Processor.from_folder(sys.argv[1]).batch([[sys.argv[2]]], ["what is it?"])
assert sys.modules["torch"] is None
np.savez(sys.argv[3], tokens=batch.tokens_bt, patches=batch.images.patches_bgue)
"""


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_processing_needs_no_torch(request, tmp_path, family):
    pair = request.getfixturevalue(family)
    path, saved = tmp_path / "picture.png", tmp_path / "batch.npz"
    picture(90, 50).save(path)
    command = [sys.executable, "-c", SCRIPT, str(pair.folder), str(path), str(saved)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = pair.ours.batch([[path]], ["what is it?"])
    with np.load(saved) as found:
        np.testing.assert_array_equal(found["tokens"], expected.tokens_bt)
        np.testing.assert_array_equal(found["patches"], expected.images.patches_bgue)
