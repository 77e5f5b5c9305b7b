"""The sharding table and the mesh helper on one device."""

import jax
import pytest
from jax.sharding import PartitionSpec

from vlm_jax.errors import ConfigError
from vlm_jax.parallel import AXES, batch_sharding, make_mesh, param_shardings, replicated, spec


@pytest.fixture
def mesh():
    return make_mesh()


def test_letters_give_the_axes(mesh):
    assert spec("dnh", (64, 4, 16), mesh) == PartitionSpec(None, "model", None)
    assert spec("vd", (384, 64), mesh) == PartitionSpec("model", None)
    assert spec("d3nh", (32, 3, 2, 16), mesh) == PartitionSpec(None, None, "model", None)
    assert set(AXES.values()) == {"data", "model", None}


def test_two_dims_on_one_axis_are_refused(mesh):
    with pytest.raises(ValueError, match="'nf' share mesh axis 'model'"):
        spec("nf", (4, 8), mesh, "decoder/strange_nf")


@pytest.mark.parametrize("dims", ["dn", "dnhh", "dzh"])
def test_letters_that_do_not_describe_the_shape_are_refused(mesh, dims):
    with pytest.raises(ValueError, match=f"odd: dims '{dims}'"):
        spec(dims, (64, 4, 16), mesh, "odd")


def test_every_parameter_has_a_sharding(vlm):
    shardings = param_shardings(vlm.params, vlm.mesh)
    assert {path: array.sharding for path, array in vlm.params.items()} == shardings


def test_batches_lead_with_data(mesh):
    assert batch_sharding(mesh).spec == PartitionSpec("data")
    assert replicated(mesh).spec == PartitionSpec()


def test_a_mesh_uses_all_devices(mesh):
    assert mesh.shape == {"data": jax.device_count(), "model": 1}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize("sizes", [(3, 5), (0, 1), (-1, 0), (-1, 1000), (1, -1)])
def test_a_mesh_that_does_not_fit_is_refused(sizes):
    with pytest.raises(ConfigError, match=r"config\.mesh\.data and config\.mesh\.model"):
        make_mesh(*sizes)
