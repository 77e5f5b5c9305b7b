"""Tiny folders of both families with transformers' own processors beside ours."""

import dataclasses
from typing import Any

import numpy as np
import PIL.Image
import pytest

from tests import tiny
from vlm_jax.batch import Batch
from vlm_jax.config import VLMConfig
from vlm_jax.families import read_config
from vlm_jax.processing import Processor


@dataclasses.dataclass
class Pair:
    """Our processor of a folder and the reference's."""

    folder: Any
    config: VLMConfig
    ours: Processor
    theirs: Any

    def reference(self, images, prompt):
        """What the reference makes of one user turn: images first, then the text."""
        content = [{"type": "image", "image": image} for image in images]
        content.append({"type": "text", "text": prompt})
        return self.theirs.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="np",
        )


def picture(width: int, height: int, seed: int = 0, mode: str = "RGB") -> PIL.Image.Image:
    """A random picture, smooth enough that resizing it means something."""
    bands = len(PIL.Image.new(mode, (1, 1)).getbands())
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, bands), dtype=np.uint8)
    return PIL.Image.fromarray(coarse.squeeze(), mode).resize((width, height))


def row(batch: Batch, index: int) -> dict[str, np.ndarray]:
    """One sample of a batch without its padding tokens and groups."""
    end = int(batch.lengths_b[index])
    found = {
        "tokens": batch.tokens_bt[index, :end],
        "kinds": batch.kinds_bt[index, :end],
        "positions": batch.positions_bt3[index, :end],
        "slots": batch.slots_bt[index, :end],
        "next": batch.next_position_b[index],
    }
    if batch.images is not None:
        used = (batch.images.ids_bgu[index] >= 0).any(-1)
        found["patches"] = batch.images.patches_bgue[index, used]
        found["ids"] = batch.images.ids_bgu[index, used]
        found["places"] = batch.images.positions_bgu2[index, used]
    return found


@pytest.fixture(scope="session")
def llava(tiny_llava) -> Pair:
    """The LLaVA pair."""
    import transformers

    folder, config = tiny_llava, read_config(tiny_llava)
    theirs = transformers.LlavaProcessor(
        image_processor=transformers.AutoImageProcessor.from_pretrained(folder, backend="pil"),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tiny.LLAVA_TEMPLATE,
    )
    return Pair(folder, config, Processor.from_folder(folder, config), theirs)


@pytest.fixture(scope="session")
def qwen(tiny_qwen) -> Pair:
    """The Qwen2.5-VL pair; the reference's constructor wants torchvision: filled by hand."""
    import transformers

    folder, config = tiny_qwen, read_config(tiny_qwen)
    theirs = transformers.Qwen2_5_VLProcessor.__new__(transformers.Qwen2_5_VLProcessor)
    theirs.image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    theirs.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.video_processor = None
    theirs.chat_template = tiny.QWEN_TEMPLATE
    theirs.image_token, theirs.video_token = "<|image_pad|>", "<|video_pad|>"
    theirs.image_token_id = config.image_token_id
    theirs.video_token_id = theirs.tokenizer.convert_tokens_to_ids("<|video_pad|>")
    return Pair(folder, config, Processor.from_folder(folder, config), theirs)
