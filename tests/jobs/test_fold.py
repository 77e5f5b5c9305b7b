"""Fixed gains in the weights, by the edit job."""

import json

import numpy as np
import pytest

from configs import fold as config_file
from vlm_jax import checkpoint
from vlm_jax.edits.qk import QKEdit
from vlm_jax.edits.qk.folder import edit_folder
from vlm_jax.errors import ConfigError, EditError
from vlm_jax.jobs import fold
from vlm_jax.steering.heads import HeadSets
from vlm_jax.study.request import Request


@pytest.fixture
def config(tmp_path):
    sets = HeadSets("", (3, 4), perception=((0, 1), (1, 2)), reasoning=((2, 3),))
    (tmp_path / "heads.json").write_text(json.dumps({"sets": sets.document()}))
    config = config_file.get_config("gains")
    config.heads = str(tmp_path / "heads.json")
    return config


def folded(config, source, target):
    fold.run(Request(config=config, source=source, target=target))
    return target


def test_the_job_folds_the_gains_of_identified_heads(tiny_llava, config, tmp_path, capsys):
    target = folded(config, tiny_llava, tmp_path / "folded")
    assert "Folded gains of 3 heads" in capsys.readouterr().out
    before, after = (checkpoint.open_folder(path) for path in (tiny_llava, target))
    for path in before.tensors:
        old, new = before.read(path), after.read(path)
        gain_n = np.ones(4)
        if path.endswith("wo_nhd") and path.startswith("decoder/"):
            layer = int(path.split("/")[2])
            for head, gain in {0: {1: 1.16}, 1: {2: 1.16}, 2: {3: 1.3}}[layer].items():
                gain_n[head] = np.float32(gain)
            old = (old.astype(np.float64) * gain_n[:, None, None]).astype(old.dtype)
        assert new.tobytes() == old.tobytes(), path
    document = json.loads((target / "head_gains.json").read_text())
    assert document["methods"][0]["mode"] == "dataset_static"
    with pytest.raises(EditError, match="has head gains already"):
        folded(config, target, tmp_path / "twice")


def test_folding_and_editing_commute(tiny_llava, config, tmp_path):
    spec = QKEdit(band=(1, 1), k=2)
    edit_folder(checkpoint.open_folder(tiny_llava), tmp_path / "e", spec)
    folded(config, tmp_path / "e", tmp_path / "ef")
    folded(config, tiny_llava, tmp_path / "f")
    edit_folder(checkpoint.open_folder(tmp_path / "f"), tmp_path / "fe", spec)
    one, other = (checkpoint.open_folder(tmp_path / name) for name in ("ef", "fe"))
    for path in one.tensors:
        assert one.read(path).tobytes() == other.read(path).tobytes(), path
    for name in ("qk_certificate.json", "qk_edit.sidecar", "head_gains.json"):
        assert (one.path / name).exists()
        assert (other.path / name).exists()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"method": "functional_heads"}, "acts by visual_gains, but weights can hold gains"),
        ({"method": "adhh", "heads": "all"}, "acts by reallocation"),
        ({"method": "plain"}, "edits queries and keys"),
        ({"method": "policy", "mode": "dataset_static"}, "config.fold: method 'policy': .*needs h"),
    ],
)
def test_gains_that_are_not_fixed_are_refused(tiny_llava, config, tmp_path, section, message):
    config.fold = section
    with pytest.raises(ConfigError, match=message):
        folded(config, tiny_llava, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_queries_are_rescaled_by_the_energy_of_their_products(tiny_qwen, tmp_path, capsys):
    """Weights and biases of queries, of all layers, and nothing else."""
    config = config_file.get_config("energy")
    target = folded(config, tiny_qwen, tmp_path / "even")
    before, after = (checkpoint.open_folder(path) for path in (tiny_qwen, target))
    document = json.loads((target / "energy_rescale.json").read_text())
    scale_ln = np.asarray(document["scale_ln"])
    assert f"{int((scale_ln != 1).sum())} heads" in capsys.readouterr().out
    for path in before.tensors:
        old, new = before.read(path), after.read(path)
        if path.startswith("decoder/") and path.endswith(("/wq_dnh", "/bq_nh")):
            scale_n = scale_ln[int(path.split("/")[2])]
            old = (old.astype(np.float64) * scale_n[:, None]).astype(old.dtype)
            assert new.tobytes() != before.read(path).tobytes()
        assert new.tobytes() == old.tobytes(), path
    with pytest.raises(EditError, match="is rescaled already"):
        folded(config, target, tmp_path / "twice")
    edit_folder(after, tmp_path / "edited", QKEdit(band=(1, 1), k=2))
    with pytest.raises(EditError, match="rescale the original folder, and edit that"):
        folded(config, tmp_path / "edited", tmp_path / "twice")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": (0, 1)}, "no setting 'layer'.*did you mean 'layers'"),
        ({"layers": (0, 9)}, "config.fold: layers must be the first and last of the layers 0 to"),
        ({"energy": "spectral"}, "config.fold.energy must be one of 'frobenius'"),
        ({"xi": -1.0}, "config.fold.xi must be a finite number, at least 0"),
    ],
)
def test_one_clear_error_for_each_bad_rescale(tiny_qwen, tmp_path, changes, message):
    config = config_file.get_config("energy")
    config.fold = {**config.fold.to_dict(), **changes}
    with pytest.raises(ConfigError, match=message):
        folded(config, tiny_qwen, tmp_path / "no")
    with pytest.raises(ConfigError, match="knows gains, energy"):
        config_file.get_config("energies")
