"""A network = backbone + temporal modules at its sites + optional recurrent read-out + heads.

    network = build("gsf-mobilenetv2", heads={"gesture": 11}, causal=True)
    state = network.fresh_state(batch=1)
    features_BTD, state = network(frames_BTCHW, state)
    logits = network.scores(features_BTD)["gesture"]

One forward serves every T: a clip is all T frames from fresh state, live is T = 1. State is a flat tuple of
tensors, camera axis first; zeros mean fresh; () when the network is bidirectional. `forward` is pure.

Legend: B cameras or clips, T frames, C H W a normalised image, D features, K labels, M width of the read-out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from engines.errors import UsageError
from engines.networks.backbone import ON_INPUT, Backbone
from engines.networks.bninception import BNInception
from engines.networks.gsf import GateShiftFuse
from engines.networks.gsm import GateShift
from engines.networks.inceptionv3 import InceptionV3
from engines.networks.mobilenetv2 import MobileNetV2
from engines.networks.resnet import resnet18, resnet50
from engines.networks.stsm import Group, SpatioTemporalShift
from engines.networks.temporal import State, TemporalModule, TensorSpec
from engines.networks.tsm import TemporalShift

BACKBONES: dict[str, Callable[[], Backbone]] = {"bninception": BNInception, "inceptionv3": InceptionV3,
                                                "resnet18": resnet18, "resnet50": resnet50, "mobilenetv2": MobileNetV2}
MODULES = ("tsn", "tsm", "gsm", "gsf", "stsm")  # tsn: no temporal module


class RecurrentReadout(nn.Module):
    """A gated recurrent unit over frame features, so that actions may outlast the modules' receptive field."""

    def __init__(self, width: int, readout_width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, readout_width, batch_first=True)
        self.width = readout_width

    def state_spec(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("memory", (self.width,), next(self.parameters()).dtype),)

    def forward(self, features_BTD: Tensor, state: State) -> tuple[Tensor, State]:
        out_BTM, last = self.gru(features_BTD, state[0][None])
        return out_BTM, (last[0],)


