"""The words of what is said about scenes."""

import re


def split_words(text: str) -> list[str]:
    """Lower-case words and single punctuation marks, as the testbed's tokenizer has them."""
    return re.findall(r"\w+|[^\w\s]", text.lower())
