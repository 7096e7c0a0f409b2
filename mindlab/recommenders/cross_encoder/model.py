"""A cross-encoder: an encoder such as BERT reads a user's history and one candidate together, and scores the click.

The pair is what BERT was made to read (Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers for
Language Understanding, NAACL 2019): ``[CLS] history [SEP] candidate [SEP]``, two segments in one sequence, and a
classifier over the state of the first token. Nogueira and Cho rank so (Passage Re-ranking with BERT,
arXiv 1901.04085, 2019). Every token of the candidate sees every token of the history, in each layer: nothing of a
news can be computed before its user is known, and each candidate takes a whole pass.
"""

import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from mindlab.common.cli import batches_bar
from mindlab.common.errors import UserError
from mindlab.common.files import lock, sha256, write_json
from mindlab.data.mind import Impressions, News
from mindlab.llm.embeddings import minilm_folder, quiet_transformers
from mindlab.prompts import neutral_titles
from mindlab.recommenders.base import (
    Recommender,
    keep_candidates,
    late_rows,
    mean_auc,
    some_candidates,
    training_labels,
)
from mindlab.recommenders.past import PastLog

NOTHING = "nothing clicked yet"  # the history of a user who has none
BETWEEN = "; "
SECONDS, DONE, MODEL = "seconds.json", "done.json", "model"  # in a checkpoint; in a training's folder
Watch = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Settings:
    """Sizes and training. `most_pairs` and `valid_pairs` bound the cost, whatever the size of the data.

    Batches are small since it is steps that count: on the sample, with labels that are easy on purpose (section 4 of
    notebook 10), 150 steps of 16 pairs learned nothing and 400 steps of 8 pairs did.
    """

    history_length: int = 3  # titles, the latest clicks
    most_tokens: int = 384  # of a pair
    negatives: int = 1  # non-clicks a click, of its impression
    most_pairs: int = 2400  # that one training reads; 0 leaves the model as it was drawn
    checks: int = 3  # of the validation AUC, evenly over a training
    valid_pairs: int = 800
    batch_size: int = 8
    learning_rate: float = 5e-5
    warmup_steps: int = 40
    save_every: int = 50  # steps from one checkpoint to the next

    @property
    def check_every(self) -> int:
        """Return the steps from one check to the next."""
        return max(1, self.most_pairs // self.batch_size // self.checks)


# On one GPU, for the hub's encoders and MINDsmall (not yet run).
LARGE = Settings(
    history_length=20, negatives=4, most_pairs=600_000, checks=6, valid_pairs=60_000, batch_size=64,
    learning_rate=2e-5, warmup_steps=500, save_every=500,
)  # fmt: skip


class Pairs(torch.utils.data.Dataset):
    """The pairs of all candidates of `rows`: what the user clicked, the candidate, and the label if there is one."""

    def __init__(self, rows: Impressions, titles: np.ndarray, history_length: int):
        self.rows, self.titles, self.history_length = rows, titles, history_length
        self._owner = np.repeat(np.arange(len(rows)), np.diff(rows.offsets))

    def __len__(self) -> int:
        return len(self.rows.news)

    def __getitem__(self, place: int) -> dict[str, Any]:
        """Return the pair of one candidate; the history's latest titles, oldest first."""
        clicked = self.rows.user_history(self._owner[place])[-self.history_length :]
        pair = {
            "history": BETWEEN.join(self.titles[clicked]) or NOTHING,
            "candidate": self.titles[self.rows.news[place]],
        }
        return pair if self.rows.labels is None else pair | {"label": float(self.rows.labels[place])}


class CrossEncoder(Recommender):
    """Score = the logit that a fine-tuned encoder gives the pair of history and candidate.

    It starts from an encoder's weights and a new head of one logit, which is trained, with all the rest, by binary
    cross-entropy on every click and K non-clicks of its impression. How many steps is chosen on `valid`,
    by a model of the days before; then a new model is trained for as many on all of `train`. The learning rate stays
    constant after its warm-up, so that both walk the same way however long. With `most_pairs=0` the model stays
    as it was drawn: the row that a trained one is to be compared with.

    A user without a history is a text of their own, `NOTHING`: the score is then what the model makes of the candidate alone.

    With a `folder` a training keeps checkpoints there and goes on from the last one, and what is
    trained is read and not trained again. Without, nothing is left behind.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        name: str = "cross-encoder",
        settings: Settings | None = None,
        folder: Path | None = None,
        watch: Watch | None = None,
    ):
        """Take a folder or hub id of an encoder, left out MiniLM; `watch` is shown each row of the training's log."""
        self.model_path, self.name, self.folder = model, name, folder
        self.settings = settings or Settings()
        self.watch = watch or (lambda row: None)
        self.saved_seconds = 0.0  # of training that an earlier run did
        self.chosen: dict[str, Any] | None = None
        self.tokens_read = 0  # in scoring, without padding
        self._tokenizer: Any = None
        self._news: News | None = None

    def fit(
        self, train: Impressions, news: News, valid: Impressions | None, rng: np.random.Generator
    ) -> Self:
        """Choose the steps on `valid` (a part of `train`), then train on all of `train`.

        Raises UserError if the encoder cannot be loaded.
        """
        training_labels(train)
        seed = int(rng.integers(2**31))
        self.saved_seconds, self.tokens_read = 0.0, 0
        self._open()
        self._read_titles(news)
        if not self.settings.most_pairs:
            self._model = self._draw(seed)
            return self
        steps = self.settings.check_every * self.settings.checks
        is_late = late_rows(train, valid)
        if is_late.any():
            early, late = train.take(np.flatnonzero(~is_late)), train.take(np.flatnonzero(is_late))
            found = self._train(early, steps, seed, self._some(late, seed))
            steps = self.settings.check_every * (1 + int(np.argmax(found)))
            self.chosen = {"steps": steps, "validation_auc": [round(auc, 4) for auc in found]}
        self._train(train, steps, seed)
        return self

    @property
    def params(self) -> int:
        """How many numbers the model holds."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    def score(self, test: Impressions, news: News, past: PastLog | None = None) -> np.ndarray:
        """Return the logits, float64; pairs of like length are read together."""
        self._read_titles(news)
        pairs = Pairs(test.without_labels(), self._titles, self.settings.history_length)
        order = np.argsort(
            [sum(map(len, pairs[place].values())) for place in range(len(pairs))], kind="stable"
        )
        parts = np.array_split(order, -(-len(order) // self._batch)) if len(order) else []
        scores = np.empty(len(pairs))
        self._model.eval()
        for number in batches_bar(f"{self.name}: score")(range(len(parts)), 0, len(parts)):
            batch = self._encode([pairs[place] for place in parts[number]]).to(self._model.device)
            self.tokens_read += int(batch["attention_mask"].sum())
            is_cuda = self._model.device.type == "cuda"
            with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=is_cuda):
                scores[parts[number]] = self._model(**batch).logits[:, 0].double().cpu().numpy()
        return scores

    def tokens(self, rows: Impressions, place: int) -> tuple[list[str], list[int]]:
        """Return the tokens that the model reads for the candidate at `place` of ``rows.news``, and each one's segment.

        Encoders that know no segments, such as RoBERTa, are given 0.
        """
        pair = Pairs(rows.without_labels(), self._titles, self.settings.history_length)[place]
        batch = self._encode([pair])
        segments = batch.get("token_type_ids", torch.zeros_like(batch["input_ids"]))
        return self._tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist()), segments[0].tolist()

    @property
    def _batch(self) -> int:
        """Return how many pairs are scored at once."""
        return 256 if torch.cuda.is_available() else 32

    def _open(self) -> None:
        """Load the tokenizer. It cuts the oldest clicks away where a pair is too long, never the candidate."""
        self._path = self.model_path or minilm_folder()
        try:
            config = AutoConfig.from_pretrained(self._path)
            self._tokenizer = AutoTokenizer.from_pretrained(self._path, truncation_side="left")
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error
        if self._tokenizer.pad_token is None:
            raise UserError(
                f"{self._path} has no padding token, so it is no encoder such as bert-base-uncased"
            )
        places = getattr(config, "max_position_embeddings", self.settings.most_tokens)
        self._most_tokens = min(self.settings.most_tokens, self._tokenizer.model_max_length, places)

    def _unreadable(self, error: Exception) -> UserError:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return UserError(
            f"cannot load the encoder {self._path}: {first}; give a model folder or a hub id such as bert-base-uncased"
        )

    def _draw(self, seed: int) -> Any:
        """Return the encoder with a new head, drawn by `seed`."""
        torch.manual_seed(seed)
        try:
            return self._load(self._path)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error

    def _load(self, path: str | Path) -> Any:
        with quiet_transformers():
            model = AutoModelForSequenceClassification.from_pretrained(
                path,
                num_labels=1,
                problem_type="multi_label_classification",  # transformers' name for binary cross-entropy
                dtype=torch.float32,
                use_safetensors=True,  # never a pickle, which can run code
            )
        return model.to("cuda" if torch.cuda.is_available() else "cpu")

    def _read_titles(self, news: News) -> None:
        """Take the titles of the catalogue, each cut to a half of what a pair may hold."""
        if news is self._news:
            return
        titles = neutral_titles(news)
        half = self._most_tokens // 2
        spans = self._tokenizer(
            titles.tolist(), add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )["offset_mapping"]
        for place, span in enumerate(spans):
            if len(span) > half:
                titles[place] = titles[place][: span[half - 1][1]]
        self._news, self._titles = news, titles

    def _encode(self, pairs: Sequence[Mapping[str, Any]]) -> Any:
        """Return a padded batch of pairs, labels included where they have some."""
        batch = self._tokenizer(
            [pair["history"] for pair in pairs],
            [pair["candidate"] for pair in pairs],
            truncation="only_first",
            max_length=self._most_tokens,
            padding=True,
            split_special_tokens=True,  # "[SEP]" in a title is text
            return_tensors="pt",
        )
        if "label" in pairs[0]:
            batch["labels"] = torch.tensor([[pair["label"]] for pair in pairs])
        return batch

    def _some(self, rows: Impressions, seed: int) -> Impressions:
        """Return a choice of impressions, of each the clicks and K non-clicks a click: the same AUC, expected, for less."""
        rng = np.random.default_rng(seed)
        kept = keep_candidates(rows, some_candidates(rows, self.settings.negatives, rng))
        kept = kept.take(rng.permutation(len(kept)))
        n = int(np.searchsorted(kept.offsets, self.settings.valid_pairs, side="right")) - 1
        return kept.take(np.arange(max(1, n)))

    def _train(
        self, rows: Impressions, steps: int, seed: int, valid: Impressions | None = None
    ) -> list[float]:
        """Train a new model for `steps`; return its AUC on `valid` at each check."""
        kept = some_candidates(rows, self.settings.negatives, np.random.default_rng(seed))
        rows = keep_candidates(rows, kept)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if self.folder is not None:
                folder = self.folder / f"{self.name}-{self._key(rows, steps, seed, valid)}"
                if (folder / DONE).exists():
                    return self._reuse(folder, valid is None)
            with lock(folder):
                return self._run(folder, rows, steps, seed, valid)

    def _reuse(self, folder: Path, is_last: bool) -> list[float]:
        """Take what an earlier run trained in `folder`."""
        done = json.loads((folder / DONE).read_text(encoding="utf-8"))
        self.saved_seconds += done["seconds"]
        if is_last:
            self._model = self._load(folder / MODEL)
        return done["auc"]

    def _run(
        self, folder: Path, rows: Impressions, steps: int, seed: int, valid: Impressions | None
    ) -> list[float]:
        settings = self.settings
        every = settings.check_every
        is_cuda = torch.cuda.is_available()
        arguments = TrainingArguments(
            output_dir=str(folder), seed=seed, data_seed=seed, max_steps=steps, learning_rate=settings.learning_rate,
            per_device_train_batch_size=settings.batch_size, per_device_eval_batch_size=self._batch,
            lr_scheduler_type="constant_with_warmup", warmup_steps=settings.warmup_steps, bf16=is_cuda,
            use_cpu=not is_cuda, eval_strategy="no" if valid is None else "steps", eval_steps=every,
            save_strategy="no" if self.folder is None else "steps", save_steps=settings.save_every,
            save_total_limit=2, logging_steps=5, report_to="none", disable_tqdm=True,
            remove_unused_columns=False, dataloader_pin_memory=is_cuda,
        )  # fmt: skip
        pairs = [part and Pairs(part, self._titles, settings.history_length) for part in (rows, valid)]
        resumed, before = _last_checkpoint(folder)
        self.saved_seconds += before
        begin = time.perf_counter() - before
        with tqdm(
            total=steps, desc=f"{self.name}: train", unit=" steps", disable=None, file=sys.stderr
        ) as bar:
            trainer = Trainer(
                # transformers 5 saves BERT's norms under their old names, which its Trainer does not find again: a resumed
                # training would begin with the first ones. `from_pretrained` knows both names.
                self._draw(seed) if resumed is None else self._load(resumed),
                arguments,
                self._encode,
                *pairs,
                compute_metrics=lambda found: {"auc": mean_auc(found.predictions[:, 0].astype(float), valid)},
                callbacks=[_Follow(self.watch, bar, begin)],
            )
            trainer.remove_callback(PrinterCallback)
            with quiet_transformers():
                trainer.train(resume_from_checkpoint=resumed)
        self._model = trainer.model
        found = [row["eval_auc"] for row in trainer.state.log_history if "eval_auc" in row]
        if self.folder is not None:
            if valid is None:
                with quiet_transformers():
                    self._model.save_pretrained(folder / MODEL)
            write_json(folder / DONE, {"auc": found, "seconds": round(time.perf_counter() - begin, 2)})
            for checkpoint in folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
        return found

    def _key(self, rows: Impressions, steps: int, seed: int, valid: Impressions | None) -> str:
        """Return a hash of all that a training depends on."""
        local = Path(self._path)
        files = sorted(local.glob("*.safetensors")) if local.is_dir() else []
        about = {
            "model": str(self.model_path or "minilm"),
            "weights": [sha256(file) for file in files],
            "settings": asdict(self.settings),
            "steps": steps,
            "seed": seed,
        }
        digest = hashlib.sha256("\0".join([json.dumps(about), *self._titles]).encode())
        for part in (rows, valid):
            if part is not None:
                for values in (
                    part.history,
                    part.history_offsets,
                    part.history_news,
                    part.offsets,
                    part.news,
                ):
                    digest.update(np.ascontiguousarray(values))
                digest.update(np.ascontiguousarray(part.labels))
        return digest.hexdigest()[:16]


class _Follow(TrainerCallback):
    """Shows how far a training is, and writes into each checkpoint how many seconds led to it."""

    def __init__(self, watch: Watch, bar: tqdm, begin: float):
        self._watch, self._bar, self._begin = watch, bar, begin

    def on_step_end(self, args, state, control, **kwargs):
        self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        self._watch({"current_steps": state.global_step, **(logs or {})})

    def on_save(self, args, state, control, **kwargs):
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_json(checkpoint / SECONDS, time.perf_counter() - self._begin)


def _last_checkpoint(folder: Path) -> tuple[str | None, float]:
    """Return the last whole checkpoint of a training and the seconds that led to it; remove the others.

    The seconds are written last: a checkpoint without them is a half of one.
    """
    whole = sorted(
        folder.glob(f"checkpoint-*/{SECONDS}"), key=lambda path: int(path.parent.name.split("-")[1])
    )
    for checkpoint in folder.glob("checkpoint-*"):
        if not whole or checkpoint != whole[-1].parent:
            shutil.rmtree(checkpoint)
    if not whole:
        return None, 0.0
    return str(whole[-1].parent), float(json.loads(whole[-1].read_text(encoding="utf-8")))