class Network(nn.Module):
    """See the file's top. `input_size_hw` fixes the state's shapes; `segments` is a bidirectional clip's usual T, and
    on a stream such clips end every `hop` frames."""

    def __init__(self, architecture: str, backbone: Backbone, temporal: Mapping[str, TemporalModule],
                 heads: Mapping[str, int], *, causal: bool, readout_width: int, input_size_hw: tuple[int, int],
                 segments: int, hop: int, dropout: float) -> None:
        super().__init__()
        self.architecture, self.causal = architecture, causal
        self.input_size_hw, self.segments, self.hop = input_size_hw, segments, hop
        self.backbone = backbone
        self.temporal = nn.ModuleDict(temporal)
        self.memory = RecurrentReadout(backbone.width, readout_width) if readout_width else None
        self.dropout = nn.Dropout(dropout)
        self.width = readout_width or backbone.width
        self.heads = nn.ModuleDict({name: nn.Linear(self.width, labels) for name, labels in heads.items()})
        for head in self.heads.values():
            nn.init.normal_(head.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(head.bias)  # type: ignore[arg-type]
        self._sizes_hw = self._trace_sizes()

    def _trace_sizes(self) -> dict[str, tuple[int, int]]:
        """Size of the map at each site."""
        sizes: dict[str, tuple[int, int]] = {}

        def record(site: str, x: Tensor) -> Tensor:
            sizes[site] = (x.shape[-2], x.shape[-1])
            return x

        weight = next(self.parameters())
        image = torch.zeros(1, 3, *self.input_size_hw, dtype=weight.dtype, device=weight.device)
        self.backbone.eval()  # or batch norms would count the blank image
        try:
            with torch.no_grad():
                self.backbone(image, record)  # on real tensors: meta ones take longer and load much of torch
        except RuntimeError as error:
            raise UsageError("input of {}x{} pixels".format(*self.input_size_hw),
                             "a size whose maps fit together, such as {}x{}".format(*self.backbone.input_size_hw),
                             "choose another input size") from error
        self.backbone.train()
        return sizes

    def _module(self, site: str) -> TemporalModule:
        module = self.temporal[site]
        assert isinstance(module, TemporalModule)
        return module

    def _spec(self, site: str) -> tuple[TensorSpec, ...]:
        return self._module(site).state_spec(self._sizes_hw[site])

    def state_spec(self) -> tuple[TensorSpec, ...]:
        """Name, shape without the camera axis, and dtype of every leaf, in order."""
        leaves = [TensorSpec(f"{site}.{leaf.name}", leaf.shape, leaf.dtype)
                  for site in self.temporal for leaf in self._spec(site)]
        if self.memory is not None:
            leaves += self.memory.state_spec()
        dtype = next(self.parameters()).dtype
        return tuple(leaf._replace(dtype=dtype) for leaf in leaves)

    @property
    def receptive_field(self) -> int:
        """Frames a causal output depends on through the temporal modules, its own included; a read-out has no end."""
        return 1 + sum(self._module(site).receptive_field - 1 for site in self.temporal)

    def fresh_state(self, batch: int) -> State:
        """State of `batch` cameras that have seen nothing."""
        device = next(self.parameters()).device
        return tuple(torch.zeros((batch, *leaf.shape), dtype=leaf.dtype, device=device)
                     for leaf in self.state_spec())

    def forward(self, frames_BTCHW: Tensor, state: State, part: slice = slice(None)) -> tuple[Tensor, State]:
        """part: the backbone's steps to run, to its last; then `frames_BTCHW` is what the step before them gave."""
        B, T = frames_BTCHW.shape[:2]
        past = iter(state)
        kept: list[Tensor] = []

        def mix(site: str, x: Tensor) -> Tensor:
            if site not in self.temporal:
                return x
            leaves = tuple(next(past) for _ in self._spec(site))
            mixed: Tensor
            mixed, leaves = self._module(site)(x.reshape(B, T, *x.shape[1:]), leaves)
            kept.extend(leaves)
            return mixed.flatten(0, 1)

        features_BTD = self.dropout(self.backbone(frames_BTCHW.flatten(0, 1), mix, part).reshape(B, T, -1))
        if self.memory is not None:
            features_BTD, leaves = self.memory(features_BTD, tuple(past))
            kept.extend(leaves)
        return features_BTD, tuple(kept)

    def scores(self, features: Tensor) -> dict[str, Tensor]:
        """Logits of every head for features [..., D]: {head: [..., K]}."""
        return {name: head(features) for name, head in self.heads.items()}


def build(architecture: str, *, heads: Mapping[str, int], segments: int = 8, causal: bool = False,
          input_size_hw: tuple[int, int] | None = None, gate_ratio: int | None = None, readout_width: int = 0,
          sites: Sequence[str] | None = None, dropout: float = 0.5, shift: str | Sequence[Group] = "THW",
          past_shift: int | None = None, hop: int | None = None) -> Network:
    """Builds `{tsn,tsm,gsm,gsf,stsm}-{bninception,inceptionv3,resnet18,resnet50,mobilenetv2}` with fresh weights.

    heads: labels per head; gate_ratio: share of a map's channels that GSF gates; readout_width: width of the recurrent
    read-out, 0 for none (causal networks only); sites: where modules sit; shift: STSM's groups (see stsm.py);
    past_shift: in a causal network, how many frames back the channels are found that look ahead in the published form,
    2, 1 or 0, or None for the module's usual one; hop: on a stream, frames from one bidirectional clip's scores to the
    next, a quarter of `segments` if None. Input size, gate_ratio and sites of None are as the backbone was published,
    but a causal ResNet has gates in its last two stages only, on a quarter of the channels in GSF.
    Raises UsageError for an unknown architecture, site or shift, options that do not go together, and an input size
    that the backbone cannot take.
    """
    module, _, backbone_name = architecture.partition("-")
    if module not in MODULES or backbone_name not in BACKBONES:
        raise UsageError(f"architecture {architecture!r}",
                         f"one of {', '.join(f'{m}-{b}' for b in BACKBONES for m in MODULES)}",
                         "choose one of these names")
    if readout_width and not causal:
        raise UsageError(f"readout_width={readout_width} on a bidirectional network", "causal=True with it",
                         "build with causal=True")
    if past_shift not in ((None, 0, 1, 2) if causal else (None,)):
        raise UsageError(f"past_shift={past_shift!r} on a {'causal' if causal else 'bidirectional'} network",
                         "0, 1 or 2 with causal=True, or None", "correct it, or leave it out")
    if hop is not None and (causal or not 1 <= hop <= segments):
        raise UsageError(f"hop={hop!r} on a {'causal network' if causal else f'clip of {segments} frames'}",
                         f"1 to {segments} on a bidirectional network, or None", "correct it, or leave it out")
    backbone = BACKBONES[backbone_name]()
    available = backbone.input_sites() if module in ON_INPUT else {
        site: convolution.out_channels for site, convolution in backbone.sites().items()}
    wanted = set(backbone.default_sites(module, causal) if sites is None else sites) if module != "tsn" else set()
    unknown = sorted(wanted - set(available))
    if unknown:
        raise UsageError(f"sites {unknown}", f"some of {', '.join(available)}", "choose from these")
    share = backbone.default_gate_ratio(causal) if gate_ratio is None else gate_ratio
    make: dict[str, Callable[[int], TemporalModule]] = {
        "tsm": lambda channels: TemporalShift(channels, causal, past_shift=past_shift),
        "gsm": lambda channels: GateShift(channels, causal, past_shift),
        "gsf": lambda channels: GateShiftFuse(channels, causal, share, past_shift),
        "stsm": lambda channels: SpatioTemporalShift(channels, causal, shift, past_shift)}
    temporal = {site: make[module](channels) for site, channels in available.items() if site in wanted}
    return Network(architecture, backbone, temporal, heads, causal=causal, readout_width=readout_width,
                   input_size_hw=input_size_hw or backbone.input_size_hw, segments=segments,
                   hop=hop or max(1, segments // 4), dropout=dropout)


def clip_scores(network: Network, frames_BTCHW: Tensor) -> dict[str, Tensor]:
    """Scores of whole clips from fresh state: {head: logits [B, K]}, the mean over T (the papers' consensus)."""
    features_BTD, _ = network(frames_BTCHW, network.fresh_state(frames_BTCHW.shape[0]))
    return {head: logits.mean(dim=1) for head, logits in network.scores(features_BTD).items()}
