"""Which labelled stretches a model is measured on, with labels in the model's own words."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

from engines.datasets import Dataset, Media, Segment
from engines.errors import DatasetError, UsageError
from engines.model.contract import Contract
from stream.scoring import ACTION, PARTS, parts_of, result_heads

log = logging.getLogger("gatestream.evaluation")

ALL = "all"  # splits together
PREFERRED = ("validation", "test")  # what is measured by default, where a dataset has such splits


class Selection(NamedTuple):
    """What a model is measured on."""

    name: str  # of the dataset
    segments: Sequence[Segment]  # with labels by the model's heads
    classes: Mapping[str, tuple[str, ...]]  # the dataset's own class order of each head
    background: str | None  # the label that means "nothing" among them, if there is one
    rare: Mapping[str, frozenset[str]]  # labels of each head that are reported apart
    problems: Mapping[str, int]  # what the reader found wrong, and how often
    groups: tuple[str, ...] = ()  # of which the segments are, () for any


def select(dataset: Dataset, contract: Contract, split: str | None = None, groups: Collection[str] = ()) -> Selection:
    """The segments of a split (validation, else test, else all there is; "all"), of some groups only if any are named.
    A head of the dataset serves the model's head of the same name; where both have just one, that one. Raises
    UsageError for a split that is not there or heads that do not fit, DatasetError when nothing is left."""
    heads = _heads(dataset, contract)
    split = split if split or not dataset.split_by_us else _part_for(dataset, contract)
    segments = [segment for segment in _split(dataset, split) if not groups or segment.group in groups]
    if not segments:
        found = sorted({segment.group for segment in _split(dataset, split)})
        raise DatasetError(f"no clip of {', '.join(groups) or 'any group'} in {dataset.name}",
                           f"groups among {', '.join(found[:20]) or 'none'}", "choose another group or fold")
    background = contract.background or dataset.background

    def translate(segment: Segment) -> Segment:
        labels = {ours: segment.labels[theirs] for theirs, ours in heads.items() if theirs in segment.labels}
        labels = {head: background if label == dataset.background and background else label
                  for head, label in labels.items()}
        parts = [label for head in parts_of(contract, ACTION) if (label := labels.get(head, background)) != background]
        if ACTION in result_heads(contract) and len(parts) == len(PARTS):
            labels.setdefault(ACTION, " ".join(map(str, parts)))
        return replace(segment, labels=labels)

    translated = [translate(segment) for segment in segments]
    _check_labels(translated, contract, background)
    return Selection(dataset.name, translated, {ours: tuple(dataset.heads[theirs]) for theirs, ours in heads.items()},
                     background, {ours: rare for theirs, ours in heads.items() if (rare := dataset.rare.get(theirs))},
                     Counter(problem.kind for problem in dataset.problems), tuple(groups))


def held_out_groups(dataset: Dataset, contract: Contract, split: str | None = None) -> tuple[str, ...]:
    """The group of a dataset that the model's training left out; () where it left none out, or there is no such one."""
    group = str(contract.provenance.get("recipe", {}).get("without_fold", 0))
    if any(segment.group == group != "0" for segment in _split(dataset, split)):
        return (group,)
    if group != "0":
        log.warning("%s has no fold %s, which training left out: all of it is measured", dataset.name, group)
    return ()


def group_by_media(segments: Sequence[Segment]) -> dict[Media, list[Segment]]:
    """The segments of each recording, in their order."""
    found: dict[Media, list[Segment]] = {}
    for segment in segments:
        found.setdefault(segment.media, []).append(segment)
    return found


def is_trimmed(segments: Sequence[Segment]) -> bool:
    """Whether these segments of one recording are just the whole of it."""
    return len(segments) == 1 and segments[0].start_s == 0 and segments[0].stop_s is None


def max_overlap(segments: Sequence[Segment]) -> int:
    """The most segments of one recording that overlap at any time."""
    edges = (sorted([(segment.start_s, 1) for segment in together]
                    + [(segment.stop_s, -1) for segment in together if segment.stop_s is not None])
             for together in group_by_media(segments).values())
    return max((running for part in edges for running in accumulate(change for _, change in part)), default=0)


def _heads(dataset: Dataset, contract: Contract) -> dict[str, str]:
    """{the dataset's head: the model's head}."""
    if len(dataset.heads) == len(contract.heads) == 1:
        return {next(iter(dataset.heads)): next(iter(contract.heads))}
    common = {head: head for head in contract.heads if head in dataset.heads}
    if not common:
        raise UsageError(f"a model with {', '.join(contract.heads)} for a dataset with {', '.join(dataset.heads)}",
                         "a head that both have", "choose another model or dataset")
    return common


def _part_for(dataset: Dataset, contract: Contract) -> str:
    """Of a dataset that states no splits: all of it, but for a model that was trained on it what training left out."""
    labels = {label for names in dataset.heads.values() for label in names}
    known = {label for names in contract.heads.values() for label in names}
    if contract.provenance.get("data") != dataset.name or labels - known or not dataset.splits.get("validation"):
        return ALL
    log.warning("%d of %d recordings are measured: %s was trained on such folders, and training leaves these out "
                "(--split train measures the others)", len(dataset.splits["validation"]),
                sum(map(len, dataset.splits.values())), contract.name)
    return "validation"


def _check_labels(segments: Sequence[Segment], contract: Contract, background: str | None) -> None:
    """Names labels that the model does not have. Raises DatasetError where it has none of them."""
    for head, known in contract.heads.items():
        labels = [segment.labels[head] for segment in segments if head in segment.labels]
        foreign = Counter(label for label in labels if label not in known and label != background)
        if not foreign:
            continue
        text = (f"{foreign.total()} of {len(labels)} clips have labels that {contract.name} does not know: "
                f"{', '.join(label for label, _ in foreign.most_common(5))}{', ...' if len(foreign) > 5 else ''}")
        if foreign.total() == len(labels):
            raise DatasetError(text, f"labels such as {', '.join(known[:5])}",
                               "rename the labels, or choose another model")
        log.warning("%s: they count as wrong", text)


def _split(dataset: Dataset, split: str | None) -> Sequence[Segment]:
    if split == ALL:
        return [segment for part in dataset.splits.values() for segment in part]
    if split is not None and split not in dataset.splits:
        raise UsageError(f"split {split!r} of {dataset.name}", f"one of {', '.join(dataset.splits)}",
                         "choose one of these")
    chosen = split or next((name for name in PREFERRED if dataset.splits.get(name)), None)
    return dataset.splits[chosen] if chosen is not None else _split(dataset, ALL)
