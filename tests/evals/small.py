"""A few questions of every benchmark in its own form, with answers, for tests over all of them."""

from typing import Any, NamedTuple

HALLUSION = ("category", "subcategory", "set_id", "figure_id", "question_id")


class Small(NamedTuple):
    """A benchmark's rows of truth, their answers, and the field of an answer."""

    truth: list[dict[str, Any]]
    answers: list[dict[str, Any]]
    key: str


def _pope() -> Small:
    truth = [{"question_id": n, "image": f"{n // 2}.jpg", "text": f"Is there a {word}?",
              "label": label}
             for n, (word, label) in enumerate(zip("abcd", ("yes", "no") * 2))]  # fmt: skip
    said = ("Yes", "no.", "No", "Hardly")
    return Small(truth, [{"question_id": n, "text": text} for n, text in enumerate(said)], "text")


def _chair() -> Small:
    truth = [{"image_id": n, "captions": ["a dog"], "instances": [{"category": "cat"}]}
             for n in range(3)]  # fmt: skip
    said = ("A dog and a cat.", "A horse.", "Nothing here")
    return Small(truth, [{"image_id": n, "caption": t} for n, t in enumerate(said)], "caption")


def _hallusionbench() -> Small:
    rows = [("VD", "chart", "0", figure, question) for figure in "12" for question in "01"]
    truth = [dict(zip(HALLUSION, row)) | {"visual_input": "1", "gt_answer": str(n % 2),
             "question": f"Is it {row[-1]}?"} for n, row in enumerate(rows)]  # fmt: skip
    answers = [dict(zip(HALLUSION, row)) | {"model_prediction": text}
               for row, text in zip(rows, ("No", "Yes", "yes", "unclear"))]  # fmt: skip
    return Small(truth, answers, "model_prediction")


def _mme() -> Small:
    asked = [("existence", "1.png", "A dog?", "Yes"), ("existence", "1.png", "A cat?", "No"),
             ("count", "2.png", "Two?", "Yes"), ("count", "2.png", "Three?", "No")]  # fmt: skip
    names = ("category", "image", "question", "answer")
    truth = [dict(zip(names, row)) for row in asked]
    said = ("Yes", "no", "maybe", "No")
    return Small(truth, [row | {"prediction": t} for row, t in zip(truth, said)], "prediction")


def _mmstar() -> Small:
    truth = [{"index": n, "question": f"Colour {n}?", "A": "red", "B": "blue",
              "answer": "AB"[n % 2], "category": "c", "l2_category": f"a{n % 2}"}
             for n in range(4)]  # fmt: skip
    said = ("A", "A", "(B)", "sky")
    return Small(truth, [{"index": n, "prediction": t} for n, t in enumerate(said)], "prediction")


def _seedbench() -> Small:
    truth = [{"question_id": f"{n}x", "data_id": f"{n}.png", "question": f"Colour {n}?",
              "choice_a": "red", "choice_b": "blue", "answer": "A", "question_type_id": 1}
             for n in range(3)]  # fmt: skip
    answers = [{"question_id": f"{n}x", "prediction": t} for n, t in enumerate(("A", "B", "?"))]
    return Small(truth, answers, "prediction")


def _mathvista() -> Small:
    each = [("multi_choice", "text", ["red", "blue"], "blue", None),
            ("free_form", "integer", [], "3", None),
            ("free_form", "float", [], "1.5", 1.0)]  # fmt: skip
    truth = [{"pid": str(n), "question": f"Problem {n}", "question_type": kind,
              "answer_type": type_, "choices": choices, "answer": answer, "precision": precision}
             for n, (kind, type_, choices, answer, precision) in enumerate(each)]  # fmt: skip
    said = ("(B)", "3", "many")
    return Small(truth, [{"pid": str(n), "response": t} for n, t in enumerate(said)], "response")


def _mathvision() -> Small:
    each = ((["1", "2"], "B"), ([], "3"), ([], "7"))
    truth = [{"id": n, "question": f"Problem {n}", "options": options, "answer": answer, "level": 1,
              "subject": "algebra"} for n, (options, answer) in enumerate(each)]  # fmt: skip
    said = ("\\boxed{B}", "The answer is 3.", "no idea")
    return Small(truth, [{"id": n, "response": t} for n, t in enumerate(said)], "response")


def _amber() -> Small:
    truth = [{"id": 1005 + n, "type": "discriminative-hallucination", "truth": "no"}
             for n in range(3)]  # fmt: skip
    said = ("No", "Yes", "Who knows")
    answers = [{"id": 1005 + n, "response": text} for n, text in enumerate(said)]
    return Small(truth, answers, "response")


def _mmvet() -> Small:
    truth = [{"question_id": f"v1_{n}", "imagename": f"{n}.png", "question": f"What {n}?",
              "answer": "a dog <OR> a hound", "capability": ["rec"]} for n in range(3)]  # fmt: skip
    said = ("a dog", "a cat", "")
    answers = [{"question_id": f"v1_{n}", "text": text} for n, text in enumerate(said)]
    return Small(truth, answers, "text")


MADE = (_amber, _chair, _hallusionbench, _mathvision, _mathvista, _mme, _mmstar, _mmvet, _pope,
        _seedbench)  # fmt: skip
SMALL = {make.__name__[1:]: make() for make in MADE}
GRADES = {"v1_0": 1.0, "v1_1": 0.0, "v1_2": 0.0}
