"""Sections in which a rendered hand performs: over a rendered room, or a place of a recording."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from engines.synthetic import IDLE, LABELS, Scene, Script, distinct_stray, stroke
from engines.training.sections import GRACE_FRAMES, LabelledFrame, Sections, choose

NEVER_S = (60.0, 90.0)  # until the first gesture of an idle performance: longer than any is shown
BUSY = {"leave": 0.15, "rest": 0.1, "roam": 0.2, "stray": 0.45, "hover": 0.1}  # hands of these, see `Script`
JOINED_WITHIN_S = 10.0  # of the beginning of an idle performance, for a moment of it


class RenderedSections(Sections):
    """Rendered hands that draw the labels of the sources that can be drawn, and hands that draw none."""

    def performance(self, seconds: float, idle_s: tuple[float, float] = (0.6, 3.0),
                    idle: Mapping[str, float] = IDLE) -> Iterator[LabelledFrame]:
        """Gestures and time between them, joined at a random moment. idle_s, idle: see `Script`."""
        scene_and_script, step_s = self._set_scene(idle_s, idle), self._speed(0.75, 1.5) / self._rate
        times_s = self._rng.uniform(0, 3.0) + np.arange(self._frame_count(seconds)) * step_s
        return self._show(*scene_and_script, times_s, GRACE_FRAMES * step_s)

    def idle(self, seconds: float, when: NDArray[np.float64] | None = None) -> Iterator[LabelledFrame]:
        """Busy hands that draw no gesture. when: at these shares of the seconds, 0..1, not at the model's rate."""
        if when is None:
            return self.performance(seconds, NEVER_S, BUSY)
        return self._show(*self._set_scene(NEVER_S, BUSY), self._rng.uniform(0, JOINED_WITHIN_S) + seconds * when)

    def whole_action(self, when: NDArray[np.float64]) -> Iterator[LabelledFrame]:
        """A gesture at these shares of it, 0..1."""
        scene, script = self._set_scene((0.6, 1.5), IDLE)
        span = script.spans(3.0)[0]
        return self._show(scene, script, span.started_at + when * (span.ended_at - span.started_at))

    def _set_scene(self, idle_s: tuple[float, float], idle: Mapping[str, float]) -> tuple[Scene, Script]:
        """A place, and what a hand does there."""
        rng, size_hw = self._rng, self._size_hw
        backdrop = self._other_place() if rng.random() < 0.6 else None
        if backdrop is not None and rng.random() < 0.5:
            backdrop = np.ascontiguousarray(backdrop[:, ::-1])
        return Scene(rng, size_hw, backdrop), Script(
            rng, strokes=self._stroke, labels=tuple(self._sources.drawable) or LABELS, idle_s=idle_s, idle=idle,
            strays=distinct_stray, aspect=size_hw[1] / size_hw[0])

    def _show(self, scene: Scene, script: Script, times_s: NDArray[np.floating],
              grace_s: float = 0.0) -> Iterator[LabelledFrame]:
        """What a performance looks like at these moments."""
        light = self._augmentation()
        for t_s in times_s.tolist():
            pose = script.pose(t_s)
            tip = pose.tip_xy if pose.tip_xy is not None and all(0 <= v <= 1 for v in pose.tip_xy) else None
            image = light.change_light(scene.draw(pose, t_s))
            spans = script.spans(t_s + 1e-6)
            span = spans[-1] if spans else None
            if span is not None and span.ended_at >= t_s:
                progress = (t_s - span.started_at) / (span.ended_at - span.started_at)
                yield LabelledFrame(image, self._sources.drawable[span.label], progress, gesture=len(spans) - 1,
                                    tip_xy=tip)
            else:
                grace = span is not None and t_s - span.ended_at < grace_s
                yield LabelledFrame(image, self._sources.background, weight=float(not grace), tip_xy=tip)

    def _stroke(self, label: str, rng: np.random.Generator) -> tuple[NDArray[np.float64], float]:
        """A recorded human stroke where there is one, a made one otherwise and sometimes."""
        made, duration_s = stroke(label, rng)
        recorded = self._sources.strokes.get(label, ())
        if not len(recorded) or rng.random() < 0.3:
            return made, duration_s
        points = choose(recorded, rng).astype(np.float64)
        return points / max(float(np.ptp(points, axis=0).max()), 1.0), duration_s
