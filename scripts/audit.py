"""Audit a data set for leaks: can the answer be told without reading, or was it seen in training?

A LEAK is a rule that reads no headline and beats the best constant answer on records that it was not fitted on, an
impression that stands in the training and in the test part, or a prompt whose question is cut off. What else a
user of the numbers should know is a NOTE. Any Alpaca JSON will do, whatever its language and layout.

Examples:
  python scripts/audit.py data/processed/mind_train.json            (with mind_test.json beside it)
  python scripts/audit.py my_dataset_folder --model models/smollm2-135m --template smollm2 --cutoff-len 1024
  python scripts/audit.py data/sample                               (a MIND folder: train against dev)
  python scripts/audit.py train.json --json

Exit codes: 0 no leak, 1 a leak, 2 a mistake in what was given.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from mindlab.common import cli
from mindlab.common.errors import UserError
from mindlab.evaluation.audit import Measure, audit
from mindlab.evaluation.blind_rule import Prompt


def main() -> int:
    """Audit and print."""
    parser = cli.parser(__doc__)
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="Alpaca .json or .jsonl, a folder of them, or MIND"
    )
    parser.add_argument("--model", help="whose tokenizer counts the prompts")
    parser.add_argument("--template", help="LLaMA-Factory template of that model")
    parser.add_argument(
        "--cutoff-len", type=int, help="tokens that training keeps of a prompt and its answer"
    )
    parser.add_argument("--json", action="store_true", help="print JSON: a list of {name, leak, verdicts}")
    args = parser.parse_args()
    given = [args.model, args.template, args.cutoff_len]
    if any(given) and not all(given):
        raise UserError("--model, --template and --cutoff-len go together")
    measure = counter(args.model, args.template) if args.model else None
    audits = audit(args.path, measure, args.cutoff_len)
    if args.json:
        print(json.dumps([found.as_dict() for found in audits], ensure_ascii=False, indent=1))
    else:
        for found in audits:
            print(found.name)
            for verdict in found.verdicts:
                of = (
                    ""
                    if verdict.count is None
                    else f" ({verdict.count:,} of {verdict.total:,})"
                    if verdict.total
                    else f" ({verdict.count:,})"
                )
                print(f"  {verdict.kind:<4}  {verdict.check}: {verdict.text}{of}")
                if verdict.example:
                    print(f"        e.g. {verdict.example}")
        leaks = sum(found.has_leak for found in audits)
        print(f"{leaks} of {len(audits)} data sets leak" if leaks else "no leak found", file=sys.stderr)
    return int(any(found.has_leak for found in audits))


def counter(model: str, template: str) -> Measure:
    """Return what counts prompts in LLaMA-Factory's tokens, with a progress bar."""
    from mindlab.prompts.chat import ChatTemplate  # imports LLaMA-Factory: ten seconds
    from mindlab.prompts.records import batched

    chat = ChatTemplate.load(model, template)

    def measure(prompts: Sequence[Prompt]) -> list[int]:
        records = [
            {"system": "", "instruction": prompt.head, "input": prompt.body, "output": ""}
            for prompt in prompts
        ]
        bar = tqdm(total=len(records), desc="tokens", unit=" prompts", file=sys.stderr)
        found = []
        for block in batched(records, 256):
            found += chat.estimate(block)
            bar.update(len(block))
        bar.close()
        return found

    return measure


if __name__ == "__main__":
    cli.run(main)
