"""OPERA as the paper and its code say it, beam by beam with whole passes of the torch model."""

import copy

import numpy as np


def log_softmax(values) -> np.ndarray:
    x = np.asarray(values, np.float64)
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def most_frequent(values) -> int:
    values, counts = np.unique(values, return_counts=True)
    return int(values[counts.argmax()])


class Oracle:
    """One sample's search.

    Args:
        reads: lists of tokens of an answer, as many in each -> of each, logits behind the last of
            them (or behind the prompt), and what it attends to in the last layer, the largest over
            heads, over the prompt and these.
        prompt: number of tokens of the prompt.
        image: which of them are the image's.
        settings: of the method.
        stops: ids that end an answer.
        limit: of tokens.
        early: rows in which looking at the image is rewarded.
    """

    def __init__(
        self, reads, prompt: int, image: np.ndarray, settings, stops, limit: int, early: int
    ):
        self.reads, self.prompt, self.image, self.stops = reads, prompt, image, stops
        self.set, self.limit, self.early, self.went_back = settings, limit, early, []
        self.known: dict = {}

    def read(self, tokens: list[int], *others: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """What is read of some tokens; of others in the same pass."""
        if tuple(tokens) not in self.known:
            every = [tokens, *others]
            self.known |= zip(map(tuple, every), self.reads(every))
        return self.known[tuple(tokens)]

    def row(self, tokens: list[int]) -> np.ndarray:
        """What the last token attends to, brought to a sum of 1."""
        weights = self.read(tokens)[1]
        return weights / weights.sum()

    def column_scores(self, rows: list[np.ndarray]) -> np.ndarray:
        """1e-7 times the product of each column, from the diagonal down."""
        size = len(rows)
        square = np.array([np.pad(row, (0, size - len(row))) for row in rows])
        return np.array([1e-7 * np.prod(self.set.scale * square[j:, j]) for j in range(size)])

    def likely(self, beam) -> list[int]:
        """A beam's candidates."""
        logits = self.read(beam["tokens"])[0]
        return np.argsort(-logits, kind="stable")[: self.set.candidates].tolist()

    def judge(self, beam) -> tuple[list[int], list[float], list[int]]:
        """A beam's candidates, their log-probabilities less the penalty, and their columns."""
        logs = log_softmax(self.read(beam["tokens"])[0])
        chosen = self.likely(beam)
        values, columns = [], []
        for token in chosen:
            row = self.row([*beam["tokens"], token])
            rows = [*beam["rows"], row[self.prompt :]]
            scores = self.column_scores(rows)
            penalty = scores.max()
            if len(rows) <= self.early:
                penalty = -row[: self.prompt][self.image].sum()
            values.append(logs[token] - self.set.penalty * penalty)
            columns.append(int(scores.argmax()))
        return chosen, log_softmax(values).tolist(), columns

    def take(self, state, options) -> None:
        """Goes on with the best of (score, beam, token) of a step; answers that end are kept."""
        width, count = self.set.num_beams, len(state["beams"][0]["tokens"])
        options.sort(key=lambda one: -one[0])
        options = options[: width * max(2, 1 + len(self.stops))]
        going, last = [], count + 1 >= self.limit
        for rank, (score, number, token) in enumerate(options):
            tokens = [*state["beams"][number]["tokens"], token]
            if token in self.stops or last:
                if rank < width:
                    state["done"].append((score / len(tokens), tokens))
                continue
            going.append((score, number, token))
        state["done"] = sorted(state["done"], key=lambda one: -one[0])[:width]
        state["chosen"][count] = [(number, token) for _, number, token in going[:width]]
        parents = state["beams"]
        state["beams"] = []
        for score, number, token in going[:width]:
            parent, tokens = parents[number], [*parents[number]["tokens"], token]
            row = self.row(tokens)[self.prompt :]
            rows = [*parent["rows"], row]
            state["beams"].append({"tokens": tokens, "rows": rows, "score": score})
        state["over"] = not state["beams"]
        if not state["over"] and len(state["done"]) == width:
            best = state["beams"][0]["score"] / (count + 1)
            state["over"] = best <= state["done"][-1][0]

    def answer(self) -> tuple[list[int], float]:
        """The best answer and its score."""
        width, columns, used, banned, seen = self.set.num_beams, {}, {}, {}, {}
        state = {
            "beams": [
                {"tokens": [], "rows": [], "score": -1e9 if beam else 0.0} for beam in range(width)
            ],
            "done": [], "chosen": {}, "over": False,
        }  # fmt: skip
        slots = 0  # one for each step, and two more for each that goes back
        while not state["over"]:
            slots += 1
            count = len(state["beams"][0]["tokens"])
            seen[count] = copy.deepcopy(state)
            first, *rest = [
                [*beam["tokens"], token] for beam in state["beams"] for token in self.likely(beam)
            ]
            self.read(first, *rest)
            judged = [self.judge(beam) for beam in state["beams"]]
            columns[count] = [most_frequent(found) for _, _, found in judged]
            column = most_frequent(columns[count])
            often = [
                sum(columns[step][beam] == column for step in range(count + 1))
                for beam in range(len(state["beams"]))
            ]
            to = column + 1
            if used.get(to, 0) >= self.set.candidates:
                to -= 1
            if (
                column >= self.early and min(often) > self.set.threshold and to < count
                and used.get(to, 0) < self.set.candidates
                and slots + self.limit - to + 1 <= 2 * self.limit
            ):  # fmt: skip
                slots += 2
                self.went_back.append((count, to))
                used[to] = used.get(to, 0) + 1
                banned.setdefault(to, []).extend(state["chosen"][to])
                chosen = state["chosen"]
                state = copy.deepcopy(seen[to])
                state["chosen"] = chosen
                options = []
                for number, beam in enumerate(state["beams"]):
                    logs = beam["score"] + log_softmax(self.read(beam["tokens"])[0])
                    options += [
                        (logs[token], number, token)
                        for token in range(len(logs))
                        if (number, token) not in banned[to]
                    ]
            else:
                options = [
                    (beam["score"] + value, number, token)
                    for number, (beam, (tokens, values, _)) in enumerate(
                        zip(state["beams"], judged)
                    )
                    for token, value in zip(tokens, values)
                ]
            self.take(state, options)
        score, tokens = state["done"][0]
        return tokens, score
