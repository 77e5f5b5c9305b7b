"""Session-wide models, ours and the torch reference, of the tiny checkpoints."""

import pytest

from tests.reference import Reference


@pytest.fixture(scope="session")
def llava_vlm(tiny_llava):
    """Our tiny LLaVA in float32; its compiled programs are shared by the whole session."""
    import vlm_jax

    return vlm_jax.load(tiny_llava)


@pytest.fixture(scope="session")
def qwen_vlm(tiny_qwen):
    """Our tiny Qwen2.5-VL in float32; its compiled programs are shared by the whole session."""
    import vlm_jax

    return vlm_jax.load(tiny_qwen)


@pytest.fixture(scope="session")
def llava_reference(tiny_llava) -> Reference:
    """The torch LLaVA in float32."""
    return Reference.from_folder(tiny_llava)


@pytest.fixture(scope="session")
def qwen_reference(tiny_qwen) -> Reference:
    """The torch Qwen2.5-VL in float32."""
    return Reference.from_folder(tiny_qwen)


@pytest.fixture(scope="session", params=["llava", "qwen2_5_vl"])
def vlm(request):
    """Our tiny model of each family in turn."""
    return request.getfixturevalue("llava_vlm" if request.param == "llava" else "qwen_vlm")


@pytest.fixture(scope="session")
def reference(vlm, request) -> Reference:
    """The torch model of the same family as `vlm`."""
    name = "llava_reference" if vlm.config.family == "llava" else "qwen_reference"
    return request.getfixturevalue(name)
