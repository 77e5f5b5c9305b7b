"""Every benchmark against the official scores of its golden files, and on rows of its own."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax.errors import AnswersError
from vlm_jax.evals.choices import weighted_f1
from vlm_jax.evals.final_answer import final, infer_letter, last_number, letter, yes_no
from vlm_jax.evals.latex import value
from vlm_jax.evals.records import read_rows
from vlm_jax.evals.score import score
from vlm_jax.evals.suites import SUITES, benchmarks, mathvision, mathvista
from vlm_jax.evals.yes_no import verdict


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def values(results):
    return {name: entry.value for name, entry in results.metrics.items()}


@pytest.mark.parametrize("subset", ["all", "image"])
def test_hallusionbench(real_data, subset):
    folder = real_data / "hallusionbench"
    golden = load(folder / "golden" / "golden_scores.json")
    scored = score(
        folder / "golden" / "synthetic_answers.json",
        folder / "HallusionBench.json",
        rules={"subset": subset},
        allow_extra=subset == "image",
        draws=20,
    )
    found = values(scored.results)
    if subset == "image":
        overall = golden["VLMEvalKit_image_subset"]
        wanted = {name: overall["Overall"][name] / 100 for name in ("aAcc", "qAcc", "fAcc")}
        for part in ("VD", "VS"):
            wanted |= {f"{n}/{part}": overall[part][n] / 100 for n in ("aAcc", "qAcc", "fAcc")}
        assert scored.results.n == golden["n_image_subset"]
        assert {name: found[name] for name in wanted} == pytest.approx(wanted)
        return
    official, bias = golden["official"], golden["official"]["yes_ratio_stats"]
    wanted = {f"{name}": official["all"][name] / 100
              for name in ("aAcc", "qAcc", "fAcc", "easy_qAcc", "hard_qAcc")}  # fmt: skip
    for part in ("VD", "VS"):
        wanted |= {f"{n}/{part}": official[part][n] / 100 for n in ("aAcc", "qAcc", "fAcc")}
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    assert found["yes_bias"] == pytest.approx(bias["diff"])
    assert found["FP_ratio"] == pytest.approx(bias["fp"])
    assert scored.results.counts["figures"] == 346
    assert scored.results.counts["pairs"] == 455
    f1s = golden["f1_sklearn"]
    assert found["F1"] == pytest.approx(f1s["binary_yes_positive_unknown_counts_as_no"])
    assert found["weighted_F1"] == pytest.approx(f1s["weighted_unknown_as_third_label"])
    assert scored.results.counts["unparsable"] == f1s["n_unknown"]


def test_hallusionbench_rule_of_intern(real_data):
    folder = real_data / "hallusionbench"
    wanted = load(folder / "golden" / "golden_scores.json")["lmms-eval_intern_rule_image_subset"]
    found = values(
        score(
            folder / "golden" / "synthetic_answers.json",
            folder / "HallusionBench.json",
            rules={"subset": "image", "parser": "contains_yes"},
            allow_extra=True,
            draws=20,
        ).results
    )
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("parser", "harness"), [("lmms_mme", "lmms_eval"), ("vlmevalkit", "vlmevalkit")]
)
def test_mme(real_data, write, parser, harness):
    golden = load(real_data / "mme" / "golden_synthetic.json")
    path = write("mme.json", json.dumps(golden["inputs"]))
    everything = score(path, path, "mme", rules={"parser": parser, "subsets": "all"}, draws=20)
    found = values(everything.results)
    wanted = golden[harness]
    wanted = wanted.get("per_category", wanted)
    parts = {name: found[name] for name in found if name in wanted}
    assert len(parts) == 14
    assert parts == pytest.approx({name: wanted[name] for name in parts})
    if harness == "lmms_eval":
        four = values(score(path, path, "mme", draws=20).results)["score"]
        subset = golden[harness]["hallucination_subset_existence_count_position_color"]
        assert four == pytest.approx(subset)


def test_letters_of_the_harness(real_data):
    golden = load(real_data / "mcq" / "golden_extraction.json")
    for row in golden["crafted"]:
        wanted = row["vlmevalkit_can_infer"] or "Z"
        assert infer_letter(row["answer"], golden["choices"]) == wanted, row["answer"]


def test_letters_of_scienceqa(real_data):
    """Real answers of LLaVA-13B, of which only the letters of the options are known."""
    golden = load(real_data / "mcq" / "golden_extraction.json")["scienceqa"]
    choices = dict.fromkeys("ABCDE", "")
    found = [infer_letter(row["tail"], choices) for row in golden]
    assert found == [row["vlmevalkit"] or "Z" for row in golden]
    assert len(golden) == 303


def test_verdicts_on_real_predictions(real_data):
    """254 published answers to HallusionBench, under every rule."""
    golden = load(real_data / "hallusionbench" / "golden" / "sample_real_predictions_parsed.json")
    said = {rule: [verdict(row["prediction"], rule)[0] for row in golden]
            for rule in ("vlmevalkit", "rucaibox", "lmms_mme", "contains_yes")}  # fmt: skip
    lower = lambda name: [row[name].lower().replace("other", "unknown") for row in golden]
    assert said["vlmevalkit"] == lower("vlmevalkit")
    assert said["rucaibox"] == lower("rucaibox")
    assert said["lmms_mme"] == lower("lmms_mme")
    assert said["contains_yes"] == [{"1": "yes", "0": "no"}[row["intern"]] for row in golden]
    assert len(golden) == 254


def test_mme_in_files_without_a_header(real_data, tmp_path):
    """MME's own form: a file a subset, lines of image, question, label and answer."""
    golden = load(real_data / "mme" / "golden_synthetic.json")
    names = ("existence", "count", "position", "color")
    paths = [tmp_path / f"{name}.txt" for name in names]
    for name, path in zip(names, paths):
        rows = [row for row in golden["inputs"] if row["category"] == name]
        lines = [
            f"{row['question_id']}\tIs it {n}?\t{row['answer']}\t{row['prediction']}\n"
            for n, row in enumerate(rows)
        ]
        path.write_text("".join(lines))
    found = values(score(paths, paths, draws=5).results)["score"]
    subset = golden["lmms_eval"]["hallucination_subset_existence_count_position_color"]
    assert found == pytest.approx(subset)


