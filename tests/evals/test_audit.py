"""Audits: a log that was cut short is no better than saying less, one nearer the truth is."""

import math
from typing import Any

import pytest

from vlm_jax.evals import audit
from vlm_jax.evals.audit import WAYS, sentences
from vlm_jax.evals.chair import ChairScorer
from vlm_jax.evals.score import score
from vlm_jax.jobs import score as job
from vlm_jax.report.audit import audit_verdict
from vlm_jax.study.request import Request

LOGS = ("opera/llava-1.5_greedy.jsonl", "opera/instructblip_greedy.jsonl",
        "pope_paper/Instruction1_minigpt-4.json.gz")  # fmt: skip


def test_sentences():
    assert sentences('A dog. "It runs!" Fast?  Yes') == ["A dog.", '"It runs!', "Fast?", "Yes"]
    assert sentences("no end") == ["no end"]


@pytest.mark.parametrize(
    ("way", "amount", "text"),
    [
        ("first sentences", 2, "A b. C d."),
        ("without the last sentences", 1, "A b. C d."),
        ("without the last sentences", 9, "A b."),
        ("a share of the sentences", 0.4, "A b."),
        ("first words", 3, "A b. C"),
    ],
)
def test_ways_of_saying_less(way, amount, text):
    assert WAYS[way][0](["A b.", "C d.", "E f."], amount) == text


def audited(coco_truth, write, said, change):
    """The audit of a published log after a change of every caption, against the log itself."""
    names = list(coco_truth.categories)
    objects = {key: sorted(map(names.index, coco_truth.objects[key])) for key, _ in said}
    lines = [f"{key}\t{','.join(map(str, listed))}\n" for key, listed in objects.items()]
    truth = write("truth.tsv", f"# categories: {'|'.join(names)}\n{''.join(lines)}")
    rows = [{"image_id": key, "caption": change(key, text)} for key, text in said]
    base = [{"image_id": key, "caption": text} for key, text in said]
    paths = write("ours.jsonl", rows), write("base.jsonl", base)
    scored = score(paths[0], truth, baseline=paths[1], draws=300)
    found = audit.audit(scored.suite, scored.table, scored.texts, scored.baseline, draws=300)
    return found, audit_verdict(found, scored.results)[0].text


CUTS = {
    "last sentence": lambda key, text: " ".join(sentences(text)[:-1]) or text,
    "two sentences": lambda key, text: " ".join(sentences(text)[:2]),
    "forty words": lambda key, text: " ".join(text.split()[:40]),
}


@pytest.mark.parametrize(("log", "cut"), list(zip(LOGS, CUTS)))
def test_a_log_cut_short_is_no_better_than_saying_less(coco_truth, real_captions, write, log, cut):
    found, text = audited(coco_truth, write, real_captions[log][:250], CUTS[cut])
    assert found.better is False
    assert text.startswith("is no better than saying less")


def test_a_log_edited_towards_the_truth_is_better(coco_truth, real_captions, write):
    """In every third caption the sentences that name an absent object are gone."""
    scorer = ChairScorer(coco_truth.objects)

    def edit(key, text):
        wrong = lambda one: any(m.hallucinated for m in scorer.score(key, one).mentions)
        kept = [one for one in sentences(text) if not wrong(one)]
        return " ".join(kept or sentences(text)[:1]) if key % 3 == 0 else text

    found, text = audited(coco_truth, write, real_captions[LOGS[0]][:250], edit)
    assert found.better is True
    assert text.startswith("is better than saying less: -")
    gaps = [one.at_length["C_S"].gap for one in found.against]
    assert all(gap is not None and gap.high < 0 for gap in gaps)


@pytest.fixture
def captions(write):
    """Three images; the baseline names a cat that is in none of them, at the end."""
    write("truth.tsv", "# categories: dog|cat|car\n1\t0\n2\t0,2\n3\t2\n")
    said = {1: "A dog. A cat.", 2: "A dog. A car. A cat.", 3: "A car. A cat."}
    rows = lambda change: [{"image_id": n, "caption": change(t)} for n, t in said.items()]
    write("base.jsonl", rows(lambda text: text))
    return write("ours.jsonl", rows(lambda text: text.replace(" A cat.", "")))


def request(**changes):
    from configs import base

    config: Any = base.get_config()
    config.bootstrap_draws = 50
    for name, value in changes.pop("score", {}).items():
        config.score[name] = value
    return Request(config=config, **changes)


def test_the_page_of_captions(captions, tmp_path, capsys):
    folder = captions.parent
    files = {"answers": captions, "truth": (folder / "truth.tsv",), "workdir": tmp_path / "out"}
    job.run(request(**files, baseline=folder / "base.jsonl"))
    printed = capsys.readouterr().out
    assert "is no better than saying less: +0.0 [+0.0, +0.0] points of C_S" in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('<figure class="chart"') == 1
    for heading in ("Against saying less", "Saying less without a model", "chair: score"):
        assert heading in page
    job.run(request(**files))
    alone = (tmp_path / "out" / "report.md").read_text()
    assert "Against saying less" not in alone
    assert "| without the last sentences: 1 | 0.0 | 0.0 | 75.0 |" in alone


def test_the_page_of_answers_to_pope(write, tmp_path, capsys):
    """Five parsers on the same answers, and revised labels beside the ones as given."""
    row = lambda n, label: {"question_id": n, "image": f"{n}.jpg", "text": "Is it?", "label": label}
    truth = write("pope.json", [row(n, label) for n, label in enumerate(("yes", "no", "no"))])
    revised = write("repope.json", [row(0, "yes"), row(1, "yes")])
    said = enumerate(("yes.", "Yes", "I do not know"))
    answers = write("a.jsonl", [{"question_id": n, "text": text} for n, text in said])
    job.run(request(answers=answers, truth=(truth,), workdir=tmp_path / "out",
                    score={"revised": (str(revised),)}))  # fmt: skip
    text = (tmp_path / "out" / "report.md").read_text()
    shares = {"> rucaibox": 66.7, "vcd": 66.7, "lmms": 0.0, "lmms_mme": 33.3, "vlmevalkit": 33.3}
    rows = {line.split(" | ")[0].lstrip("| "): line for line in text.splitlines()}
    assert {name: float(rows[name].split(" | ")[1].split(" ")[0]) for name in shares} == shares
    assert "| metric | labels as given, 3 | revised labels, 2 |" in text
    assert rows["accuracy"].split(" | ")[2].startswith("100.0")
    printed = capsys.readouterr().out
    assert "The same answers, by parser" in printed
    assert "By revised labels" in printed


def test_a_file_that_names_more_and_errs_less(captions, tmp_path, capsys):
    """No cut has its recall, so that it is told from the two changes."""
    folder = captions.parent
    short = folder / "short.jsonl"
    short.write_text((folder / "base.jsonl").read_text().replace("A dog. ", ""))
    scored = score(captions, folder / "truth.tsv", baseline=short, draws=200)
    found = audit.audit(scored.suite, scored.table, scored.texts, scored.baseline, draws=50)
    assert found.better is None
    assert math.isclose(found.against[0].at_recall["C_S"].recall, 1)
    (verdict,) = audit_verdict(found, scored.results)
    assert "no cut of the baseline has its recall" in verdict.text
