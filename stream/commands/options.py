"""Options that several commands share, and their order in help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from engines.runtime.registry import ENGINES

ModelName = Annotated[str, typer.Option("--model", "-m", metavar="NAME|FILE", help="A bundled model or a model file.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A bundled model or a model file.")]
EngineName = Annotated[str, typer.Option(
    metavar="NAME|FILE",
    help=f"What runs the network: auto, {', '.join(ENGINES)}, or a file of gatestream export.")]
Hop = Annotated[int | None, typer.Option(min=1, metavar="N", help=(
    "With a bidirectional model: score its clips again after every N frames. Default: as the model says."))]


def in_panels(panels: Mapping[str, str]) -> type[TyperCommand]:
    """A command whose help shows its options in panels: {title: names of parameters, with spaces between}."""
    titles = {name: title for title, names in panels.items() for name in names.split()}
    order = ["", *titles]

    class PanelledCommand(TyperCommand):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.params.sort(key=lambda parameter: order.index(parameter.name if parameter.name in titles else ""))
            for parameter in self.params:
                if parameter.name in titles:
                    parameter.rich_help_panel = titles[parameter.name]  # type: ignore[attr-defined]

    return PanelledCommand