def test_pope_by_the_labels_of_repope(write):
    """Revised labels are a truth file: labels change, ambiguous questions are gone."""
    labels = {1: "yes", 2: "no", 3: "yes", 4: "no"}
    row = lambda n, label: {"question_id": n, "image": "COCO_val2014_000000000001.jpg",
                            "text": f"Is there a {n}?", "label": label}  # fmt: skip
    pope = write("coco_pope_random.json", [row(n, label) for n, label in labels.items()])
    revised = {**labels, 2: "yes"}
    del revised[4]
    repope = write("coco_repope_random.json", [row(n, label) for n, label in revised.items()])
    answers = write("a.jsonl", [{"question_id": n, "text": t} for n, t in
                                ((1, "yes"), (2, "yes"), (3, "no"), (4, "yes"))])  # fmt: skip
    assert values(score(answers, pope, draws=5).results)["accuracy"] == 1 / 4
    scored = score(answers, repope, allow_extra=True, draws=5).results
    assert values(scored)["accuracy"] == pytest.approx(2 / 3)
    assert scored.notes == ("1 answers have no truth and were left out",)


def test_weighted_f1_of_scikit_learn(real_data):
    for case in load(real_data / "mcq" / "golden_weighted_f1.json")["cases"]:
        totals = {"questions": len(case["y"])}
        for label in set(case["y"]):
            totals[f"labelled/{label}"] = case["y"].count(label)
        for said in set(case["pred"]):
            totals[f"said/{said}"] = case["pred"].count(said)
            pairs = list(zip(case["y"], case["pred"]))
            totals[f"true/{said}"] = pairs.count((said, said))
        assert weighted_f1(totals) == pytest.approx(case["weighted_f1"])


CHOICES = {"A": "red", "B": "light blue", "C": "green"}


@pytest.mark.parametrize(
    ("text", "segment", "rule", "truncated"),
    [
        ("<think>A or B?</think>\n**Answer:** B", "B", "cue", False),
        ("<think>yes</think><think>no</think>The answer is No.", "No.", "cue", False),
        ("◁think▷hm◁/think▷ \\boxed{\\frac{1}{2}}", "\\frac{1}{2}", "boxed", False),
        ("<think>it could be 3, or", "<think>it could be 3, or", "text", True),
        ("<think>A? <answer>A</answer> no</think> <answer> B </answer>.", "B", "text", False),
        ("<think>so <answer>yes</answer>", "yes", "text", False),
        ("First line.\nIt is green.\n", "It is green.", "line", False),
        ("Yes", "Yes", "text", False),
        ("", "", "text", False),
    ],
)
def test_answers_of_reasoning_models(text, segment, rule, truncated):
    found = final(text)
    assert (found.segment, found.rule, found.truncated) == (segment, rule, truncated)


def test_verdicts_of_a_segment():
    assert [yes_no(t) for t in ("Yes, it is", "No.", "yes or no", "It is")] == [
        "yes", "no", "yes", "unknown"]  # fmt: skip
    said = [letter(text, CHOICES) for text in ("B", "(C) green", "A.", "light blue", "A or B", "x")]
    assert said == ["B", "C", "A", "B", "Z", "Z"]
    assert last_number("about 1,234.5 cm") == "1234.5"
    assert last_number("none") is None


