"""The replayed step in words, for the terminal and for the page.

Texts of the corpus are anybody's: every string goes through ``highlight.visible``.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np

from analysis.show.style import presence
from analysis.show.text import clip, number, percent, token_text, visible

from .explanation import Counterfactual, Explanation, MetricCheck
from .explanation import Sequence as Example
from .standing_out import STANDS_OUT, by_gradient, context, gradient_shares, standing_out, unlikely, worst_tokens

WIDTH = 110
"""Cells of a line of the summary."""
_NOISE = 3.0
"""Within so many sigmas of the usual a value is not called unusual."""

# ------------------------------------------------------------------------------------------------ sentences of both forms


def headline(e: Explanation) -> tuple[str, str]:
    """The step's NLL and gradient against the usual; then which sequences make the gradient, or are far less likely."""
    checks = e.metrics.get("loss/nll"), e.metrics.get("grad_norm/total")
    first, last = e.usual_window
    counted = any(check is not None and check.sigmas is not None and math.isfinite(check.replayed) for check in checks)
    meaning = f" (median and MAD of steps {first} to {last})" if counted else ""
    return (
        f"Step {e.step}: {_against_usual('NLL', checks[0])}; {_against_usual('gradient norm', checks[1])}{meaning}.",
        " ".join(filter(None, [_origin(e), _unlikely(e)])),
    )


def _against_usual(label: str, check: MetricCheck | None) -> str:
    if check is None:
        return f"{label} not recorded"
    value = check.replayed  # what everything else here was found on, and what ``sigmas`` counts
    words = f"{label} {number(value)}"
    if not check.agrees:
        words += f" in the replay ({number(check.logged)} in the log)"
    if check.usual is None:
        return f"{words}, with nothing logged before to compare it with"
    usual = number(check.usual)
    if not math.isfinite(value):
        return f"{words}, where {usual} is usual"
    if check.sigmas is None:
        return f"{words}, where every step before had {usual}" if value != check.usual else f"{words}, as before"
    sigmas, side = abs(check.sigmas), "above" if value > check.usual else "below"
    if sigmas < _NOISE:
        return f"{words}, within the usual ({usual}; {sigmas:.1f} sigma {side})"
    return f"{words}, {number(sigmas, 2)} sigma {side} the usual {usual}"


def _origin(e: Explanation) -> str:
    """Which sequences make the gradient."""
    shares, found, count = gradient_shares(e), standing_out(e), len(e.sequences)
    broken = [s for s in found if not math.isfinite(s.grad_norm)]
    if broken:
        return f"The gradient of {len(broken)} of {count} sequences is not finite."
    if count == 1:
        return "The batch is one sequence."
    if not found:
        largest = by_gradient(e)[:1]
        part = shares.get(largest[0].row) if largest else None
        share = f"the largest has {percent(part)} of the gradient{_beyond(part)}" if largest else "none recorded"
        return f"No sequence's gradient stands out among {count}: {share}."
    if not shares:
        return f"{len(found)} of {count} sequences have a gradient above {STANDS_OUT:g} x the median of the batch."
    part = math.fsum(shares[s.row] for s in found)
    beyond = _beyond(part, *(shares[s.row] for s in found))
    return f"{percent(part)} of the gradient comes from {len(found)} of {count} sequences{beyond}."


def _beyond(*parts: float | None) -> str:
    """What a part of more than 100% means, if one of them is written so (see :func:`gradient_shares`)."""
    most = max((part for part in parts if part is not None), default=0.0)
    return " (above 100%: the others pull against it)" if round(100 * most) > 100 else ""


def _unlikely(e: Explanation) -> str:
    """Sequences whose NLL stands out, if any of them does not by its gradient already."""
    found, told = unlikely(e), {s.row for s in standing_out(e)}
    if all(s.row in told for s in found):
        return ""
    median = float(np.median([s.nll for s in e.sequences if math.isfinite(s.nll)] or [math.nan]))
    return (
        f"The NLL of {len(found)} of {len(e.sequences)} stands out: up to {number(found[0].nll)}, where the median sequence "
        f"has {number(median)}."
    )


def reproduction(e: Explanation) -> tuple[bool | None, str]:
    """Whether the replay is what happened (None: could not be told), and that in words."""
    steps = f"{e.steps_compared} replayed {'step' if e.steps_compared == 1 else 'steps'}"
    within = "to the bit" if e.tolerance == 0 else f"to {e.tolerance:.1g} (relative)"
    reason = f" Bits cannot be expected: {e.tolerance_reason}." if e.tolerance_reason else ""
    if e.disagreements:
        many = f"{len(e.disagreements)} {'value disagrees' if len(e.disagreements) == 1 else 'values disagree'}"
        return False, f"NOT REPRODUCED: {many} with the log, in {steps} compared {within}.{reason}"
    if not e.steps_compared:
        return None, "NOT CHECKED: the log has no row of the replayed steps to compare with."
    return True, f"Reproduced: all metrics of {steps} agree with the log {within}.{reason}"


def update_words(e: Explanation) -> str:
    """What the update did to the NLL of its own batch, and what clipping did to the update."""
    words = f"The update took the NLL of its own batch from {number(e.nll_before)} to {number(e.nll_after)}"
    difference = e.nll_after - e.nll_before
    words += f" ({difference:+.3g} nats)" if math.isfinite(difference) else ""
    total = e.metrics.get("grad_norm/total")
    if total is not None and not math.isfinite(total.replayed):
        return words + "; the gradient is not finite."
    if e.clipped_by is None:
        return words + "; clipping is off."
    if e.clipped_by == 1:
        return words + "; the gradient was not clipped."
    return words + f"; clipping scaled the gradient by {number(e.clipped_by, 2)}."


