"""Write a synthetic MIND of any size: MIND's schema and statistics, our own words, a known oracle.

Nobody may redistribute MIND, so everything committed here is made by this module. A user has an
interest in every subcategory; a news has a popularity and an age. A click is drawn by utility =
interest + popularity + freshness + Gumbel noise, so ranking by the noise-free utility is the best
any recommender can do (the oracle). What the constants below imitate, and the source of each figure,
is told in data/README.md. A table made on this data ranks methods on this generator, not on MIND.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import yaml

from mindlab.common.errors import UserError
from mindlab.common.files import atomic_path, write_json

TOPICS = Path(__file__).with_name("synthetic_topics.yaml")

# MINDsmall: train + dev hold 230,117 impressions over 65,238 news.
MINDSMALL = {"news": 65_238, "train": 156_965, "dev": 73_152}
TRAIN_DAYS = np.array(["2019-11-09", "2019-11-10", "2019-11-11", "2019-11-12", "2019-11-13", "2019-11-14"])
TRAIN_DAY_IMPRESSIONS = np.array([13_570, 15_048, 32_799, 33_654, 31_624, 30_270])
DEV_DAY = np.array(["2019-11-15"])
HISTORY_BEGIN = np.datetime64("2019-10-12")  # histories are the four weeks before the training week
CANDIDATES_BEGIN = np.datetime64("2019-11-07")
END = np.datetime64("2019-11-16")
HOUR_WEIGHTS = np.array([2, 1, 1, 1, 2, 4, 7, 9, 10, 10, 10, 9, 9, 9, 9, 8, 7, 6, 5, 5, 5, 5, 4, 3])

# Quantiles of candidates per impression and of history length (empty histories apart) in MINDsmall.
CANDIDATE_QUANTILES = (
    (0.0, 2), (0.068, 2), (0.1, 4), (0.147, 5.5), (0.25, 10), (0.437, 20), (0.5, 24),
    (0.743, 50), (0.75, 52), (0.9, 93), (0.95, 119), (0.99, 160), (0.998, 210), (1.0, 299),
)  # fmt: skip
HISTORY_QUANTILES = (
    (0.0, 1), (0.1, 4), (0.25, 7), (0.5, 18.5), (0.75, 40), (0.9, 77), (0.95, 111), (0.99, 203), (1.0, 480),
)  # fmt: skip
EMPTY_HISTORY = 0.025
TRAIN_IMPRESSIONS_PER_USER = 156_965 / 50_000
DEV_IMPRESSIONS_PER_USER = 73_152 / 50_000
DEV_USERS_SEEN_IN_TRAIN = 5_943 / 50_000


@dataclass(frozen=True)
class World:
    """The constants of the generator that no MIND statistic fixes directly; they were calibrated."""

    interest_category: float = 0.92  # s.d. of a user's interest between categories
    interest_subcategory: float = 0.66  # s.d. between the subcategories of one category
    history_focus: float = 2.6  # histories follow interest more than clicks do: past lists were personal
    interest_shared: float = 0.5  # share of that variance that users have in common (six tastes)
    popularity: float = 0.48  # s.d. of a news' popularity in the utility of a click
    freshness: float = 0.48  # utility lost per day of age, up to `freshness_days`
    freshness_days: float = 4.0
    exposure_skew: float = 1.3  # s.d. of log exposure that has nothing to do with popularity
    exposure_life: float = 0.82  # days after which the exposure of a news has fallen to 1/e
    evergreen: float = 0.006  # exposure that never fades, as a share of a new news' exposure
    extra_clicks_base: float = 0.021  # mean clicks beyond the first: base * (candidates - 1) ** power
    extra_clicks_power: float = 0.9
    extra_clicks_shape: float = 0.8  # shape of their negative binomial
    candidate_in_history: float = 0.072  # least share of impressions that show a news the user clicked before
    repeat_rate: float = 0.008  # repeated ids per history entry


@dataclass(frozen=True)
class _Topics:
    """The word lists, one entry per subcategory."""

    category: list[str]
    subcategory: list[str]
    share: np.ndarray  # float (subcategories,), sums to 1
    words: list[dict[str, list[str]]]  # who, does, about, tail


@cache
def _topics() -> _Topics:
    tree = yaml.safe_load(TOPICS.read_text(encoding="utf-8"))
    flat = [(c, s, body) for c, subs in tree.items() for s, body in subs.items()]
    share = np.array([body["share"] for _, _, body in flat], dtype=float)
    words = [{part: body[part] for part in ("who", "does", "about", "tail")} for _, _, body in flat]
    return _Topics([c for c, _, _ in flat], [s for _, s, _ in flat], share / share.sum(), words)


def default_news(n_train: int, n_dev: int) -> int:
    """Return a catalogue size for that many impressions: MINDsmall's, shrunk with power 0.7."""
    impressions = MINDSMALL["train"] + MINDSMALL["dev"]
    return max(400, round(MINDSMALL["news"] * ((n_train + n_dev) / impressions) ** 0.7))


