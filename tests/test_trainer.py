"""The page's trainer: versions are trained, used, undone; what cannot be used does not count."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from demo import trainer as module
from demo.clip_store import ClipStore
from demo.trainer import Trainer
from engines.errors import DatasetError, ModelError, UsageError


def wait(trainer: Trainer) -> None:
    trainer._thread.join(60)
    assert not trainer.state()["busy"]


class TestTrainer:
    def test_a_model_that_cannot_be_used_does_not_count(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        used: list[str] = []

        def use(model: str) -> None:
            used.append(model)
            if len(used) == 2:
                raise DatasetError("this one", "another one", "learn again")

        class Outcome:
            def as_json(self) -> dict[str, int]:
                return {"recordings": len(used)}

        monkeypatch.setattr(module, "teach_folder", lambda model, folder, out, **_: out.write_bytes(b"1") and Outcome())
        trainer = Trainer(ClipStore(tmp_path), "gesture", "auto", use)
        models = [trainer.model]
        for work in (trainer.train, trainer.train, trainer.train, trainer.undo, trainer.undo):
            work()
            wait(trainer)
            models.append(Path(trainer.model).name)
            assert (trainer.state()["error"] != "") == (len(models) == 3)
        assert models == ["gesture", "1.safetensors", "1.safetensors", "2.safetensors", "1.safetensors", "gesture"]
        assert [Path(model).name for model in used] == [
            "1.safetensors", "2.safetensors", "2.safetensors", "1.safetensors", "gesture"]
        with pytest.raises(UsageError, match="nothing learnt"):
            trainer.undo()

    def test_a_learnt_model_that_does_not_open_is_passed_over(self, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
        def learn(model: str, folder: Path, out: Path, **_: Any) -> SimpleNamespace:
            out.write_bytes(b"new")
            return SimpleNamespace(as_json=dict)

        def open_model(model: str) -> str:
            if model != "gesture" and Path(model).read_bytes() == b"spoilt":
                raise ModelError(f"{model}, spoilt", "a model", "learn again")
            return model

        monkeypatch.setattr(module, "teach_folder", learn)
        trainer = Trainer(ClipStore(tmp_path), "gesture", "auto", lambda model: None)
        folder = trainer._folder
        folder.mkdir(parents=True)
        for name, what in (("1", b"good"), ("2", b"spoilt"), ("3", b"spoilt")):
            (folder / f"{name}.safetensors").write_bytes(what)
        assert trainer.open_newest(open_model) == trainer.model == str(folder / "1.safetensors")
        assert trainer.state()["versions"] == 1
        assert "spoilt; wanted a model" in trainer.passed_over  # which the page says
        trainer.train()
        wait(trainer)
        assert trainer.passed_over == ""
        assert trainer.model == str(folder / "4.safetensors")
        assert (folder / "3.safetensors").read_bytes() == b"spoilt"
        for path in folder.iterdir():
            path.write_bytes(b"spoilt")
        assert Trainer(ClipStore(tmp_path), "gesture", "auto", lambda model: None).open_newest(open_model) == "gesture"

    @pytest.mark.parametrize(("own", "starts"), [("gesture", ["base", "gesture"]), ("base", ["base"])])
    def test_a_lesson_starts_from_base_unless_another_start_is_chosen(
            self, own: str, starts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        taught: list[tuple[str, str, bool]] = []

        def learn(model: str, folder: Path, out: Path, *, name: str, hands: bool, **_: Any) -> SimpleNamespace:
            taught.append((model, name, hands))
            out.write_bytes(b"new")
            return SimpleNamespace(as_json=dict)

        monkeypatch.setattr(module, "teach_folder", learn)
        trainer = Trainer(ClipStore(tmp_path), own, "auto", lambda model: None)
        assert trainer.state()["starts"] == starts
        trainer.train()
        wait(trainer)
        trainer.train(starts[-1], hands=False)
        wait(trainer)
        assert taught == [("base", "base-taught", True), (starts[-1], f"{starts[-1]}-taught", False)]
        with pytest.raises(UsageError, match="one from base"):
            trainer.train("elsewhere")

    @pytest.mark.parametrize("installed", [True, False])
    def test_the_page_knows_whether_hands_can_be_looked_at(self, installed: bool, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "models_installed", lambda: installed)
        assert Trainer(ClipStore(tmp_path), "gesture", "auto", lambda model: None).state()["hands"] == installed

    def test_one_wish_at_a_time_and_faults_are_told(self, tmp_path: Path) -> None:
        go = threading.Event()
        trainer = Trainer(ClipStore(tmp_path), "gesture", "auto", lambda model: None)
        trainer._start_thread(lambda: go.wait(10) and None)
        with pytest.raises(UsageError, match="one at a time"):
            trainer.train()
        go.set()
        wait(trainer)
        trainer.train()
        wait(trainer)
        assert "no folder of a label" in trainer.state()["error"]
        trainer._start_thread(lambda: [][0])
        wait(trainer)
        assert "the server's log says why" in trainer.state()["error"]
        assert trainer.state()["versions"] == 0
