"""mindlab.report: rows, refusals, the tracks apart, and a page that stands alone."""

import json
import math
import re
import shutil
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest

from mindlab import report
from mindlab.common.errors import UserError
from mindlab.evaluation.metrics import evaluate, paired_differences
from mindlab.evaluation.predictions import read_predictions
from mindlab.evaluation.slices import masks, measure_slices
from mindlab.report.plots import place_labels
from tests import handmade
from tests.handmade import make_impressions, make_news, random_impressions

NEWS = make_news([f"title {i}" for i in range(40)])
IMPRESSIONS = random_impressions(np.random.default_rng(0), n=120)
LOSSES = [{"current_steps": i, "loss": 2.0 + 1.0 / i, "lr": 1e-4} for i in range(1, 41)]
TUNED, BASE = "smollm2-next_click-lora", "smollm2-next_click-base"
VOID = ("meta", "link", "br", "img")


make_run = partial(handmade.make_run, impressions=IMPRESSIONS)


@pytest.fixture
def runs(tmp_path):
    model = {"params": 134_515_008, "train_seconds": None, "ms_per_impression": 812.0}
    return [
        make_run(tmp_path / "random", 0.0, 1),
        make_run(tmp_path / "popularity", 0.2, 2),
        make_run(tmp_path / "popularity-streaming", 1.5, 3, track="streaming"),
        make_run(tmp_path / "category", 0.8, 4),
        make_run(tmp_path / BASE, 0.5, 5, tokens_per_impression=640.5, **model),
        make_run(
            tmp_path / TUNED, 0.55, 5, request={"adapter": "saves/x"}, **model | {"train_seconds": 90.0}
        ),
        make_run(tmp_path / "oracle", 4.0, 6, track="ceiling"),
    ]


@pytest.fixture
def board(runs):
    context = {"title": "A title", "synthetic": True, "command": "make demo", "data": "data/sample"}
    return report.leaderboard(runs, pairs=[(TUNED, BASE)], context=context)


