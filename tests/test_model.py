"""The model file: what is saved is what is loaded, and every way a file can be wrong is named in one line."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import engines
from engines.errors import GatestreamError, ModelError, SinkError, UsageError
from engines.model.contract import Contract
from engines.model.file import Array, save

OPTIONS = {"causal": True, "readout_width": 8, "gate_ratio": 25, "sites": ["features_12", "features_15"]}


def contract(**changes: object) -> Contract:
    fields = {"name": "small", "architecture": "gsf-mobilenetv2", "options": OPTIONS,
              "heads": {"gesture": ("wave", "background")}, "frame_rate": 7.5, "input_size_hw": (48, 64),
              "cover_hw": (48, 64), "receptive_frames": 9, "warmup_frames": 2, "clip_frames": 4, "window_clips": 3,
              "background": "background"} | changes
    return Contract.model_validate(fields)


@pytest.fixture(scope="module")
def weights() -> dict[str, Array]:
    network = engines.build("gsf-mobilenetv2", heads={"gesture": 2}, input_size_hw=(48, 64), **OPTIONS)
    return {name: value.float().numpy() for name, value in network.state_dict().items()}


def test_what_is_saved_is_what_is_loaded(weights: dict[str, Array], tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save(path, contract(), weights, half=False)
    model = engines.load(path)
    assert model.contract == contract()
    state = model.network.state_dict()
    for name, value in weights.items():
        if not name.endswith("num_batches_tracked"):
            assert np.array_equal(state[name].numpy(), value)
    features = np.linspace(-1, 1, 8, dtype=np.float32)
    import torch

    with torch.no_grad():
        wanted = model.network.scores(torch.from_numpy(features))["gesture"].numpy()
    assert np.allclose(model.head_logits(features)["gesture"], wanted, atol=1e-6)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _header_only(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:6])


def _lying_length(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 60) + path.read_bytes()[8:])


def _rewrite(change: Callable[[dict[str, object]], None]) -> Callable[[Path], None]:
    """Changes the contract inside a file, keeping everything else."""
    def damage(path: Path) -> None:
        raw = path.read_bytes()
        (length,) = struct.unpack_from("<Q", raw)
        header = json.loads(raw[8:8 + length])
        inner = json.loads(header["__metadata__"]["contract"])
        change(inner)
        header["__metadata__"]["contract"] = json.dumps(inner)
        packed = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(packed)) + packed + raw[8 + length:])
    return damage


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_truncate, "truncated or of another format"),
    "a few bytes": (_header_only, "truncated or of another format"),
    "lying header": (_lying_length, "truncated or of another format"),
    "empty": (lambda path: path.write_bytes(b""), "truncated or of another format"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500)), "truncated or of another format"),
    "a pickle": (lambda path: path.write_bytes(b"\x80\x04\x95" + bytes(500)), "truncated or of another format"),
    "other contract format": (_rewrite(lambda c: c.update(format="gatestream/9")), "format"),
    "unknown field": (_rewrite(lambda c: c.update(colourr="RGB")), "colourr"),
    "frame rate zero": (_rewrite(lambda c: c.update(frame_rate=0)), "frame_rate"),
    "labels twice": (_rewrite(lambda c: c.update(heads={"gesture": ["a", "a"]})), "gesture"),
    "a label too many": (_rewrite(lambda c: c.update(heads={"gesture": ["a", "b", "c"]}, background=None)), "3 labels"),
    "background that is no label": (_rewrite(lambda c: c.update(background="nothing")), "nothing"),
    "another head": (_rewrite(lambda c: c.update(heads={"verb": ["a", "b"]}, background=None)), "verb"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_every_kind_of_damage_is_refused_in_one_line(case: str, weights: dict[str, Array], tmp_path: Path) -> None:
    damage, named = DAMAGE[case]
    path = tmp_path / "small.safetensors"
    save(path, contract(), weights)
    damage(path)
    with pytest.raises(ModelError, match=named) as caught:
        engines.load(path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


NETWORK_DAMAGE: dict[str, tuple[Callable[[dict[str, object]], None], str]] = {
    "another architecture": (lambda c: c.update(architecture="gsf-vgg"), "gsf-vgg"),
    "other sites": (lambda c: c.update(options=OPTIONS | {"sites": ["features_12"]}), "features_15"),
    "wider memory": (lambda c: c.update(options=OPTIONS | {"readout_width": 16}), "memory"),
    "unknown option": (lambda c: c.update(options=OPTIONS | {"colour": 1}), "colour"),
}


@pytest.mark.parametrize("case", NETWORK_DAMAGE)
def test_a_contract_that_disagrees_with_the_weights_is_refused(case: str, weights: dict[str, Array],
                                                               tmp_path: Path) -> None:
    change, named = NETWORK_DAMAGE[case]
    path = tmp_path / "small.safetensors"
    save(path, contract(), weights)
    _rewrite(change)(path)
    with pytest.raises(ModelError, match=named):
        _ = engines.load(path).network


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(value: float, weights: dict[str, Array], tmp_path: Path) -> None:
    spoilt = dict(weights)
    name = "heads.gesture.weight"
    spoilt[name] = weights[name].copy()
    spoilt[name][0, 0] = value
    path = tmp_path / "small.safetensors"
    save(path, contract(), spoilt)
    with pytest.raises(ModelError, match=r"heads\.gesture\.weight"):
        engines.load(path)


def test_a_name_that_is_nothing_lists_what_there_is(tmp_path: Path) -> None:
    for wrong in ("gestrue", str(tmp_path / "nowhere.safetensors")):
        with pytest.raises(UsageError, match="gatestream models"):
            engines.load(wrong)
    with pytest.raises(GatestreamError):
        engines.load(tmp_path)


def test_saving_where_nothing_can_be_saved_leaves_nothing(weights: dict[str, Array], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SinkError):
        save(tmp_path / "file" / "model.safetensors", contract(), weights)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_loading_a_model_does_not_import_torch(weights: dict[str, Array], tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save(path, contract(), weights)
    code = f"import sys, engines; engines.load({str(path)!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
