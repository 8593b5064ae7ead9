"""What every backbone shares: it names sites, and calls a hook with the raw output of the convolution there, or with
the input of a branch.

    images_NCHW ─► convolution ─► hook(site, map) ─► batch norm ─► ReLU ─► ... ─► mean over space ─► features_ND

A temporal module is a hook's answer at a site. Backbones know nothing of time."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Hook = Callable[[str, Tensor], Tensor]
Step = Callable[[Tensor, Hook], Tensor]


class Pixels(NamedTuple):
    """How weights expect images, the fields of a contract; by default as torchvision's and timm's weights do."""

    colour: Literal["RGB", "BGR"] = "RGB"
    value_scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


CAFFE = Pixels("BGR", 1.0, (104.0, 117.0, 128.0), (1.0, 1.0, 1.0))


class Backbone(nn.Module, ABC):
    """`forward(images_NCHW, hook) -> features_ND`; `hook(site, map)` is called at each site, in order.
    The stem is the first convolution registered. How to add one: engines/README.md."""

    width: int  # D
    input_size_hw: tuple[int, int] = (224, 224)  # that it was published for
    cover_hw: tuple[int, int] = (256, 256)  # an image is scaled to cover this, then cropped to the input
    pixels: Pixels = Pixels()  # that its published weights expect
    hub_model: str | None = None  # on the Hugging Face hub, with ImageNet's weights
    middle: tuple[str, int] | None = None  # a layer halfway up, and the channels of its map
    middle_steps: int = 0  # how many of `steps` give that map; 0 where there is none
    middle_grid: int = 0  # see `pool_middle`

    @abstractmethod
    def sites(self) -> dict[str, nn.Conv2d]:
        """Name of each site -> the convolution whose output a temporal module takes there, in the hook's order."""

    @abstractmethod
    def input_sites(self) -> dict[str, int]:
        """Name of each site at a branch's input -> the channels of the map there, in the hook's order."""

    @abstractmethod
    def default_sites(self, module: str, causal: bool) -> tuple[str, ...]:
        """Which of `sites` modules of this kind ("gsm", "gsf", ...) usually sit at."""

    def default_input_sites(self) -> tuple[str, ...]:
        """Which of `input_sites` modules usually sit at."""
        return tuple(self.input_sites())

    def default_gate_ratio(self, causal: bool) -> int:
        """Percentage of a map's channels that GSF usually gates."""
        return 100

    def freezable_layers(self) -> Sequence[nn.Module]:
        """The first of `steps`, as far as each is one layer that training may keep as it is."""
        return ()

    @staticmethod
    def imagenet_state(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A file's weights, with torchvision's or timm's names, under ours."""
        return weights

    @staticmethod
    def official_prefix(module: str, site: str) -> str:
        """What the names of a module's weights begin with in official checkpoints."""
        return f"{module}_{site}."

    @abstractmethod
    def steps(self) -> Sequence[Step]:
        """The whole function as steps in a row: a later step needs nothing of an image but what the last one gave."""

    def pool_middle(self, side: int) -> None:
        """Makes the means of the middle layer's map over a grid of side x side cells features, after the others."""
        assert self.middle is not None
        self.middle_grid = side
        self.width += side ** 2 * self.middle[1]

    @property
    def cuttable(self) -> int:
        """After how many of `steps`, at most, the others can be run on their own: features that are read from the
        middle layer's map stand beside the last one's."""
        return self.middle_steps - 1 if self.reads_middle else len(self.steps())

    @property
    def reads_middle(self) -> bool:
        """Whether `features_beside` has any."""
        return bool(self.middle_grid)

    def forward(self, x: Tensor, hook: Hook = lambda _, x: x, part: slice = slice(None)) -> Tensor:
        """part: run these steps only, on what the step before them gave; cut at `cuttable` or before."""
        beside: list[Tensor] = []
        for number, step in enumerate(self.steps()[part], 1 + (part.start or 0)):
            x = step(x, hook)
            if number == self.middle_steps and part.stop is None:
                beside = self.features_beside(x, hook)
        return torch.cat([x, *beside], 1) if beside else x

    def features_beside(self, middle: Tensor, hook: Hook) -> list[Tensor]:
        """Features that are read from the middle layer's map, which stand after the last layer's."""
        return [F.adaptive_avg_pool2d(middle, self.middle_grid).flatten(1)] if self.middle_grid else []


def mean_over_space(x_NCHW: Tensor, _: Hook) -> Tensor:
    """The last step of every backbone."""
    return F.adaptive_avg_pool2d(x_NCHW, 1).flatten(1)
