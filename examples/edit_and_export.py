"""Edits a model's query weights, writes it in its source's format, and checks what was written.

    python examples/edit_and_export.py llava-0 out/edited

The model is a folder, a hub name or a shipped model. The folder that is written is loaded by
transformers and vLLM as the original was; its certificate says what was done to every head.
"""

import sys

import vlm_jax


def main(source: str, target: str) -> None:
    """Edits, saves, and reads the saved folder back."""
    vlm = vlm_jax.load(source)
    edited = vlm.apply("qk", k=4, strength=0.5)
    print(edited.certificate)
    edited.save(target)
    prompt = "Please describe this image in detail."
    saved = vlm_jax.load(target).generate("docs/kitchen.png", prompt, max_new_tokens=32)
    assert saved == edited.generate("docs/kitchen.png", prompt, max_new_tokens=32)
    print(f"{target}: {saved}")


if __name__ == "__main__":
    main(*sys.argv[1:])
