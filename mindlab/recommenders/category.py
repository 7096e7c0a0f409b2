"""Category share: the oldest personal signal there is."""

from typing import Self

import numpy as np

from mindlab.data.mind import Impressions, News
from mindlab.recommenders.base import Method, Recommender, history_share
from mindlab.recommenders.past import PastLog


class CategoryShare(Recommender):
    """Score = share of the user's history that is in the candidate's category, summed over `columns`.

    An empty history scores 0 for every candidate, so all of them tie. Names are compared as they stand, each column
    by itself: a subcategory name that occurs under two categories is one subcategory, and so is the empty name.
    """

    name = "category"
    columns: tuple[str, ...] = ("category",)  # of `News`

    def fit(
        self, train: Impressions, news: News, valid: Impressions | None, rng: np.random.Generator
    ) -> Self:
        """Learn nothing: the histories of the test impressions say it all."""
        return self

    def score(self, test: Impressions, news: News, past: PastLog | None = None) -> np.ndarray:
        """Return the sum of the shares, from 0 to the number of columns."""
        return np.sum([history_share(test, getattr(news, column)) for column in self.columns], axis=0)


class SubcategoryShare(CategoryShare):
    """Score = share of the user's history that is in the candidate's subcategory."""

    name = "subcategory"
    columns = ("subcategory",)


class CategoriesShare(CategoryShare):
    """Score = share of the history in the candidate's category plus that in its subcategory, the plain sum."""

    name = "categories"
    columns = ("category", "subcategory")


METHODS = (
    Method.of(CategoryShare),
    Method.of(SubcategoryShare),
    Method.of(CategoriesShare, against=("category",)),
)
