"""The models of a service: the one of all cameras, and those of cameras that have their own."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Self

import engines
from engines.errors import GatestreamError, UsageError
from engines.model.file import ZOO, Model
from stream.service.config import Config


@dataclass(frozen=True)
class Models:
    """Which model each camera has."""

    default: Model
    own: Mapping[str, Model]  # by camera, where it is another one; a model that several have is one object

    @classmethod
    def load(cls, config: Config) -> Self:
        """Reads the models of a configuration. Raises UsageError, ModelError, which name the camera."""
        read, distinct, own = {config.model: engines.load(config.model).require_taught()}, dict[str, Model](), {}
        default = read[config.model]
        for camera in config.camera:
            name = config.model if camera.model is None else camera.model
            try:
                model = read[name] = read.get(name) or engines.load(name).require_taught()
            except GatestreamError as error:
                raise type(error)(f"camera {camera.name}: {error.got}", error.wanted, error.do) from error
            if model.digest != default.digest:
                own[camera.name] = distinct.setdefault(model.digest, model)
        if own and Path(config.engine).is_file():
            raise UsageError(f"engine {config.engine}, built for one model, and camera {next(iter(own))} with another",
                             "an engine's name, of which one is built for each model", "leave `engine` or `model` out")
        return cls(default, own)

    def of(self, camera: str) -> Model:
        """A camera's model."""
        return self.own.get(camera, self.default)

    @property
    def distinct(self) -> tuple[Model, ...]:
        """Each model once, the default first."""
        return tuple({model.digest: model for model in (self.default, *self.own.values())}.values())

    def __str__(self) -> str:
        return ", ".join(model.contract.name for model in self.distinct)

    @property
    def digests(self) -> tuple[str, dict[str, str]]:
        """What two of them are compared by: the default's, and each camera's."""
        return self.default.digest, {camera: model.digest for camera, model in self.own.items()}

    def map(self, function: Callable[[Model], Model]) -> "Models":
        """The same with what a function makes of each model, once."""
        made = {model.digest: function(model) for model in self.distinct}
        return Models(made[self.default.digest], {name: made[model.digest] for name, model in self.own.items()})

    def check_allowed(self, live: "Models", folders: tuple[Path, ...]) -> None:
        """Raises UsageError for a model that a running service may not take: it is neither one of the `live` ones, nor
        bundled, nor in these folders."""
        known = {model.digest for model in live.distinct}
        allowed = [folder.resolve() for folder in (ZOO, *folders)]
        for model in self.distinct:
            path = model.path and model.path.resolve()
            if model.digest not in known and not (path and any(path.is_relative_to(folder) for folder in allowed)):
                raise UsageError(f"model {model.path}", "a bundled one, or one in the folders that `models` named at "
                                 "the start", "move it there, or start the service again")


class ModelCopies:
    """Copies of models' files that are ours: a crashed worker's place is taken by the same model. They stay readable
    when they are removed, as systems clean their temporary folder of what is some days old."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Path, BinaryIO] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, model: Model) -> Model:
        """The model as it is in a copy of its file, but without weights, which are the worker's business."""
        assert model.path is not None
        path = self._folder / f"{model.digest}.safetensors"
        if path not in self._files:
            shutil.copyfile(model.path, path)
            self._files[path] = path.open("rb")
        self.restore(replace(model, path=path))
        return replace(engines.load(path), tensors={})

    def restore(self, copy: Model) -> None:
        """Writes the file of a copy anew if it is gone."""
        path = copy.path
        assert path is not None
        if not path.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            self._files[path].seek(0)
            with path.open("wb") as file:
                shutil.copyfileobj(self._files[path], file)
