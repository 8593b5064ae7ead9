"""Official GSM and GSF checkpoints -> our networks, exactly or not at all.
Code inside a pickle is never run. Which blocks hold a module, and which share of their channels GSF gates, shows in
keys and shapes.

Official name                                 ours
base_model.inception_3a_1x1.weight            backbone.inception_3a_1x1.weight
base_model.gsm_inception_3a_1x1.bn.weight     temporal.inception_3a_1x1.bn.weight
base_model.layer1.0.gsf.bn.weight             temporal.layer1_0.bn.weight
new_fc.weight                                 heads.action.weight"""

import contextlib
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engines.errors import ModelError, UsageError
from engines.model.file import mismatches
from engines.networks.config import NetworkConfig
from engines.networks.gsf import gated_channels
from engines.networks.network import BACKBONES, Network, build

ARCHITECTURES = ("gsm-bninception", "gsm-inceptionv3", "gsf-bninception", "gsf-inceptionv3", "gsf-resnet50")
HEAD = "action"
SHOWN = 4  # keys named in a message


def load(path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any], arch: str | None = None,
         segments: int = 8) -> Network:
    """The network of an official checkpoint, bidirectional as published, in evaluation mode, with one head "action".
    path_or_state_dict: a file, or what such a file holds: weights by official name, with or without `module.`, bare
    or under `state_dict` or `model_state_dict`; arch: None for what the keys say; segments: frames of a clip that it
    was trained with. Half-precision weights become float32. Raises UsageError for an unknown architecture or a missing
    file, and ModelError, naming keys, for a damaged file, one that holds code, or weights of another network."""
    if arch is not None and arch not in ARCHITECTURES:
        raise UsageError(f"architecture {arch!r}", f"one of {', '.join(ARCHITECTURES)}", "choose one of these names")
    if segments < 1:
        raise UsageError(f"clips of {segments} frames", "1 or more", "give the number in the checkpoint's name")
    source = "state dict" if isinstance(path_or_state_dict, Mapping) else os.fspath(path_or_state_dict)
    weights = read(path_or_state_dict)
    arch = arch or architecture_of(source, weights)
    sites = _held_sites(weights, arch)
    if not sites:
        raise ModelError(f"{source} without any {_prefix(next(iter(_available(arch))), arch)}..., but with "
                         f"{_some(weights)}", f"the weights of {arch}", "give the architecture that it is of")
    gate_ratio = _gate_ratio(source, weights, arch, sites) if NetworkConfig.of(arch).module == "gsf" else None
    head = weights.get("new_fc.weight", torch.empty(()))
    labels = head.shape[0] if head.ndim == 2 else 0
    network = build(arch, heads={HEAD: max(1, labels)}, segments=segments, gate_ratio=gate_ratio, sites=tuple(sites))
    ours = network.state_dict()
    names = {official_name(name, arch): name for name in ours}
    if problems := mismatches({official: ours[name].shape for official, name in names.items()},
                              {name: value.shape for name, value in weights.items()}):
        raise ModelError(f"{source} with {_some(problems)}", f"exactly the weights of {arch}",
                         "give the architecture that the checkpoint is of, or get the file again")
    network.load_state_dict({name: weights[official] for official, name in names.items()})
    return network.eval()


def read(path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Tensor]:
    """Float32 weights of a checkpoint by official name, without `module.`. Raises UsageError, ModelError as `load`."""
    source, content = (("state dict", path_or_state_dict) if isinstance(path_or_state_dict, Mapping)
                       else (os.fspath(path_or_state_dict), _read(Path(path_or_state_dict))))
    for outer in ("state_dict", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(outer), Mapping):
            content = content[outer]
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"{source} without a table of weights", "state_dict or model_state_dict in it",
                         "choose an official checkpoint")
    weights: dict[str, Tensor] = {}
    bad: list[str] = []
    for key, value in content.items():
        name = str(key).removeprefix("module.")
        tensor, counter = _tensor(value), name.endswith("num_batches_tracked")
        fits = tensor is not None and tensor.is_floating_point() != counter and name not in weights
        if tensor is None or not fits or not tensor.float().isfinite().all():
            bad.append(str(key))
        else:
            weights[name] = tensor if counter else tensor.float()
    if bad:
        raise ModelError(f"{source} with {_some(bad)}, which are no dense tensors of finite floating-point "
                         "numbers or come twice", "the weights of one network",
                         "choose an official checkpoint, not quantised or half written")
    return weights


