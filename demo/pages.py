"""The pages around Live: Video and Model, made with Gradio. Nothing is fetched from anywhere else."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before it is imported

import gradio as gr
import pandas as pd
from fastapi import FastAPI

import engines
from demo.theme import HEAD, header_html, make_theme
from demo.trainer import Trainer
from demo.video_results import recognize_video, render_track
from engines.bench.doctor import doctor
from engines.bench.stages import bench, format_lines
from engines.errors import GatestreamError
from engines.model.contract import Contract
from engines.model.file import Model
from engines.runtime.temporary import temporary_dir
from stream.recognizer import Recognizer
from stream.scoring import Scorer

LARGEST = "4gb"  # of a video
KEPT_S = 24 * 3600  # what was made of a video, and Gradio's copy of it


def mount_pages(app: FastAPI, engine: str, trainer: Trainer) -> FastAPI:
    """The application with the pages in it."""
    async def mount() -> FastAPI:
        return gr.mount_gradio_app(app, pages(engine, trainer), path="/", theme=make_theme(), head=HEAD,
                                   footer_links=[], max_file_size=LARGEST, ssr_mode=False, show_error=True)

    # Where no event loop runs, Gradio opens one for each of its locks and closes none of them.
    with ThreadPoolExecutor(1) as elsewhere:
        return elsewhere.submit(asyncio.run, mount()).result()


def pages(engine: str, trainer: Trainer) -> gr.Blocks:
    """All pages, a tab each."""
    with gr.Blocks(title="gatestream", analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S)) as blocks:
        gr.HTML(header_html(), padding=False)
        with gr.Tab("Live"):
            gr.HTML('<iframe class="page" src="/live" title="Live" allow="camera"></iframe>')
        with gr.Tab("Video"):
            _video(engine, trainer)
        with gr.Tab("Cameras"):
            gr.HTML('<iframe class="page" src="/cameras" title="Cameras"></iframe>')
        with gr.Tab("Teach"):
            gr.HTML('<iframe class="page" src="/teach" title="Teach" allow="camera"></iframe>')
        with gr.Tab("Model"):
            _model(engine, trainer)
    return blocks


def _video(engine: str, trainer: Trainer) -> None:
    upload = gr.File(label="A video", file_types=["video"], type="filepath")
    message = gr.Markdown()
    with gr.Column(visible=False) as results:
        summary = gr.Markdown()
        player = gr.Video(label="The video", elem_id="player", interactive=False)
        line = gr.HTML()
        table = gr.Dataframe(headers=["label", "from s", "to s", "score"], label="Events", interactive=False)
        curves = gr.LinePlot(x="seconds", y="score", color="label", y_lim=[0, 1], height=320,
                             label="Scores over the last seconds")
        files = gr.File(label="To take away: events as CSV, JSON lines and subtitles, and the video with them drawn in",
                        file_count="multiple", interactive=False)

    def show(path: str | None, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
        if path is None:
            yield {results: gr.update(visible=False), message: ""}
            return
        with temporary_dir() as folder:  # Gradio copies what is yielded
            try:
                with Recognizer.open(trainer.model, engine, slots=1) as recognizer:
                    found = recognize_video(recognizer, Path(path), folder, progress)
            except GatestreamError as error:
                why = str(error).replace(path, Path(path).name)
                yield {results: gr.update(visible=False), message: f"**This video cannot be recognised:** {why}."}
                return
            events = "1 event" if len(found.events) == 1 else f"{len(found.events)} events"
            yield {results: gr.update(visible=True), message: "", player: path,
                   summary: f"**{events}** in {found.seconds:.0f} s. Press one to jump to it.",
                   line: render_track(found, "#player video"),
                   table: [[event.label, round(event.started_at, 2), round(event.ended_at, 2), round(event.score, 2)]
                           for event in found.events],
                   curves: pd.DataFrame(found.curves, columns=["seconds", "label", "score"]),
                   files: [str(file) for file in (*found.files, found.annotated)]}

    upload.change(show, upload, [results, message, summary, player, line, table, curves, files])


def _model(engine: str, trainer: Trainer) -> None:
    with gr.Row():  # a function instead of a value: asked whenever the page is opened
        with gr.Column(scale=3):
            gr.Markdown(lambda: _card(engines.load(trainer.model)))
        with gr.Column(scale=2):
            gr.Dataframe(lambda: _facts(engines.load(trainer.model).contract), headers=["what", "value"],
                         label="Contract", interactive=False, wrap=True, column_widths=["40%", "60%"])
            prove = gr.Button("Prove it on this machine")
            checks = gr.Dataframe(headers=["check", "result", "what was found"], label="Doctor", interactive=False,
                                  wrap=True)
            measure = gr.Button("Measure its speed on this machine")
            speed = gr.Code(label="Bench", language=None, interactive=False, visible=False)

    def prove_it() -> Any:
        rows: list[list[str]] = []
        for check in doctor(trainer.model):
            rows.append([check.name, "ok" if check.ok else "FAIL", check.detail])
            yield list(rows)

    def measure_it() -> Any:
        yield gr.update(visible=True, value="measuring for about a minute ...")
        model = engines.load(trainer.model)
        yield gr.update(value="\n".join(format_lines(bench(model, engine, fuse=Scorer(model).score))))

    prove.click(prove_it, None, checks)
    measure.click(measure_it, None, speed)


def _card(model: Model) -> str:
    card = model.path.with_suffix(".md") if model.path is not None else None
    return card.read_text(encoding="utf-8") if card is not None and card.is_file() else f"# {model.contract.name}"


def _facts(contract: Contract) -> list[list[str]]:
    height, width = contract.input_size_hw
    rule = contract.events
    return [["architecture", contract.architecture],
            *([f"labels of {head}", ", ".join(labels)] for head, labels in contract.heads.items()),
            ["input", f"{width} x {height} pixels, {contract.frame_rate:g} frames/s"],
            ["window", f"{contract.window_clips} clips of {contract.clip_frames} frames"],
            *([["looks at", "the hands in the whole picture, too"]] if contract.looks_for_hands else []),
            ["an event opens above", f"{rule.open_above:g}"], ["and closes below", f"{rule.close_below:g}"],
            ["it lasts", f"{rule.min_duration_s:g} s or more"], ["its score is", f"{rule.min_score:g} or more"],
            ["nothing is called", contract.background or "(no label)"]]
