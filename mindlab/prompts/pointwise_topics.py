"""`pointwise` with the topic in front of every headline."""

import numpy as np

from mindlab.data.mind import News
from mindlab.prompts.base import neutral_titles
from mindlab.prompts.next_topic import topics_of
from mindlab.prompts.pointwise import Pointwise


class PointwiseTopics(Pointwise):
    """Each article, of the history and the candidate, as ``category, subcategory: title``."""

    name = "pointwise_topics"

    def shown(self, news: News) -> np.ndarray:
        """Return how the prompt shows every news article, object (n_news,)."""
        pairs = zip(topics_of(news), neutral_titles(news), strict=True)
        return np.array([f"{topic}: {title}" for topic, title in pairs], dtype=object)
