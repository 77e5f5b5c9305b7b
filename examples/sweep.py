"""Asks with a method at many strengths at once: one compiled program, one batch.

python examples/sweep.py llava-0 docs/kitchen.png
"""

import sys

import vlm_jax


def main(source: str, image: str) -> None:
    """Prints an answer a setting."""
    answers = vlm_jax.load(source).sweep(
        "air",
        heads="all",
        modules="reallocation",
        visual_gain=1.0,
        text_gain=[0.25, 0.5, 0.75],
        images=image,
        prompts="Please describe this image in detail.",
        max_new_tokens=32,
    )
    print(answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
