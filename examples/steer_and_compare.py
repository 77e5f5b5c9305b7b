"""Puts a steered model, an edited one and the model as it is side by side on pictures.

    python examples/steer_and_compare.py llava-0 docs/kitchen.png

In a notebook the last value of a cell is shown with the pictures, and changed words are marked.
"""

import sys

import vlm_jax


def main(source: str, *images: str) -> None:
    """Prints the answers, a row a model."""
    vlm = vlm_jax.load(source)
    models = {
        "plain": vlm,
        # Text halved in every head while the answer is written.
        "steered": vlm.apply(
            "air", heads="all", modules="reallocation", visual_gain=1.0, text_gain=0.5
        ),
        "edited": vlm.apply("qk", k=4, strength=1.0),
    }
    prompt = "Please describe this image in detail."
    answers = vlm_jax.compare(models, list(images), prompt, max_new_tokens=32)
    print(answers)
    for name in models:
        print(f"{name}: {len(answers.changed(name))} of {len(images)} answers changed")


if __name__ == "__main__":
    main(*sys.argv[1:])
