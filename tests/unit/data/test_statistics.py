"""The counts that stand beside MINDsmall's."""

from mindlab.data.mind import read_mind
from mindlab.data.statistics import describe


def test_describe_counts_by_hand(tmp_path):
    news = "".join(f"N{i}\tnews\tus\tA b c\t\t\t[]\t[]\n" for i in range(1, 5))
    behaviors = {
        "train": "1\tU1\t11/9/2019 9:05:00 AM\tN1 N1 N2\tN3-1 N1-0\n2\tU2\t11/14/2019 9:05:00 AM\t\tN4-1 N2-1 N3-0\n",
        "dev": "1\tU1\t11/15/2019 9:05:00 AM\tN1 N1 N2\tN3-0 N4-1\n",
    }
    for split, text in behaviors.items():
        (tmp_path / split).mkdir()
        (tmp_path / split / "news.tsv").write_text(news)
        (tmp_path / split / "behaviors.tsv").write_text(text)
    found = describe(read_mind(tmp_path))
    expected = {
        "news, train and dev together": 4,
        "users in both splits": 1,
        "categories": 1,
        "words per title, mean": 3,
        "news with an empty abstract": 100,
        "train: impressions": 2,
        "train: candidates per impression, mean": 2.5,
        "train: clicked candidates": 60,
        "train: impressions with one click": 50,
        "train: history length, median": 1.5,
        "train: impressions with an empty history": 50,
        "train: impressions whose history repeats a news": 50,
        "train: impressions showing a news of the history": 50,
        "dev: impressions showing a news of the history": 0,
        "dev: candidates not shown on 9-13 November": 50,
        "dev: clicks on news not shown on 9-13 November": 100,
    }
    assert {name: found[name] for name in expected} == expected
