"""Score the test cases of a protocol with a language model, base or tuned, into a run folder.

next_click, next_topic, pointwise, summary, recency, in_context and listwise score every candidate from log-probabilities.
likes_dislikes (protocol seed, the tutorial's) also generates the answer's text. json_list is written: the model here, or any
OpenAI-compatible server (--base-url, its key in the environment variable OPENAI_API_KEY), lists the candidates with like
and explanation; what it gets wrong is counted. The last four only ask: scripts/build_dataset.py makes no records of them.
Interrupted? Run the same command again: it goes on.

--engine vllm scores many impressions at once, in an environment of its own (requirements-serve.txt):
  python3.11 -m venv .venv-serve
  .venv-serve/bin/pip install -r requirements-serve.txt

Examples:
  python scripts/predict.py --data data/sample --protocol dev --format next_click \\
      --model models/smollm2-135m --limit 150 --out runs/smollm2-next_click-base
  python scripts/predict.py --data data/sample --protocol dev --format next_click \\
      --model models/smollm2-135m --adapter saves/smollm2-135m/lora/next_click --limit 150 \\
      --out runs/smollm2-next_click-lora
  python scripts/predict.py --data data/sample --protocol seed --format likes_dislikes \\
      --model models/smollm2-135m --adapter saves/mind_news_recommend --limit 100 --out runs/tutorial
  python scripts/predict.py --data data/sample --protocol dev --format next_click \\
      --model models/smollm2-135m --limit 150 --engine ray --out runs/smollm2-next_click-base
  python scripts/predict.py --data data/sample --protocol dev --format pointwise --engine vllm \\
      --model models/smollm2-135m --limit 150 --out runs/smollm2-pointwise-base
  python scripts/predict.py --data data/sample --protocol sampled --format summary --summary hierarchical \\
      --model models/smollm2-135m --limit 60 --out runs/smollm2-hierarchical-base
  python scripts/predict.py --data data/sample --protocol dev --format listwise --orders 3 \\
      --model models/smollm2-135m --limit 20 --out runs/smollm2-listwise-base
  python scripts/predict.py --data data/sample --protocol dev --format json_list --constrained \\
      --model models/smollm2-135m --limit 5 --out runs/smollm2-json_list-base
  python scripts/predict.py --data data/sample --protocol dev --format json_list --thinking \\
      --base-url http://127.0.0.1:8000/v1 --model glm-4-9b-chat --limit 20 --out runs/glm-json_list
"""

import sys
from pathlib import Path

from mindlab.common import cli
from mindlab.common.errors import UserError
from mindlab.llm.options import ENGINES, Options, template_of
from mindlab.llm.vllm import SERVE_PYTHON
from mindlab.prompts import PROMPTS, Summary
from mindlab.recommenders.llm import ranker
from mindlab.runs import distributed
from mindlab.runs.run import Request, run
from mindlab.tasks import TASKS


def main() -> None:
    """Parse the arguments and run the request."""
    parser = cli.parser(__doc__)
    parser.add_argument("--data", required=True, help="folder with train/ and dev/ (MIND or a sample)")
    parser.add_argument("--protocol", required=True, choices=TASKS)
    parser.add_argument("--format", required=True, choices=sorted(PROMPTS))
    parser.add_argument(
        "--model", required=True, help="model folder or hub id; with --base-url its name there"
    )
    parser.add_argument(
        "--template", help="LLaMA-Factory template (default: told by the model's config.json)"
    )
    parser.add_argument(
        "--adapter", help="output_dir of a LLaMA-Factory LoRA run; without it the base is scored"
    )
    parser.add_argument("--out", required=True, type=Path, help="run folder")
    parser.add_argument(
        "--split",
        choices=("test", "valid", "submission"),
        default="test",
        help="test (default); valid, to choose a recipe; submission: MIND's unlabelled test split (evaluate.py "
        "--prediction-zip)",
    )
    parser.add_argument("--limit", type=int, help="a seeded random choice of that many impressions")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--history",
        type=int,
        help="latest titles of a user to use (next_click, next_topic 12, summary 5, others 8)",
    )
    parser.add_argument(
        "--orders", type=int, help="listwise: orders of the candidates whose scores are averaged (default 3)"
    )
    parser.add_argument(
        "--thinking", action="store_true", help="json_list: the model reasons first, for larger models"
    )
    parser.add_argument(
        "--constrained",
        action="store_true",
        help="json_list: the model here is held to a JSON list of just these candidates",
    )
    parser.add_argument(
        "--base-url",
        metavar="URL",
        help="json_list: ask this OpenAI-compatible server, e.g. http://127.0.0.1:8000/v1",
    )
    parser.add_argument(
        "--summary",
        choices=Summary.ways,
        default="recent",
        help="format summary: how --model, without the adapter, writes what a user likes (default recent: not at all)",
    )
    parser.add_argument(
        "--cutoff-len", type=int, default=1024, help="longest prompt in tokens (default 1024)"
    )
    parser.add_argument(
        "--per-token", action="store_true", help="next_click, next_topic: mean instead of sum over tokens"
    )
    parser.add_argument("--language", choices=("en", "zh"), default="en")
    distributed.add_arguments(parser)
    parser.add_argument(
        "--engine",
        choices=(*ENGINES, "ray"),
        default="hf",
        help="hf (default): transformers; vllm: in its own environment (requirements-serve.txt); both use a GPU if "
        "there is one; ray: hf on the machines of a Ray cluster, one model a GPU or a core (docs/distributed.md)",
    )
    parser.add_argument("--token-budget", type=int, help="hf: new tokens per pass (default: by the machine)")
    parser.add_argument("--bulk", type=int, default=50, help="vllm: impressions at once (default 50)")
    parser.add_argument(
        "--serve-python",
        default=SERVE_PYTHON,
        help="vllm: the Python of its environment (default: $MINDLAB_SERVE_PYTHON, else .venv-serve/bin/python)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "int8"),
        help="of the weights (default float32, on a GPU bfloat16); the shorter ones are faster and change scores: int8 so much that SmolLM2 ranks by chance (docs/performance.md)",
    )
    args = parser.parse_args()
    for name in ("limit", "history", "orders", "cutoff_len", "token_budget", "bulk"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected at least 1")
    request = Request(args.data, args.protocol, args.split, args.limit, args.seed)
    asked = Options(
        format=args.format,
        model=args.model,
        template=args.template or ("" if args.base_url else template_of(args.model)),
        adapter=args.adapter,
        history_length=args.history,
        cutoff_len=args.cutoff_len,
        per_token=args.per_token,
        language=args.language,
        engine="hf" if args.engine == "ray" else args.engine,  # the same run: either goes on with the other's
        token_budget=args.token_budget,
        dtype=args.dtype,
        summary=args.summary,
        orders=args.orders,
        thinking=args.thinking,
        constrained=args.constrained,
        base_url=args.base_url,
    )
    how = {}
    if args.engine == "vllm":
        how = {"bulk": args.bulk, "serve_python": args.serve_python}
        print("vLLM starts: some ten seconds, more for a large model", file=sys.stderr)
    # A job is a few row numbers: many at once, since a worker loads its model anew with each lot.
    spread = distributed.chosen(args, wants_gpu=True, jobs_at_once=16_384)
    method = ranker(args.out.name, asked, how)
    print(run(request, method, args.out, progress=cli.cases_bar, spread=spread))


if __name__ == "__main__":
    cli.run(main)
