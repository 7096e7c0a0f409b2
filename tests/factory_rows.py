"""LLaMA-Factory's own rows for Alpaca records, to hold ours against."""

from collections.abc import Mapping, Sequence
from typing import Any

from mindlab.finetune.alpaca import COLUMNS
from mindlab.prompts.chat import ChatTemplate, quiet_factory


def factory_rows(
    chat: ChatTemplate, records: Sequence[Mapping[str, str]], cutoff_len: int = 10**6
) -> list[tuple[list[int], list[int]]]:
    """Return (input_ids, labels) of each record, by LLaMA-Factory's converter and supervised processor."""
    rows = factory_batch(chat, records, cutoff_len=cutoff_len)
    return list(zip(rows["input_ids"], rows["labels"], strict=True))


def factory_batch(
    chat: ChatTemplate, records: Sequence[Mapping[str, str]], processor: str = "Supervised", **options: Any
) -> dict[str, list]:
    """Return the columns that a processor of LLaMA-Factory makes of the records, given DataArguments."""
    from llamafactory.data import processor as processors
    from llamafactory.data.converter import AlpacaDatasetConverter
    from llamafactory.data.parser import DatasetAttr
    from llamafactory.hparams import DataArguments

    with quiet_factory():
        data_args = DataArguments(template=chat.name, **options)
        columns = DatasetAttr("file", "some.json")
        columns.join({"columns": COLUMNS})  # as in the dataset_info entry that the builder writes
        convert = AlpacaDatasetConverter(columns, data_args)
        converted = [convert(dict(record)) for record in records]
        batch = {name: [row[name] for row in converted] for name in converted[0]}
        make = getattr(processors, f"{processor}DatasetProcessor")
        return make(chat.template, chat.tokenizer, None, data_args).preprocess_dataset(batch)
