"""Write the tables and plots of docs/performance.md from benchmarks/results.

Text between a pair of marks in the document is made here; all else is written by hand.

Examples:
  python -m benchmarks.document
"""

import json
from collections.abc import Callable
from typing import Any

from benchmarks.common import RESULTS, Row
from mindlab.common import cli
from mindlab.common.files import atomic_path, write_text
from mindlab.runs import kept

DOCUMENT = RESULTS.parents[1] / "docs/performance.md"
GROWTH_PLOT = DOCUMENT.with_name("growth.svg")
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
            verdict = ""
            if row.target is not None:
                reached = row.ratio / row.target
                verdict = "met" if reached >= 1 else f"**missed**, {reached:.0%} of it"
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
    for name in (*ORDER, "scoring_options", "growth", "gpu"):
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
    """Return time and memory of every size, and the exponents."""
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
    return table(head, lines) + f"\n\n![Seconds and memory over impressions]({GROWTH_PLOT.name})"


def draw_growth() -> None:
    """Draw seconds and peak memory over the number of training impressions, if that was measured."""
    sizes = results("growth").get("sizes", [])
    if len(sizes) < 2:
        return
    stages = list(sizes[0]["stages"])
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


def build() -> str:
    """Return where the builder's time goes."""
    found = results("build").get("stages")
    if not found:
        return "Not yet run: `python -m benchmarks.build`."
    size = found["megabytes"]
    lines = [[stage, f"{seconds:.2f} s"] for stage, seconds in found.items() if stage != "megabytes"]
    return table([f"building `seed`, {size} MB of JSON, first time in a process", "time"], lines)


def scoring() -> str:
    """Return how much of the machine the scoring engine uses, and what takes the rest."""
    found = results("scoring").get("utilisation", {})
    if not found:
        return "Not yet run: `python -m benchmarks.scoring`."
    lines = [
        [
            f"`{form}`",
            f"{used['tokens_per_pass']}",
            f"{used['achieved_gflops']:,.0f}",
            f"{used['packed_gflops']:,.0f}",
            f"{used['mkl_gflops']:,.0f}",
            f"{used['share_of_packed_rate']:.0%}",
        ]
        for form, used in found.items()
    ]
    head = [
        "format",
        "tokens a pass",
        "GFLOP/s reached",
        "the products alone",
        "the same by torch.nn.Linear",
        "share",
    ]
    return (
        f"{table(head, lines)}\n\n{profile({form: used['profile_percent'] for form, used in found.items()})}"
    )


def profile(columns: dict[str, dict[str, float]]) -> str:
    """Return percent of the time by what takes it, one column for each thing profiled."""
    groups = list(dict.fromkeys(group for column in columns.values() for group in column))
    lines = [
        [group, *(f"{column[group]:.1f}" if group in column else "" for column in columns.values())]
        for group in groups
    ]
    return table(["percent of the time", *(f"`{name}`" for name in columns)], lines)


def options() -> str:
    """Return what the scoring engine's options bring, and at which price."""
    rows = [Row(**found) for found in results("scoring_options").get("rows", [])]
    if not rows:
        return "Not yet run: `python -m benchmarks.scoring --options`."
    lines = [
        [
            row.what,
            row.size,
            row.other,
            row.ours,
            row.theirs,
            f"{row.ratio:g} ({row.low:g} to {row.high:g})",
            row.note,
        ]
        for row in rows
    ]
    return table(["what", "size", "against", "with it", "without", "times faster", "note"], lines)


def vllm() -> str:
    """Return vLLM's candidates a second at every block size that was tried."""
    found = results("vllm")
    if not found:
        return "Not yet run: `python -m benchmarks.vllm_scoring` (needs the environment of requirements-serve.txt)."
    tried = {form: entry["candidates_per_second_by_block_size"] for form, entry in found["formats"].items()}
    sizes = list(dict.fromkeys(size for entry in tried.values() for size in entry))
    lines = [
        [f"`{form}`", *(f"{entry[size]:.1f}" if size in entry else "" for size in sizes)]
        for form, entry in tried.items()
    ]
    start = ", ".join(f"{seconds:.0f} s" for seconds in found["startup_seconds"].values())
    return (
        f"{table(['vLLM, candidates/s', *(f'block {size}' for size in sizes)], lines)}\n\n"
        f"{found['dtype']} on both sides, {found['threads']} threads; vLLM's starts took {start}."
    )


