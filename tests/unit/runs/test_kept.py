"""mindlab.runs.kept: what is copied for the repository, and the table between a document's marks."""

from pathlib import Path

import pytest

from mindlab.common.errors import UserError
from mindlab.runs import kept


@pytest.fixture
def document(tmp_path):
    file = tmp_path / "table.md"
    file.write_text("before\n<!-- runs/a -->\nold\n<!-- /runs/a -->\nafter\n")
    return file


def test_only_the_table_between_the_marks_changes(document):
    for _ in range(2):  # and again the same
        kept.update(document, Path("runs/a"), "new\n")
        assert document.read_text() == "before\n<!-- runs/a -->\n```\nnew\n```\n<!-- /runs/a -->\nafter\n"


def test_a_document_without_marks_is_left_alone(document):
    before = document.read_text()
    with pytest.raises(UserError, match=r"table\.md: has no <!-- runs/b --> and <!-- /runs/b --> marks"):
        kept.update(document, Path("runs/b"), "new")
    assert document.read_text() == before


def test_a_run_and_its_adapter(tmp_path, monkeypatch):
    run, adapter = tmp_path / "run", tmp_path / "training"
    for folder, names in {
        run: ("manifest.json", "predictions.parquet", "predictions-2.parquet", "report.html"),
        adapter: (*kept.OF_ADAPTER, "adapter_model.safetensors", "optimizer.pt"),
    }.items():
        folder.mkdir()
        for name in names:
            (folder / name).write_text(name)
    kept.keep_run(run, tmp_path / "kept")
    kept.keep_adapter(adapter, tmp_path / "kept/run")
    found = {path.name for path in (tmp_path / "kept/run").iterdir()}
    assert found == {"manifest.json", "predictions.parquet", "predictions-2.parquet", "adapter"}
    weights = {path.name for path in (tmp_path / "kept/run/adapter").iterdir()} - set(kept.OF_ADAPTER)
    assert weights == {"adapter_model.safetensors"}
    monkeypatch.setattr(kept, "LARGEST_KEPT", 3)
    kept.keep_adapter(adapter, tmp_path / "large")
    assert {path.name for path in (tmp_path / "large/adapter").iterdir()} == set(kept.OF_ADAPTER)