def _inverse_cdf(quantiles: tuple[tuple[float, float], ...], u: np.ndarray) -> np.ndarray:
    """Return integers with the given quantiles at uniform `u`, interpolated in the logarithm."""
    p, value = np.array(quantiles).T
    return np.rint(np.exp(np.interp(u, p, np.log(value)))).astype(np.int64)


def _draw_distinct(
    sizes: np.ndarray, draw: Callable[[np.ndarray], np.ndarray], rounds: int = 40
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `sizes[g]` distinct items for every group g, one after another (successive sampling).

    `draw(groups)` returns one weighted draw with replacement for each entry of `groups`; taking draws
    in order and skipping the repeats is weighted sampling without replacement. Returns the flat items
    and their int64 offsets. A group whose pool is too small after `rounds` gets fewer items.
    """
    n_groups = len(sizes)
    group = item = np.empty(0, dtype=np.int64)
    finished: list[tuple[np.ndarray, np.ndarray]] = []
    counts = np.zeros(n_groups, dtype=np.int64)
    for _ in range(rounds):
        short = np.flatnonzero(counts < sizes)
        if not len(short):
            break
        # Only the groups that draw again are looked through again.
        is_short = (counts < sizes)[group]
        finished.append((group[~is_short], item[~is_short]))
        more = np.repeat(short, (sizes[short] - counts[short]) * 5 // 4 + 3)
        group = np.concatenate([group[is_short], more])
        item = np.concatenate([item[is_short], draw(more)])
        # Keep the first draw of every (group, item), in the order of drawing.
        _, first = np.unique(group * (item.max() + 1) + item, return_index=True)
        first.sort()
        group, item = group[first], item[first]
        counts[short] = np.bincount(group, minlength=n_groups)[short]
    group = np.concatenate([*(groups for groups, _ in finished), group])
    item = np.concatenate([*(items for _, items in finished), item])
    order = np.argsort(group, kind="stable")
    group, item = group[order], item[order]
    start = np.concatenate([[0], np.cumsum(counts)])
    keep = np.arange(len(item)) - start[group] < sizes[group]
    offsets = np.concatenate([[0], np.cumsum(np.minimum(counts, sizes))]).astype(np.int64)
    return item[keep], offsets


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]


def _inside(text: str) -> str:
    """Lower the article of a phrase that moves away from the start of its sentence."""
    first, _, rest = text.partition(" ")
    return f"{first.lower()} {rest}" if first in {"A", "An", "The", "This", "One"} else text


_SAYINGS = ["We did not expect this", "It was never about money", "Nobody told us", "I would do it again",
            "This is only the start", "You had to be there", "It is a long story", "We are not done yet",
            "That was the hard part", "People asked for it", "It could have been worse", "I was wrong"]  # fmt: skip
_SOURCES = ["report says", "study finds", "officials say", "survey shows", "sources say", "records show"]
_FRAMES: list[tuple[float, Callable[[dict[str, str]], str]]] = [
    (0.40, lambda w: f"{w['who']} {w['does']} {w['tail']}"),
    (0.12, lambda w: f"{_sentence_case(w['about'])}: {w['who']} {w['does']}"),
    (0.10, lambda w: f"Why {_inside(w['who'])} {w['does']} {w['tail']}"),
    (0.08, lambda w: f"{w['who']} {w['does']}, {w['source']}"),
    (0.08, lambda w: f"{w['who']} {w['does']} amid questions about {w['about']}"),
    (0.07, lambda w: f"{w['number']} things to know about {w['about']} {w['tail']}"),
    (0.05, lambda w: f"Watch: {w['who']} {w['does']} {w['tail']}"),
    (0.05, lambda w: f"'{w['saying']}': {w['who']} {w['does']}"),
    (0.03, lambda w: f"{w['who']} {w['does']} {w['tail']}. Here's what we know about {w['about']}"),
    (0.015, lambda w: f'"{w["saying"]}," says {_inside(w["who"])} {w["tail"]}'),
    (0.005, lambda w: f'{w["who"]} {w["does"]} with a {w["number"]}" difference'),  # one lone quote
]


def _write_catalogue(news: "_News", rng: np.random.Generator) -> list[str]:
    """Return the news.tsv line of every news: no title twice, a meaning per subcategory."""
    topics = _topics()
    weights = np.array([w for w, _ in _FRAMES])
    frame_cdf = np.cumsum(weights / weights.sum())
    seen: set[str] = set()
    lines = []
    for n in range(len(news.topic)):
        words = topics.words[news.topic[n]]
        while True:
            u = rng.random(8)
            pick = {part: words[part][int(u[i] * len(words[part]))] for i, part in enumerate(words)}
            pick["source"] = _SOURCES[int(u[5] * len(_SOURCES))]
            pick["saying"] = _SAYINGS[int(u[6] * len(_SAYINGS))]
            pick["number"] = str(3 + int(u[7] * 17))
            title = _FRAMES[int(np.searchsorted(frame_cdf, u[4], side="right"))][1](pick)
            if title not in seen:
                break
        seen.add(title)
        u = rng.random(4)
        if u[0] < 0.003:  # MIND has a few zero-width spaces
            title = title.replace(" ", " \u200b", 1)
        abstract = (
            "" if u[1] < 0.05 else f"{pick['who']} {pick['does']} {pick['tail']}. More on {pick['about']}."
        )
        name = pick["who"].split(" ", 1)[-1] if " " in pick["who"] else pick["who"]
        at = title.find(name)
        entities = "[]"
        if at >= 0 and u[2] < 0.4:
            entities = json.dumps([{
                "Label": name, "Type": "O", "WikidataId": f"Q99{news.topic[n]:02d}{words['who'].index(pick['who']):02d}",
                "Confidence": 1.0, "OccurrenceOffsets": [at], "SurfaceForms": [name],
            }])  # fmt: skip
        lines.append("\t".join([
            news.ids[n], topics.category[news.topic[n]], topics.subcategory[news.topic[n]], title, abstract,
            f"https://news.invalid/{news.ids[n]}", entities, "[]",
        ]) + "\n")  # fmt: skip
    return lines


@dataclass(frozen=True)
class _News:
    ids: list[str]
    topic: np.ndarray  # int (n,), subcategory
    birth: np.ndarray  # float days since HISTORY_BEGIN (n,), ascending
    popularity: np.ndarray  # float (n,), standard normal


@dataclass(frozen=True)
class _Users:
    ids: list[str]
    interest: np.ndarray  # float (users, subcategories), part of the utility
    offsets: np.ndarray  # int64 (users + 1,)
    history: np.ndarray  # int64 flat, oldest first


def _days(moment: np.datetime64 | np.ndarray) -> np.ndarray:
    return (moment - HISTORY_BEGIN) / np.timedelta64(1, "D")


def _make_news(n: int, rng: np.random.Generator) -> _News:
    topics = _topics()
    recent = rng.random(n) < 0.42  # born late enough to be a candidate; MINDsmall: 24,000 of 65,238
    begin, turn, end = 0.0, _days(CANDIDATES_BEGIN), _days(END)
    birth = np.sort(np.where(recent, rng.uniform(turn, end, n), rng.uniform(begin, turn, n)))
    ids = rng.permutation(2 * n)[:n] + 1000
    topic = rng.choice(len(topics.share), size=n, p=topics.share)
    return _News([f"N{i}" for i in ids], topic, birth, rng.standard_normal(n))


def _make_users(n: int, news: _News, world: World, rng: np.random.Generator) -> _Users:
    topics = _topics()
    categories, category = np.unique(topics.category, return_inverse=True)

    def taste(size: int) -> np.ndarray:
        """Return (users, size) unit-variance tastes: some shared with other users, some one's own."""
        loading = rng.standard_normal((6, size)) / np.sqrt(6)
        shared = rng.standard_normal((n, 6)) @ loading
        own = rng.standard_normal((n, size))
        return np.sqrt(world.interest_shared) * shared + np.sqrt(1 - world.interest_shared) * own

    interest = world.interest_category * taste(len(categories))[:, category]
    interest += world.interest_subcategory * taste(len(category))

    lengths = np.where(rng.random(n) < EMPTY_HISTORY, 0, _inverse_cdf(HISTORY_QUANTILES, rng.random(n)))
    # A past click: a subcategory by share and interest, then a news of it by popularity and exposure.
    old = np.flatnonzero(news.birth < _days(CANDIDATES_BEGIN) + 1)
    old = old[np.argsort(news.topic[old], kind="stable")]
    weight = np.exp((0.5 + world.popularity) * news.popularity[old] + 0.5 * rng.standard_normal(len(old)))
    cumulative = np.concatenate([[0.0], np.cumsum(weight)])
    bounds = np.searchsorted(news.topic[old], np.arange(len(category) + 1))
    mass = cumulative[bounds[1:]] - cumulative[bounds[:-1]]
    choice = np.cumsum(np.exp(world.history_focus * interest) * mass, axis=1)
    choice /= choice[:, -1:]

    # One search for all users: user u's distribution lives in [u, u + 1).
    rows = (choice + np.arange(n)[:, None]).ravel()

    def draw(users: np.ndarray) -> np.ndarray:
        topic = np.searchsorted(rows, users + rng.random(len(users)), side="right") - users * len(category)
        topic = np.minimum(topic, len(category) - 1)
        at = cumulative[bounds[topic]] + rng.random(len(users)) * mass[topic]
        return old[np.clip(np.searchsorted(cumulative, at, side="right") - 1, 0, len(old) - 1)]

    history, offsets = _draw_distinct(np.minimum(lengths, len(old) // 3), draw)
    lengths = np.diff(offsets)
    user = np.repeat(np.arange(n), lengths)
    clicked = news.birth[history] + rng.exponential(1.5, len(history))
    history = history[np.lexsort((clicked, user))]
    # Some users open a news twice: copy an earlier entry over a later one.
    place = np.arange(len(history)) - np.repeat(offsets[:-1], lengths)
    again = np.flatnonzero((rng.random(len(history)) < world.repeat_rate) & (place > 0))
    history[again] = history[again - 1 - (rng.random(len(again)) * place[again]).astype(np.int64)]
    numbers = rng.permutation(2 * n)[:n] + 100
    return _Users([f"U{i}" for i in numbers], interest, offsets, history)


@dataclass(frozen=True)
class _Split:
    user: np.ndarray  # int (n,)
    day: np.ndarray  # float (n,), days since HISTORY_BEGIN, whole seconds
    offsets: np.ndarray
    news: np.ndarray
    utility: np.ndarray  # float (flat,), without noise
    labels: np.ndarray


def _impression_times(days: np.ndarray, weights: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    day = rng.choice(days.astype("datetime64[s]"), size=n, p=weights / weights.sum())
    hour = rng.choice(24, size=n, p=HOUR_WEIGHTS / HOUR_WEIGHTS.sum())
    return day + (hour * 3600 + rng.integers(0, 3600, n)).astype("timedelta64[s]")


def _make_split(
    users_of_split: np.ndarray,
    times: np.ndarray,
    news: _News,
    users: _Users,
    world: World,
    rng: np.random.Generator,
) -> _Split:
    n = len(times)
    # Every user of the split is there at least once, the others by a skewed activity.
    activity = rng.gamma(0.7, size=len(users_of_split)) + 1e-9
    extra = rng.choice(users_of_split, size=n - len(users_of_split), p=activity / activity.sum())
    user = rng.permutation(np.concatenate([users_of_split, extra]))
    day = _days(times)

    # Exposure fades as exp(-age / life). The factor exp(-t / life) is common to all news alive at t,
    # so one cumulative sum over births serves every moment t: cut it where birth > t.
    exposure = np.exp(0.5 * news.popularity + world.exposure_skew * rng.standard_normal(len(news.birth)))
    rise = np.exp((news.birth - news.birth[-1]) / world.exposure_life)
    alive = news.birth > _days(CANDIDATES_BEGIN) - 1
    cumulative = np.concatenate([[0.0], np.cumsum(exposure * alive * (rise + world.evergreen * rise[-1]))])
    # `evergreen` is relative to a news born at the end, so that old news keep a small constant share.
    born = np.searchsorted(news.birth, day, side="right")
    sizes = _inverse_cdf(CANDIDATE_QUANTILES, rng.random(n))
    sizes = np.minimum(sizes, np.maximum(2, (born - np.flatnonzero(alive)[0]) * 2 // 3))

    def draw(impressions: np.ndarray) -> np.ndarray:
        at = rng.random(len(impressions)) * cumulative[born[impressions]]
        return np.searchsorted(cumulative, at, side="right") - 1

    shown, offsets = _draw_distinct(sizes, draw)
    sizes = np.diff(offsets)
    # Some impressions show a news that the user has clicked before: raise what chance gives to the share.
    owner = np.repeat(np.arange(n), sizes)
    n_news = len(news.birth)
    clicked_by = np.repeat(np.arange(len(users.ids)), np.diff(users.offsets))
    is_old = np.isin(user[owner] * n_news + shown, clicked_by * n_news + users.history)
    shows_old = np.bincount(owner[is_old], minlength=n) > 0
    lacking = max(0.0, world.candidate_in_history - shows_old.mean()) / max(1e-9, 1 - shows_old.mean())
    has_history = np.diff(users.offsets)[user] > 0
    again = np.flatnonzero((rng.random(n) < lacking) & has_history & ~shows_old)
    u = user[again]
    length = users.offsets[u + 1] - users.offsets[u]
    old = users.history[users.offsets[u] + (rng.random(len(again)) * length).astype(np.int64)]
    shown[offsets[again]] = old
    # Shuffle inside each impression: draws come most exposed first.
    shown = shown[np.lexsort((rng.random(len(shown)), owner))]

    age = np.minimum(day[owner] - news.birth[shown], world.freshness_days)
    utility = users.interest[user[owner], news.topic[shown]] + world.popularity * news.popularity[shown]
    utility -= world.freshness * age
    mean_extra = world.extra_clicks_base * (sizes - 1.0) ** world.extra_clicks_power
    rate = rng.gamma(world.extra_clicks_shape, mean_extra / world.extra_clicks_shape)
    clicks = np.minimum(1 + rng.poisson(rate), np.minimum(sizes - 1, 35))
    noisy = utility + rng.gumbel(size=len(utility))
    rank = np.empty(len(noisy), dtype=np.int64)
    rank[np.lexsort((-noisy, owner))] = np.arange(len(noisy)) - np.repeat(offsets[:-1], sizes)
    return _Split(user, day, offsets, shown, utility, (rank < clicks[owner]).astype(np.int8))


def _time_text(times: np.ndarray) -> list[str]:
    """Return MIND's spelling, e.g. 11/9/2019 9:05:58 AM, month and day and hour not padded."""
    moments = times.astype("datetime64[s]").astype(object)
    return [
        f"{t.month}/{t.day}/{t.year} {t.hour % 12 or 12}:{t.minute:02d}:{t.second:02d} {'AM' if t.hour < 12 else 'PM'}"
        for t in moments
    ]


def _write_split(
    folder: Path,
    split: _Split,
    times: np.ndarray,
    news: _News,
    users: _Users,
    lines: list[str],
    extra: np.ndarray,
) -> None:
    mentioned = np.zeros(len(news.ids), dtype=bool)
    mentioned[split.news] = True
    for u in np.unique(split.user):
        mentioned[users.history[users.offsets[u] : users.offsets[u + 1]]] = True
    mentioned[extra] = True
    with atomic_path(folder / "news.tsv") as path, path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines[n] for n in np.flatnonzero(mentioned))
    shown = [[f"{i}-0" for i in news.ids], [f"{i}-1" for i in news.ids]]
    history = {
        u: " ".join(news.ids[n] for n in users.history[users.offsets[u] : users.offsets[u + 1]])
        for u in np.unique(split.user).tolist()
    }
    stamps, flat, labels = _time_text(times), split.news.tolist(), split.labels.tolist()
    bounds, user = split.offsets.tolist(), split.user.tolist()
    with (
        atomic_path(folder / "behaviors.tsv") as path,
        path.open("w", encoding="utf-8", newline="\n") as file,
    ):
        for i, stamp in enumerate(stamps):
            begin, end = bounds[i], bounds[i + 1]
            tokens = " ".join([shown[c][n] for n, c in zip(flat[begin:end], labels[begin:end], strict=True)])
            file.write(f"{i + 1}\t{users.ids[user[i]]}\t{stamp}\t{history[user[i]]}\t{tokens}\n")
    with atomic_path(folder / "oracle_utility.npy") as path, path.open("wb") as file:
        np.save(file, split.utility.astype(np.float16))


def make_sample(
    out: str | Path,
    n_train: int,
    n_dev: int,
    n_news: int | None = None,
    seed: int = 0,
    world: World | None = None,
) -> dict:
    """Write ``train/`` and ``dev/`` under `out` and return the manifest (also written there).

    Each split holds news.tsv (8 columns), behaviors.tsv (5 columns) and oracle_utility.npy, the
    noise-free utility of every candidate in file order (float16), which no recommender may read but
    the oracle. The same sizes, seed and package versions give the same bytes.

    Raises UserError if a size is too small to make a MIND.
    """
    world = world or World()
    n_news = default_news(n_train, n_dev) if n_news is None else n_news
    for name, value, least in (("train", n_train, 10), ("dev", n_dev, 10), ("news", n_news, 150)):
        if value < least:
            raise UserError(f"--{name} {value}: expected at least {least}; give a larger number")
    out = Path(out)
    rng = np.random.default_rng(seed)
    news = _make_news(n_news, rng)
    n_train_users = max(1, round(n_train / TRAIN_IMPRESSIONS_PER_USER))
    n_dev_users = max(1, round(n_dev / DEV_IMPRESSIONS_PER_USER))
    n_both = round(n_dev_users * DEV_USERS_SEEN_IN_TRAIN)
    users = _make_users(n_train_users + n_dev_users - n_both, news, world, rng)
    lines = _write_catalogue(news, rng)
    unmentioned = rng.random(n_news)  # a news that nobody saw still stands in one of the two files
    seen_anywhere = np.zeros(n_news, dtype=bool)
    splits = {}
    for name, first, size, days, weights in (
        ("train", 0, n_train, TRAIN_DAYS, TRAIN_DAY_IMPRESSIONS),
        ("dev", n_train_users - n_both, n_dev, DEV_DAY, np.ones(1)),
    ):
        members = np.arange(first, first + (n_train_users if name == "train" else n_dev_users))
        times = _impression_times(days, weights, size, rng)
        splits[name] = (_make_split(members, times, news, users, world, rng), times)
        seen_anywhere[splits[name][0].news] = True
    seen_anywhere[users.history] = True
    for name, (split, times) in splits.items():
        extra = np.flatnonzero(~seen_anywhere & ((unmentioned < 0.7) == (name == "train")))
        _write_split(out / name, split, times, news, users, lines, extra)
    manifest = {
        "what": "synthetic MIND, made by mindlab/data/synthetic.py; no row of it is Microsoft's",
        "seed": seed,
        "news": n_news,
        "train": n_train,
        "dev": n_dev,
        "world": asdict(world),
    }
    write_json(out / "manifest.json", manifest)
    return manifest
