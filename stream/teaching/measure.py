"""How well a model learns from a few recordings of each label: lessons on many splits of a folder, each tested on what
it was not shown, beside what anybody could write in an afternoon (`gatestream evaluate --teach K`).

Every recording is played once, as live; lessons and tests read what the engine then gave. Legend: T ticks, K labels."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import engines
from engines.errors import DatasetError, GatestreamError, UsageError
from engines.model.file import Model
from engines.runtime.engine import StepResult
from engines.training import few_shot
from engines.training.pooled_few_shot import teach_pooled
from engines.training.support_clips import SupportClip
from stream.evaluation import metrics
from stream.scoring import Scorer
from stream.teaching.support_videos import FeatureExtractor, find_videos
from stream.teaching.teach import check_head, group_name, prepare_model, recording_name

THIRDS = 3
BASELINES = {"mean, logistic regression": 1, "thirds, logistic regression": THIRDS}
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # C of the baselines, chosen by their own cross-validation


@dataclass
class _Split:
    """What came of one lesson."""

    right: NDArray[np.bool_]
    ece: float
    estimate: float  # share recognised when left out, as the lesson itself reports
    seconds: float
    groups: dict[str, list[bool]]
    baselines: dict[str, float]


@dataclass
class LessonFigures:
    """What came of all of them."""

    model: str
    shots: int
    labels: list[str]
    splits: list[_Split] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    extraction_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        groups: dict[str, list[bool]] = defaultdict(list)
        for split in self.splits:
            for name, right in split.groups.items():
                groups[name] += right
        return {"model": self.model, "shots": self.shots, "labels": self.labels, "splits": len(self.splits),
                "chance": 1 / len(self.labels), "accuracy": _mean([float(split.right.mean()) for split in self.splits]),
                "ece": _mean([split.ece for split in self.splits]),
                "left_out_estimate": _mean([split.estimate for split in self.splits]),
                "baselines": {name: _mean([split.baselines[name] for split in self.splits]) for name in BASELINES},
                "by_group": {name: {"clips": len(right), "accuracy": float(np.mean(right))}
                             for name, right in sorted(groups.items())},
                "seconds": {"playing": round(self.extraction_s, 1),
                            "lesson": _mean([split.seconds for split in self.splits])},
                "skipped": [list(one) for one in self.skipped]}


def _mean(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard error, and each value; those that are not known aside."""
    values = [value for value in values if value == value]
    return {"mean": float(np.mean(values)) if values else None, "each": [round(value, 4) for value in values],
            "standard_error": float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None}


def measure_lessons(model: str, folder: Path, shots: int, splits: int, *, by: str | None = None,
                    idle: Sequence[Path] = (), head: str | None = None, engine: str = "auto", hands: bool = True,
                    seed: int = 0, note: Callable[[str], None] = lambda _: None) -> LessonFigures:
    """Teaches `model` on `shots` recordings of each label of a folder, afresh, and tests on the others, `splits` times.
    by: a pattern; recordings in whose path it finds the same text (a person, a place, a session) are never on both
    sides of a split. The baselines read the network's last layer: of `base`, ImageNet's features.
    Raises UsageError, DatasetError, SourceError."""
    loaded = engines.load(model)
    head = check_head(loaded, head)
    loaded = prepare_model(loaded, head, fresh=True, hands=hands)
    background = few_shot.background_label(loaded.contract, head, True)
    found = LessonFigures(loaded.contract.name, shots, [])
    began = time.perf_counter()
    plays: dict[str, list[SupportClip]] = {}
    with closing(engines.compile(loaded, engine=engine, slots=1)) as compiled:
        extractor = FeatureExtractor(loaded, compiled)
        videos = find_videos(folder, background, idle)
        for i, video in enumerate(videos):
            name = recording_name(video.path, folder)
            note(f"watching {i + 1} of {len(videos)}: {name}")
            try:
                plays[name] = extractor.extract(video, name, background)
            except GatestreamError as error:
                found.skipped.append((name, str(error)))
        rendered = extractor.play_rendered(background) if extractor.learns_from_rooms(videos, background) else []
    found.extraction_s = time.perf_counter() - began
    label_of = {name: clips[0].label for name, clips in plays.items()}
    found.labels = sorted({*label_of.values()} - {background})
    group_of = {name: group_name(name, by) for name in plays}
    for k in range(splits):
        note(f"lesson {k + 1} of {splits}")
        taught, tested = _split(label_of, group_of, found.labels, shots, seed + k)
        taught += [name for name, label in label_of.items() if label == background]
        found.splits.append(_measure(loaded, head, plays, taught, tested, group_of, background, seed + k, rendered))
    return found


