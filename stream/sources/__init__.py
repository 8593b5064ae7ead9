"""Where frames come from: `open_source` turns what a user typed into a `Source`."""

import difflib
import glob
import math
from pathlib import Path
from typing import get_args

from engines.decoding.paths import is_image, list_images, printable
from engines.errors import SourceError, UsageError
from stream.sources.address import has_host, mask_secrets, parse_scheme
from stream.sources.base import Policy, Source, SourceInfo
from stream.sources.paced import PacedSource

__all__ = ["Policy", "Source", "SourceInfo", "check_source", "open_path", "open_source"]

KNOWN = "a webcam number, a video file, a folder or glob of images, rtsp://, http://, zmq:// or sim://gestures"
SCHEMES = ("rtsp", "rtsps", "http", "https", "zmq", "sim")


def open_source(spec: str, *, camera: str | None = None, policy: Policy = "auto", fps: float | None = None) -> Source:
    """Opens a camera, file or stream.

        0, 1, ...                     webcam
        rtsp://, rtsps://, http(s)://  network camera
        zmq://host:port               publisher of imagezmq, NetGear or gatestream camera
        sim://gestures?seed=1         simulated camera
        frames/, 'frames/*.jpg'       images, natural order, at `fps` (default 30)
        clip.mp4                      video file
        desk.frames                   what gatestream record wrote

    camera: the name its frames carry, by default the source's own (never with a password in it);
    policy: "newest" drops frames to stay up to date, "every" gives all; "auto" is newest for live cameras and every
    for files. A file with "newest" plays at its own pace. fps: the rate of images, or of a video in place of its own
    timestamps. Raises UsageError for what cannot be (no such file), SourceError for what does not open."""
    if policy not in get_args(Policy):
        raise UsageError(f"policy {policy!r}", "auto, every or newest", "choose one of them")
    if fps is not None and not (math.isfinite(fps) and 0 < fps <= 1000):
        raise UsageError(f"fps {fps}", "more than 0 and at most 1000 frames per second", "give the rate of the images")
    check_source(spec)
    scheme, camera = parse_scheme(spec), camera and printable(camera)
    if fps is not None and (spec.isdecimal() or scheme is not None):
        raise UsageError(f"fps {fps:g} with {mask_secrets(spec) if scheme else 'a webcam'}",
                         "fps with images or a video file", "leave it out: the camera sets its own rate")
    if spec.isdecimal():
        from stream.sources.webcam import Webcam
        return Webcam(int(spec), camera, policy)
    if scheme in ("rtsp", "rtsps", "http", "https"):
        from stream.sources.network import open_network
        return _pace(open_network(spec, camera, policy), policy)
    if scheme == "sim":
        from stream.sources.simulated import SimulatedSource
        return SimulatedSource(spec, camera=camera, policy=policy)
    if scheme == "zmq":
        from stream.sources.subscriber import Subscriber
        return Subscriber(spec, camera, policy)
    path = Path(spec).expanduser()
    if path.exists() or not glob.has_magic(spec):
        return open_path(path, camera=camera, policy=policy, fps=fps)
    paths = find_images(spec)
    if not paths:
        raise UsageError(f"{printable(spec)}: no image has such a name", "a pattern such as 'frames/*.jpg'",
                         "check the folder and the ending")
    return _pace(_open_images(paths, camera or printable(paths[0].resolve().parent.name), fps), policy)


def check_source(spec: str) -> None:
    """Raises UsageError for what `open_source` cannot take, without opening it."""
    if not spec.strip():
        raise UsageError("a source without a name", KNOWN, "name one, or leave it out for sim://gestures")
    scheme = parse_scheme(spec)
    if scheme not in (None, *SCHEMES):
        raise UsageError(f"{mask_secrets(spec)}: no source of kind {scheme}://", KNOWN, "check the spelling")
    if scheme not in (None, "sim") and not has_host(spec):
        raise UsageError(mask_secrets(spec), f"an address with a host, such as {scheme}://host:port",
                         "check the address")
    path = Path(spec).expanduser()
    if scheme is None and not spec.isdecimal() and not path.exists() and not glob.has_magic(spec):
        raise UsageError(f"{printable(spec)!r}: no such file", KNOWN, _suggest(path))


def _pace(source: Source, policy: Policy) -> Source:
    return PacedSource(source) if policy == "newest" and not source.info.live else source


def open_path(path: Path, *, camera: str | None = None, policy: Policy = "auto", fps: float | None = None) -> Source:
    """Opens a video file, an image, a folder of images or a recording, whatever its name; else as `open_source`."""
    shown = printable(path)
    if path.is_dir():
        try:
            paths = list_images(path)
        except OSError as error:
            raise SourceError(f"{shown}: {error.strerror or error}", "a readable folder",
                              "check the permissions of the folder") from error
        if not paths:
            raise UsageError(f"{shown}: a folder without images", "a folder of images (jpg, png, bmp, tiff, webp)",
                             "name one video file, or a folder with images directly in it")
        return _pace(_open_images(paths, camera or printable(path.resolve().name), fps), policy)
    if not path.is_file():
        if path.exists():
            raise UsageError(f"{shown}: neither a file nor a folder", KNOWN, "for webcam /dev/video0 write 0")
        raise UsageError(f"{shown!r}: no such file", KNOWN, _suggest(path))
    if is_image(path):
        return _pace(_open_images([path], camera or printable(path.name), fps), policy)
    from stream.sources.replay import Replay, is_recording
    if fps is None and is_recording(path):
        return _pace(Replay(path, camera), policy)
    from stream.sources.video import VideoFile
    return _pace(VideoFile(path, camera, fps), policy)


def _open_images(paths: list[Path], camera: str, fps: float | None) -> Source:
    from stream.sources.images import ImageFiles
    return ImageFiles(paths, camera, fps)


def find_images(pattern: str) -> list[Path]:
    """The images whose names fit a pattern; [] stands for itself where such a folder is there."""
    folder, name = Path(pattern).expanduser().parent, Path(pattern).name
    known = glob.escape(str(folder)) if folder.is_dir() else str(folder)
    return [Path(found) for found in glob.glob(str(Path(known) / name), recursive=True) if is_image(Path(found))]


def _suggest(path: Path) -> str:
    """What to do about a name that is not there."""
    if path.is_symlink():
        return "it is a link, whose target is not there"
    folder = path.parent
    if not folder.is_dir():
        return f"check the path: there is no folder {str(folder)!r}"
    try:
        names = {entry.name.lower(): entry.name for entry in folder.iterdir()}
    except OSError:
        names = {}
    near = difflib.get_close_matches(path.name.lower(), names, n=3, cutoff=0.6)
    return "did you mean " + " or ".join(names[name] for name in near) if near else "check the path"
