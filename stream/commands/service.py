"""The commands of the live service: `serve`, `camera`."""

import json
import logging
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Literal

import typer

from engines.errors import UsageError
from stream.commands.interrupt import handle_signals, raise_if_interrupted

commands = typer.Typer()
log = logging.getLogger("gatestream.service")

SWITCH_S = 0.0005  # from one thread to another, at the latest: the receiver waits for no sink that makes JSON


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

    stop, reload = threading.Event(), threading.Event()
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: reload.set())  # also of what is read now
    settings = read_settings()
    for exposure in settings.exposures:
        log.warning("%s", exposure)
    if check:
        from stream.service.api.server import check_files
        from stream.service.worker.models import Models

        check_files(settings.api)
        Models.load(settings)
        print(f"{config or 'the defaults'}: fine, {len(settings.camera)} cameras configured")
        return
    from stream.notices import silence_decoders
    from stream.service.resources import raise_file_limit
    from stream.service.systemd import Ask, Systemd

    raise_file_limit()
    sys.setswitchinterval(SWITCH_S)

    def say_address(address: str | None) -> None:
        if address is not None:
            scheme = "https" if settings.api.certificate else "http"
            log.info("state and metrics: %s://%s/health and /metrics; all pages: /docs", scheme, address)

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

    def tell_systemd(systemd: Systemd, ready: bool, ask: Ask) -> Config | None:
        """Called again and again; returns what `reload_settings` does."""
        read = reload_settings()
        systemd.poll(ready, read is not None, ask)
        return read

    from stream.service.service import Service  # before: a signal ends an import at once

    silence_decoders()
    with handle_signals({number: lambda *_: stop.set() for number in (signal.SIGINT, signal.SIGTERM)}):
        raise_if_interrupted()
        if cluster:
            from stream.cluster.cluster import Cluster
            with Cluster(settings) as workers, Systemd() as systemd:
                say_address(workers.health_address)
                workers.run(stop, lambda: tell_systemd(systemd, workers.state()["healthy"], lambda answer: answer()))
            return
        with Service(settings) as service, Systemd() as systemd:
            for address in service.addresses:
                log.info("cameras may connect to %s", address)
            for address in settings.results.publish:
                log.info("results are published at %s", address)
            say_address(service.health_address)
            service.run(stop, lambda: tell_systemd(systemd, service.receiver.worker.was_ready,
                                                   service.receiver.call_soon))


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
    from stream.sender import Sender, send_frames
    from stream.sources import open_source
    from stream.sources.address import MOST_PORT, has_valid_port

    if not has_valid_port(to):
        raise UsageError(f"--to {to}", f"tcp://host:port with a port of {MOST_PORT} at most", "correct the port")
    with open_source(source, policy="newest") as opened, \
            Sender(to, name or opened.info.camera, form, publish, quality, key=key, server_key=server_key) as sender:
        send_frames(opened, sender, max_frames)


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
    from stream.access.keys import SERVER, create_keys, default_folder

    own, other = create_keys(folder or default_folder(), name)
    if name == SERVER:
        print(f"{own}: for every camera\n{other}: secret, stays here")
    else:
        print(f"{own}: secret, for camera {name} (--key)\n{other}: for it as well (--server-key)")


@keys.command("list")
def list_keys(folder: KeyFolder = None) -> None:
    """List the cameras that may connect."""
    from stream.access.keys import allowed_keys, default_folder

    for name, public in allowed_keys(folder or default_folder()).items():
        print(name, public.decode())


@keys.command("allow")
def allow_key(file: Annotated[Path, typer.Argument(metavar="FILE.key", help="A public key.")],
              name: Annotated[str | None, typer.Option(metavar="NAME", help=(
                  "Of the camera. Default: the file's."))] = None,
              folder: KeyFolder = None) -> None:
    """Let a camera connect whose keys were made elsewhere.

    [bold]Example[/bold]

      gatestream keys allow ~/.vidgear/keys/client.key --name cell-3"""
    from stream.access.keys import allow_key, default_folder

    print(allow_key(folder or default_folder(), file, name))


TokenFile = Annotated[Path | None, typer.Option("--file", metavar="FILE", help="Where tokens are kept.")]
tokens = typer.Typer(no_args_is_help=True, help="Tokens of those who may use a service's HTTP API.")
commands.add_typer(tokens, name="tokens")


@tokens.command("new")
def new_token(name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is.")],
              rights: Annotated[str, typer.Option(metavar="RIGHTS", help=(
                  "read (state, events, records), pictures (and videos), admin (everything); separated by commas."))
              ] = "read", file: TokenFile = None) -> None:
    """Make a token, and print it: it is stored nowhere.

    [bold]Example[/bold]

      gatestream tokens new dashboard --rights read,pictures"""
    from stream.access.tokens import create_token, default_file

    path = file or default_file()
    print(create_token(path, name, rights.split(",")))
    log.info("in the service's configuration, under [api]: tokens = %s", json.dumps(str(path)))


@tokens.command("list")
def list_tokens(file: TokenFile = None) -> None:
    """List whose tokens there are, and their rights."""
    from stream.access.tokens import default_file, read_tokens

    for token in read_tokens(file or default_file()):
        print(token.name, ",".join(token.rights))


@tokens.command("revoke")
def revoke_token(name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is.")],
                 file: TokenFile = None) -> None:
    """Remove a token; a service that runs refuses it from then on."""
    from stream.access.tokens import default_file, revoke_token

    revoke_token(file or default_file(), name)
