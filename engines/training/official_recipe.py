"""The recipe of the GSM and GSF papers' code, for any dataset and architecture; and learning from a teacher.

    train(OfficialRecipe(out=Path("gsf.safetensors"), init="imagenet", architecture="gsf-resnet50"), dataset)
    train(OfficialRecipe(out=Path("live.safetensors"), init="official.pth.tar", teacher="official.pth.tar",
                         causal=True), dataset)

A clip is T frames, one at random from each of T equal parts of a segment; SGD; cross-entropy of the mean logits. The
published code multiplies no learning rate and no decay by what it notes for biases and batch norms, and so do we,
unless told so by `multipliers`. Frames of a video count from 0, official file numbers are one higher; videos shorter
than S segments repeat frames."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engines.datasets.base import Dataset, Segment
from engines.datasets.decode import frame_size
from engines.datasets.frame_cache import read_frames
from engines.datasets.selection import check_classes, without_group
from engines.errors import DatasetError, UsageError
from engines.model.contract import NO_BACKGROUND_EVENTS, Contract, EventRule
from engines.model.file import CHECKPOINT_SUFFIXES, load, save
from engines.model.preprocess import prepare
from engines.networks.causal import DEFAULT_RULE
from engines.networks.config import NetworkConfig
from engines.networks.network import Network
from engines.training.clip_augment import multi_scale_crop, rand_augment
from engines.training.clip_task import ClipDataset, ClipOrder, ClipTask, Images, SGDConfig, can_mirror
from engines.training.distributed import init_distributed
from engines.training.initialisation import initialise, load_whole
from engines.training.loop import LoopConfig, Precision, Progress, check_validation, run
from engines.training.process import seeded
from engines.training.runfolder import RunFolder

UNRECORDED_FIELDS = {"out", "workers", "strict"}
Indices = NDArray[np.int64]
# Of a video with fewer frames than segments (GSM's validation: no more), "gsm" repeats the first frame, "gsf" takes the
# middle frames all the same.
Style = Literal["gsm", "gsf"]


@dataclass(frozen=True)
class OfficialRecipe(SGDConfig):
    """The published numbers, with those of `SGDConfig`; where None is said to be the paper's, GSM and GSF differ."""

    out: Path  # the model file to write
    init: str = "imagenet"  # or a backbone's weights, or a whole network
    architecture: str = "gsf-resnet50"
    causal: bool = False
    rule: str = DEFAULT_RULE  # how a bidirectional start becomes causal, see `engines.causal`
    segments: int = 8  # frames of a clip
    input_size_hw: tuple[int, int] | None = None  # None: the backbone's
    dropout: float = 0.5
    clip_norm: float = 20.0  # longest gradient
    batch: int | None = None  # clips; None: the paper's, GSM 16, GSF 32
    clip_partial: bool | None = None  # clip the sum of an update's first batches, too; None: GSM alone
    randaugment: bool | None = None  # None: GSF alone
    precision: Precision = "auto"
    validate_epochs: int | None = None  # epochs from one validation to the next; None: 5 where anything is left out
    patience: int = 0  # validations without a better one that end the run; 0: no end
    teacher: str | None = None  # a bidirectional network whose scores to learn, too
    frame_rate: float = 12.0  # at which segments are decoded
    without_fold: int = 0  # group of segments to validate with instead, 0 for none
    seed: int = 0
    workers: int = 1  # processes that load data
    strict: bool = False  # stop at a segment that cannot be read
    name: str = "clip"

    @property
    def style(self) -> Style:
        """Whose frame sampling it is."""
        return "gsm" if NetworkConfig.of(self.architecture).module == "gsm" else "gsf"


def resolve_defaults(recipe: OfficialRecipe) -> OfficialRecipe:
    """The recipe with the paper's numbers where it has None."""
    gsm = recipe.style == "gsm"
    usual: dict[str, Any] = {"batch": 16 if gsm else 32, "accumulation": 2 if gsm else 1, "clip_partial": gsm,
                             "randaugment": NetworkConfig.of(recipe.architecture).module == "gsf"}
    return replace(recipe, **{name: value for name, value in usual.items() if getattr(recipe, name) is None})


def make_contract(recipe: OfficialRecipe, network: Network, data: Dataset, clip_s: float) -> Contract:
    """The contract of a network trained on clips: what one score comes from is T frames in `clip_s` seconds."""
    size_hw, T = network.input_size_hw, network.segments
    cover_hw = tuple(size * cover // usual for size, cover, usual in
                     zip(size_hw, network.backbone.cover_hw, network.backbone.input_size_hw, strict=True))
    return Contract(name=recipe.name, network=network.config, heads=dict(data.heads), frame_rate=T / clip_s,
                    cover_hw=(cover_hw[0], cover_hw[1]), resize_filter="pillow-bilinear", clip_frames=T,
                    receptive_frames=network.receptive_field if network.causal else T, warmup_frames=T, window_clips=1,
                    max_gap_s=max(1.0, 2 * clip_s / T), background=data.background, **network.backbone.pixels._asdict(),
                    events=NO_BACKGROUND_EVENTS if data.background is None else EventRule(),
                    provenance={"data": data.name, "recipe": recipe_record(recipe)})


