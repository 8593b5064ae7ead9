"""One page with all numbers and pictures of an evaluation. It needs no other file and no network."""

from base64 import b64encode
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from engines.model.file import write_atomically
from stream.evaluation import figures
from stream.evaluation.evaluate import EvaluationReport

STYLE = """body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em;
  color: #222 }
h1 { font-size: 1.5em } h2 { border-bottom: 1px solid #ccc; font-size: 1.2em; margin-top: 2em }
table { border-collapse: collapse; margin: 0.8em 0 } th, td { padding: 0.15em 0.9em 0.15em 0; text-align: left }
td { font-variant-numeric: tabular-nums } tr { border-bottom: 1px solid #eee } th { font-weight: 600 }
figure { display: inline-block; margin: 0.6em 1.2em 0.6em 0; vertical-align: top; max-width: 100% }
figcaption { color: #555; font-size: 0.9em } img { max-width: 100% }"""

LABELS = {"top1": "top-1", "top5": "top-5", "frame_map": "per-frame mAP",
        "false_events_per_hour": "false events an hour", "false_events": "false events"}


def write_report(path: Path, report: EvaluationReport, found: Mapping[str, Any]) -> None:
    """Writes the page. found: `report.as_json()`, and what else was found. Raises SinkError."""
    write_atomically(path, "\n".join(_page(report, found)).encode())


def _page(report: EvaluationReport, found: Mapping[str, Any]) -> Iterable[str]:
    contract = report.contract
    title = f"{contract.name} on {report.selection.name}"
    yield f"<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{escape(title)}</title>"
    yield f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>"
    yield _paragraph(f"{contract.architecture}, {contract.frame_rate:g} frames/s. Everything here was measured through "
                     "the path that live use takes.")
    for head, clips in report.clips.heads.items():
        yield f"<h2>Clips: {escape(head)}</h2>"
        numbers = found["clips"]["heads"][head]
        yield _table({name: numbers[name] for name in ("clips", "top1", "top5", "mean_class_accuracy")})
        kinds = found["clips"]["by_kind"]
        if kinds and clips is report.clips.first:
            yield _paragraph("Top-1 by kind") + _table(kinds)
        if clips.segments:
            yield _picture(figures.confusion(clips.labels, clips.confusion), "Confusion: shares of each row, counts")
            yield _picture(figures.bars(clips.per_class(), "accuracy"), "Accuracy of each class")
        curves = clips.calibration()
        if curves["after"].counts.any():
            yield _picture(figures.reliability({f"{when} temperature": curve for when, curve in curves.items()}),
                           "Reliability of the last window score (15 equally wide bins; numbers: clips)")
        yield _paragraph("Telling known labels from nothing (AUROC)") + _table(found["rejection"][head])
    if "actions" in found["clips"]:
        yield "<h2>Actions: verb and noun together</h2>" + _table(found["clips"]["actions"])
    for name, part in found.get("breakdown", {}).items():
        yield f"<h2>Top-1, {escape(name)}</h2>" + _table(part)
    yield from _streams(report, found)
    if "thresholds" in found:
        yield from _thresholds(found["thresholds"])
    if found["dataset"]["problems"]:
        yield "<h2>Problems of the annotations</h2>" + _table(found["dataset"]["problems"])
    if found["skipped"]:
        yield "<h2>Skipped</h2>" + _table({one["what"]: one["why"] for one in found["skipped"]})
    if found["clips"]["wrong"]:
        yield f"<h2>Wrong clips</h2>{_paragraph(', '.join(found['clips']['wrong']))}"
    yield "</body></html>"


def _streams(report: EvaluationReport, found: Mapping[str, Any]) -> Iterable[str]:
    for head, one in (report.stream.heads if report.stream else {}).items():
        numbers = found["stream"]["heads"][head] if "heads" in found["stream"] else found["stream"]
        yield f"<h2>Stream: {escape(head)}</h2>"
        kept = ("seconds", "gestures", "events", "matched", "taken_back", "frame_map", "false_events",
                "false_events_per_hour")
        yield _table({**{name: numbers[name] for name in kept},
                      **{f"event F1 at IoU {iou}": value for iou, value in numbers["f1_at"].items()},
                      **{f"delay after the true {end}, {which} (s)": value for end in ("start", "end")
                         for which, value in numbers[f"delay_after_{end}_s"].items()}})
        yield _picture(figures.timeline(one), "Truth (blue) and events (green: right, red: wrong), a minute a row")
        if one.pairs:
            yield _picture(figures.delays(one), "Delays of events that match the truth")
        if one.precision:
            yield _picture(figures.bars(one.precision, "average precision"), "Average precision over frames")
    for name, part in report.idles.items():
        yield f"<h2>{escape(name.replace('_', ' ').capitalize())} footage</h2>"
        yield _table({"seconds": part.first.seconds, "false events": len(part.first.events),
                      "false events an hour": part.first.false_events_per_hour})
        labels = [event.label for event in part.first.events]
        if labels:
            yield _table({label: labels.count(label) for label in sorted(set(labels))})


def _thresholds(found: Mapping[str, Any]) -> Iterable[str]:
    yield f"<h2>Thresholds for {found['max_false_events_per_hour']:g} false events an hour</h2>"
    yield _paragraph(f"The best of {found['rules_tried']} rules on {found['stream_s']:.0f} s of stream and "
                     f"{found['idle_s']:.0f} s of idle footage: the same data that is measured above.")
    yield _table({"": ["event F1", "false events an hour", *found["before"]["events"]],
                  **{name: [found[name]["f1"], found[name]["false_events_per_hour"], *found[name]["events"].values()]
                     for name in ("before", "chosen")}})


def _table(values: Mapping[str, Any]) -> str:
    """A row for each name, with its value or list of values."""
    cells = {name: "".join(f"<td>{_format(one)}</td>" for one in (value if isinstance(value, list) else [value]))
             for name, value in values.items()}
    rows = (f"<tr><th>{escape(LABELS.get(name, name.replace('_', ' ')))}</th>{row}</tr>" for name, row in cells.items())
    return f"<table>{''.join(rows)}</table>"


def _format(value: Any) -> str:
    if value is None or value != value:
        return "&ndash;"
    return escape(f"{value:.3f}" if isinstance(value, float) else str(value))


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _picture(png: bytes, caption: str) -> str:
    return (f'<figure><img src="data:image/png;base64,{b64encode(png).decode()}" alt="{escape(caption)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>")
