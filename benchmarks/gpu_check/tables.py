"""Figures of the check as Markdown. Standard library only: reports are also made where torch is missing.

Every function takes the lines of all parts (lines.py). Of lines about the same thing the later ones add to and replace what the
earlier ones say. What is missing is shown as "not measured" with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from .names import GROUPS, IN_CHUNKS, LIGER, LIGER_FLOAT32, LOOP, LOOP_COMPILED, OTHER, OURS, RATIOS, SILENT, WHOLE

Line = dict[str, Any]
LONGEST_NAME = 90
NOT_INSTALLED = ("ImportError", "ModuleNotFoundError")
MOST_OVER_LIGER, MOST_TELEMETRY, MOST_TFSD, LEAST_MFU = 1.0, 1.01, 1.03, 45.0

LOSS_NOTE = """Products are bfloat16. All start from float32 hidden states and weights and end with their float32 gradients; the
casts are part of the time. Time: median [quartiles] of a forward and a backward pass. Memory: the peak beyond inputs and
gradients. The gradient of the weights is summed over chunks in float32 by ours and by "Liger, float32 sums", in
bfloat16 by Liger and cut-cross-entropy as they come; F.cross_entropy needs no such sum. As it comes cut-cross-entropy skips
blocks whose gradients are tiny, with these random inputs nearly all: its time is a lower bound; "unfiltered" skips none."""
TRAINING_NOTE = """MFU counts FLOPs as for PaLM (arXiv 2204.02311, appendix B), attention as if over all positions. Peak: as if
the contestant were alone in its process. Host: CPU time of the process until a step is launched, with its waits where the queue
of launches is full. The first 5 steps include compilation."""
PROFILE_NOTE = """Groups go by the names of kernels; unknown names count as other. Idle: the time of a step without the profiler
minus that of the kernels with it."""


def report(lines: Sequence[Line]) -> str:
    """Everything: targets first, then the tables, then what was left out."""
    parts = [targets(lines), loss_tables(lines), training_tables(lines), profile_tables(lines), remarks(lines)]
    return "\n\n".join(part for part in parts if part) + "\n"


# ------------------------------------------------------------------------------------------------- failures and targets


def failures(lines: Sequence[Line]) -> list[str]:
    """What failed while it was measured, a line each: contestants, apart from those that are not installed, and the kernel."""
    found = []
    for line in lines:
        error, kernel = line.get("error"), line["table"] == "kernel" and line["reason"]
        if error and not error.startswith(NOT_INSTALLED):
            place = _shape_of(line) if "contestant" in line else line["table"]
            found.append(f"{line.get('contestant') or line.get('arm')} ({place}): {error}")
        elif kernel:
            found.append(f"{line['part']}: without the Triton kernel at V = {line['columns']:,}: {kernel}")
    return list(dict.fromkeys(found))


def targets(lines: Sequence[Line]) -> str:
    """Each target with what was measured."""
    return "## Targets\n\n" + table(["target", "measured", "verdict"], _targets(lines))


def missed_targets(lines: Sequence[Line]) -> list[str]:
    """The targets that were measured and missed, a line each."""
    found = _targets(lines)
    return [f"{title}: {measured}, {verdict}" for title, measured, verdict in found if verdict.startswith("missed")]


def _targets(lines: Sequence[Line]) -> list[list[str]]:
    rows = [*_liger_targets(lines)]
    for title, pair, most in (
        ("telemetry costs at most 1% of a step", (LOOP, SILENT), MOST_TELEMETRY),
        ("metric + TFSD at most 3% slower than linear + CE", (OTHER, LOOP), MOST_TFSD),
    ):
        found = _ratio(lines, *pair)
        measured = _interval(found) if found else ""
        verdict = _verdict(found["middle"], most) if found else _why_no_ratio(lines, *pair)
        if found and found.get("low") is not None and found["low"] <= most <= found["high"]:
            verdict += " (not certain: the interval includes the target)"
        rows.append([title, measured, verdict])
    trained = _merged(lines, "training", "group", "contestant")
    for group, name in (("eager", LOOP), ("compiled", LOOP_COMPILED)):
        found = trained.get((group, name), {})
        mfu = found.get("mfu_sheet")
        if mfu is None:
            why = (
                "no data-sheet peak is known for this device" if "ms" in found else _why(found, lines, "training", name)
            )
            rows.append([f"MFU at least 45%: {name}", "", f"not measured ({why})"])
        else:
            verdict = "met" if mfu >= LEAST_MFU else f"missed by {LEAST_MFU - mfu:.1f} points"
            rows.append([f"MFU at least 45%: {name}", f"{mfu:.1f}%", verdict])
    return rows


def _liger_targets(lines: Sequence[Line]) -> Iterable[list[str]]:
    found = _merged(lines, "loss", "N", "D", "V", "contestant")
    shapes = _shapes(found)
    if not shapes:
        yield ["linear + CE no slower than Liger", "", _missing(lines, "loss")]
    for shape in shapes:
        title = f"linear + CE no slower than Liger, {_shape_name(shape)}"
        ours, theirs, wide = (found.get((*shape, name), {}) for name in (OURS, LIGER, LIGER_FLOAT32))
        if "ms" in ours and "ms" in theirs:
            measured = f"{ours['ms'] / theirs['ms']:.3f}"
            if "ms" in wide:
                measured += f"; {ours['ms'] / wide['ms']:.3f} with float32 sums in both"
            yield [title, measured, _verdict(ours["ms"] / theirs["ms"], MOST_OVER_LIGER)]
        else:
            missing = (ours, OURS) if "ms" not in ours else (theirs, LIGER)
            yield [title, "", f"not measured ({_why(missing[0], lines, 'loss', missing[1])})"]


def _verdict(ratio: float, most: float) -> str:
    return "met" if ratio <= most else f"missed by {100 * (ratio / most - 1):.1f}%"


# --------------------------------------------------------------------------------------------------------------- tables


def loss_tables(lines: Sequence[Line]) -> str:
    """A table for each shape, and one for sizes of a chunk."""
    found = _merged(lines, "loss", "N", "D", "V", "contestant")
    parts = ["## Loss"]
    if not found:
        return f"{parts[0]}\n\n{_missing(lines, 'loss')}"
    parts += _kernel_sentence(lines, "loss")
    for shape in _shapes(found):
        parts += [f"### {_shape_name(shape)}", _loss_table({k[3]: v for k, v in found.items() if k[:3] == shape})]
    chunks = _merged(lines, "chunks", "N", "D", "V", "contestant")
    for shape in _shapes(chunks):
        trials = {k[3]: v for k, v in chunks.items() if k[:3] == shape}
        parts += [f"### Linear + CE in other chunks, {_shape_name(shape)}", _loss_table(trials)]
    return "\n\n".join([*parts, LOSS_NOTE])


def _loss_table(found: dict[str, Line]) -> str:
    rows = []
    first = [name for name in (WHOLE, IN_CHUNKS) if name in found]
    others = sorted((name for name in found if name not in first), key=lambda name: "ms" not in found[name])
    for name in first + others:
        one = found[name]
        if "ms" not in one:
            rows.append([name, f"not measured ({one.get('error', 'no figure')})", "", "", "", ""])
            continue
        time = f"{one['ms']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"
        rows.append(
            [
                *(_label(name, one), time, _number(one.get("ratio"), ".3f"), _number(one.get("tflops"), ",.1f")),
                *(_number(one.get("memory_mib"), ",.1f"), _number(one.get("rounds"), "d")),
            ]
        )
    return table(["loss", "ms", "to three matmuls", "TFLOP/s", "memory, MiB", "rounds"], rows)


def training_tables(lines: Sequence[Line]) -> str:
    """A table of speeds for each group, and one of ratios."""
    found = _merged(lines, "training", "group", "contestant")
    parts = ["## Training"]
    if not found:
        return f"{parts[0]}\n\n{_missing(lines, 'training')}"
    parts += [_peak_sentence(line) for line in lines if line["table"] == "peak"][-1:]
    parts += _kernel_sentence(lines, "training")
    for group, names in GROUPS.items():
        own = {name: found.get((group, name), {}) for name in names}
        sizes = {f"{one['rows']} x {one['length']} tokens a step" for one in own.values() if "ms" in one}
        parts += [f"### {group.capitalize()}{', ' * bool(sizes)}{' or '.join(sorted(sizes))}"]
        parts += [table(TRAINING_COLUMNS, [_training_row(name, one, lines) for name, one in own.items()])]
    ratios = [[f"{a} / {b}", *_ratio_cells(lines, a, b)] for a, b in RATIOS]
    parts += ["### Ratios of the time per step", table(["ratio", "median [95% interval]", "blocks"], ratios)]
    return "\n\n".join([*parts, TRAINING_NOTE])


TRAINING_COLUMNS = [
    *("contestant", "tokens/s", "ms/step", "host ms/step", "peak, MiB", "MFU, data sheet", "MFU, measured peak"),
    *("first 5 steps, s", "blocks"),
]


def _training_row(name: str, one: Line, lines: Sequence[Line]) -> list[str]:
    if "ms" not in one:
        return [name, f"not measured ({_why(one, lines, 'training', name)})", *[""] * (len(TRAINING_COLUMNS) - 2)]
    shares = (f"{one[key]:.1f}%" if one.get(key) is not None else "" for key in ("mfu_sheet", "mfu_measured"))
    return [
        _label(name, one),
        *(f"{one['tokens_per_s']:,.0f}", f"{one['ms']:.1f}", f"{one['host_ms']:.1f}"),
        *(_number(one.get("peak_mib"), ",.0f"), *shares, f"{one['first_s']:.1f}", str(one["blocks"])),
    ]


def _kernel_sentence(lines: Sequence[Line], part: str) -> list[str]:
    """What evaluated the softmax of this project's losses."""
    found = _merged(lines, "kernel", "part", "columns").values()
    told = [f"{one['name']} at V = {one['columns']:,}" for one in found if one["part"] == part]
    return [f"Softmax of this project's losses, unless named otherwise: {', '.join(told)}."] if told else []


