"""NRMS, NAML and LSTUR: the neural news recommenders that MIND's paper compares, in PyTorch.

All three learn a vector of a news from its text and a vector of a user from the news clicked; the score is
their inner product. They are trained on each click against K non-clicks of the same impression (softmax
cross-entropy). Words start from MiniLM's input vectors, so that a few thousand clicks are enough to begin with.

Sources: Wu et al., Neural News Recommendation with Multi-Head Self-Attention (EMNLP 2019); Wu et al., Neural News
Recommendation with Attentive Multi-View Learning (IJCAI 2019); An et al., Neural News Recommendation with Long- and
Short-term User Representations (ACL 2019).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mindlab.data.mind import Impressions, News
from mindlab.llm.embeddings import MiniLMEncoder
from mindlab.recommenders.base import Recommender, late_rows, mean_auc, training_labels, used_histories
from mindlab.recommenders.embedding import CHUNK, EmbeddingCosine
from mindlab.recommenders.past import PastLog

PAD = 0


@dataclass(frozen=True)
class Settings:
    """Sizes and training; K, the history length and the title length are those of MIND's paper."""

    width: int = 128  # of a news and of a user vector
    heads: int = 8
    history_length: int = 50
    title_length: int = 24
    negatives: int = 4
    dropout: float = 0.2
    learning_rate: float = 1e-3
    batch_size: int = 128
    most_epochs: int = 8
    word_vectors: str = "minilm"  # or "random"
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


class Attention(nn.Module):
    """Additive attention: one vector out of many, (batch, n, width) to (batch, width)."""

    def __init__(self, width: int, hidden: int = 64) -> None:
        super().__init__()
        self.project, self.query = nn.Linear(width, hidden), nn.Linear(hidden, 1, bias=False)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the weighted sums; rows whose `mask` (batch, n) is all False give zeros."""
        logits = self.query(torch.tanh(self.project(states))).squeeze(-1).masked_fill(~mask, -1e9)
        weights = torch.softmax(logits, dim=-1) * mask
        return (weights.unsqueeze(-1) * states).sum(1)


class SelfAttention(nn.Module):
    """Multi-head self-attention and then `Attention`, as NRMS uses for words and for clicks."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.mix = nn.MultiheadAttention(settings.width, settings.heads, settings.dropout, batch_first=True)
        self.drop, self.pool = nn.Dropout(settings.dropout), Attention(settings.width)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return (batch, width)."""
        seen = mask.clone()
        seen[:, 0] = True  # attention over nothing is NaN; the pooling leaves such a row out again
        mixed, _ = self.mix(states, states, states, key_padding_mask=~seen, need_weights=False)
        return self.pool(self.drop(mixed), mask)


class WordCNN(nn.Module):
    """A convolution over three words and then `Attention`, as NAML and LSTUR read titles."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.convolve = nn.Conv1d(settings.width, settings.width, 3, padding=1)
        self.drop, self.pool = nn.Dropout(settings.dropout), Attention(settings.width)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return (batch, width)."""
        found = torch.relu(self.convolve(states.transpose(1, 2))).transpose(1, 2)
        return self.pool(self.drop(found), mask)


class Model(nn.Module):
    """What the three share: word vectors, and news encoded once however often a batch shows it."""

    reads_users = False

    def __init__(self, words: torch.Tensor, texts: dict[str, torch.Tensor], n_users: int, settings: Settings):
        super().__init__()
        self.settings, self.texts = settings, texts
        self.words = nn.Embedding.from_pretrained(words, freeze=False, padding_idx=PAD)
        self.project = nn.Linear(words.shape[1], settings.width)
        self.drop = nn.Dropout(settings.dropout)

    def read(self, news: torch.Tensor) -> torch.Tensor:
        """Return the vectors of `news`, (n,) to (n, width)."""
        raise NotImplementedError

    def follow(self, clicked: torch.Tensor, mask: torch.Tensor, user: torch.Tensor) -> torch.Tensor:
        """Return the vectors of users from the vectors of what they clicked, (n, history, width) to (n, width)."""
        raise NotImplementedError

    def title(self, news: torch.Tensor, encoder: nn.Module) -> torch.Tensor:
        """Return what `encoder` makes of the titles."""
        tokens = self.texts["title"][news]
        # Every word is projected once, not once for each place it stands in: most of the time went there.
        table = self.project(self.words.weight)
        return encoder(self.drop(functional.embedding(tokens, table)), tokens != PAD)


class NRMSModel(Model):
    """Self-attention over the words of a title, and over the news that a user clicked."""

    def __init__(self, words, texts, n_users, settings):
        super().__init__(words, texts, n_users, settings)
        self.title_encoder = SelfAttention(settings)
        self.user_encoder = SelfAttention(settings)

    def read(self, news):
        return self.title(news, self.title_encoder)

    def follow(self, clicked, mask, user):
        return self.user_encoder(clicked, mask)


class VectorNRMSModel(Model):
    """NRMS whose news are an encoder's vectors, as they are, through one linear layer; only users are learned."""

    def __init__(self, words, texts, n_users, settings):
        nn.Module.__init__(self)
        self.settings, self.texts = settings, texts
        self.project = nn.Linear(texts["vectors"].shape[1], settings.width)
        self.drop = nn.Dropout(settings.dropout)
        self.user_encoder = SelfAttention(settings)

    def read(self, news):
        return self.project(self.drop(self.texts["vectors"][news]))

    def follow(self, clicked, mask, user):
        return self.user_encoder(clicked, mask)


