"""Options that several commands share, and their order in help."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from engines.datasets.kinds import DatasetKind
from engines.errors import UsageError
from engines.runtime.registry import ENGINES

ModelName = Annotated[str, typer.Option("--model", "-m", metavar="NAME|FILE", help="A bundled model or a model file.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A bundled model or a model file.")]
EngineName = Annotated[str, typer.Option(
    metavar="NAME|FILE", help=f"What runs the network: auto, {', '.join(ENGINES)}, or a file of gatestream export.")]
Kind = Annotated[DatasetKind, typer.Option(help="What the dataset is; auto: as its files say.")]
MediaFolder = Annotated[Path | None, typer.Option("--media", metavar="FOLDER", help=(
    "Where the recordings are, when not with the annotations."))]
Hop = Annotated[int | None, typer.Option(min=1, metavar="N", help=(
    "With a bidirectional model: score its clips again after every N frames. Default: as the model says."))]


def parse_size_hw(text: str) -> tuple[int, int]:
    """96x72 -> (72, 96). Raises UsageError."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UsageError(f"--size {text}", "WIDTHxHEIGHT in pixels, such as 96x72", "write it like that")
    return int(height), int(width)


def in_panels(panels: Mapping[str, str], honoured: Mapping[str, str] | None = None) -> type[TyperCommand]:
    """A command whose help shows its options in panels: {title: names of parameters, with spaces between}.
    honoured: {recipe: names of the parameters that it honours}, which the help of those says that not all honour."""
    recipes = {recipe: names.split() for recipe, names in (honoured or {}).items()}
    titles = {name: title for title, names in panels.items() for name in names.split()}
    order = ["", *titles]

    class PanelledCommand(TyperCommand):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.params.sort(key=lambda parameter: order.index(parameter.name if parameter.name in titles else ""))
            for parameter in self.params:
                if parameter.name in titles:
                    parameter.rich_help_panel = titles[parameter.name]  # type: ignore[attr-defined]
                by = [recipe for recipe, names in recipes.items() if parameter.name in names]
                if 0 < len(by) < len(recipes):
                    parameter.help += f" [dim]({', '.join(by)})[/dim]"  # type: ignore[attr-defined]

    return PanelledCommand