def _peak_sentence(line: Line) -> str:
    sheet = line.get("sheet_tflops")
    known = f"{sheet:,.1f} TFLOP/s by the vendor's data sheet (dense)" if sheet else "no data-sheet peak known"
    measured = f"{line['measured_tflops']:,.3g} TFLOP/s measured in a bfloat16 product of size {line['size']:,}"
    return f"{line['device']}: {known}; {measured}."


def _ratio_cells(lines: Sequence[Line], above: str, below: str) -> list[str]:
    found = _ratio(lines, above, below)
    return [_interval(found), str(found["blocks"])] if found else [_why_no_ratio(lines, above, below), ""]


def _why_no_ratio(lines: Sequence[Line], *pair: str) -> str:
    trained = _merged(lines, "training", "group", "contestant")
    for name in pair:
        found = [one for (_, other), one in trained.items() if other == name]
        if not any("ms" in one for one in found):
            return f"not measured ({name}: {_why(found[-1] if found else {}, lines, 'training', name)})"
    return _missing(lines, "training")


def _interval(found: Line) -> str:
    if found.get("low") is None:
        return f"{found['middle']:.3f} [too few blocks]"
    return f"{found['middle']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def profile_tables(lines: Sequence[Line]) -> str:
    """Time by group for all arms, and the longest kernels of each."""
    found = _merged(lines, "profile", "arm")
    parts = ["## Profile of a step"]
    if not found:
        return f"{parts[0]}\n\n{_missing(lines, 'profile')}"
    for (arm,), one in found.items():
        parts.append(f"{arm}: {_profile_sentence(one)}")
    groups, kernels = _merged(lines, "profile_group", "group", "arm"), _merged(lines, "profile_kernel", "arm", "rank")
    arms = [arm for (arm,), one in found.items() if "device_ms" in one]
    if groups:
        rows = [
            [name, *(_share(groups.get((name, arm))) for arm in arms)] for name in dict.fromkeys(k[0] for k in groups)
        ]
        parts.append(table(["group", *(f"{arm}, ms (share)" for arm in arms)], rows))
    for arm in arms:
        own = [one for (other, _), one in kernels.items() if other == arm]
        rows = [
            [_short(k["name"]), k["group"], f"{k['ms']:.3f}", f"{100 * k['share']:.1f}%", f"{k['calls']:g}"]
            for k in own
        ]
        parts += [f"### Longest, {arm}", table(["name", "group", "ms/step", "share", "calls/step"], rows)]
    return "\n\n".join([*parts, PROFILE_NOTE])


