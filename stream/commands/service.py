"""The commands of the live service: `serve`, `camera`."""

import logging
import signal
import threading
from pathlib import Path
from typing import Annotated, Literal

import typer

from engines.errors import UsageError
from stream.commands.interrupt import handle_signals, raise_if_interrupted
from stream.commands.options import EngineName, ModelName

commands = typer.Typer()
log = logging.getLogger("gatestream.service")


@commands.command()
def serve(config: Annotated[Path | None, typer.Argument(metavar="[CONFIG.toml]", help=(
              "What to serve; by default, any camera of this machine may connect."))] = None,
          check: Annotated[bool, typer.Option("--check", help="Check the configuration, and end.")] = False,
          cluster: Annotated[bool, typer.Option("--cluster", help="On several machines or GPUs, with Ray.")] = False,
          gate: Annotated[Path | None, typer.Option(exists=True, metavar="FILE", help=(
              "A recording in which a new model has to find the events that the running one finds."))] = None) -> None:
    """Recognise many cameras: ZeroMQ senders connect, webcams, streams and files are opened, results go out.

    After SIGHUP the configuration is read again; a new model takes over when it is ready.

    [bold]Examples[/bold]

      gatestream serve                     imagezmq, NetGear and gatestream cameras at tcp://127.0.0.1:5555

      gatestream serve cameras.toml --check

      gatestream camera 0 --to tcp://127.0.0.1:5555 --name desk"""
    from stream.service.config import Config, PromotionConfig, read_config

    promotion = None if gate is None else PromotionConfig(recording=gate)

    def read_settings() -> Config:
        read = Config() if config is None else read_config(config)
        return read if promotion is None else read.model_copy(update={"gate": promotion})

    settings = read_settings()
    if check:
        print(f"{config or 'the defaults'}: fine, {len(settings.camera)} cameras configured")
        return
    from stream.notices import silence_decoders

    stop, reload = threading.Event(), threading.Event()

    def reload_settings() -> Config | None:
        """The configuration, if it is to be read again; a faulty one is logged and not taken."""
        if not reload.is_set():
            return None
        reload.clear()
        try:
            return read_settings()
        except UsageError as error:
            log.error("the configuration is not changed: %s", error)
            return None

    signals = {signal.SIGINT: stop, signal.SIGTERM: stop}
    if hasattr(signal, "SIGHUP"):
        signals[signal.SIGHUP] = reload
    silence_decoders()
    with handle_signals({number: lambda *_, event=event: event.set() for number, event in signals.items()}):
        raise_if_interrupted()
        if cluster:
            from stream.service.cluster.cluster import Cluster
            with Cluster(settings) as workers:
                if workers.health_address:
                    log.info("state and metrics: http://%s/health and /metrics", workers.health_address)
                workers.run(stop, reload_settings)
            return
        from stream.service.service import Service
        with Service(settings) as service:
            for address in service.addresses:
                log.info("cameras may connect to %s", address)
            for address in settings.results.publish:
                log.info("results are published at %s", address)
            if service.health_address:
                log.info("state and metrics: http://%s/health and /metrics", service.health_address)
            service.run(stop, reload_settings)


@commands.command()
def camera(
        source: Annotated[str, typer.Argument(metavar="SOURCE", help="What to send, as for gatestream run.")],
        to: Annotated[str, typer.Option(metavar="ADDRESS", help=(
            "tcp://host:port of the service; with --publish, where to be found, such as tcp://*:5556."))],
        name: Annotated[str | None, typer.Option(metavar="NAME", help="Of the camera. Default: the source's.")] = None,
        form: Annotated[Literal["gatestream", "imagezmq", "netgear"], typer.Option(help=(
            "Whose messages to send."))] = "gatestream",
        publish: Annotated[bool, typer.Option("--publish", help="Send to whoever listens, wait for nobody.")] = False,
        quality: Annotated[int, typer.Option(min=1, max=100, help="Of the JPEGs.")] = 90,
        key: Annotated[Path | None, typer.Option(metavar="FILE.key_secret", help="The camera's keys.")] = None,
        server_key: Annotated[Path | None, typer.Option(metavar="FILE.key", help="The service's public key.")] = None,
        max_frames: Annotated[int | None, typer.Option(min=1, metavar="N", help=(
            "Stop after N pictures."))] = None) -> None:
    """Send any source as a ZeroMQ camera.

    [bold]Examples[/bold]

      gatestream camera 0 --to tcp://127.0.0.1:5555 --name desk

      gatestream camera sim://gestures --to 'tcp://*:5556' --publish"""
    from stream.service.ingress.camera_process import send_frames
    from stream.service.ingress.sender import Sender
    from stream.sources import open_source

    with open_source(source, policy="newest") as opened, \
            Sender(to, name or opened.info.camera, form, publish, quality, key=key, server_key=server_key) as sender:
        send_frames(opened, sender, max_frames)


@commands.command()
def label(folder: Annotated[Path, typer.Argument(metavar="FOLDER", exists=True, file_okay=False,
                                                 help="Videos and recordings, in folders of any depth.")],
          out: Annotated[Path, typer.Option(metavar="FILE.parquet", help="A row for each event.")],
          model: ModelName = "gesture", engine: EngineName = "auto",
          workers: Annotated[int | None, typer.Option(min=1, metavar="N", help="Videos at a time.")] = None,
          address: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Of a running Ray cluster; default: "
                                                                               "this machine alone.")] = None) -> None:
    """Label an archive of videos with Ray Data, on one machine or many.

    [bold]Example[/bold]

      gatestream label archive --out events.parquet"""
    from stream.archive.label import label as label_folder

    done = label_folder(folder, out, model, engine, workers, address)
    for path, why in done.failed.items():
        log.warning("%s: %s", path, why)
    print(f"{out}: {done.events} events in {done.recordings} recordings, {len(done.failed)} of them unreadable")


KeyFolder = Annotated[Path | None, typer.Option("--folder", metavar="FOLDER", help="Where keys are kept.")]
keys = typer.Typer(no_args_is_help=True, help="Keys of cameras that may connect, and of the service (CURVE).")
commands.add_typer(keys, name="keys")


@keys.command("new")
def new_keys(name: Annotated[str, typer.Argument(metavar="NAME", help="server, or a camera's name.")],
             folder: KeyFolder = None) -> None:
    """Make the service's keys (server), or those of a camera, which may connect from then on.

    [bold]Examples[/bold]

      gatestream keys new server

      gatestream keys new cell-3"""
    from stream.service.ingress.security import SERVER, create_keys, default_folder

    own, other = create_keys(folder or default_folder(), name)
    if name == SERVER:
        print(f"{own}: for every camera\n{other}: secret, stays here")
    else:
        print(f"{own}: secret, for camera {name} (--key)\n{other}: for it as well (--server-key)")


@keys.command("list")
def list_keys(folder: KeyFolder = None) -> None:
    """List the cameras that may connect."""
    from stream.service.ingress.security import allowed_keys, default_folder

    for name, public in allowed_keys(folder or default_folder()).items():
        print(name, public.decode())


@keys.command("allow")
def allow_key(file: Annotated[Path, typer.Argument(metavar="FILE.key", help="A public key.")],
              folder: KeyFolder = None) -> None:
    """Let a camera connect whose keys were made elsewhere."""
    from stream.service.ingress.security import allow_key, default_folder

    print(allow_key(folder or default_folder(), file))