def recipe_record(recipe: OfficialRecipe) -> dict[str, Any]:
    """What must agree for a killed run to go on. Files are known by their names."""
    named = {"init": Path(recipe.init).name, "teacher": recipe.teacher and Path(recipe.teacher).name}
    return {"recipe": "official",
            **{key: value for key, value in (asdict(recipe) | named).items() if key not in UNRECORDED_FIELDS}}


def train(recipe: OfficialRecipe, data: Dataset, report: Callable[[str], None] = print,
          progress: Progress = lambda _, __: None) -> Network:
    """Trains on the split "train", validates on "validation" and writes the model file; returns its network.
    The weights that were best at that are saved, the last ones where there is nothing to validate on. A killed run goes
    on; its own files are beside `recipe.out` (see `runfolder.py`). Raises DatasetError, UsageError, ModelError."""
    with init_distributed() as ranks, seeded(recipe.seed, ranks.device):
        report = report if ranks.is_main else lambda _: None
        recipe, data = resolve_defaults(recipe), without_group(data, recipe.without_fold)
        check_classes(data.heads)
        segments = training_segments(recipe, data)
        if not segments:
            unlabelled = len(data.splits.get("train", ()))
            raise DatasetError(f"{data.name}: {unlabelled} segments to train on, none of them labelled",
                               "labelled segments in the split 'train', or a teacher",
                               "check the dataset's annotations")
        held_out = [one for one in data.splits.get("validation", ()) if one.labels]
        every = check_validation(recipe.validate_epochs, recipe.patience, bool(held_out))
        wanted = NetworkConfig.of(recipe.architecture, causal=recipe.causal, segments=recipe.segments,
                                  input_size_hw=recipe.input_size_hw)
        network = initialise(wanted, recipe.init, {head: len(labels) for head, labels in data.heads.items()},
                             rule=recipe.rule, dropout=recipe.dropout)
        made = network.config.architecture
        if made != recipe.architecture:
            raise UsageError(f"architecture {recipe.architecture} from {recipe.init}, a {made}",
                             "the same architecture", f"use --arch {made}")
        teacher = None if recipe.teacher is None else load_teacher(recipe.teacher, network, data.heads, recipe.segments)
        contract = make_contract(recipe, network, data, _clip_s(segments))
        reader = _ClipReader(recipe, contract, data)
        clips = ClipDataset(segments, data.heads, reader.training, recipe.seed, data.mirrored, recipe.strict)
        task = ClipTask(network, contract, recipe, clips, ClipOrder(recipe.seed, len(segments), recipe.batch or 1),
                        held_out, reader.centre, ranks, workers=recipe.workers, teacher=teacher, strict=recipe.strict)
        updates = task.updates_per_epoch
        loop = LoopConfig(recipe.epochs * updates, recipe.seed, accumulation=recipe.accumulation or 1,
                          clip_norm=recipe.clip_norm, clip_partial=bool(recipe.clip_partial), patience=recipe.patience,
                          checkpoint_every=updates, log_every=max(1, min(50, updates)), precision=recipe.precision,
                          validate_every=every * updates)
        folder = RunFolder(recipe.out, recipe_record(recipe), ranks.is_main)
        report(f"{len(segments)} clips, {len(held_out)} to validate with, {updates} updates an epoch")
        trained = run(task, loop, folder, ranks, report, progress)
        if ranks.is_main:
            save(recipe.out, contract, {name: value.float().numpy() for name, value in trained.state_dict().items()})
            folder.finish()
        return trained


def training_segments(recipe: OfficialRecipe, data: Dataset) -> list[Segment]:
    """What is learnt from: labelled segments; all of them where a teacher names them."""
    return [one for one in data.splits.get("train", ()) if one.labels or recipe.teacher]


