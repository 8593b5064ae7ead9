"""The model file: what is saved is what is loaded, and every way a file can be wrong is named in one line."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import write_unchecked

import engines
from engines.errors import GatestreamError, ModelError, SinkError, UsageError
from engines.model.contract import Contract
from engines.model.file import Array, bundled, save
from engines.networks.config import NetworkConfig

NETWORK: dict[str, Any] = {"module": "gsf", "backbone": "mobilenetv2", "causal": True, "input_size_hw": (48, 64),
                           "readout_width": 8, "gate_ratio": 25, "sites": ("features_12", "features_15")}
BUNDLED_SITES = ("features_9", "features_10", "features_12", "features_13", "features_15", "features_16")


def contract(**changes: object) -> Contract:
    fields = {"name": "small", "network": NETWORK, "heads": {"gesture": ("wave", "background")}, "frame_rate": 7.5,
              "cover_hw": (48, 64), "receptive_frames": 9, "warmup_frames": 2, "clip_frames": 4, "window_clips": 3,
              "background": "background"} | changes
    return Contract.model_validate(fields)


@pytest.fixture(scope="module")
def weights() -> dict[str, Array]:
    network = engines.build(NetworkConfig(**NETWORK), heads={"gesture": 2})
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
    "a PyTorch checkpoint": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(500)), "gatestream import-official"),
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
    "another architecture": (lambda c: c.update(network=NETWORK | {"backbone": "vgg"}), "gsf-vgg"),
    "other sites": (lambda c: c.update(network=NETWORK | {"sites": ["features_12"]}), "features_15"),
    "a wider read-out": (lambda c: c.update(network=NETWORK | {"readout_width": 16}), "memory"),
    "unknown option": (lambda c: c.update(network=NETWORK | {"colour": 1}), "colour"),
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
    write_unchecked(path, contract(), spoilt)
    with pytest.raises(ModelError, match=r"heads\.gesture\.weight"):
        engines.load(path)
    path.write_bytes(b"what was there")
    for half in (True, False):
        with pytest.raises(ModelError, match=r"heads\.gesture\.weight"):
            save(path, contract(), spoilt, half=half)
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_what_half_precision_cannot_hold_stays_as_it_is(weights: dict[str, Array], tmp_path: Path) -> None:
    path, statistics, wide = tmp_path / "small.safetensors", "temporal.features_12.bn.running_var", "heads.gesture.bias"
    held = weights | {statistics: weights[statistics] * np.float32(1.0001), wide: np.array([70_000, 1.5], np.float32)}
    held[statistics][0] = 1e5
    save(path, contract(), held)
    model = engines.load(path)
    assert model.half
    for name, value in model.tensors.items():
        exact = name in (wide,) or name.endswith(("running_mean", "running_var"))
        assert np.array_equal(value, held[name] if exact else held[name].astype(np.float16).astype(np.float32)), name
    assert model.network.state_dict()[statistics][0] == 1e5
    save(path, contract(), held, half=False)
    assert not engines.load(path).half


OLD: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # architecture, options then, options now
    "trained": ("gsf-mobilenetv2",
                {"causal": True, "memory": 8, "places": ["features_12", "features_15"], "percent": 50},
                {"causal": True, "readout_width": 8, "sites": ("features_12", "features_15"), "gate_ratio": 50}),
    "made causal": ("gsm-mobilenetv2",
                    {"causal": True, "memory": 0, "places": ["features_12"], "percent": 25, "ahead": 1},
                    {"causal": True, "sites": ("features_12",), "gate_ratio": 25, "past_shift": 1}),
    "of clips": ("gsf-mobilenetv2",
                 {"causal": False, "memory": 0, "places": ["features_12"], "percent": 25, "segments": 12},
                 {"sites": ("features_12",), "gate_ratio": 25, "segments": 12}),
    "imported GSM": ("gsm-mobilenetv2", {"causal": False, "segments": 16, "places": ["features_13"]},
                     {"segments": 16, "sites": ("features_13",)}),
    "of few options": ("tsm-mobilenetv2", {"causal": True}, {"causal": True}),
    "without any": ("tsn-mobilenetv2", {}, {}),
    "as built": ("stsm-mobilenetv2", {"causal": False, "shift": [[0.25, [-1, 0, 1]]], "segments": 6, "hop": 2},
                 {"shift": ((0.25, (-1, 0, 1)),), "segments": 6, "hop": 2})}


@pytest.mark.parametrize("form", OLD)
def test_files_of_every_older_form_load(form: str, tmp_path: Path) -> None:
    architecture, then, now = OLD[form]
    config = NetworkConfig.of(architecture, input_size_hw=(48, 64), **now)
    network = engines.build(config, heads={"gesture": 2})
    path = tmp_path / "old.safetensors"
    state = {name: value.numpy() for name, value in network.state_dict().items()}
    save(path, contract(network=network.config), state, half=False)

    def rewrite(fields: dict[str, object]) -> None:
        del fields["network"]
        fields |= {"architecture": architecture, "input_size_hw": [48, 64], **({"options": then} if then else {})}

    _rewrite(rewrite)(path)
    model = engines.load(path)
    assert model.contract.network == config
    assert (model.contract.architecture, model.contract.input_size_hw) == (architecture, (48, 64))
    assert model.network.config == network.config
    assert all(np.array_equal(value.numpy(), state[name]) for name, value in model.network.state_dict().items()
               if not name.endswith("num_batches_tracked"))
    save(path, model.contract, model.tensors, half=model.half)
    assert engines.load(path).contract == model.contract
    assert b'"options"' not in path.read_bytes()[:5000]


def test_a_file_of_the_older_form_loads(tmp_path: Path) -> None:
    path = Path(shutil.copy(bundled()["gesture"], tmp_path))

    def rewrite(fields: dict[str, object]) -> None:
        del fields["network"]
        fields |= {"architecture": "gsf-mobilenetv2", "input_size_hw": [72, 96],
                   "options": {"causal": True, "memory": 128, "places": list(BUNDLED_SITES), "percent": 25}}

    _rewrite(rewrite)(path)
    model = engines.load(path)
    assert model.contract.network == NetworkConfig.of(
        "gsf-mobilenetv2", causal=True, readout_width=128, sites=BUNDLED_SITES, gate_ratio=25, input_size_hw=(72, 96))
    assert model.network.config == model.contract.network


@pytest.mark.parametrize(("change", "named"), [
    ({"options": {"memory": -1}}, "readout_width"), ({"options": {"causal": False, "ahead": 1}}, "past_shift=1"),
    ({"input_size_hw": None}, "input_size_hw"), ({"options": 7}, "options=7"),
    ({"architecture": 7}, "architecture '7-'")])
def test_what_is_wrong_in_an_older_form_is_named(change: dict[str, object], named: str, weights: dict[str, Array],
                                                 tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    save(path, contract(), weights)

    def rewrite(fields: dict[str, object]) -> None:
        del fields["network"]
        fields |= {"architecture": "gsf-mobilenetv2", "input_size_hw": [48, 64]} | change

    _rewrite(rewrite)(path)
    with pytest.raises(ModelError, match=named):
        _ = engines.load(path).network


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
