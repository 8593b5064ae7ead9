"""New labels for a model from a few recordings: the network stays as it is, its head learns.

    result = teach(model, support_clips, "gesture")
    save(path, result.contract, result.tensors)

Rows of labels that no recording shows stay exactly as they are, and so does background's while there are labels that
the model has no exemplars of; the others move from where they are, by a penalty that cross-validation chooses. What was
learnt is measured by leaving out each recording in turn.

Legend: T ticks, D features, K labels, N examples."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.model.contract import Contract
from engines.model.file import EXAMPLES, Model
from engines.model.scores import probabilities
from engines.synthetic import BACKGROUND
from engines.training import exemplars
from engines.training.softmax_regression import L2_CANDIDATES, Examples, Float64Array, LinearHead, cross_validate, fit
from engines.training.support_clips import SupportClip, make_examples
from engines.training.temperature import doubt_of, temperature

MAX_BACKGROUND_FACTOR = 5.0  # times as much as a label counts background, where there are so many more examples of it
ALIKE_SHARE = 0.3  # of two labels' recordings that are taken for one another, from which the labels are too alike
ALIKE_RECORDINGS = 2  # such recordings, at least
MAX_REMOVALS = 6  # recordings whose removal is tried


@dataclass(frozen=True)
class HeldOut:
    """A recording, and the logits of a head that has not seen it."""

    clip: SupportClip
    now_TK: Float64Array
    window_TK: Float64Array


@dataclass(frozen=True)
class Mistake:
    """A recording that a head which has not seen it takes for something else."""

    recording: str
    label: str
    answer: str
    probability: float  # of the answer
    gain: float | None = None  # by how much the others' cross-entropy falls without it, of the surest; else None


@dataclass(frozen=True)
class TeachReport:
    """What the recordings were, and what leaving out each in turn has shown."""

    recordings: dict[str, int]  # of each label
    confusion: dict[tuple[str, str], int]  # (label, answer): recordings
    mistakes: list[Mistake]  # surest first
    alike: list[tuple[str, str, float]]  # two labels, and the share taken for one another; most first
    pseudo_labels: tuple[str, ...]  # old labels that the model has no exemplars of
    l2_to_start: float  # penalty that was chosen, see `softmax_regression.fit`

    @property
    def accuracy(self) -> float:
        """Share of recordings recognised when left out; NaN when none could be left out."""
        total = sum(self.confusion.values())
        return sum(n for (label, answer), n in self.confusion.items() if label == answer) / total if total else np.nan

    @property
    def standard_error(self) -> float:
        """Of `accuracy`, from its number of recordings: all of a few is no certainty."""
        total = sum(self.confusion.values())
        likely = (self.accuracy * total + 1) / (total + 2)
        return float((likely * (1 - likely) / total) ** 0.5) if total else np.nan

    def as_json(self) -> dict[str, Any]:
        return {"recordings": self.recordings,
                "left_out_accuracy": round(self.accuracy, 4) if self.confusion else None,
                "left_out_standard_error": round(self.standard_error, 4) if self.confusion else None,
                "confusion": [[label, answer, n] for (label, answer), n in sorted(self.confusion.items())],
                "mistakes": [{**asdict(one), "probability": round(one.probability, 3),
                              "gain": None if one.gain is None else round(one.gain, 4)} for one in self.mistakes],
                "alike": [[a, b, round(share, 3)] for a, b, share in self.alike],
                "from_the_head_alone": list(self.pseudo_labels), "pull": self.l2_to_start}


class BackgroundScores(NamedTuple):
    """Probabilities of any action at the exemplars of background, by the head as it was and as it is now."""

    before_N: NDArray[np.float32] = np.zeros(0, np.float32)
    after_N: NDArray[np.float32] = np.zeros(0, np.float32)


NO_BACKGROUND_SCORES = BackgroundScores()


@dataclass(frozen=True)
class FewShotResult:
    """A taught model, not yet written, and what was measured."""

    contract: Contract
    tensors: dict[str, NDArray[np.float32]]  # of the model file
    report: TeachReport
    held_out: list[HeldOut]
    background_scores: BackgroundScores


def background_label(contract: Contract, head: str, fresh: bool) -> str:
    """The label for "nothing" that a taught head has."""
    known = contract.background if contract.background in contract.heads[head] else None
    return known or (BACKGROUND if fresh or contract.background is None else contract.background)


def teach(model: Model, clips: Sequence[SupportClip], head: str, *, fresh: bool = False, seed: int = 0,
          note: Callable[[str], None] = lambda _: None) -> FewShotResult:
    """Teaches a causal model's `head` the labels of some clips; the same `seed` gives the same head.
    fresh: forget the labels that the head has; note: called with what is being done."""
    contract = model.contract
    background = background_label(contract, head, fresh)
    shown = dict.fromkeys(clip.label for clip in clips)
    known = () if fresh else contract.heads[head]
    labels = tuple(dict.fromkeys([*known, *(label for label in shown if label != background), background]))
    background_index = labels.index(background)
    temperatures = (1.0, 1.0) if fresh else (contract.temperature.get(head, 1.0),
                                             contract.window_temperature.get(head, 1.0))
    start = _start(model, head, len(known), len(labels))
    seen = make_examples(clips, labels, background, contract.warmup_frames, temperatures)
    stored = exemplars.load_exemplars({} if fresh else model.tensors, head, start, temperatures)
    real = _balance(seen.concatenate(stored), background_index)
    with_examples = set(real.target_NK.argmax(axis=1).tolist())
    without = tuple(label for i, label in enumerate(known) if i not in with_examples)
    pseudo = exemplars.pseudo_exemplars(seen, start, len(known), [labels.index(label) for label in without],
                                        np.random.default_rng(seed))
    examples = real.concatenate(pseudo)
    learns = {*shown, background} if not without else {*shown} - {background}
    frozen_K = np.array([label in known and label not in learns for label in labels])

    note("choosing how far the head may move")
    validate = partial(cross_validate, examples, start, frozen_K, seed)
    l2_to_start = min(L2_CANDIDATES, key=validate)
    learnt = fit(examples, start, frozen_K, l2_to_start)
    names = sorted({clip.recording for clip in clips})
    held_out = []
    for i, name in enumerate(names):
        note(f"leaving out {i + 1} of {len(names)}")
        clip = next(one for one in clips if one.recording == name and one.natural)
        if len({one.recording for one in clips if one.label == clip.label}) > 1:
            other = fit(examples.select(examples.recording_N != i), start, frozen_K, l2_to_start)
            held_out.append(HeldOut(clip, other.logits(clip.features_TD), other.logits(clip.windows_TD)))
    if fresh:
        temperatures = temperatures_of(held_out, labels)
    note("asking which recordings hurt")
    report = report_of(clips, labels, background, held_out, temperatures[1], without, l2_to_start)
    for i, mistake in enumerate(report.mistakes[:MAX_REMOVALS]):
        others_N = examples.recording_N != names.index(mistake.recording)
        gain = validate(l2_to_start, judge_N=others_N) - validate(l2_to_start, others_N, others_N)
        report.mistakes[i] = replace(mistake, gain=gain)
    changed = contract.model_copy(update={
        "heads": {**contract.heads, head: labels}, "background": background,
        "temperature": {**contract.temperature, head: temperatures[0]},
        "window_temperature": {**contract.window_temperature, head: temperatures[1]},
        "provenance": {**contract.provenance, "taught": [*contract.provenance.get("taught", []),
                                                         {"seed": seed, "fresh": fresh, **report.as_json()}]}})
    tensors = {name: value for name, value in model.tensors.items() if not name.startswith(f"{EXAMPLES}{head}.")}
    tensors |= {f"heads.{head}.weight": learnt.weight_KD.astype(np.float32),
                f"heads.{head}.bias": learnt.bias_K.astype(np.float32),
                **exemplars.select_exemplars(real, head, background_index)}
    scores = _background_scores(stored, start, learnt, len(known), background_index, temperatures[0])
    return FewShotResult(changed, tensors, report, held_out, scores)


def _start(model: Model, head: str, known: int, labels: int) -> LinearHead:
    """The head's rows of the labels that it keeps, and zero rows for new ones."""
    weight_KD, bias_K = (model.tensors[f"heads.{head}.{part}"].astype(np.float64) for part in ("weight", "bias"))
    new = labels - known
    return LinearHead(np.pad(weight_KD[:known], ((0, new), (0, 0))), np.pad(bias_K[:known], (0, new)))