def test_multiple_choice(write):
    rows = [{"index": n, "question": "Colour?", "A": "red", "B": "blue", "answer": "AB"[n % 2],
             "category": "c", "l2_category": f"a{n % 2}"} for n in range(4)]  # fmt: skip
    answers = [{"index": n, "prediction": text} for n, text in enumerate(["A", "A", "B.", "sky"])]
    truth = write("mmstar.json", json.dumps(rows))
    scored = score(write("a.json", json.dumps(answers)), truth, draws=20)
    assert scored.results.benchmark == "mmstar"
    found = values(scored.results)
    assert found["accuracy"] == 0.25
    assert found["macro_accuracy"] == 0.25
    assert found["unparsable_rate"] == 0.25
    assert scored.judged[2].details["verdict"] == "B"
    inside = [{"index": 1, "question": "Which?\nOptions: A: a dog, B: a cat", "answer": "B",
               "category": "c", "l2_category": "a"}]  # fmt: skip
    bench = SUITES.find("mmstar").of(
        SUITES.find("mmstar").Settings(truth=(str(write("q.json", json.dumps(inside))),))
    )
    (example,) = bench.examples()
    assert example.meta["options"] == {"A": "a dog", "B": "a cat"}
    with pytest.raises(AnswersError, match="answer must be one of A, B, found 'C'"):
        score(truth, write("bad.json", json.dumps([rows[0] | {"answer": "C"}])))


def test_every_benchmark_is_listed_with_a_line():
    found = benchmarks()
    assert {"chair", "pope", "hallusionbench", "mme", "mmstar", "seedbench"} <= set(found)
    assert all(line and "\n" not in line for line in found.values())
    of_data = [name for name in found if not name.startswith("testbed")]
    assert all(SUITES.find(name).name in (name, "") for name in of_data)


def test_mathvista(real_data):
    folder = real_data / "mathvista"
    for name, wanted in load(folder / "golden_scores.json").items():
        path = folder / "outputs" / f"output_{name}.json.gz"
        official = wanted["official_recomputed"]
        for rules in ({"parser": "extraction"}, {}):
            scored = score(path, folder / "testmini.json.gz", rules=rules, draws=5)
            counts = scored.results.counts
            assert counts["correct"] == official["correct"], (name, rules)
        for kind, (right, total) in official["by_question_type"].items():
            assert counts[f"question_type_correct/{kind}"] == right
            assert counts[f"question_type/{kind}"] == total


def test_mathvision(real_data):
    """Every decision of the official script, whose `eval` of model text a grammar stands for."""
    folder = real_data / "mathvision"
    for name, wanted in load(folder / "golden_scores.json").items():
        path = folder / "outputs" / f"{name}.jsonl.gz"
        scored = score(path, folder / "test.jsonl.gz", draws=5)
        assert scored.results.counts["correct"] == wanted["official_recomputed_correct"], name
        stored = {str(row.fields["id"]): row.fields["correct"] for row in read_rows(path)}
        found = {str(key): one.details["correct"] for key, one in scored.judged.items()}
        assert found == stored


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2+3*4", 14), (r"\frac{3}{4}+2^{3}", 8.75), (r"\frac12", 0.5), (r"2\sqrt{9}", 6),
        (r"\sqrt[3]{8}", 2), ("-2^2", -4), ("(1+2)(3)", 9), (r"\frac{3^{1008}-1}{3^{1009}}", 1 / 3),
        ("2a", None), ("__import__('os')", None), ("9**9**9", None), ("9^9^9^9", None), ("", None),
        ("1/0", None), ("(" * 150, None), ("10^{2000}^{2000}", None), ("1" * 300, None),
    ],
)  # fmt: skip
def test_values_of_latex(text, number):
    assert value(text) == (None if number is None else pytest.approx(number))


@given(st.text(alphabet="0123456789+-*/^(){}[].\\fracsqtpi $:", max_size=80) | st.text(max_size=40))
@settings(max_examples=300, deadline=500)
def test_no_text_of_a_model_breaks_a_parser(text):
    found = value(text)
    assert found is None or isinstance(found, float)
    segment = final(text).segment
    assert yes_no(segment) in ("yes", "no", "unknown")
    assert letter(segment, CHOICES) in {*CHOICES, "Z"}
    last_number(segment)
    assert isinstance(mathvision.extract(text), str)
    for kind in ("integer", "float", "list"):
        mathvista.normalise(text, {"question_type": "free_form", "answer_type": kind,
                                   "choices": [], "precision": 1})  # fmt: skip