def window_words(e: Explanation) -> str:
    """Which steps "usual" is taken from."""
    first, last = e.usual_window
    return f"Usual: median of the logged steps {first} to {last}" if last else "Usual: nothing was logged before"


def group_words(e: Explanation) -> str:
    """The group whose gradient is farthest above its usual one."""
    broken = [g.name for g in e.groups if not math.isfinite(g.grad_norm)]
    if broken:
        return f"Gradients that are not finite: {first_of(broken, 8)}."
    known = [(times, g) for g in e.groups if (times := ratio(g.grad_norm, g.usual_grad_norm)) is not None]
    if not known:
        return "No group's usual gradient is known."
    times, group = max(known, key=lambda pair: pair[0])
    words = f"{group.name}, gradient {number(group.grad_norm, 3)}, {number(times, 3)} x its usual"
    return f"Group that stands out: {words}." if times >= STANDS_OUT else f"No group stands out; farthest: {words}."


def ratio(value: float, usual: float | None) -> float | None:
    """How many times its usual a value is; None where that cannot be told."""
    return value / usual if usual and math.isfinite(value / usual) else None


def spike_words(e: Explanation) -> str:
    """The spike that the step belongs to; only for an explanation that has one."""
    spike = e.spike or {}
    end = "" if spike.get("recovered", True) else ", from which the run did not recover"
    sigmas = spike.get("sigmas")
    height = "" if sigmas is None else f", {number(float(sigmas), 3)} sigma above the detector's forecast"
    return (
        f"It belongs to the spike of {spike.get('signal')} from step {spike.get('start_step')} to "
        f"{spike.get('end_step')} (peak at {spike.get('peak_step')}{height}){end}."
    )


# ------------------------------------------------------------------------------------------------------- for a terminal


def summary_lines(e: Explanation) -> list[str]:
    """What happened at the step, in at most 25 lines of at most ``WIDTH`` cells, safe to print on any terminal."""
    reproduced, verdict = reproduction(e)
    replayed = f"replayed on {e.device} from the checkpoint of step {e.checkpoint}"
    lines = [f"{e.run}, step {e.step} (batch {e.batch}), {replayed}", *_wrapped(verdict)]
    if reproduced is False:
        lines += ["  " + first_of(e.disagreements, 3)]
    values, origin = headline(e)
    lines += _wrapped(values)
    lines += _wrapped(spike_words(e)) if e.spike else []
    shares, found = gradient_shares(e), standing_out(e)
    told = {s.row for s in found}
    found += [s for s in unlikely(e) if s.row not in told]
    lines += _wrapped(origin.removesuffix(".") + (":" if found else "."))
    for s in found[:3]:
        lines.append(f"  row {s.row}: {own_numbers(s, shares)}  “{visible(s.text[:WIDTH])}”")
    lines += [f"  and {len(found) - 3} more that stand out"] if len(found) > 3 else []
    lines += _wrapped(update_words(e))
    worst = worst_tokens(e, 4)
    lines += ["Worst tokens, in «»:"] if worst else []
    for s, token in worst:
        before, after = context(s, token, 18)
        weight = "" if token.weight is None else f" c {number(token.weight, 3)}"
        model = f"; model: {token_text(token.top[0][0])} {percent(token.top[0][1])}" if token.top else ""
        which = f"; id {token.token_id}" if token.text in ("", "\ufffd") else ""  # a part of a character has no text
        place = f"row {s.row}, position {token.position}:"
        lines.append(
            f"  {number(token.nll):>6}{weight}  {place:<24}{before}«{visible(token.text)}»{after}{which}{model}"
        )
    lines += [group_words(e)] if e.groups else []
    if e.embeddings:
        moved = [f"{token_text(m.text)} ({number(m.distance, 3)})" for m in e.embeddings]
        lines.append("Embeddings that moved most: " + first_of(moved, 4))
    lines += [f"planted by the configuration: {first_of(e.stress, 3)}"] if e.stress else []
    return [clip(visible(line), WIDTH) for line in lines]


def _wrapped(text: str) -> list[str]:
    """At most two lines; what is on them is sentences of this module, so that the second is enough."""
    return textwrap.wrap(visible(text), WIDTH, subsequent_indent="  ", max_lines=2, placeholder=" …")


def first_of(items: Sequence[str], count: int) -> str:
    """The first ``count`` items, and how many more there are."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(items[:count]) + more


def own_numbers(s: Example, shares: dict[int, float]) -> str:
    """A sequence's part in the gradient, and its NLL."""
    share = f"{percent(shares[s.row])} of the gradient" if shares else f"gradient {number(s.grad_norm, 3)}"
    return f"{share}, NLL {number(s.nll)}"


# ----------------------------------------------------------------------------------------------------- counterfactuals


def difference(c: Counterfactual) -> str:
    """The change in words, and over its steps what it did to the last NLL and to the highest values.

    Batches that are skipped count on neither side. A value that is not finite is passed on, not passed over.
    """
    words = visible(f"{c.change}: {c.meaning.rstrip('.')}.")
    counted = (np.array(c.steps) >= c.first_step) & presence(c.changed["loss/nll"])[1]
    if not counted.any():
        return words
    other, logged = (
        {key: presence(curves[key])[0][counted] for key in ("loss/nll", "grad_norm/total")}
        for curves in (c.changed, c.factual)
    )
    last = min(10, int(counted.sum()))
    end = [number(float(values["loss/nll"][-last:].mean())) for values in (other, logged)]
    parts = [f"NLL of the last {last} steps {end[0]} instead of {end[1]}"]
    for key, name in (("loss/nll", "highest NLL"), ("grad_norm/total", "highest gradient")):
        parts.append(f"{name} {number(float(other[key].max()))} instead of {number(float(logged[key].max()))}")
    return f"{words} {'; '.join(parts)}."
