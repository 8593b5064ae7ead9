"""The command that opens the page."""

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from engines.errors import UsageError, imports_of
from stream.commands.options import EngineName, ModelName, in_panels
from stream.commands.start import check_package

commands = typer.Typer()


@commands.command(cls=in_panels({
    "Recognition": "model engine lessons",
    "What pages may open": "source any_source service",
    "Where the page is served, and to whom": "host port browser allow_host auth add_user",
}))
def ui(model: ModelName = "gesture", engine: EngineName = "auto",
       host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where the page is served; cameras of browsers need "
                                         "https, or this machine itself.")] = "127.0.0.1",
       port: Annotated[int, typer.Option(min=0, max=65_535, metavar="N", help="Its port; 0: any.")] = 7860,
       browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
       auth: Annotated[Path | None, typer.Option(metavar="FILE", help="Let only users in this file see it.")] = None,
       add_user: Annotated[str | None, typer.Option(metavar="NAME", help=(
           "Add a user to the file of --auth, with a password that is asked for, and end."))] = None,
       lessons: Annotated[Path | None, typer.Option(metavar="FOLDER", help=(
           "Where recordings and models of the page Teach are kept. Default: a folder of your own."))] = None,
       service: Annotated[str | None, typer.Option(metavar="HOST:PORT", help=(
           "The health page of the service that the page Cameras shows. Default: that of gatestream serve."))] = None,
       source: Annotated[list[str] | None, typer.Option(metavar="SOURCE", help=(
           "A camera or file of the server that pages may open, as of gatestream run; again for more. Webcams and "
           "sim:// they may always."))] = None,
       any_source: Annotated[bool, typer.Option("--any-source", help=(
           "Pages may open any address, and any file of the server. Default: only where the page is served to this "
           "machine alone."))] = False,
       allow_host: Annotated[list[str] | None, typer.Option(metavar="NAME", help=(
           "A name that a proxy serves the page under; again for more."))] = None,
       ) -> None:
    """Open the page in a browser: look at a camera and at what is recognised, teach it more.

    [bold]Examples[/bold]

      gatestream ui

      gatestream ui --model mine.safetensors --port 8000

      gatestream ui --auth users --add-user ada, then gatestream ui --auth users --host 0.0.0.0

      gatestream ui --auth users --allow-host gates.example.org --source rtsp://10.0.0.9/door"""
    check_package("demo")
    if add_user is not None:
        if auth is None:
            raise UsageError("--add-user without --auth", "the file of users", "add --auth FILE")
        import_module("demo.basic_auth").add_user(auth, add_user, typer.prompt("Password", hide_input=True,
                                                                     confirmation_prompt=True))
        print(f"{auth}: {add_user} may see the page")
        return
    with imports_of("ui", "gradio", "the page"):
        page = import_module("demo.server")  # the one import upwards: what a person looks at is the floor above
    page.serve(model, engine, host, port, browser, auth, lessons, service, source or (), any_source, allow_host or ())