class Page(HTMLParser):
    """The tags of a page, its texts by section, and whether every tag is closed in order."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.section, self.texts = [], [], "", {}
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs)["id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.setdefault(self.section, []).append(data)

    def text(self, section):
        return " ".join(self.texts.get(section, []))

    def of_class(self, tag, name):
        return [
            attrs for found, attrs in self.tags if found == tag and name in attrs.get("class", "").split()
        ]


def test_few_users_are_named_as_few(tmp_path):
    said = {}
    for n_users in (29, 30):
        rows = random_impressions(np.random.default_rng(1), n=300, n_users=n_users)
        run = handmade.make_run(tmp_path / str(n_users), 1.0, 1, impressions=rows)
        said[n_users] = " ".join(report.remarks(report.leaderboard([run])))
    assert "29 users are few" in said[29]
    assert "are few" not in said[30]


def test_a_row_holds_what_metrics_and_manifest_say(tmp_path):
    run = make_run(tmp_path / "tfidf", 0.7, params=7)
    row = report.leaderboard_row(run)
    frame = read_predictions(run / "predictions.parquet")
    found = evaluate(frame).summary
    for metric in ("auc", "mrr", "ndcg5", "ndcg10"):
        for end in ("", "_low", "_high"):
            assert row[metric + end] == found[metric + end] is not None
    assert row["auc_low"] < row["auc"] < row["auc_high"]
    expected = {
        "name": "tfidf", "protocol": "dev", "track": "static", "n_impressions": 120, "seeds": 1, "params": 7,
        "subset_sha": found["subset_sha"], "accuracy": None, "train_seconds": 1.5, "ms_per_impression": 0.25,
        "peak_mb": 300, "run": run.as_posix(),
    }  # fmt: skip
    assert {key: row[key] for key in expected} == expected


def test_the_page_shows_slices(board, tmp_path):
    train = random_impressions(np.random.default_rng(1), n=20, n_users=10)
    slices = measure_slices(board["evaluations"], masks(IMPRESSIONS, train, NEWS))
    page = Page(report.write_leaderboard(tmp_path, board, slices=slices))
    assert page.open == []
    shown = page.text("slices")
    row = next(row for row in slices if row["slice"] == "1-9")
    assert f"{row['methods'][TUNED]['mean']:.3f}" in shown
    assert "Clicks in the history" in shown
    assert json.loads((tmp_path / "slices.json").read_text("utf-8"))[0]["question"] == "user"
    assert "slices" not in Page(report.write_leaderboard(tmp_path / "none", board)).texts


def test_the_page_shows_what_a_p_yes_is_worth(runs, tmp_path):
    run = make_run(tmp_path / "smollm2-pointwise-lora", 1.0, 7, request={"format": "pointwise"})
    board = report.leaderboard([*runs, run])
    rows = {row["name"]: row for row in board["rows"]}
    found = rows[run.name]["calibration"]
    assert [row["name"] for row in board["rows"] if row["calibration"]] == [run.name]
    shown = Page(report.write_leaderboard(tmp_path, board)).text("calibration")
    assert f"{found['brier']:.3f}" in shown
    assert f"P(Yes) {found['bins'][-1]['mean']:.3f}" in shown
    assert f"{found['bins'][-1]['share']:.3f}" in shown
    assert "calibration" not in Page(report.write_leaderboard(tmp_path, report.leaderboard(runs))).texts


def test_seeds_are_pooled(tmp_path):
    run = make_run(tmp_path / "nrms", 0.7, 1)
    others = [make_run(tmp_path / f"other-{seed}", 0.7, seed) for seed in (2, 3)]
    alone = [report.measure(one).row["auc"] for one in (run, *others)]
    for i, other in enumerate(others):
        shutil.copyfile(other / "predictions.parquet", run / f"predictions-{i + 2}.parquet")
    pooled = report.measure(run)
    assert pooled.row["seeds"] == 3
    assert pooled.row["auc"] == pytest.approx(np.mean(alone))
    assert pooled.evaluation.summary["auc_seed_sd"] == pytest.approx(np.std(alone, ddof=1))
    assert pooled.row["auc_low"] < pooled.row["auc"] < pooled.row["auc_high"]
    make_run(tmp_path / "short", 0.7, impressions=IMPRESSIONS.take(np.arange(50)))
    shutil.copyfile(tmp_path / "short/predictions.parquet", run / "predictions-3.parquet")
    with pytest.raises(UserError, match="different impressions"):
        report.measure(run)


def test_a_cost_the_manifest_does_not_name_is_none(tmp_path):
    run = make_run(tmp_path / "a", 0.5)
    (run / "manifest.json").write_text('{"name": "a", "protocol": "dev", "track": "static"}')
    row = report.leaderboard_row(run)
    assert [row[k] for k in ("params", "train_seconds", "ms_per_impression", "peak_mb")] == [None] * 4
    report.write_leaderboard(tmp_path / "out", report.leaderboard([run]))  # no column must break the page


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "a number without a manifest is not shown"),
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ('{"name": "a", "track": "static"}', "protocol is None"),
        ('{"name": "a", "protocol": "dev", "track": "both"}', "expected one of static, streaming, ceiling"),
        ('{"name": "a", "protocol": "dev", "track": "static", "params": "<b>"}', "params is '<b>'"),
        (
            '{"name": "a", "protocol": "dev", "track": "static", "seconds": 1, "peak_mb": NaN}',
            "peak_mb is nan",
        ),
    ],
)
def test_a_run_without_a_sound_manifest_is_refused(tmp_path, text, said):
    run = make_run(tmp_path / "a", 0.5)
    (run / "manifest.json").unlink()
    if text is not None:
        (run / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(said)):
        report.leaderboard_row(run)


def test_missing_folder_and_missing_predictions_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such run folder"):
        report.leaderboard_row(tmp_path / "nothing")
    run = make_run(tmp_path / "a", 0.5)
    (run / "predictions.parquet").unlink()
    with pytest.raises(UserError, match=r"predictions\.parquet: no such file"):
        report.leaderboard_row(run)


def test_protocols_and_impressions_are_not_mixed(tmp_path):
    one = make_run(tmp_path / "one", 0.5)
    other = make_run(tmp_path / "other", 0.5, protocol="sampled-impression")
    with pytest.raises(UserError, match="dev and sampled-impression do not go into one table"):
        report.leaderboard([one, other])
    fewer = make_run(tmp_path / "fewer", 0.5, impressions=IMPRESSIONS.take(np.arange(100)))
    with pytest.raises(UserError, match="scored different impressions"):
        report.leaderboard([one, fewer])
    as_many = make_run(tmp_path / "as-many", 0.5, impressions=IMPRESSIONS.take(np.arange(20, 120)))
    with pytest.raises(UserError, match="scored different impressions"):
        report.leaderboard([fewer, as_many])


def test_names_that_are_twice_or_nowhere_are_refused(runs, tmp_path):
    with pytest.raises(UserError, match="both are named random"):
        report.leaderboard([*runs, make_run(tmp_path / "x" / "random", 0.1)])
    with pytest.raises(UserError, match="no run named tfidf"):
        report.leaderboard(runs, reference="tfidf")
    with pytest.raises(UserError, match="no run named nobody"):
        report.leaderboard(runs, pairs=[(TUNED, "nobody")])
    with pytest.raises(UserError, match="no run given"):
        report.leaderboard([])
    with pytest.raises(UserError, match="different tracks"):
        report.leaderboard(runs, pairs=[("popularity-streaming", "popularity")])


def test_rows_are_sorted_within_their_track_and_the_oracle_is_last(board):
    parts = {title: rows for title, _, rows in report.blocks(board)}
    assert list(parts) == ["static", "streaming", "ceiling"]
    static = [row["auc"] for row in parts["static"]]
    assert static == sorted(static, reverse=True)
    assert len(static) == 5
    # Both beat every static row, and yet stand below.
    streaming, oracle = parts["streaming"][0], parts["ceiling"][0]
    assert streaming["name"] == "popularity-streaming"
    assert max(static) < streaming["auc"] < oracle["auc"]
    assert [row["name"] for row in board["rows"]][-2:] == ["popularity-streaming", "oracle"]
    assert parts["static"][0]["name"] == "category"


def test_paired_differences_are_those_of_metrics_and_stay_on_their_track(board, runs):
    tables = {run.name: read_predictions(run / "predictions.parquet") for run in runs}
    found = {name: evaluate(t) for name, t in tables.items()}
    expected = paired_differences(found[TUNED], found[BASE])
    rows = {row["name"]: row for row in board["rows"]}
    entry = next(p for p in rows[TUNED]["paired"] if p["against"] == BASE)
    of_clicked = found[TUNED].shares["auc"].of_clicked(found[BASE].shares["auc"])
    assert entry.pop("by_users")["mean"] == pytest.approx(expected["auc"]["mean"])
    assert entry == {"against": BASE, **expected, "of_clicked": of_clicked}
    assert math.isclose(entry["auc"]["mean"], rows[TUNED]["auc"] - rows[BASE]["auc"], abs_tol=1e-12)
    assert board["reference"] == "popularity"
    assert [p["against"] for p in rows["category"]["paired"]] == ["popularity"]
    assert (
        rows["popularity"]["paired"]
        == rows["popularity-streaming"]["paired"]
        == rows["oracle"]["paired"]
        == []
    )
    assert [p["against"] for p in report.leaderboard(runs, "category")["rows"][1]["paired"]] == ["category"]


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.01, 0.02, "includes 0: this run does not show a gain"),
        (0.0, 0.02, "includes 0: this run does not show a gain"),
        (0.01, 0.02, "excludes 0: this run shows a gain"),
        (-0.02, -0.01, "excludes 0: this run shows a loss"),
        (None, None, "this run shows nothing"),
    ],
)
def test_the_verdict_says_no_more_than_the_interval(low, high, said):
    assert report.verdict({"mean": 0.01, "low": low, "high": high}).endswith(said)


def test_text_and_markdown_show_the_numbers_and_the_warning(board):
    text, markdown = report.as_text(board), report.as_markdown(board)
    for row in board["rows"]:
        number = f"{row['auc']:.3f} [{row['auc_low']:.3f}, {row['auc_high']:.3f}]"
        line = next(line for line in text.splitlines() if line.startswith(f"{row['name']} "))
        assert number in line
        assert f"| {row['name']} | {number} |" in markdown.replace("\\", "")
    places = [text.index(word) for word in ("static:", "category", "streaming:", "ceiling:", "\noracle")]
    assert places == sorted(places)
    for shown in (text, markdown):
        assert "ranks methods on this generator, not on MIND" in shown
        assert "fewer than 3 training seeds" in shown
        assert report.verdict(board["rows"][0]["paired"][0]["auc"]).split(":")[0] in shown
    ends = {len(line) for line in text.splitlines() if re.match(r"(random|category|oracle) {2}.*\d$", line)}
    assert len(ends) == 1  # aligned across the blocks
    real = report.leaderboard([row["run"] for row in board["rows"]])
    assert "generator, not on MIND" not in report.as_text(real) + report.as_markdown(real)


def test_the_files_are_written_and_the_json_is_the_rows(board, tmp_path):
    page = report.write_leaderboard(tmp_path / "out", board, LOSSES)
    assert page == tmp_path / "out" / "report.html"
    assert json.loads((tmp_path / "out" / "leaderboard.json").read_text()) == board["rows"]
    assert (tmp_path / "out" / "leaderboard.md").read_text() == report.as_markdown(board)


def test_the_page_is_whole_and_stands_alone(board, tmp_path):
    page = Page(report.write_report(tmp_path / "report.html", board, LOSSES))
    assert page.open == []
    assert page.source.startswith("<!DOCTYPE html>")
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in [a for _, a in page.tags]
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for _, attrs in page.tags:
        assert not {"src", "href", "xlink:href", "action", "data"} & set(attrs)
    assert not re.search(r"url\(|@import|https?://", page.source)
    assert "nan" not in re.findall(r"[a-z]+", " ".join(str(a) for tag, a in page.tags if tag != "section"))


def test_the_numbers_of_the_page_are_those_of_the_rows(board, tmp_path):
    page = Page(report.write_report(tmp_path / "report.html", board))
    table = page.text("table").replace("−", "-")
    for row in board["rows"]:
        cells = [
            f"{row[m]:.3f} [{row[f'{m}_low']:.3f}, {row[f'{m}_high']:.3f}]"
            for m in ("auc", "auc_appeal", "auc_personal", "mrr", "ndcg5", "ndcg10")
        ]
        assert f"{row['name']} {' '.join(cells)}" in table
    difference = next(p["auc"] for row in board["rows"] for p in row["paired"] if p["against"] == BASE)
    gain = page.text("gain").replace("−", "-")
    assert f"{difference['mean']:+.3f}" in gain
    assert f"[{difference['low']:+.3f}, {difference['high']:+.3f}]" in gain
    assert report.verdict(difference)[1:] in gain
    assert "135 M 1 90.0 s 812" in page.text("cost")
    assert "640.5" not in page.text("cost")  # three digits are enough
    assert "640" in page.text("cost")
    assert len(page.of_class("circle", "dot")) == 7 + 6  # the forest has the oracle, the costs do not
    for word in ("make demo", "abc123", "numpy 2.0.0", "3.11.9", board["subset_sha"]):
        assert word in page.text("remake")
    assert "generator, not on MIND" in page.text("")


def test_the_dots_of_the_forest_stand_in_the_order_of_auc(board, tmp_path):
    page = Page(report.write_report(tmp_path / "report.html", board))
    x = [float(attrs["cx"][:-1]) for attrs in page.of_class("circle", "dot")[:7]]
    assert np.argsort(x).tolist() == np.argsort([row["auc"] for row in board["rows"]]).tolist()
    assert page.of_class("line", "grid")[0]["x1"] == "0.00%"
    # 0.5 lies where a line between two dots puts it.
    first, last = board["rows"][0], board["rows"][-1]
    chance = float(page.of_class("line", "chance")[0]["x1"][:-1])
    slope = (x[-1] - x[0]) / (last["auc"] - first["auc"])
    assert math.isclose(chance, x[0] + slope * (0.5 - first["auc"]), abs_tol=0.1)


def test_the_loss_curve_has_every_logged_step(board, tmp_path):
    rows = [*LOSSES, {"current_steps": 41, "loss": float("nan")}, {"current_steps": 42, "eval_loss": 1.0}]
    page = Page(report.write_report(tmp_path / "report.html", board, rows))
    raw, smooth = (page.of_class("polyline", kind) for kind in ("raw", "smooth"))
    points = [tuple(map(float, point.split(","))) for point in raw[0]["points"].split()]
    assert len(points) == len(smooth[0]["points"].split()) == len(LOSSES)
    heights = [y for _, y in points]
    assert heights == sorted(heights)  # downwards on the page: the loss falls
    assert "Left out: 1 values" in page.text("loss")
    for nothing in (None, [], [{"current_steps": 1, "loss": float("nan")}]):
        page = Page(report.write_report(tmp_path / "report.html", board, nothing))
        assert page.text("loss") == ""
    page = Page(report.write_report(tmp_path / "report.html", board, LOSSES[:1]))
    assert page.text("loss") != ""
    assert page.of_class("polyline", "raw") == []


def test_names_and_titles_are_shown_as_text(tmp_path):
    bad = '<b>x</b>"&|'
    run = make_run(tmp_path / "r", 0.5, name=bad, command="<i>y</i>", packages={"<u>": "<s>"})
    base = make_run(tmp_path / "base", 0.1, 2, name="<em>")
    context = {"title": "<b>t</b>", "data": "<b>d</b>", "command": "<b>c</b>", "notes": ["<b>n</b>"]}
    found = report.leaderboard([run, base], "<em>", [(bad, "<em>")], context=context)
    page = Page(report.write_report(tmp_path / "r.html", found, LOSSES, tutorial={bad: {"accuracy": 0.5}}))
    assert not {"i", "u", "s", "em"} & {tag for tag, _ in page.tags}
    for section in ("gain", "table", "forest", "cost", "tutorial", "remake"):
        assert bad in page.text(section)
        assert "<b>" in page.text(section)
    assert all(
        f"<b>{letter}</b>" in page.text("") + page.text("table") + page.text("remake") for letter in "tdcn"
    )
    markdown = report.as_markdown(found)
    assert "<b>" not in markdown
    assert '| &lt;b&gt;x&lt;/b&gt;"&amp;\\| |' in markdown
    assert "\x1b" not in report.as_text(
        report.leaderboard([make_run(tmp_path / "e", 0.5, name="a\x1b[2J\nb")])
    )


def test_accuracy_alone_is_drawn_as_accuracy(tmp_path):
    one_each = make_impressions([(f"U{i}", i, [], [i], [i % 4 == 0]) for i in range(40)])
    runs = [
        make_run(tmp_path / "weak", 0.5, impressions=one_each, protocol="seed"),
        make_run(tmp_path / "strong", 9.0, impressions=one_each, protocol="seed"),
    ]
    found = report.leaderboard(runs, pairs=[("strong", "weak")])
    assert [row["name"] for row in found["rows"]] == ["strong", "weak"]
    assert found["rows"][0]["auc"] is None
    assert found["rows"][0]["accuracy"] > found["rows"][1]["accuracy"]
    page = Page(report.write_report(tmp_path / "report.html", found))
    assert "Accuracy with 95 % intervals" in page.text("forest")
    assert "AUC" not in page.text("forest")
    assert "accuracy" in page.text("gain")
    assert f"{found['rows'][0]['accuracy']:.3f}" in page.text("table")
    assert "accuracy [95 %]" in report.as_text(found)


def test_the_tutorials_rows_have_a_section_of_their_own(board, tmp_path):
    rows = {
        "always No": {"accuracy": 0.89, "precision": None, "recall": 0.0, "n": 5000},
        "leak rule": {"accuracy": 0.979, "accuracy_low": 0.975, "accuracy_high": 0.983,
                      "precision": 1.0, "recall": 0.8114, "n_answers": 5000},
    }  # fmt: skip
    page = Page(report.write_report(tmp_path / "report.html", board, tutorial=rows))
    assert "always No 0.890 – 0.000 5,000" in page.text("tutorial")
    assert "leak rule 0.979 [0.975, 0.983] 1.000 0.811 5,000" in page.text("tutorial")
    assert Page(report.write_report(tmp_path / "report.html", board)).text("tutorial") == ""


def test_a_misspelt_context_is_refused(board, tmp_path):
    with pytest.raises(ValueError, match="unknown context sythetic"):
        report.write_report(tmp_path / "report.html", board, context={"sythetic": True})
    assert not (tmp_path / "report.html").exists()


def test_names_in_the_cost_plot_do_not_overlap():
    rng = np.random.default_rng(0)
    points = [
        (float(x), float(y)) for x, y in zip(rng.uniform(0, 100, 9), rng.uniform(20, 300, 9), strict=True)
    ]
    points.append(points[0])
    names = ["a-name-of-16-let"] * 10
    boxes = []
    for (x, y), (side, moved) in zip(points, place_labels(points, names, 320.0), strict=True):
        left, right = sorted((6 * x + 8 * side, 6 * x + 8 * side * 17))
        boxes.append((left, right, y + moved - 8, y + moved + 8))
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]


def test_rows_of_the_sample_and_of_mind_are_not_mixed(tmp_path):
    one, other = (
        make_run(tmp_path / name, 0.5, inputs_sha256={f"data/{name}/dev/behaviors.tsv": name})
        for name in ("sample", "MINDsmall")
    )
    assert report.leaderboard([one])["rows"]
    with pytest.raises(UserError, match="rows of different data do not go into one table"):
        report.leaderboard([one, other])