def _profile_sentence(one: Line) -> str:
    if "wall_ms" not in one:
        return f"not measured ({one.get('error', 'no figure')})"
    text = f"{one['wall_ms']:.1f} ms a step, {one['host_ms']:.1f} ms of the host"
    if "device_ms" in one:
        idle = "" if one.get("idle") is None else f", idle {100 * one['idle']:.1f}%"
        text += f"; {one['clock']}: {one['device_ms']:.1f} ms{idle} ({one['steps']} steps)"
    return f"{text}. Then: {one['error']}." if "error" in one else f"{text}."


def _share(one: Line | None) -> str:
    return "0" if one is None else f"{one['ms']:.2f} ({100 * one['share']:.1f}%)"


def remarks(lines: Sequence[Line]) -> str:
    """Notes of the parts, and what they left out; empty if there is nothing to say."""
    notes = [line["text"] for line in lines if line["table"] == "note"]
    for name, keys in (("loss", ("N", "D", "V", "contestant")), ("training", ("group", "contestant"))):
        for one in _merged(lines, name, *keys).values():
            if "ms" in one and "error" in one:
                notes.append(f"{one['contestant']} ({_shape_of(one)}) failed later: {one['error']}")
    notes += [f"left out: {line['what']} ({line['why']})" for line in lines if line["table"] == "left_out"]
    return "## Remarks\n\n" + "\n".join(f"- {note}" for note in notes) if notes else ""


