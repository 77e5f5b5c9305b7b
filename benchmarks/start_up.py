"""R12: what the persistent compile cache saves when a process starts.

    python -m benchmarks R12

Fresh processes load a model and answer questions of several lengths, first with an empty cache,
then with what the first left. Compiling is what the first answers take longer than the same
answers again. Other questions of the same lengths must compile nothing.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.protocol import ratio_of
from benchmarks.record import figure, record
from benchmarks.small import folder_model, text_of

QUANTITY = "warm / cold start"
GOAL = 0.25
ROOT = pathlib.Path(__file__).parents[1]


def settings(quick: bool) -> dict[str, Any]:
    """The model and how long its questions are, in letters."""
    if quick:
        return dict(text=text_of(True), letters=(10,), repeats=2)
    return dict(text=text_of(False, num_hidden_layers=6), letters=(10, 150, 300), repeats=3)


def measure(quick: bool = False) -> dict[str, Any]:
    """Measures the row."""
    chosen = settings(quick)

    def figures() -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch) / "model"
            folder_model(folder, chosen["text"])
            runs = [
                start(folder, pathlib.Path(scratch) / f"cache-{turn}", chosen["letters"])
                for turn in range(chosen["repeats"])
                for _ in ("cold", "warm")
            ]
        return judge(runs[::2], runs[1::2], judged=not quick)

    return record("R12", QUANTITY, chosen, figures)


def judge(cold: list[dict], warm: list[dict], judged: bool) -> list[dict[str, Any]]:
    """The figures of cold and warm starts."""
    if any(run["answers"] != cold[0]["answers"] for run in (*cold, *warm)):
        raise RuntimeError("Two starts did not give the same answers.")
    of = lambda runs, name: [run[name] for run in runs]
    again = max(of(cold, "programs_again") + of(warm, "programs_again"))
    found = []
    for name, goal in (("compile", GOAL), ("process", None)):
        report = ratio_of(of(warm, name), of(cold, name))
        found.append(
            figure(
                {"compile": "compiling", "process": "the whole process, imports included"}[name],
                report,
                goal if judged else None,
                cold_s=sorted(of(cold, name))[len(cold) // 2],
                warm_s=sorted(of(warm, name))[len(warm) // 2],
            )
        )
    programs = f"{cold[0]['programs']} for {cold[0]['buckets']} buckets"
    found.append(
        figure("programs compiled by other questions of these lengths", again, 0, programs=programs)
    )
    return found


def start(folder: pathlib.Path, cache: pathlib.Path, letters: tuple[int, ...]) -> dict[str, Any]:
    """Starts a process; returns what it says, with the seconds of its whole life."""
    command = [sys.executable, "-m", "benchmarks.start_up", str(folder), str(cache)]
    begin = time.perf_counter()
    done = subprocess.run(
        [*command, *map(str, letters)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1]) | {"process": time.perf_counter() - begin}


def answer_twice(folder: str, cache: str, letters: list[int]) -> dict[str, Any]:
    """Answers questions of all lengths, the same again, and others of the same lengths."""
    import vlm_jax
    from benchmarks.end_to_end import picture
    from vlm_jax.study.runtime import enable_compile_cache

    enable_compile_cache(cache)
    vlm = vlm_jax.load(folder)
    picture_of = [[picture(0)]] * len(letters)

    def ask(letter: str) -> tuple[list[str], float]:
        begin = time.perf_counter()
        # These letters are tokens of their own, so that a question is as long as it looks.
        questions = [letter * count for count in letters]
        said = vlm.generate(picture_of, questions, max_new_tokens=8, batch_size=1)
        return said, time.perf_counter() - begin

    answers, first = ask("b")
    programs = vlm.generator.compilations
    again, second = ask("b")
    if again != answers:
        raise RuntimeError("The same questions got other answers.")
    ask("q")
    return {
        "answers": answers,
        "compile": first - second,
        "programs": programs,
        "buckets": len(vlm.buckets),
        "programs_again": vlm.generator.compilations - programs,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("cache")
    parser.add_argument("letters", nargs="+", type=int)
    asked = parser.parse_args()
    print(json.dumps(answer_twice(asked.folder, asked.cache, asked.letters)))
