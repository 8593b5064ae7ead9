"""Names of files and labels: which are videos or images, their order, and how they are shown and compared."""

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

VIDEO_SUFFIXES = frozenset((
    ".3g2", ".3gp", ".apng", ".asf", ".avi", ".divx", ".dv", ".flv", ".gif", ".h264", ".h265", ".264", ".265", ".hevc",
    ".ivf", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf",
    ".nut", ".obu", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"))
IMAGE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".jp2", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
                            ".webp"))
SYSTEM_NAMES = frozenset(("__MACOSX", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN", "System Volume Information"))


def is_hidden(path: Path) -> bool:
    """Whether a file or folder is there for an operating system, and not for people: .DS_Store, ._1.mp4, __MACOSX."""
    return path.name.startswith(".") or path.name in SYSTEM_NAMES


def is_video(path: Path) -> bool:
    """Whether the name is a video's; hidden files are not."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not is_hidden(path)


def is_image(path: Path) -> bool:
    """Whether the name is an image's; hidden files are not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path)


def read_head(path: Path, count: int) -> bytes:
    """The first bytes of a file; fewer of a shorter one, none of one that cannot be read."""
    try:
        with path.open("rb") if path.is_file() else open(os.devnull, "rb") as file:  # a pipe would be waited for
            return file.read(count)
    except OSError:
        return b""


def natural_key(path: Path | str) -> list[tuple[int, int, str]]:
    """Sorts runs of digits by their value: img2 before img10, 10_320x240 by its 10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower())
            for part in re.split(r"(\d+)", str(path)) if part]


def list_visible(folder: Path) -> list[Path]:
    """What people have put into a folder, in natural order. Raises OSError."""
    return sorted((path for path in folder.iterdir() if not is_hidden(path)), key=lambda path: natural_key(path.name))


def list_images(folder: Path) -> list[Path]:
    """The images of a folder in natural order. Raises OSError."""
    return list(filter(is_image, list_visible(folder)))


def image_number(path: Path) -> int | None:
    """The last number in a file's name, of datasets whose images count from a number on: 7 for img_00007.jpg."""
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else None


def printable(name: str | os.PathLike[str]) -> str:
    """A name as it may be shown, logged and exported: bytes that are no UTF-8 and control characters as `\\xff`."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() or char == "\u00a0" else ascii(char)[1:-1] for char in text)


def normalise_label(name: str) -> str:
    """A label as it is compared and stored: Unicode's composed form, single spaces, none around it."""
    return " ".join(unicodedata.normalize("NFC", printable(name)).split())


def similar_labels(labels: Iterable[str]) -> list[list[str]]:
    """Labels that differ only in case, spaces or joining characters, and so are probably meant to be one."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", label)).strip().casefold(),
                          []).append(label)
    return [group for group in groups.values() if len(group) > 1]