def _split(label_of: dict[str, str], group_of: dict[str, str], labels: Sequence[str], shots: int, seed: int
           ) -> tuple[list[str], list[str]]:
    """Recordings to teach, `shots` of each label, and to test, which share no group with them. Raises DatasetError."""
    rng = np.random.default_rng(seed)
    groups = rng.permutation(sorted({group_of[name] for name, label in label_of.items() if label in labels})).tolist()
    taught: dict[str, list[str]] = {label: [] for label in labels}
    touched = set()
    for group in groups:
        mine = [name for name in label_of if group_of[name] == group and label_of[name] in taught]
        if any(len(taught[label_of[name]]) < shots for name in mine):
            touched.add(group)
            for name in mine:
                if len(taught[label_of[name]]) < shots:
                    taught[label_of[name]].append(name)
    tested = [name for name, label in label_of.items() if label in taught and group_of[name] not in touched]
    few = [label for label, names in taught.items() if len(names) < shots]
    if few or not tested:
        raise DatasetError(f"{'label ' + few[0] + ' with too few recordings' if few else 'no recording left to test'} "
                           f"for --teach {shots}", "more recordings of each label than are taught",
                           "teach fewer, or group them otherwise")
    return [name for names in taught.values() for name in names], tested


def _measure(model: Model, head: str, plays: dict[str, list[SupportClip]], taught: Sequence[str],
             tested: Sequence[str], group_of: dict[str, str], background: str, seed: int,
             rendered: Sequence[SupportClip]) -> _Split:
    clips = [*(clip for name in taught for clip in plays[name]), *rendered]
    began = time.perf_counter()
    if model.contract.pooling is None:
        result = few_shot.teach(model, clips, head, fresh=True, seed=seed)
    else:
        result = teach_pooled(model, clips, head, background, seed=seed, group_of=group_of)
    seconds = time.perf_counter() - began
    learnt, labels = Model(result.contract, result.tensors, ""), result.contract.heads[head]
    truth = [plays[name][0].label for name in tested]
    probs_NK = np.array([_last_scores(learnt, head, plays[name][0]) for name in tested])
    right = np.array([labels[row_K.argmax()] == label for row_K, label in zip(probs_NK, truth, strict=True)])
    groups: dict[str, list[bool]] = defaultdict(list)
    if any(group_of[name] != name for name in tested):
        for name, hit in zip(tested, right.tolist(), strict=True):
            groups[group_of[name]].append(hit)
    ece = metrics.reliability(probs_NK, np.array([labels.index(label) for label in truth])).ece
    baselines = {name: _baseline(model, plays, taught, tested, background, parts) for name, parts in BASELINES.items()}
    return _Split(right, ece, result.report.accuracy, seconds, dict(groups), baselines)


def _last_scores(model: Model, head: str, clip: SupportClip) -> NDArray[Any]:
    """The window's scores at a recording's end."""
    scorer, width = Scorer(model), model.tensors[f"heads.{head}.weight"].shape[1]
    cells, scores = model.contract.foreground_cells, None
    for features_D in clip.features_TD:
        network_D, _, hands_D = np.split(np.asarray(features_D, np.float32), [width, width + cells])
        scorer.hand_features_D = hands_D[:len(scorer.hand_features_D)]  # none, where the lesson did without
        logits = {name: rows[None] for name, rows in model.head_logits(network_D).items()}
        scores = scorer.score(StepResult(network_D[None], logits))
    assert scores is not None
    return np.asarray(scores.window[head])


def _baseline(model: Model, plays: dict[str, list[SupportClip]], taught: Sequence[str], tested: Sequence[str],
              background: str, parts: int) -> float:
    """Accuracy of logistic regression on the last layer's features: their means over equal parts of a recording."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    last = model.tensors[f"heads.{next(iter(model.contract.heads))}.weight"].shape[1]
    last -= model.contract.network.motion_features + model.contract.network.middle_features

    def rows(names: Sequence[str]) -> NDArray[np.float32]:
        return np.array([np.concatenate([part_TD.mean(axis=0) for part_TD in np.array_split(
            plays[name][0].features_TD[:, :last], min(parts, len(plays[name][0].features_TD)))]) for name in names])

    taught = [name for name in taught if plays[name][0].label != background]
    truth, asked = ([plays[name][0].label for name in names] for names in (taught, tested))
    folds = min(5, min(truth.count(label) for label in set(truth)))
    if folds < 2:
        raise UsageError("--teach 1, whose baselines have nothing to validate on", "2 recordings of each label or more",
                         "teach more of them")
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    search = GridSearchCV(pipeline, {"logisticregression__C": PENALTIES}, scoring="neg_log_loss", cv=folds)
    return float((search.fit(rows(taught), truth).predict(rows(tested)) == np.array(asked)).mean())
