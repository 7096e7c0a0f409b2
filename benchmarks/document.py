"""Write the tables and plots of docs/performance.md from benchmarks/results.

Text between a pair of marks in the document is made here; all else is written by hand.

Examples:
  python -m benchmarks.document
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, Row
from mindlab import cli, kept
from mindlab.files import atomic_path, write_text

DOCUMENT = Path("docs/performance.md")
GROWTH_PLOT = Path("docs/growth.svg")
ORDER = ("build", "metrics", "scoring", "vllm", "training")  # of the table's rows


def results(name: str) -> dict[str, Any]:
    """Return what a benchmark kept, {} if it has not been run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def table(head: list[str], lines: list[list[str]]) -> str:
    """Return a Markdown table, its numbers to the right.

    >>> print(table(["a", "b"], [["x", "1"]]))
    | a | b |
    |---|--:|
    | x | 1 |
    """
    rules = ["---" if k == 0 else "--:" for k in range(len(head))]
    return "\n".join(
        f"|{'|'.join(row)}|" if row is rules else f"| {' | '.join(row)} |" for row in (head, rules, *lines)
    )


def targets() -> str:
    """Return every comparison: what was asked for and what was measured."""
    lines = []
    for name in ORDER:
        for row in (Row(**found) for found in results(name).get("rows", [])):
            asked = "" if row.target is None else f"{row.target:g}"
            verdict = "" if row.target is None else "met" if row.ratio >= row.target else "**missed**"
            memory = " / ".join(
                "-" if mb is None else f"{mb:,.0f}" for mb in (row.peak_mb, row.other_peak_mb)
            )
            lines.append(
                [
                    f"{row.what}; {row.size}",
                    row.other,
                    row.ours,
                    row.theirs,
                    f"{row.ratio:g} ({row.low:g} to {row.high:g}, n={row.rounds})",
                    asked,
                    verdict,
                    memory,
                    row.note,
                ]
            )
    head = [
        "what",
        "other side",
        "ours",
        "other",
        "times better",
        "target",
        "",
        "peak MiB, ours / other",
        "note",
    ]
    return table(head, lines)


def machines() -> str:
    """Return what each benchmark was run on."""
    lines = []
    for name in (*ORDER, "growth"):
        if found := results(name).get("machine"):
            lines.append(
                [
                    name,
                    f"{found['processor']}, {found['cores']} cores, {found['memory_gib']} GiB",
                    found["measured"],
                    f"{(found['git_commit'] or 'unknown')[:10]}",
                    f"`{found['command']}`",
                ]
            )
    return table(["benchmark", "machine", "measured", "commit", "command"], lines)


def growth() -> str:
    """Return time and memory of every size, and the exponents; draw them."""
    found = results("growth")
    if not found:
        return "Not yet run: `python -m benchmarks.growth`."
    sizes = found["sizes"]
    stages = list(sizes[0]["stages"])
    lines = [
        [
            stage,
            *(
                f"{one['stages'][stage]['seconds']:.2f} s, {one['stages'][stage]['peak_mb']:,}"
                for one in sizes
            ),
            *(str(value) for value in found["exponents"].get(stage, {}).values()),
        ]
        for stage in stages
    ]
    head = ["stage", *(f"{one['train']:,} + {one['dev']:,}" for one in sizes)]
    if len(sizes) > 1:
        head += ["exponent, all", "last two"]
        draw_growth(sizes, stages)
    return table(head, lines) + f"\n\n![Seconds and memory over impressions]({GROWTH_PLOT.name})"


def draw_growth(sizes: list[dict[str, Any]], stages: list[str]) -> None:
    """Draw seconds and peak memory over the number of training impressions."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    # Nothing of the day or of chance in the file, so that the same numbers give the same picture.
    mpl.rcParams["svg.hashsalt"] = "mindlab"
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    x = [one["train"] for one in sizes]
    for stage in stages:
        left.plot(x, [one["stages"][stage]["seconds"] for one in sizes], marker="o", label=stage)
        right.plot(x, [one["stages"][stage]["peak_mb"] for one in sizes], marker="o", label=stage)
    first = max(one["seconds"] for one in sizes[0]["stages"].values())
    left.plot(x, [first * n / x[0] for n in x], color="grey", linestyle=":", label="linear")
    for axis, label in ((left, "seconds"), (right, "peak MiB of the process")):
        axis.set(xscale="log", yscale="log", xlabel="training impressions", ylabel=label)
        axis.grid(alpha=0.3)
    left.legend(fontsize=8)
    with atomic_path(GROWTH_PLOT) as path:
        figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)


def large() -> str:
    """Return what MINDlarge's size takes, beside the last of the growing sizes."""
    found = results("growth")
    if not found.get("large"):
        return "Not yet run: `python -m benchmarks.growth --large`."
    one, last = found["large"], found["sizes"][-1]
    lines = []
    for stage, taken in one["stages"].items():
        before = last["stages"][stage]
        grown = (one["train"] + one["dev"]) / (last["train"] + last["dev"])
        times = taken["seconds"] / before["seconds"]
        lines.append(
            [
                stage,
                f"{taken['seconds']:.1f} s",
                f"{taken['peak_mb']:,}",
                f"{times:.1f}",
                f"{times / grown:.2f}",
            ]
        )
    head = ["stage", "time", "peak MiB", f"times {last['train']:,} + {last['dev']:,}", "of linear"]
    text = f"{one['train']:,} + {one['dev']:,} impressions, {one['news']:,} news, {grown:.1f} times the last column above."
    return f"{text}\n\n{table(head, lines)}"


SECTIONS: dict[str, Callable[[], str]] = {
    "targets": targets,
    "machines": machines,
    "growth": growth,
    "large": large,
}


def main() -> None:
    """Write every section between its marks."""
    cli.parser(__doc__).parse_args()
    for name, make in SECTIONS.items():
        head, tail = kept.around(DOCUMENT, RESULTS.relative_to(Path.cwd()) / name)
        write_text(DOCUMENT, f"{head}\n{make()}\n\n{tail}")
    print(DOCUMENT)


if __name__ == "__main__":
    cli.run(main)
