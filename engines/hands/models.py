"""The palm and hand models of MediaPipe (Zhang et al. 2020, arXiv 2006.10214; Apache-2.0): read from its installed
wheel, which is not imported, and run in OpenVINO on one thread."""

import functools
import importlib.util
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.decoding.images import Image
from engines.errors import EngineError, UsageError
from engines.hands.crop import Floats, Square, whole_image
from engines.hands.palms import INPUT_PIXELS, Palm, decode_palms

FOLDER_VARIABLE = "GATESTREAM_HANDS"
PALM_FILE, LANDMARK_FILE = "palm_detection_lite.tflite", "hand_landmark_lite.tflite"
INSTALL = "pip install 'gatestream[hands]'"
CUT_PIXELS = 224  # input of the landmark model


def find_models(folder: str | Path | None = None) -> tuple[Path, Path]:
    """The files of the palm and the landmark model: in this folder, in the one that GATESTREAM_HANDS names, or in the
    installed mediapipe. Raises UsageError where they are not there."""
    named = folder or os.environ.get(FOLDER_VARIABLE)
    if named:
        paths = Path(named) / PALM_FILE, Path(named) / LANDMARK_FILE
    else:
        spec = importlib.util.find_spec("mediapipe")
        if spec is None or not spec.submodule_search_locations:
            raise UsageError("hands without the package mediapipe", "its palm and hand models",
                             f"{INSTALL}, or set {FOLDER_VARIABLE} to a folder with {PALM_FILE} and {LANDMARK_FILE}")
        modules = Path(spec.submodule_search_locations[0]) / "modules"
        paths = modules / "palm_detection" / PALM_FILE, modules / "hand_landmark" / LANDMARK_FILE
    for path in paths:
        if not path.is_file():
            raise UsageError(f"hands without {path}", f"{PALM_FILE} and {LANDMARK_FILE}, which mediapipe carries from "
                             "0.10.14 to 0.10.21", f"{INSTALL}, or set {FOLDER_VARIABLE} to a folder with both files")
    return paths


def models_installed() -> bool:
    """Whether `open_models` would find them."""
    try:
        return bool(find_models())
    except UsageError:
        return False


@dataclass(frozen=True, slots=True)
class Landmarks:
    """One hand of one frame. points: [21, 3], pixels of the image, z as far from the wrist as x is wide, nearer is
    less; presence: how sure it is a hand; right: that it is a right one, 0 to 1."""

    presence: float
    right: float
    points: Floats


class HandModels:
    """Both models, compiled; any number of trackers share them, from any thread."""

    def __init__(self, palm_file: Path, landmark_file: Path, precision: str | None = None) -> None:
        """precision: f32, or bf16 where the processor has it, which takes two thirds of the time and moves landmarks by
        a hundredth of the palm's length; the fastest if None. Raises EngineError for files that are no such models."""
        from engines.runtime.openvino import precisions  # here, since all who may look for hands import this file

        precision = precision or precisions()[0]
        self._lock = threading.Lock()
        self._palms = _request(palm_file, precision, INPUT_PIXELS, [(1, 2016, 18), (1, 2016, 1)])
        self._landmarks = _request(landmark_file, precision, CUT_PIXELS, [(1, 63), (1, 1), (1, 1), (1, 63)])

    def detect(self, image_bgr: Image) -> tuple[Square, list[Palm]]:
        """Palms in the image, the surest first, in pixels of the detector's input, and where that lies in the image."""
        square = whole_image(image_bgr.shape[:2])
        boxes, scores = self._run(self._palms, square.cut(image_bgr, INPUT_PIXELS, repeat_edge=False))[:2]
        return square, decode_palms(boxes[0], scores[0, :, 0])

    def landmarks(self, image_bgr: Image, square: Square) -> Landmarks:
        """The hand in this square of the image."""
        points, presence, right, _ = self._run(self._landmarks, square.cut(image_bgr, CUT_PIXELS))
        depth = np.array([1, 1, 1 / 0.4], np.float32)  # normalize_z of the graph HandLandmarkCpu
        return Landmarks(float(presence[0, 0]), float(right[0, 0]),
                         square.to_image(points.reshape(21, 3) * depth, CUT_PIXELS))

    def _run(self, request: Any, pixels: Image) -> list[Floats]:
        from engines.runtime.openvino import openvino_error

        with self._lock, openvino_error("OpenVINO failing on a hand model", "a run without a fault",
                                        "run `gatestream doctor`"):
            request.infer([pixels[None]])
            return [request.get_output_tensor(i).data.copy() for i in range(len(request.model_outputs))]


@functools.lru_cache(maxsize=1)
def _open(palm_file: Path, landmark_file: Path) -> HandModels:
    return HandModels(palm_file, landmark_file)


def open_models(folder: str | Path | None = None) -> HandModels:
    """The process's compiled models. folder: as in `find_models`. Raises UsageError, EngineError."""
    return _open(*find_models(folder))


def _request(path: Path, precision: str, pixels: int, outputs: list[tuple[int, ...]]) -> Any:
    from engines.runtime.openvino import DEVICE, core, openvino_error

    import openvino as ov  # isort: skip - where its telemetry is off by now

    wanted = f"the model of that name in mediapipe 0.10.14 to 0.10.21, {pixels}x{pixels} in"
    with openvino_error(f"OpenVINO refusing {path}", wanted, INSTALL):
        graph = core().read_model(path)
        shapes = [tuple(port.shape) for port in graph.outputs] if not graph.is_dynamic() else []
        if shapes != outputs or [tuple(port.shape) for port in graph.inputs] != [(1, pixels, pixels, 3)]:
            raise EngineError(f"{path} with outputs {shapes}", wanted, INSTALL)
        steps = ov.preprocess.PrePostProcessor(graph)
        steps.input().tensor().set_element_type(ov.Type.u8)
        steps.input().preprocess().convert_element_type(ov.Type.f32).scale(255.0)
        return core().compile_model(steps.build(), DEVICE, {
            "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": precision}).create_infer_request()