def training() -> str:
    """Return each setting's part in the speed of training, and what eats the time."""
    found = results("training")
    if not found:
        return "Not yet run: `python -m benchmarks.training`."
    lines = [
        [
            name,
            used["dtype"],
            f"{used['achieved'] / 1e9:,.0f}",
            f"{used['product'] / 1e9:,.0f}",
            f"{used['share']:.0%}",
            f"{used['product'] / found['flops_a_token']:,.0f}",
        ]
        for name, used in found["utilisation"].items()
    ]
    head = ["side", "precision", "GFLOP/s reached", "a product alone", "share", "tokens/s at that rate"]
    text = table(head, lines)
    if ladder := found.get("ladder"):
        share = ladder["share_of_gain"]
        lines = [
            [name, f"{rate:.0f}", f"{share[name]:.0%}" if name in share else ""]
            for name, rate in ladder["tokens_a_second"].items()
        ]
        text += f"\n\n{table(['side', 'real tokens/s', 'share of the gain'], lines)}"
    percent = {
        name: {kind: 100 * share for kind, share in one["shares"].items()}
        for name, one in found["profile"].items()
    }
    return f"{text}\n\n{profile(percent)}"


def gpu() -> str:
    """Return what GLM-4-9B's shape takes on a GPU, beside the planner's figures."""
    found = results("gpu")
    if not found:
        return "Not yet run: `python -m benchmarks.gpu`."
    lines, failures = [], []
    for name, one in found["rows"].items():
        if "failed" in one:
            failures.append(f"{name}: {one['failed']}.")
        if "gpu_gib" not in one:
            continue
        lines.append(
            [
                name.replace("train ", "an update, ").replace("score ", "an impression, "),
                f"{one['tokens']:,.0f}",
                f"{one['seconds']:.2f}",
                f"{one['gpu_gib']:.1f}",
                f"{one['predicted_gib']:.1f}",
                f"{one['gpu_gib'] / one['predicted_gib'] - 1:+.0%}",
            ]
        )
    head = ["what", "tokens", "seconds", "GiB", "planned", "error"]
    machine, agree = found["machine"], found["rows"]["agree"]
    text = (
        f"{found['device']['name']}, {found['device']['gib']} GiB; torch {machine['packages']['torch']}, Python "
        f"{machine['python']}. In float32 the scores of 60 lines on the GPU and on the CPU differ by "
        f"{agree['difference']:.0e} at most, and span {agree['spread']:.0f}."
    )
    missing = "\n\nNot run: " + " ".join(failures) if failures else ""
    return f"{text}\n\n{table(head, lines)}{missing}"


SECTIONS: dict[str, Callable[[], str]] = {
    "targets": targets,
    "machines": machines,
    "build": build,
    "growth": growth,
    "large": large,
    "scoring": scoring,
    "scoring_options": options,
    "vllm": vllm,
    "training": training,
    "gpu": gpu,
}


def main() -> None:
    """Write every section between its marks."""
    cli.parser(__doc__).parse_args()
    draw_growth()
    for name, make in SECTIONS.items():
        head, tail = around(name)
        write_text(DOCUMENT, f"{head}\n{make()}\n\n{tail}")
    print(f"{targets()}\n\n{DOCUMENT}")


def around(section: str) -> tuple[str, str]:
    """Return what stands in the document before and after a section's marks, marks included."""
    return kept.around(DOCUMENT, RESULTS.relative_to(RESULTS.parents[1]) / section)


if __name__ == "__main__":
    cli.run(main)
