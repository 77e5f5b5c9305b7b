"""Finds the answer in a reasoning model's text, and says by which rule and whether it was cut off.

final("<think>3 or 4?</think> **Answer:** 4").segment        # "4"
final("<think>3 or 4? It is").truncated                      # True: the thought has no end
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_THOUGHT_ENDS = ("</think>", "◁/think▷")
_THOUGHT_STARTS = ("<think>", "◁think▷")
_TAIL = 400
_CUE = re.compile(r"answer\s*:|answer is\s*:?", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


_ANSWERS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True)
class Said:
    """What a text says once it has thought.

    Attributes:
        start, end: where that is in the text.
        truncated: whether a thought has no end, so that nothing was said.
    """

    start: int
    end: int
    truncated: bool


def answered(text: str) -> Said:
    """Finds what is said after thinking.

    That is inside the last complete pair of answer tags (Ocean-R1), else behind the last end of a
    thought, else nothing where a thought has no end, else the whole.

    answered("<think>3?</think> 4")   # " 4"
    answered("<think>3? It is")       # "", truncated
    """
    pairs = list(_ANSWERS.finditer(text))
    if pairs:
        return Said(*pairs[-1].span(1), False)
    ends = [text.rfind(mark) + len(mark) for mark in _THOUGHT_ENDS if mark in text]
    if ends:
        return Said(max(ends), len(text), False)
    if any(mark in text for mark in _THOUGHT_STARTS):
        return Said(len(text), len(text), True)
    return Said(0, len(text), False)


@dataclass(frozen=True)
class Final:
    """Where a text's answer is.

    Attributes:
        segment: the part that holds it.
        rule: which found it: "boxed", "cue" (after "Answer:"), "line" (the last one) or "text".
        truncated: whether a thought has no end, so that the answer was never given.
    """

    segment: str
    rule: str
    truncated: bool


def final(text: str) -> Final:
    """Finds the part of a text that holds its answer.

    What is said after thinking counts (`answered`), or, where a thought has no end, the last 400
    characters; in it the last boxed content, else what follows the last "Answer:" or "answer is",
    else the last line that is not empty.
    """
    said = answered(text)
    truncated = said.truncated
    kept = text[-_TAIL:] if truncated else text[said.start : said.end]
    kept = kept.replace("**", "").strip()
    box = boxed(kept)
    if box is not None:
        return Final(box.strip(), "boxed", truncated)
    cues = list(_CUE.finditer(kept))
    if cues and kept[cues[-1].end() :].strip():
        return Final(kept[cues[-1].end() :].strip(" \n\"'"), "cue", truncated)
    lines = [line for line in kept.splitlines() if line.strip()]
    if len(lines) > 1:
        return Final(lines[-1].strip(" \"'"), "line", truncated)
    return Final(kept.strip("\"'"), "text", truncated)


def boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...}, braces matched; None where there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth < 0:
            return text[begin:place]
    return text[begin:]


def yes_no(segment: str) -> str:
    """ "yes", "no" or "unknown": exactly one of the words, else the first word if it is one."""
    words = re.findall(r"[a-z']+", segment.lower())
    if ("yes" in words) != ("no" in words):
        return "yes" if "yes" in words else "no"
    return words[0] if words and words[0] in ("yes", "no") else "unknown"


def letter(segment: str, choices: Mapping[str, str]) -> str:
    """The option's letter that a segment names; "Z" where none is certain. Never a guess."""
    start = re.match(r"\(?([A-Z])(?:\)|\.|:|\s*$)", segment.strip())
    if start and start[1] in choices:
        return start[1]
    return infer_letter(segment, choices)


_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def infer_letter(answer: str, choices: Mapping[str, str]) -> str:
    """VLMEvalKit's rule: a lone option letter near the end, else a lone option's text; "Z" if none.

    A letter counts if it is the only one of the options among the words and one of the last five;
    otherwise the letter after "answer is"; otherwise the only option whose text the answer holds,
    if the answer is at most twice as long as all options.
    """
    if any(refusal in answer for refusal in _REFUSALS):
        return "Z"
    words = "".join(" " if c in ".()[],:;!*#{}" else c for c in answer).split()
    named = [one for one in choices if one in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - 6:
        return named[0]
    if not named and "Z" in words:
        return "Z"
    said = re.search(r"answer\s+is\s+\W*([a-z])\b", answer, re.IGNORECASE)
    if said and said[1].upper() in choices:
        return said[1].upper()
    if len(answer) > 2 * sum(len(option) for option in choices.values()):
        return "Z"
    held = [key for key, option in choices.items() if option and option.lower() in answer.lower()]
    return held[0] if len(held) == 1 else "Z"


def last_number(segment: str) -> str | None:
    """The last number of a segment without its thousands separators; None where there is none."""
    found = _NUMBER.findall(segment)
    return found[-1].replace(",", "").rstrip(".") if found else None