def _background_scores(stored: Examples, start: LinearHead, learnt: LinearHead, known: int, background_index: int,
                       temperature: float) -> BackgroundScores:
    """By the head `start`, which has rows for the first `known` labels, and by the learnt one."""
    background_ND = stored.features_ND[(stored.target_NK[:, background_index] > 0) & ~stored.window_N]
    if not len(background_ND):
        return NO_BACKGROUND_SCORES

    def activity(head: LinearHead) -> NDArray[np.float32]:
        scores_NK = probabilities(head.logits(background_ND).astype(np.float32), temperature)
        return np.asarray(1 - scores_NK[:, background_index])

    return BackgroundScores(activity(LinearHead(start.weight_KD[:known], start.bias_K[:known])), activity(learnt))


def _balance(examples: Examples, background_index: int) -> Examples:
    """Every label counts 2 in all, half of it for windows. Background, of which a live stream is full, counts more
    where there are more examples of it than of the others."""
    label_N = examples.target_NK.argmax(axis=1)
    total_K = np.bincount(label_N, examples.weight_N, examples.target_NK.shape[1])
    others = np.delete(np.bincount(label_N, minlength=len(total_K)), background_index)
    count_K = np.full(len(total_K), 2.0)
    share = (label_N == background_index).sum() / max(1.0, others[others > 0].mean())
    count_K[background_index] *= np.clip(share, 1, MAX_BACKGROUND_FACTOR)
    return replace(examples, weight_N=count_K[label_N] * examples.weight_N / total_K[label_N])


