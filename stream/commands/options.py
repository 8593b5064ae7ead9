"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

ModelName = Annotated[str, typer.Option("--model", "-m", metavar="NAME|FILE", help="A bundled model or a model file.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A bundled model or a model file.")]
EngineName = Annotated[str, typer.Option(
    metavar="NAME|FILE",
    help="What runs the network: auto, tensorrt, inductor, openvino, eager, or a file of gatestream export.")]
Hop = Annotated[int | None, typer.Option(min=1, metavar="N", help=(
    "With a bidirectional model: score its clips again after every N frames. Default: as the model says."))]
