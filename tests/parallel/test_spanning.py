"""One replica of a model on the devices of two processes."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests import tiny
from tests.children import ENVIRONMENT, ROOT
from tests.parallel.spanning import steered
from tests.reference import IMAGES, PROMPTS
from vlm_jax import load
from vlm_jax.parallel import make_mesh

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose heads divide over four devices, but whose key heads do not."""
    folder = tmp_path_factory.mktemp("spanning")
    rope = dict(rope_scaling={"type": "mrope", "mrope_section": [2, 1, 1]})
    text = dict(num_attention_heads=8, num_key_value_heads=2, num_hidden_layers=1) | rope
    vision = dict(depth=2, fullatt_block_indexes=[1])
    return tiny.qwen2_5_vl(folder / "qwen", text=text, vision=vision)


@pytest.fixture(scope="module")
def found(folder):
    """What each of the processes reports; each has two devices."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    environment = ENVIRONMENT | {"XLA_FLAGS": flags}
    command = [sys.executable, "-m", "tests.parallel.spanning", str(folder.parent), str(folder)]
    started = [
        subprocess.Popen([*command, str(port), str(n)], cwd=ROOT, env=environment) for n in range(2)
    ]
    try:
        assert [process.wait(timeout=400) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    return [json.loads((folder.parent / f"found{n}.json").read_text()) for n in range(2)]


def test_two_processes_are_a_team(found):
    for process, one in enumerate(found):
        assert one["members"] == [0, 1]
        assert one["leads"] == (process == 0)
        assert one["same_team"]
        assert one["number"] == [10, 11]


def test_arrays_go_onto_the_devices_of_both_and_come_back_whole(found):
    for one in found:
        assert one["shards"] == [[3, 2], [3, 2]]
        np.testing.assert_array_equal(one["fetched"], np.arange(24.0).reshape(3, 8))


def test_logits_are_those_of_one_process(found, folder):
    expected, lengths = load(folder, mesh=make_mesh(1, 1)).logits(IMAGES, PROMPTS)
    for process in range(2):
        logits = np.load(folder.parent / f"logits{process}.npy")
        for row, length in enumerate(lengths):
            ours, theirs = logits[row, :length], expected[row, :length]
            np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


def test_what_steering_did_is_what_it_does_in_one_process(found, folder):
    """Heads are counted where they are, and their readings lie there until the host has them."""
    expected = steered(load(folder, mesh=make_mesh(1, 1)))
    assert 0 < np.sum(expected["fired"]) < 8 * np.size(expected["fired"])
    for one in found:
        assert one["steered"]["tokens"] == expected["tokens"]
        assert one["steered"]["fired"] == expected["fired"]
        np.testing.assert_allclose(one["steered"]["image"], expected["image"], atol=1e-5)


def test_what_differs_is_refused_by_both(found):
    for one in found:
        assert one["different"].startswith("processes 0 and 1 share a replica of the model")
        assert "different questions" in one["different"]


def test_an_error_in_one_ends_the_other(found):
    assert [one["failed"] for one in found] == [
        "process 1 failed: the disk is full.",
        "the disk is full.",
    ]
