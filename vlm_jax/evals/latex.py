r"""The values of arithmetic in LaTeX, by a grammar of its own: text of models is never executed.

value(r"\frac{3}{4}+2^{3}")   # 8.75
value("__import__('os')")     # None
"""

import math
import re
from fractions import Fraction
from typing import Any

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d*)?|\.\d+)|\\(?P<command>[a-zA-Z]+)|(?P<mark>[-+*/^(){}\[\]]))"
)
_MAX_CHARACTERS = 200
_MAX_POWER = 2000
_MAX_BASE = 10**6
_SPELLINGS = (*(("\\displaystyle", ""), ("\\cdot", "*"), ("\\times", "*"), (":", "/"), ("$", " ")),)
_FUNCTIONS = {
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "ln": math.log,
    "log": math.log10,
    "exp": math.exp,
}


class _Failed(Exception):
    """The text is no arithmetic."""


def value(text: str) -> float | None:
    r"""The value of an expression of numbers, + - * / ^, \frac, \sqrt, \pi and brackets.

    Returns:
        the value of the text up to a brace too many or the full stop of a sentence; None where it
        is something else, is not finite, or is too long.
    """
    if len(text) > _MAX_CHARACTERS:
        return None
    try:
        for spelt, plain in _SPELLINGS:
            text = text.replace(spelt, plain)
        reader = _Reader(_tokens(text))
        found = reader.sum()
        number = float(found)
        return number if reader.peek() is None and math.isfinite(number) else None
    except (_Failed, ValueError, ArithmeticError, RecursionError):
        return None


def _tokens(text: str) -> list[tuple[str, str]]:
    """The tokens of a text, up to a brace too many or the full stop of a sentence."""
    found, place, depth = [], 0, 0
    text = text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None or match.lastgroup is None:
            if found and text[place] == ".":
                break
            raise _Failed
        token = match.lastgroup, match[match.lastgroup]
        depth += {"{": 1, "}": -1}.get(token[1], 0)
        if depth < 0:
            break
        found.append(token)
        place = match.end()
    return found


class _Reader:
    """Recursive descent over tokens."""

    def __init__(self, tokens: list[tuple[str, str]]):
        self.tokens, self.place = tokens, 0

    def peek(self) -> tuple[str, str] | None:
        return self.tokens[self.place] if self.place < len(self.tokens) else None

    def take(self, mark: str | None = None) -> tuple[str, str]:
        token = self.peek()
        if token is None or (mark is not None and token[1] != mark):
            raise _Failed
        self.place += 1
        return token

    def sum(self) -> Any:
        total = self.product()
        while self.peek() in (("mark", "+"), ("mark", "-")):
            sign = 1 if self.take()[1] == "+" else -1
            total += sign * self.product()
        return total

    def product(self) -> Any:
        total = self.signed()
        while (token := self.peek()) is not None:
            if token == ("mark", "*"):
                self.take()
                total *= self.signed()
            elif token == ("mark", "/"):
                self.take()
                total /= self.signed()
            elif token[0] in ("number", "command") or token[1] in "({":  # 2\pi
                total *= self.power()
            else:
                break
        return total

    def signed(self) -> Any:
        token = self.peek()
        if token in (("mark", "-"), ("mark", "+")):
            self.take()
            return -self.signed() if token == ("mark", "-") else self.signed()
        return self.power()

    def power(self) -> Any:
        base = self.atom()
        if self.peek() == ("mark", "^"):
            self.take()
            exponent = self.signed()
            if abs(exponent) > _MAX_POWER or not abs(base) <= _MAX_BASE:
                raise _Failed
            result = base**exponent  # exact for whole exponents of fractions
            if isinstance(result, complex):
                raise _Failed
            return result
        return base

    def atom(self) -> Any:
        kind, text = self.take()
        if kind == "number":
            return Fraction(text)
        if kind == "mark" and text in "({[":
            inside = self.sum()
            self.take({"(": ")", "{": "}", "[": "]"}[text])
            return inside
        if kind == "command":
            if text == "pi":
                return math.pi
            if text in ("frac", "dfrac", "tfrac"):
                return self.group() / self.group()
            if text == "sqrt":
                return self.root()
            if text in _FUNCTIONS:
                return _FUNCTIONS[text](float(self.power()))
        raise _Failed

    def group(self) -> Any:
        r"""An argument: a group in braces, or, as in \frac12, one digit."""
        if self.peek() == ("mark", "{"):
            return self.atom()
        kind, text = self.take()
        if kind != "number":
            raise _Failed
        if len(text) > 1:
            self.place -= 1
            self.tokens[self.place] = (kind, text[1:])
        return Fraction(text[0])

    def root(self) -> Any:
        degree: Any = 2
        if self.peek() == ("mark", "["):
            self.take()
            degree = self.sum()
            self.take("]")
        return float(self.group()) ** float(1 / degree)
