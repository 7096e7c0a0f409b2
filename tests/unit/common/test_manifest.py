"""mindlab.common.manifest: tokens stay out of what is kept, and rows of different data out of one table."""

import json
import sys

import pytest

from mindlab.common import cli
from mindlab.common import manifest as runs
from mindlab.common.errors import UserError
from mindlab.finetune import factory
from mindlab.runs import notebook

PLANTED = "Zm9vYmFyMTIzNDU2Nzg5"  # looks like nothing: only the variable's name tells


@pytest.fixture(params=["HF_TOKEN", "API_KEY", "WANDB_API_KEY", "MODELSCOPE_API_TOKEN"])
def planted(request, monkeypatch):
    monkeypatch.setenv(request.param, PLANTED)
    return PLANTED


def test_a_planted_token_is_in_no_manifest(planted, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["predict.py", "--data", f"https://x:{planted}@hub/data"])
    assert planted not in json.dumps(runs.provenance())
    assert runs.provenance()["command"] == "predict.py --data https://x:[secret]@hub/data"


def test_a_planted_token_is_in_no_error_text(planted, capsys):
    def main():
        raise UserError(f"the hub answers 401 to {planted}")

    with pytest.raises(SystemExit):
        cli.run(main)
    assert capsys.readouterr().err == "error: the hub answers 401 to [secret]\n"


def test_a_planted_token_is_in_no_notebook_output(planted):
    import nbformat

    cell = nbformat.v4.new_code_cell("print(token)")
    cell.outputs = [nbformat.v4.new_output("stream", text=f"logged in with {planted}\n")]
    book = nbformat.v4.new_notebook(cells=[cell])
    notebook.normalise(book)
    assert book.cells[0].outputs[0]["text"] == "logged in with [secret]\n"


def test_a_planted_token_is_in_no_log_of_a_training(planted, tmp_path):
    log = tmp_path / factory.OUTPUT
    log.write_text(f"Authorization: Bearer {planted}\nloss 2.5\n", encoding="utf-8")
    factory.hide_secrets(log)
    assert log.read_text(encoding="utf-8") == "Authorization: Bearer [secret]\nloss 2.5\n"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("hf_abcdefghijklmnopqrstuvwx", "[secret]"),
        ("x.py --hub-token abcdefghijklmnop1 --limit 3", "x.py --hub-token [secret] --limit 3"),
        ("token=abcdefghijklmnop1&x=2", "token=[secret]"),
        ("predict.py --per-token --limit 100 --token-budget 512", None),
        ("models/smollm2-135m, the token is not valid: run `hf auth login`, or set HF_TOKEN", None),
    ],
)
def test_what_looks_like_a_token_goes_and_the_rest_stays(text, clean):
    assert runs.without_secrets(text) == (text if clean is None else clean)


def test_different_data_do_not_go_together():
    mine = {"inputs_sha256": {"data/sample/dev/behaviors.tsv": "a", "models/m/config.json": "1"}}
    moved = {"inputs_sha256": {"/elsewhere/dev/behaviors.tsv": "a", "models/other/config.json": "2"}}
    mind = {"inputs_sha256": {"data/raw/MINDsmall/dev/behaviors.tsv": "b"}}
    runs.check_same_data({"one": mine, "two": moved, "old": {}})
    with pytest.raises(
        UserError, match=r"MINDsmall/dev/behaviors.tsv: three read other contents than one.*--data"
    ):
        runs.check_same_data({"one": mine, "two": moved, "three": mind})
