"""A network = backbone + temporal modules at its sites + optional recurrent read-out + heads.
One forward serves every T: a clip is all T frames from fresh state, live is T = 1. State is a flat tuple of
tensors, camera axis first; zeros mean fresh; () when the network is bidirectional. `forward` is pure.
Legend: B cameras or clips, T frames, C H W a normalised image, D features, K labels, M width of the read-out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engines.errors import UsageError
from engines.networks.backbone import Backbone, Hook
from engines.networks.bninception import BNInception
from engines.networks.config import NetworkConfig
from engines.networks.gsf import GateShiftFuse
from engines.networks.gsm import GateShift
from engines.networks.inceptionv3 import InceptionV3
from engines.networks.mobilenetv2 import MobileNetV2
from engines.networks.resnet import ResNet18, ResNet50
from engines.networks.stsm import SpatioTemporalShift
from engines.networks.temporal import State, TemporalModule, TensorSpec
from engines.networks.tsm import TemporalShift

BACKBONES: dict[str, type[Backbone]] = {"bninception": BNInception, "inceptionv3": InceptionV3, "resnet18": ResNet18,
                                        "resnet50": ResNet50, "mobilenetv2": MobileNetV2}
MODULES: dict[str, type[TemporalModule] | None] = {"tsn": None, "tsm": TemporalShift, "gsm": GateShift,
                                                   "gsf": GateShiftFuse, "stsm": SpatioTemporalShift}
LEAK = 0.8  # what a frame leaves of a read-out that begins as a running mean
SQUASHED = 0.2  # the logits' scale within its tanh


class RecurrentReadout(nn.Module):
    """A gated recurrent unit over frame features: `forward(features_BTD, state) -> (features_BTM, state)`."""

    def __init__(self, width: int, readout_width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, readout_width, batch_first=True)
        self.width = readout_width

    def forward(self, features_BTD: Tensor, state: State) -> tuple[Tensor, State]:
        out_BTM, last = self.gru(features_BTD, state[0][None])
        return out_BTM, (last[0],)

    @torch.no_grad()
    def begin_as_mean(self, heads: Sequence[tuple[nn.Linear, Tensor]]) -> None:
        """Makes of the first units, one for each label, a running mean of what heads on the backbone's features answer.
        heads: each with the weights [K, M] of the head that takes its place. The other units stay random."""
        gru, first = dict(self.gru.named_parameters()), 0
        for head, weight_KM in heads:
            units = torch.arange(first, first + head.out_features)
            forget, take_in = self.width + units, 2 * self.width + units  # the rows of torch's GRU: reset, update, new
            for parameter in gru.values():
                parameter[torch.cat([forget, take_in])] = 0
            gru["bias_ih_l0"][forget] = math.log(LEAK / (1 - LEAK))
            gru["weight_ih_l0"][take_in] = SQUASHED * head.weight
            gru["bias_ih_l0"][take_in] = SQUASHED * head.bias
            weight_KM[:, units] = torch.eye(len(units)) / SQUASHED
            first += head.out_features


class Network(nn.Module):
    """`forward(frames_BTCHW, state) -> (features_BTD, state)`; made by `build`. Its config leaves nothing open."""

    def __init__(self, config: NetworkConfig, backbone: Backbone, temporal: Mapping[str, TemporalModule],
                 heads: Mapping[str, int], dropout: float = 0.5) -> None:
        super().__init__()
        assert config.input_size_hw is not None
        self.config, self.input_size_hw = config, config.input_size_hw
        self.backbone = backbone
        self.temporal = nn.ModuleDict(temporal)
        # `memory` is part of the tensors' names in model files.
        self.memory = RecurrentReadout(backbone.width, config.readout_width) if config.readout_width else None
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict()
        self.set_heads(heads)
        self._sizes_hw = self._trace_sizes()

    @property
    def causal(self) -> bool:
        return self.config.causal

    @property
    def segments(self) -> int:
        return self.config.segments

    @property
    def hop(self) -> int:
        """On a stream, frames from one bidirectional clip's scores to the next."""
        return self.config.hop or max(1, self.segments // 4)

    @property
    def width(self) -> int:
        """D, of the features."""
        return self.config.readout_width or self.backbone.width

    def _trace_sizes(self) -> dict[str, tuple[int, int]]:
        """Size of the map at each site."""
        sizes: dict[str, tuple[int, int]] = {}

        def record(site: str, x: Tensor) -> Tensor:
            sizes[site] = (x.shape[-2], x.shape[-1])
            return x

        image = next(self.parameters()).new_zeros(1, 3, *self.input_size_hw)
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

    def set_heads(self, heads: Mapping[str, int]) -> None:
        """Gives the network these heads (labels per head). One with as many labels stays as it is: that of the same
        name, or the only one."""
        old = dict(self.heads.items())
        if len(old) == len(heads) == 1:
            old = dict(zip(heads, old.values(), strict=True))
        same = {name: head for name, head in old.items() if isinstance(head, nn.Linear)
                and (head.in_features, head.out_features) == (self.width, heads.get(name))}
        fresh = {name: nn.Linear(self.width, labels) for name, labels in heads.items() if name not in same}
        for head in fresh.values():
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
        self.heads = nn.ModuleDict({name: same.get(name) or fresh[name] for name in heads})

    def add_readout(self, width: int) -> None:
        """Gives a causal network that has learnt without a read-out one of this width, and heads that read it.
        With units enough it begins as a running mean of the old heads' answers. Raises UsageError."""
        old = {name: head for name, head in self.heads.items() if isinstance(head, nn.Linear)}
        self.config = self.config.replace(readout_width=width)
        self.memory = RecurrentReadout(self.backbone.width, width)
        self.set_heads({name: head.out_features for name, head in old.items()})
        if sum(head.out_features for head in old.values()) <= width:
            self.memory.begin_as_mean([(head, self.heads[name].get_parameter("weight")) for name, head in old.items()])

    def make_transparent(self) -> None:
        """Sets the temporal modules so that the network computes what its backbone alone computes."""
        for site, projection in self.backbone.sites().items():
            if site in self.temporal:
                self._module(site).make_transparent(projection)

    def _module(self, site: str) -> TemporalModule:
        module = self.temporal[site]
        assert isinstance(module, TemporalModule)
        return module

    def site_spec(self, site: str) -> tuple[TensorSpec, ...]:
        """The state of the module at a site."""
        return self._module(site).state_spec(self._sizes_hw[site]) if self.causal else ()

    def state_spec(self) -> tuple[TensorSpec, ...]:
        """Name, shape without the camera axis, and dtype of every tensor of state, in order."""
        specs = [spec._replace(name=f"{site}.{spec.name}") for site in self.temporal for spec in self.site_spec(site)]
        if self.memory is not None:
            specs.append(TensorSpec("memory", (self.memory.width,)))
        return tuple(spec._replace(dtype=next(self.parameters()).dtype) for spec in specs)

    @property
    def receptive_field(self) -> int:
        """Frames a causal output depends on through the temporal modules, its own included; a read-out has no end."""
        return 1 + sum(self._module(site).receptive_field - 1 for site in self.temporal)

    def fresh_state(self, batch: int) -> State:
        """State of `batch` cameras that have seen nothing."""
        like = next(self.parameters())
        return tuple(like.new_zeros(batch, *spec.shape) for spec in self.state_spec())

    def forward(self, frames_BTCHW: Tensor, state: State, part: slice = slice(None)) -> tuple[Tensor, State]:
        """part: the backbone's steps to run, to its last; then `frames_BTCHW` is what the step before them gave.
        Raises UsageError for frames of another size than the state is made for."""
        if self.causal and part.start is None and frames_BTCHW.shape[-2:] != self.input_size_hw:
            raise UsageError("frames of {}x{} pixels (height x width)".format(*frames_BTCHW.shape[-2:]),
                             "{}x{}, which this network was built for".format(*self.input_size_hw),
                             "scale the frames, or build with input_size_hw=")
        B, T = frames_BTCHW.shape[:2]
        past = iter(state)
        mix, kept = self.mixing(B, T, past)
        features_BTD = self.dropout(self.backbone(frames_BTCHW.flatten(0, 1), mix, part).reshape(B, T, -1))
        if self.memory is not None:
            features_BTD, own = self.memory(features_BTD, tuple(past))
            kept.extend(own)
        return features_BTD, tuple(kept)

    def mixing(self, B: int, T: int, past: Iterator[Tensor]) -> tuple[Hook, list[Tensor]]:
        """The backbone's hook that applies the temporal modules, which take their state from `past` one by one; and
        the list to which it adds what they keep."""
        kept: list[Tensor] = []

        def mix(site: str, x: Tensor) -> Tensor:
            if site not in self.temporal:
                return x
            own = tuple(next(past) for _ in self.site_spec(site))
            mixed: Tensor
            mixed, own = self._module(site)(x.reshape(B, T, *x.shape[1:]), own)
            kept.extend(own)
            return mixed.flatten(0, 1)

        return mix, kept

    def scores(self, features: Tensor) -> dict[str, Tensor]:
        """Logits of every head for features [..., D]: {head: [..., K]}."""
        return {name: head(features) for name, head in self.heads.items()}


def build(architecture: str | NetworkConfig, *, heads: Mapping[str, int], dropout: float = 0.5,
          **options: Any) -> Network:
    """Builds a network with fresh weights.

        build("gsf-resnet50", heads={"action": 174}, segments=8, causal=False)
        build(NetworkConfig(...), heads={"verb": 97, "noun": 300})

    architecture: `{tsn,tsm,gsm,gsf,stsm}-{bninception,inceptionv3,resnet18,resnet50,mobilenetv2}`, or a config;
    options: fields of `NetworkConfig`; heads: labels per head; dropout: before read-out and heads. Raises UsageError
    for an unknown architecture, site or shift, options that do not go together, and a size the backbone cannot take."""
    config = NetworkConfig.of(architecture) if isinstance(architecture, str) else architecture
    config = config.replace(**options)
    if config.module not in MODULES or config.backbone not in BACKBONES:
        raise UsageError(f"architecture {config.architecture!r}",
                         f"one of {', '.join(f'{m}-{b}' for b in BACKBONES for m in MODULES)}",
                         "choose one of these names")
    backbone, kind = BACKBONES[config.backbone](), MODULES[config.module]
    if config.middle_grid or config.motion:
        if not isinstance(backbone, MobileNetV2) or not backbone.middle_steps:
            raise UsageError(f"middle_grid={config.middle_grid}, motion={config.motion} for {config.backbone}",
                             "a backbone with a middle layer: mobilenetv2", "choose that, or leave them out")
        if config.motion:
            backbone.add_motion()
        backbone.pool_middle(config.middle_grid)
    channels = {} if kind is None else backbone.input_sites() if kind.on_input else {
        site: convolution.out_channels for site, convolution in backbone.sites().items()}
    defaults: dict[str, object] = {"input_size_hw": backbone.input_size_hw, "sites": ()}
    defaults |= {} if kind is None else kind.defaults(config, backbone)
    config = config.replace(**{name: value for name, value in defaults.items() if getattr(config, name) is None})
    wanted = set(config.sites or ())
    if unknown := sorted(wanted - set(channels)):
        raise UsageError(f"sites {unknown} for {config.architecture}", f"some of {', '.join(channels)}",
                         "choose from these")
    config = config.replace(sites=tuple(site for site in channels if site in wanted))
    temporal = {site: kind(channels[site], config.causal, past_shift=config.past_shift,
                           **{name: getattr(config, name) for name in kind.options})
                for site in config.sites or () if kind is not None}
    return Network(config, backbone, temporal, heads, dropout)


def clip_scores(network: Network, frames_BTCHW: Tensor) -> dict[str, Tensor]:
    """Scores of whole clips from fresh state: {head: logits [B, K]}, the mean over T (the papers' consensus)."""
    features_BTD, _ = network(frames_BTCHW, network.fresh_state(frames_BTCHW.shape[0]))
    return {head: logits.mean(dim=1) for head, logits in network.scores(features_BTD).items()}