def architecture_of(source: str, weights: Mapping[str, Tensor]) -> str:
    """The architecture whose modules these weights hold. Raises ModelError where it is none of ours."""
    if found := next((arch for arch in ARCHITECTURES if _held_sites(weights, arch)), None):
        return found
    raise ModelError(f"{source} with {_some(weights)}", f"the weights of {', '.join(ARCHITECTURES)}",
                     "choose an official GSM or GSF checkpoint")


def official_name(name: str, arch: str) -> str:
    """The official checkpoints' name of one of our parameters."""
    part, _, rest = name.partition(".")
    if part != "temporal":
        return rest.replace(HEAD, "new_fc", 1) if part == "heads" else f"base_model.{rest}"
    site, _, leaf = rest.partition(".")
    return f"{_prefix(site, arch)}{leaf}"


def _prefix(site: str, arch: str) -> str:
    """What the official names of the module at a site begin with."""
    config = NetworkConfig.of(arch)
    return f"base_model.{BACKBONES[config.backbone].official_prefix(config.module, site)}"


def _available(arch: str) -> dict[str, int]:
    """Channels of every site that the architecture's backbone names, in order."""
    with torch.device("meta"):
        sites = BACKBONES[NetworkConfig.of(arch).backbone]().sites()
    return {site: conv.out_channels for site, conv in sites.items()}


def _read(path: Path) -> Any:
    _refuse_inflating(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's, of formats that are refused here anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UsageError(f"{path}: no such file{' but a folder' if path.is_dir() else ''}", "an official checkpoint",
                         "check the path") from None
    except OSError as error:
        raise ModelError(f"{path} ({error.strerror or error})", "a readable file", "check its permissions") from error
    except pickle.UnpicklingError as error:
        raise ModelError(f"{path}, which is no checkpoint or holds more than tensors: code that would run on reading, "
                         "perhaps, so it was not read", "a checkpoint of plain tensors, as torch.save writes it",
                         "get the file from its authors again") from error
    except Exception as error:  # torch's reader has no error of its own for a damaged file
        raise ModelError(f"{path}, which cannot be read ({type(error).__name__})", "a complete checkpoint",
                         "get the file again: it is truncated or of another format") from error


def _refuse_inflating(path: Path) -> None:
    """torch.save compresses nothing; an archive that says it holds more than the file could fill the memory."""
    with contextlib.suppress(OSError, zipfile.BadZipFile, NotImplementedError):  # torch's reader finds these out
        with zipfile.ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
        if declared > path.stat().st_size:
            raise ModelError(f"{path} of {path.stat().st_size} bytes that would grow to {declared}",
                             "an archive as torch.save writes it", "get the file from its authors again")


def _tensor(value: Any) -> Tensor | None:
    """A dense tensor that is as large in memory as it says, of an array or tensor; None of anything else."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu" and value.dtype.itemsize <= 8:
        value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta or value.is_quantized:
        return None
    return value if value.numel() * value.element_size() <= value.untyped_storage().nbytes() else None


def _held_sites(weights: Mapping[str, Tensor], arch: str) -> list[str]:
    """The sites whose modules the checkpoint holds, in order."""
    return [site for site in _available(arch) if any(name.startswith(_prefix(site, arch)) for name in weights)]


def _gate_ratio(source: str, weights: Mapping[str, Tensor], arch: str, sites: Iterable[str]) -> int | None:
    """The percentage of channels that modules gate, by the size of each one's batch norm; None where nothing tells."""
    available = _available(arch)
    gated = {name: (weights[name].numel(), available[site]) for site in sites
             if (name := f"{_prefix(site, arch)}bn.weight") in weights}
    share = 100 * sum(f for f, _ in gated.values()) / max(1, sum(channels for _, channels in gated.values()))
    fitting = [ratio for ratio in range(1, 101)
               if all(gated_channels(channels, ratio) == f for f, channels in gated.values())]
    if not fitting:
        shapes = [f"{name} of {f} channels in {channels}" for name, (f, channels) in gated.items()]
        raise ModelError(f"{source} with {_some(shapes)}", "one share of gated channels throughout",
                         "choose an official checkpoint")
    return min(fitting, key=lambda ratio: abs(ratio - share)) if gated else None


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")
