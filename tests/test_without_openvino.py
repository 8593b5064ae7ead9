"""A machine without OpenVINO, as an arm64 board may be: what runs a stream does not need it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RUN = """
import logging, sys
sys.modules["openvino"] = None
logging.basicConfig(format="%(message)s", stream=sys.stdout)
import numpy
import stream.commands
from engines.bench.doctor import doctor
from stream import Recognizer
with Recognizer.open(model="gesture", engine="auto") as recognizer:
    print(recognizer.push(numpy.zeros((72, 96, 3), "uint8"), captured_at=1.0, camera="a"))
print(next(check for check in doctor() if check.name == "engine openvino").detail)
"""


def test_a_stream_runs_in_the_next_engine_and_says_why() -> None:
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=False,
                          cwd=Path(__file__).resolve().parents[1])
    assert done.returncode == 0, done.stderr
    assert "no openvino engine (no usable OpenVINO" in done.stdout
    assert "Prediction(" in done.stdout
    assert "not picked: no usable OpenVINO" in done.stdout