def test_amber(real_data):
    folder = real_data / "amber"
    printed = (folder / "golden" / "discriminative_official_output.txt").read_text()
    wanted, part = {}, ""
    for line in printed.splitlines():
        name, _, number = line.partition(":")
        if number.strip():
            key = "F1" if name == "F1" else name.lower()
            wanted[f"{key}{part}"] = number.strip()
        elif name.strip():
            part = {"Descriminative Task": "", "Exsitence": "/existence"}.get(
                name, f"/{name.lower()}"
            )
    assert len(wanted) == 28
    truth = [folder / "annotations.json.gz", folder / "query_discriminative.json.gz"]
    answers = folder / "golden" / "discriminative_synthetic.json.gz"
    scored = score(answers, truth, rules={"parser": "exact"}, draws=5)
    assert scored.results.benchmark == "amber"
    found = values(scored.results)
    assert {name: f"{100 * found[name]:.1f}" for name in wanted} == wanted


def test_amber_captions(write):
    relations = write("relation.json", json.dumps({"dog": ["puppy"], "cat": [], "sky": []}))
    safe = write("safe_words.txt", "sky\n")
    truth = [{"id": 1, "type": "generative", "truth": ["dog"], "hallu": ["cat"]}]
    annotations = write("annotations.json", json.dumps(truth))
    said = write("a.json", json.dumps([{"id": 1, "response": "Puppies under the sky, and a cat."}]))
    scored = score(said, [annotations, relations, safe], draws=5)
    found = values(scored.results)
    assert found["CHAIR_exact"] == pytest.approx(1 / 3)
    assert (found["Cover_exact"], found["Hal_exact"], found["Cog_exact"]) == (1, 1, 1)
    (wrong,) = scored.judged[1].details["hallucinated"]
    assert (wrong["word"], wrong["start"]) == ("cat", 29)


def test_mmvet_takes_the_grades_of_a_judge(write):
    rows = {f"v1_{n}": {"imagename": "a.png", "question": "?", "answer": "x",
                        "capability": ["rec", "ocr"][: n + 1]} for n in range(2)}  # fmt: skip
    truth = write("mm-vet.json", json.dumps(rows))
    answers = write("a.json", json.dumps({"v1_0": "a dog", "v1_1": "a cat"}))
    with pytest.raises(AnswersError, match="MM-Vet is graded by a judge"):
        score(answers, truth)
    grades = write("g.json", json.dumps({"v1_0": {"score": [1.0, 0.5]}, "v1_1": 0.25}))
    found = values(score(answers, truth, rules={"grades": str(grades)}, draws=5).results)
    assert found.pop("unparsable_rate") == found.pop("truncated_rate") == 0
    assert found == {"total": 0.5, "rec": 0.5, "ocr": 0.25}
    bad = write("b.json", json.dumps({"v1_0": 2}))
    with pytest.raises(AnswersError, match=r"score of 'v1_0': Expected `float` <= 1\.0"):
        score(answers, truth, rules={"grades": str(bad)})


def test_pope_in_one_call(real_data):
    """Three splits at once: each split's F1 and their mean, from three files of answers."""
    folder = real_data / "pope"
    golden = load(folder / "golden" / "golden_scores.json")["splits"]
    truth = [folder / "coco" / f"coco_pope_{split}.json" for split in golden]
    answers = [folder / "golden" / f"coco_pope_{split}_synthetic_answers.jsonl" for split in golden]
    found = values(score(answers, truth, draws=5).results)
    each = {split: golden[split]["RUCAIBox_evaluate.py"]["F1 score"] for split in golden}
    assert {split: found[f"F1/{split}"] for split in each} == pytest.approx(each)
    assert found["F1"] == pytest.approx(sum(each.values()) / 3)


def test_chair_by_wordnet_forms(real_data):
    """Variant C without a tagger comes near the official scores."""
    folder = real_data / "chair"
    golden = load(folder / "golden_scores.json")["files"]
    rules = {"synonyms": str(folder / "synonyms.txt"),
             "surface_forms": str(folder / "surface_forms_wordnet.json")}  # fmt: skip
    for name in ("opera/llava-1.5_greedy.jsonl", "opera/instructblip_greedy.jsonl"):
        truth = folder / "gt_objects_coco2014_wordnet.tsv.gz"
        found = score(folder / "captions" / name, truth, rules=rules, draws=5).results
        wanted = golden[name]["official_opera_chair.py__wordnet"]
        assert found.metrics["C_S"].value == pytest.approx(wanted["CHAIRs"], abs=0.006)
        assert found.metrics["C_I"].value == pytest.approx(wanted["CHAIRi"], abs=0.0015)
        assert found.config["variant"] == "wordnet"