# -------------------------------------------------------------------------------------------------------------- helpers


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned in the source too: numbers to the right, names to the left."""
    cells = [[_escaped(cell) for cell in row] for row in (headings, *rows)]
    # A reason in place of figures may stick out: it does not widen the whole column.
    widths = [max(3, *(len(r[i]) for r in cells if not r[i].startswith("not measured"))) for i in range(len(headings))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        "| " + " | ".join([r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:], widths[1:], strict=True))]) + " |"
        for r in (cells[0], rule, *cells[1:])
    ]
    return "\n".join(lines)


def _escaped(cell: str) -> str:
    return cell.replace("\n", " ").replace("|", "\\|")


def _short(name: str) -> str:
    """A kernel's name as code, without return type and namespaces, cut to a length."""
    name = re.sub(r"^void |at::native::|\(anonymous namespace\)::", "", name).replace("`", "'")
    return f"`{name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + '...'}`"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _merged(lines: Iterable[Line], name: str, *keys: str) -> dict[tuple[Any, ...], Line]:
    """The lines of a table by their keys, those about the same thing made one."""
    found: dict[tuple[Any, ...], Line] = {}
    for line in lines:
        if line["table"] == name:
            found.setdefault(tuple(line[key] for key in keys), {}).update(line)
    return found


def _shapes(found: Iterable[tuple[Any, ...]]) -> list[tuple[int, int, int]]:
    return list(dict.fromkeys((N, D, V) for N, D, V, _ in found))


def _label(name: str, one: Line) -> str:
    """A contestant's name; the remarks say how it failed."""
    return f"{name} (failed later)" if "error" in one else name


def _shape_of(one: Line) -> str:
    return _shape_name((one["N"], one["D"], one["V"])) if "N" in one else str(one["group"])


def _shape_name(shape: tuple[int, int, int]) -> str:
    return "N = {:,}, D = {:,}, V = {:,}".format(*shape)


def _ratio(lines: Sequence[Line], above: str, below: str) -> Line | None:
    return _merged(lines, "training_ratio", "above", "below").get((above, below))


def _why(one: Line, lines: Sequence[Line], part: str, name: str) -> str:
    """Why a contestant has no figures."""
    if "error" in one:
        return str(one["error"])
    left = [line["why"] for line in lines if line["table"] == "left_out" and line["what"].endswith(f": {name}")]
    return str(left[-1]) if left else _reason(lines, part)


def _missing(lines: Sequence[Line], part: str) -> str:
    return f"not measured ({_reason(lines, part)})"


def _reason(lines: Sequence[Line], part: str) -> str:
    left = [line["why"] for line in lines if line["table"] == "left_out" and line["part"] == part]
    return str(left[-1]) if left else f"the part {part} wrote nothing about it"