def count_updates(recipe: OfficialRecipe, data: Dataset) -> int:
    """How many updates of the weights a run makes, unless patience ends it. Raises UsageError."""
    recipe, data = resolve_defaults(recipe), without_group(data, recipe.without_fold)
    order = ClipOrder(recipe.seed, len(training_segments(recipe, data)), recipe.batch or 1)
    return recipe.epochs * max(1, order.batches_per_epoch // (recipe.accumulation or 1))


def load_teacher(path: str, network: Network, heads: Mapping[str, tuple[str, ...]], segments: int) -> Network:
    """A teacher for `network`: of the same input and labels, whatever their order; of an official checkpoint, or a
    model file imported without names, only their number is known. Raises UsageError for any other."""
    teacher = load_whole(path, segments)
    if teacher is None:
        raise UsageError(f"a teacher {path}", "a model file or an official checkpoint", "choose another file")
    theirs, ours = [[head.out_features for head in one.heads.values()] for one in (teacher, network)]
    if theirs != ours or teacher.input_size_hw != network.input_size_hw:
        raise UsageError(f"a teacher {path} with {theirs} labels and input {teacher.input_size_hw}",
                         f"{ours} labels ({', '.join(heads)}) and input {network.input_size_hw}",
                         "choose a teacher of the same dataset and size")
    if teacher.backbone.pixels != network.backbone.pixels:
        raise UsageError(f"a {teacher.config.architecture} to teach a {network.config.architecture}, which sees other "
                         "pixel values", "a teacher with the same kind of backbone", "choose another teacher")
    named = {} if Path(path).suffix in CHECKPOINT_SUFFIXES else load(path).contract.heads
    for (own, head), labels in zip(named.items(), heads.values(), strict=False):
        if head == tuple(map(str, range(len(head)))):
            continue
        if other := sorted(set(head) - set(labels)):
            raise UsageError(f"a teacher {path} with the {own} {other[0]!r}", f"one of {', '.join(labels[:20])}",
                             "choose a teacher of the same dataset")
        order = [head.index(label) for label in labels]
        for value in teacher.heads[own].parameters():
            value.data = value.data[order]
    return teacher


def _clip_s(segments: Sequence[Segment]) -> float:
    """How long a clip usually is: the median of the segments whose end is known, or four seconds."""
    known = [one.stop_s - one.start_s for one in segments if one.stop_s is not None and one.stop_s > one.start_s]
    return round(float(np.median(known)), 3) if known else 4.0


class _ClipReader:
    """What training and validation see of a segment."""

    def __init__(self, recipe: OfficialRecipe, contract: Contract, data: Dataset) -> None:
        self._recipe, self._contract, self._data = recipe, contract, data

    def _decode(self, segment: Segment) -> Images:
        """All frames, not larger than the short side of what is covered asks for, in their own aspect."""
        height, width = frame_size(segment.media)
        scale = min(1.0, min(self._contract.cover_hw) / min(height, width))
        return read_frames(segment, self._recipe.frame_rate, (round(height * scale), round(width * scale)))[0]

    def training(self, segment: Segment, rng: np.random.Generator) -> tuple[Images, bool]:
        images = self._decode(segment)
        random = np.random.RandomState(int(rng.integers(2**32)))
        clip = images[sample_frames(len(images), self._recipe.segments, random, self._recipe.style)]
        if self._recipe.randaugment:
            clip = rand_augment(clip, rng)
        clip = multi_scale_crop(clip, self._contract.input_size_hw, rng)
        mirror = bool(rng.random() < 0.5) and can_mirror(segment, self._data.mirrored)
        return (np.ascontiguousarray(clip[:, :, ::-1]) if mirror else clip), mirror

    def centre(self, segment: Segment) -> Images:
        images = self._decode(segment)
        chosen = validation_frames(len(images), self._recipe.segments, self._recipe.style)
        return np.stack([prepare(image, self._contract) for image in images[chosen]])


def middle_frames(frames: int, segments: int) -> Indices:
    """The middle frame of each of S equal segments [S], 2 6 11 16 20 25 30 34 of (37, 8): testing with one clip.
    Raises UsageError for numbers below 1."""
    length = _segment_length(frames, segments)
    return (length / 2 + length * np.arange(segments)).astype(np.int64)


def evaluation_frames(frames: int, segments: int, clips: int = 1) -> Indices:
    """Frames of one clip, or of two whose scores are averaged, [clips, S]: first frames of segments, then middles."""
    if clips not in (1, 2):
        raise UsageError(f"{clips} test clips", "1 or 2", "choose one of these")
    firsts = (_segment_length(frames, segments) * np.arange(segments)).astype(np.int64)
    return np.stack([firsts, middle_frames(frames, segments)][2 - clips:])


def validation_frames(frames: int, segments: int, style: Style = "gsf") -> Indices:
    """Frames that validation during training looks at [S]."""
    chosen = middle_frames(frames, segments)
    return np.zeros_like(chosen) if style == "gsm" and frames <= segments else chosen


def sample_frames(frames: int, segments: int, random: np.random.RandomState, style: Style = "gsf") -> Indices:
    """One frame at random from each segment of equal whole length [S]: training.
    random: NumPy's legacy generator, so that a seed gives the draws of the published code."""
    chosen = middle_frames(frames, segments)
    length = frames // segments
    if length:
        return np.arange(segments) * length + random.randint(length, size=segments)
    return np.zeros_like(chosen) if style == "gsm" else chosen


def _segment_length(frames: int, segments: int) -> float:
    if frames < 1 or segments < 1:
        raise UsageError(f"{segments} segments of {frames} frames", "at least one of each", "leave such videos out")
    return frames / segments