def temperatures_of(held_out: Sequence[HeldOut], labels: Sequence[str]) -> tuple[float, float]:
    """Temperatures of `now` and of windows, by the recordings left out."""
    now = [(row_K.astype(np.float32), labels.index(one.clip.label)) for one in held_out
           for row_K in one.now_TK[one.clip.late_from:one.clip.ended]]
    window = [(one.window_TK[-1].astype(np.float32), labels.index(one.clip.label)) for one in held_out]
    doubt = doubt_of(len(held_out))
    return temperature(now, doubt), temperature(window, doubt)


def report_of(clips: Sequence[SupportClip], labels: Sequence[str], background: str, held_out: Sequence[HeldOut],
            window_temperature: float, without: tuple[str, ...], l2_to_start: float) -> TeachReport:
    counts = Counter(clip.label for clip in clips if clip.natural)
    confusion: Counter[tuple[str, str]] = Counter()
    mistakes = []
    for one in held_out:
        share_K = probabilities(one.window_TK[-1], window_temperature)
        answer = int(share_K.argmax())
        confusion[one.clip.label, labels[answer]] += 1
        if labels[answer] != one.clip.label:
            mistakes.append(Mistake(one.clip.recording, one.clip.label, labels[answer], float(share_K[answer])))
    alike = []
    for a, b in combinations([label for label in labels if label != background], 2):
        crossed = confusion[a, b] + confusion[b, a]
        asked = sum(n for (label, _), n in confusion.items() if label in (a, b))
        if crossed >= ALIKE_RECORDINGS and crossed >= ALIKE_SHARE * asked:
            alike.append((a, b, crossed / asked))
    return TeachReport(dict(counts), dict(+confusion), sorted(mistakes, key=lambda one: -one.probability),
                       sorted(alike, key=lambda one: -one[2]), without, l2_to_start)