class NAMLModel(Model):
    """Title, category and subcategory as views of a news, weighed by attention; attention over the clicked."""

    def __init__(self, words, texts, n_users, settings):
        super().__init__(words, texts, n_users, settings)
        self.title_encoder = WordCNN(settings)
        self.topics = nn.ModuleDict(
            {name: nn.Embedding(int(texts[name].max()) + 1, 32) for name in ("category", "subcategory")}
        )
        self.into = nn.ModuleDict({name: nn.Linear(32, settings.width) for name in self.topics})
        self.views, self.user_encoder = Attention(settings.width), Attention(settings.width)

    def read(self, news):
        views = [self.title(news, self.title_encoder)]
        views += [
            torch.relu(self.into[name](self.topics[name](self.texts[name][news]))) for name in self.topics
        ]
        stacked = torch.stack(views, dim=1)
        return self.views(stacked, torch.ones(stacked.shape[:2], dtype=torch.bool, device=stacked.device))

    def follow(self, clicked, mask, user):
        return self.user_encoder(clicked, mask)


class LSTURModel(Model):
    """A GRU over the latest clicks that starts from a vector of the user's own (LSTUR-ini)."""

    reads_users = True

    def __init__(self, words, texts, n_users, settings):
        super().__init__(words, texts, n_users, settings)
        half = settings.width // 2
        self.title_encoder = WordCNN(settings)
        self.topics = nn.ModuleDict(
            {
                name: nn.Embedding(int(texts[name].max()) + 1, half // 2)
                for name in ("category", "subcategory")
            }
        )
        width = settings.width + 2 * (half // 2)
        self.into = nn.Linear(width, settings.width)
        self.user_vectors = nn.Embedding(n_users + 1, settings.width, padding_idx=0)  # 0: unknown in training
        nn.init.zeros_(self.user_vectors.weight)
        self.gru = nn.GRU(settings.width, settings.width, batch_first=True)

    def read(self, news):
        topics = [self.topics[name](self.texts[name][news]) for name in self.topics]
        return self.into(torch.cat([self.title(news, self.title_encoder), *topics], dim=-1))

    def follow(self, clicked, mask, user):
        if self.training:  # half of the time the user is a stranger, as most of the test day's are
            user = user * (torch.rand(user.shape, device=user.device) < 0.5)
        lengths = mask.sum(1)
        start = self.user_vectors(user).unsqueeze(0)
        packed = nn.utils.rnn.pack_padded_sequence(
            clicked, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        _, last = self.gru(packed, start.contiguous())
        return torch.where((lengths > 0).unsqueeze(1), last[0], start[0])


class Neural(Recommender):
    """A recommender around one of the models: training with early stopping, and scoring.

    The number of epochs is chosen on `valid` by a model of the days before it; the model is then trained for
    that many epochs on all of `train`. With `most_epochs=0` it stays as it was drawn: the row that a trained one is
    to be compared with. `news` gives `VectorNRMSModel` its vectors.
    """

    def __init__(
        self,
        name: str = "nrms",
        settings: Settings | None = None,
        show: Callable[[str], None] | None = None,
        kind: str | None = None,
        news: EmbeddingCosine | None = None,
    ):
        """Take the row's name and the `kind` of model, of `MODELS`, which is the name unless given."""
        self.name = name
        self.settings = settings or Settings()
        self.show = show or (lambda line: None)
        self.kind = MODELS[kind or name]
        self._encoded = news
        self.saved_seconds = 0.0

    def fit(
        self, train: Impressions, news: News, valid: Impressions | None, rng: np.random.Generator
    ) -> Self:
        """Choose the epochs on `valid` (a part of `train`), then train on all of `train`."""
        seed = int(rng.integers(2**31))
        if self._encoded:
            self._encoded.fit(train, news, valid, rng)
            self.saved_seconds = self._encoded.saved_seconds
        self._prepare(news)
        self.epochs = self.settings.most_epochs
        if not self.epochs:
            self._draw(train, seed)
            return self
        is_late = late_rows(train, valid)
        if is_late.any():
            early, late = train.take(np.flatnonzero(~is_late)), train.take(np.flatnonzero(is_late))
            found = []
            for epoch in self._train(early, seed):
                scores = self.score(late.without_labels(), news, None)
                found.append(mean_auc(scores, late))
                self.show(f"{self.name}: epoch {epoch + 1}, validation AUC {found[-1]:.4f}")
                if len(found) == self.settings.most_epochs or len(found) - 1 - int(np.argmax(found)) >= 2:
                    break
            self.epochs = 1 + int(np.argmax(found))
        for epoch in self._train(train, seed):
            if epoch + 1 == self.epochs:
                break
        return self

    @property
    def params(self) -> int:
        """How many numbers the model holds."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    def score(self, test: Impressions, news: News, past: PastLog | None = None) -> np.ndarray:
        """Return the inner products of user and news; every news and every user is encoded once."""
        self._model.eval()
        row, history, offsets = used_histories(test)
        device = self.settings.device
        with torch.inference_mode():
            wanted = np.union1d(test.news, history)
            vectors = torch.zeros(len(news), self.settings.width, device=device)
            for part in np.array_split(wanted, max(1, len(wanted) // 512)):
                rows = torch.from_numpy(part.astype(np.int64)).to(device)
                vectors[rows] = self._model.read(rows)
            pairs = np.stack([row, self._readers(test.users)], axis=1)
            distinct, which = np.unique(pairs, axis=0, return_inverse=True)
            user_vectors = []
            for part in np.array_split(distinct, max(1, len(distinct) // 256)):
                clicked, mask = self._clicked(part[:, 0], history, offsets)
                user_vectors.append(
                    self._model.follow(vectors[clicked], mask, torch.from_numpy(part[:, 1]).to(device))
                )
            user_vectors = torch.cat(user_vectors).cpu().numpy()
        owner = np.repeat(which.reshape(-1), np.diff(test.offsets))
        vectors = vectors.cpu().numpy()
        scores = np.empty(len(owner))
        for start in range(0, len(owner), CHUNK):
            part = slice(start, start + CHUNK)
            scores[part] = np.einsum("ij,ij->i", user_vectors[owner[part]], vectors[test.news[part]])
        return scores

    def _prepare(self, news: News) -> None:
        """Turn the catalogue into token and topic numbers, and load the first word vectors; or into vectors."""
        if self._encoded:
            vectors = torch.from_numpy(self._encoded.vectors)
            self._word_vectors, self._texts = None, {"vectors": vectors.to(self.settings.device)}
            return
        tokenizer, table = MiniLMEncoder().words()
        tokens = tokenizer(
            news.title.tolist(), padding="max_length", truncation=True, add_special_tokens=False,
            max_length=self.settings.title_length, return_tensors="pt",
        )["input_ids"]  # fmt: skip
        used, compact = torch.unique(tokens, return_inverse=True)  # the catalogue's words alone
        if used[0] != tokenizer.pad_token_id:
            used, compact = torch.cat([torch.tensor([tokenizer.pad_token_id]), used]), compact + 1
        self._word_vectors = table[used].clone()
        self._word_vectors[PAD] = 0
        topics = {
            name: torch.from_numpy(np.unique(getattr(news, name).astype(str), return_inverse=True)[1])
            for name in ("category", "subcategory")
        }
        self._texts = {
            name: text.to(self.settings.device) for name, text in {"title": compact, **topics}.items()
        }

    def _draw(self, train: Impressions, seed: int) -> None:
        """Make a new model of random weights, but for the word vectors."""
        torch.manual_seed(seed)
        self._users = {user: i + 1 for i, user in enumerate(np.unique(train.users.astype(str)))}
        words = self._word_vectors
        if words is not None and self.settings.word_vectors == "random":
            words = torch.randn_like(words) * words.std()
            words[PAD] = 0
        self._model = self.kind(words, self._texts, len(self._users), self.settings).to(self.settings.device)

    def _train(self, train: Impressions, seed: int) -> Iterator[int]:
        """Train a new model; yield after each epoch."""
        settings, rng = self.settings, np.random.default_rng(seed)
        self._draw(train, seed)
        optimiser = torch.optim.Adam(self._model.parameters(), lr=settings.learning_rate)
        row, history, offsets = used_histories(train)
        user_vectors = self._readers(train.users)
        labels = training_labels(train)
        owner = np.repeat(np.arange(len(train)), np.diff(train.offsets))
        clicks = np.flatnonzero(labels == 1)
        epoch = 0
        while True:
            self._model.train()
            for part in np.array_split(rng.permutation(clicks), max(1, len(clicks) // settings.batch_size)):
                shown, is_real = _with_negatives(part, owner, train, labels, settings.negatives, rng)
                clicked, mask = self._clicked(row[owner[part]], history, offsets)
                user = torch.from_numpy(user_vectors[owner[part]]).to(settings.device)
                loss = self._loss(shown, is_real, clicked, mask, user)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            yield epoch
            epoch += 1

    def _loss(
        self, shown: np.ndarray, is_real: np.ndarray, clicked: torch.Tensor, mask: torch.Tensor, user: Any
    ):
        """Return the cross-entropy of the click, the first of `shown` (n, 1 + K), against the others."""
        news = torch.from_numpy(shown.astype(np.int64)).to(clicked.device)
        distinct, which = torch.unique(torch.cat([news.flatten(), clicked.flatten()]), return_inverse=True)
        vectors = self._model.read(distinct)[which]
        candidates = vectors[: news.numel()].view(*news.shape, -1)
        history = vectors[news.numel() :].view(*clicked.shape, -1)
        user_vectors = self._model.follow(history, mask, user)
        logits = (candidates @ user_vectors.unsqueeze(-1)).squeeze(-1)
        logits = logits.masked_fill(~torch.from_numpy(is_real).to(logits.device), -1e9)
        target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        return functional.cross_entropy(logits, target)

    def _clicked(
        self, rows: np.ndarray, history: np.ndarray, offsets: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the latest clicks of the histories `rows`, (n, length) news and mask, oldest first."""
        end = offsets[rows + 1]
        sizes = np.minimum(end - offsets[rows], self.settings.history_length)
        places = np.arange(max(1, sizes.max(initial=0)))
        mask = places < sizes[:, None]
        flat = np.minimum((end - sizes)[:, None] + places, max(0, len(history) - 1))
        news = np.where(mask, history[flat] if len(history) else 0, 0)
        device = self.settings.device
        return torch.from_numpy(news.astype(np.int64)).to(device), torch.from_numpy(mask).to(device)

    def _readers(self, users: np.ndarray) -> np.ndarray:
        """Return the training numbers of users, 0 for a stranger."""
        if not self.kind.reads_users:
            return np.zeros(len(users), dtype=np.int64)
        return np.array([self._users.get(str(user), 0) for user in users], dtype=np.int64)


def _with_negatives(
    clicks: np.ndarray,
    owner: np.ndarray,
    train: Impressions,
    labels: np.ndarray,
    k: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (news, is_real), both (n, 1 + k): each click and k non-clicks of its impression, drawn anew.

    An impression with fewer non-clicks gives fewer; the rest of its row is no candidate.
    """
    news = np.zeros((len(clicks), 1 + k), dtype=np.int64)
    is_real = np.zeros_like(news, dtype=bool)
    news[:, 0], is_real[:, 0] = train.news[clicks], True
    for i, row in enumerate(owner[clicks]):
        begin, end = train.offsets[row], train.offsets[row + 1]
        others = begin + np.flatnonzero(labels[begin:end] == 0)
        some = rng.permutation(others)[:k]
        news[i, 1 : 1 + len(some)] = train.news[some]
        is_real[i, 1 : 1 + len(some)] = True
    return news, is_real


MODELS = {"nrms": NRMSModel, "naml": NAMLModel, "lstur": LSTURModel, "embeddings-nrms": VectorNRMSModel}
