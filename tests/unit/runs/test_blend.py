"""Blends: standardised scores, weights that are found again, and run folders like any other."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from mindlab import report
from mindlab.common.errors import UserError
from mindlab.common.manifest import REQUEST
from mindlab.evaluation.predictions import from_scores, read_predictions, seed_files, write_predictions
from mindlab.runs.blend import Blend, blend_tables, choose_weights, make_blend, parse_blend, z_scores
from tests.handmade import make_impressions, make_news, make_run, random_impressions

NEWS = make_news([f"title {i}" for i in range(40)])
SHOWN = random_impressions(np.random.default_rng(0))
SIZES = np.diff(SHOWN.offsets)


def table(scores, shown=SHOWN, split="test"):
    return from_scores(split, shown, NEWS, scores)


def draws(seed, n=SHOWN):
    return np.random.default_rng(seed).normal(size=len(n.news))


class TestZScores:
    def test_by_hand(self):
        # 2, 4, 9: mean 5, variance (9 + 1 + 16) / 3. Then equal ones, one alone, and two.
        found = z_scores(np.array([2.0, 4, 9, 0.1, 0.1, 0.1, 7, -5, 5]), np.array([0, 3, 6, 7, 9]))
        deviation = np.sqrt(26 / 3)
        assert found[:3] == pytest.approx(np.array([-3, -1, 4]) / deviation)
        assert found[3:].tolist() == [0, 0, 0, 0, -1, 1]

    def test_mean_0_and_deviation_1_whatever_the_scale(self):
        scores, offsets = draws(1), SHOWN.offsets
        found = z_scores(scores, offsets)
        for a, b in pairwise(offsets):
            assert found[a:b] == pytest.approx((scores[a:b] - scores[a:b].mean()) / scores[a:b].std())
        assert z_scores(1e-9 * scores - 3e-9, offsets) == pytest.approx(found)
        assert z_scores(1e6 * scores + 1e6, offsets) == pytest.approx(found)

    def test_no_candidates(self):
        assert z_scores(np.zeros(0), np.zeros(1, int)).tolist() == []
        assert z_scores(np.array([1.0, 2.0]), np.array([0, 0, 2, 2])).tolist() == [-1.0, 1.0]


class TestTables:
    def test_the_weighted_sum(self):
        one, two = draws(1), draws(2)
        blend = blend_tables([table(one), table(two)], [0.25, 0.75])
        wanted = 0.25 * z_scores(one, SHOWN.offsets) + 0.75 * z_scores(two, SHOWN.offsets)
        assert blend["score"].to_numpy() == pytest.approx(wanted)
        others = [name for name in blend.column_names if name != "score"]
        assert blend.select(others).equals(table(one).select(others))

    def test_answers_do_not_remain(self):
        one = from_scores("test", SHOWN, NEWS, draws(1), ["Yes."] * len(SHOWN.news))
        assert blend_tables([one, table(draws(2))], [0.5, 0.5])["answer"].null_count == len(one)

    @pytest.mark.parametrize(
        "other",
        [
            table(draws(2), replace(SHOWN, labels=(1 - SHOWN.labels).astype(np.int8))),
            table(draws(2), replace(SHOWN, news=(SHOWN.news + 1) % 40)),
            table(draws(2), split="valid"),
            table(draws(2))[: SHOWN.offsets[-2]],
        ],
        ids=["labels", "candidates", "split", "fewer"],
    )
    def test_other_candidates_or_labels_are_refused(self, other):
        for names, said in ((None, "table 1 and table 2"), (["minilm", "category"], "minilm and category")):
            with pytest.raises(UserError, match=f"^{said} cannot be blended"):
                blend_tables([table(draws(1)), other], [0.5, 0.5], names)

    def test_one_candidate_a_case_is_refused(self):
        shown = make_impressions([("U1", 0, [0], [1], [1]), ("U2", 0, [0], [2], [0])])
        with pytest.raises(UserError, match="one each"):
            blend_tables([table(np.zeros(2), shown)] * 2, [0.5, 0.5])

    def test_weights_must_fit(self):
        with pytest.raises(ValueError, match="for 2 tables"):
            blend_tables([table(draws(1))] * 2, [1.0])


def clicked_by(beta, n=3000, seed=0, most_clicks=1):
    """Return tables of len(beta) methods, and the clicks they were drawn for: the softmax of the z-scores times beta."""
    rng = np.random.default_rng(seed)
    rows = [(f"U{i}", i, [], rng.choice(40, 8, replace=False).tolist(), [1] + [0] * 7) for i in range(n)]
    shown = make_impressions(rows)
    scores = rng.normal(size=(len(beta), 8 * n)) * [[10.0**k] for k in range(len(beta))]
    z = np.array([z_scores(one, shown.offsets) for one in scores]).T
    utility = (z @ beta).reshape(n, 8)
    chance = np.exp(utility) / np.exp(utility).sum(1, keepdims=True)
    labels = np.zeros((n, 8), np.int8)
    for i in range(n):
        labels[i, rng.choice(8, rng.integers(1, most_clicks + 1), p=chance[i])] = 1
    return [table(one, replace(shown, labels=labels.ravel())) for one in scores], z.reshape(n, 8, -1), chance


class TestChosenWeights:
    @pytest.mark.parametrize("planted", [(0.5, 0.5), (0.8, 0.2), (0.5, 0.3, 0.2)])
    def test_planted_weights_are_found_within_their_error(self, planted):
        planted, scale = np.array(planted), 0.8
        tables, z, chance = clicked_by(scale * planted)
        mean = np.einsum("ij,ijk->ik", chance, z)
        information = np.einsum("ij,ijk,ijl->kl", chance, z, z) - mean.T @ mean
        turn = (np.eye(len(planted)) - np.outer(planted, np.ones(len(planted)))) / scale  # d weights / d beta
        errors = np.sqrt(np.diag(turn @ np.linalg.inv(information) @ turn.T))
        assert errors.max() < 0.03  # or the next line would say little
        found = choose_weights(tables)
        assert np.abs(found - planted).max() < 3 * errors.max()
        assert found.sum() == pytest.approx(1)
        assert (found >= 0).all()

    def test_noise_gets_next_to_nothing(self):
        found = choose_weights(clicked_by(np.array([0.8, 0.0]))[0])
        assert found[1] < 0.05
        assert choose_weights(clicked_by(np.array([0.8, -0.8]))[0]) == pytest.approx([1, 0])  # nor below 0

    def test_it_is_the_likeliest(self):
        """With several clicks an impression, against the plain formula on a grid."""
        tables, z, _ = clicked_by(np.array([0.7, 0.4]), n=200, most_clicks=4)
        clicks = tables[0]["label"].to_numpy().reshape(200, 8)
        assert clicks.sum(1).max() > 1

        def likelihood(scale, w):
            utility = z @ [scale * w, scale * (1 - w)]
            return (clicks * (utility - np.log(np.exp(utility).sum(1, keepdims=True)))).sum()

        grid = np.linspace(0, 1, 101)
        best = max(grid, key=lambda w: max(likelihood(scale, w) for scale in np.linspace(0.1, 2, 96)))
        assert choose_weights(tables)[0] == pytest.approx(best, abs=0.011)

    def test_the_order_and_the_scale_of_the_parts_do_not_matter(self):
        tables, *_ = clicked_by(np.array([0.8, 0.2]), n=500)
        one, other = choose_weights(tables), choose_weights(tables[::-1])
        assert one == pytest.approx(other[::-1], abs=1e-4)

    def test_a_perfect_method_gets_all(self):
        tables, *_ = clicked_by(np.array([1.0, 0.5]), n=100)
        perfect = table(tables[0]["label"].to_numpy().astype(float), replace_labels(tables[0]))
        found = choose_weights([perfect, tables[1]])
        assert found[0] > 0.8
        assert np.isfinite(found).all()

    def test_nothing_to_choose_by(self):
        (one, two), *_ = clicked_by(np.array([-0.8, -0.8]), n=300)
        with pytest.raises(UserError, match="a, b: none ranks the clicks"):
            choose_weights([one, two], ["a", "b"])
        unlabelled = table(draws(1), SHOWN.without_labels())
        with pytest.raises(UserError, match="labelled validation split"):
            choose_weights([unlabelled, unlabelled])
        with pytest.raises(UserError, match="cannot be blended"):
            choose_weights([one, table(draws(1))])


def replace_labels(frame):
    """Return the impressions of `clicked_by` again, from a table of theirs."""
    n = len(frame) // 8
    news = np.array([int(name[1:]) for name in frame["news_id"].to_pylist()]).reshape(n, 8)
    labels = frame["label"].to_numpy().reshape(n, 8)
    rows = [(f"U{i}", i, [], news[i].tolist(), labels[i].tolist()) for i in range(n)]
    return make_impressions(rows)


ASKED = {"data": "data/x", "protocol": "dev", "split": "test", "limit": None, "seed": 42}


class TestRuns:
    @pytest.fixture
    def runs(self, tmp_path):
        """Two runs of the test split: one with three seeds, streaming, one with a single file."""
        for name in ("counts", "vectors"):
            (tmp_path / name).mkdir()
        counts = make_run(
            tmp_path / "counts", 0.6, impressions=SHOWN, request=ASKED, seeds=[42], params=0,
            inputs_sha256={"data/x/dev/behaviors.tsv": "a"},
        )  # fmt: skip
        vectors = make_run(
            tmp_path / "vectors", 0.9, 2, impressions=SHOWN, request=ASKED, seeds=[42, 43, 44], params=10,
            track="streaming", train_seconds=None, peak_mb=700, ms_per_impression=1.0,
            inputs_sha256={"data/x/dev/behaviors.tsv": "a", "data/x/dev/news.tsv": "b"},
        )  # fmt: skip
        for k in (2, 3):
            write_predictions(vectors / f"predictions-{k}.parquet", table(draws(k)))
        return [counts, vectors]

    @pytest.fixture
    def valid(self, tmp_path):
        """The same two on a validation split, where the vectors alone say something."""
        shown = random_impressions(np.random.default_rng(5), n=600)
        folders = []
        for name, signal in (("counts", 0.0), ("vectors", 2.0)):
            folder = tmp_path / "valid" / name
            folder.mkdir(parents=True)
            make_run(folder, signal, impressions=shown, request=ASKED | {"split": "valid"})
            frame = read_predictions(folder / "predictions.parquet")
            scores = frame["score"].to_numpy() if signal else draws(9, shown)
            write_predictions(folder / "predictions.parquet", table(scores, shown, "valid"))
            folders.append(folder)
        return folders

    def test_a_run_folder_like_the_others(self, runs, tmp_path):
        run = make_blend("both", runs, tmp_path)
        assert run == tmp_path / "both"
        assert [file.name for file in seed_files(run)] == [
            "predictions.parquet", "predictions-2.parquet", "predictions-3.parquet",
        ]  # fmt: skip
        only = read_predictions(runs[0] / "predictions.parquet")
        for mine, theirs in zip(seed_files(run), seed_files(runs[1]), strict=True):
            wanted = blend_tables([only, read_predictions(theirs)], [0.5, 0.5])
            assert read_predictions(mine).equals(wanted)
        manifest = json.loads((run / "manifest.json").read_text("utf-8"))
        assert manifest["chosen"] == {"weights": {"counts": 0.5, "vectors": 0.5}, "on": "equal"}
        for key, value in {
            "name": "both", "protocol": "dev", "track": "streaming", "seeds": [42, 43, 44],
            "n_impressions": len(SHOWN), "params": 10, "train_seconds": 1.5, "ms_per_impression": 1.25,
            "peak_mb": 700, "inputs_sha256": {"data/x/dev/behaviors.tsv": "a", "data/x/dev/news.tsv": "b"},
        }.items():  # fmt: skip
            assert manifest[key] == value, key
        assert ASKED.items() <= manifest["request"].items()
        assert {"command", "git_commit", "packages", "hardware"} <= set(manifest)
        row = report.leaderboard_row(run)
        assert (row["name"], row["seeds"], row["n_impressions"]) == ("both", 3, len(SHOWN))

    def test_two_that_know_different_things_are_better_than_each(self, tmp_path):
        folders = [tmp_path / name for name in ("one", "two")]
        for seed, folder in enumerate(folders):
            folder.mkdir()
            make_run(folder, 1.0, seed, impressions=SHOWN)
        alone = [report.leaderboard_row(folder)["auc"] for folder in folders]
        assert report.leaderboard_row(make_blend("both", folders, tmp_path))["auc"] > max(alone) + 0.03

    def test_what_is_done_is_kept_and_nothing_else_is(self, runs, tmp_path):
        run = make_blend("both", runs, tmp_path)
        before = {file: file.stat().st_mtime_ns for file in run.iterdir()}
        assert REQUEST in {file.name for file in before}
        make_blend("both", runs, tmp_path)
        assert {file: file.stat().st_mtime_ns for file in run.iterdir()} == before
        write_predictions(runs[0] / "predictions.parquet", table(draws(8)))
        with pytest.raises(UserError, match=r"both holds another run \(its request\.json differs\)"):
            make_blend("both", runs, tmp_path)
        with pytest.raises(UserError, match="holds another run"):
            make_blend("both", runs[::-1], tmp_path)

    def test_one_that_was_stopped_is_made_again(self, runs, tmp_path):
        run = make_blend("both", runs, tmp_path)
        whole = (run / "predictions.parquet").read_bytes()
        (run / REQUEST).unlink()
        (run / "predictions.parquet").write_bytes(b"half")
        make_blend("both", runs, tmp_path)
        assert (run / "predictions.parquet").read_bytes() == whole

    def test_weights_chosen_on_another_split(self, runs, valid, tmp_path):
        run = make_blend("both", runs, tmp_path, valid)
        chosen = json.loads((run / "manifest.json").read_text("utf-8"))["chosen"]
        assert chosen["on"] == "valid"
        assert chosen["weights"]["vectors"] > 0.85
        tables = [read_predictions(folder / "predictions.parquet") for folder in runs]
        wanted = blend_tables(tables, list(chosen["weights"].values()))
        assert read_predictions(run / "predictions.parquet").equals(wanted)
        with pytest.raises(UserError, match="holds another run"):
            make_blend("both", runs, tmp_path)

    def test_mistakes_are_one_line(self, runs, valid, tmp_path):
        with pytest.raises(UserError, match="the split test that the blend is measured on"):
            make_blend("both", runs, tmp_path, runs)
        with pytest.raises(UserError, match="cannot be chosen on vectors, counts"):
            make_blend("both", runs, tmp_path, valid[::-1])
        with pytest.raises(UserError, match="counts and vectors cannot be blended"):
            make_blend("both", [runs[0], valid[1]], tmp_path)
        with pytest.raises(UserError, match="two parts or more, there is counts"):
            make_blend("both", runs[:1], tmp_path)
        with pytest.raises(UserError, match="a run named counts is in the blend already"):
            make_blend("both", [runs[0], valid[0]], tmp_path)
        with pytest.raises(UserError, match="a name that a folder can have"):
            make_blend("../both", runs, tmp_path)
        with pytest.raises(UserError, match="no such run folder"):
            make_blend("both", [runs[0], tmp_path / "none"], tmp_path)
        assert not (tmp_path / "both").exists()

    def test_seeds_and_data_must_agree(self, runs, tmp_path):
        write_predictions(runs[0] / "predictions-2.parquet", table(draws(4)))
        with pytest.raises(UserError, match="vectors has 3 seeds, counts has 2"):
            make_blend("both", runs, tmp_path)
        (runs[0] / "predictions-2.parquet").unlink()
        for key, value, said in (
            ("protocol", "sampled", "blend runs of one protocol"),
            ("inputs_sha256", {"data/x/dev/behaviors.tsv": "c"}, "read other contents than counts"),
        ):
            manifest = json.loads((runs[1] / "manifest.json").read_text("utf-8"))
            (runs[1] / "manifest.json").write_text(json.dumps(manifest | {key: value}))
            with pytest.raises(UserError, match=said):
                make_blend("both", runs, tmp_path)
            (runs[1] / "manifest.json").write_text(json.dumps(manifest))
        assert not (tmp_path / "both").exists()


@pytest.mark.parametrize("text", ["both", "both=", "both=a", "both=a+", "both=a+b,valid", "a/b=a+b", "=a+b"])
def test_a_blend_that_cannot_be_read_is_refused(text):
    with pytest.raises(UserError):
        parse_blend(text)


def test_blends_are_read():
    assert parse_blend("x=a+b-c+d") == Blend("x", ("a", "b-c", "d"), False)
    with pytest.raises(UserError, match="names that differ"):
        parse_blend("x=a+a")
    with pytest.raises(UserError, match="names that differ"):
        parse_blend("a=a+b")
