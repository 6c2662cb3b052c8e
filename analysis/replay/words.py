"""A replayed step described in words, for the terminal and for the page.

The corpus may contain any text: every string goes through ``visible``.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable

import numpy as np

from analysis.show.style import Floats, presence
from analysis.show.text import clip, first_of, number, percent, skips, token_text, visible

from .explanation import OUTLIER, BatchSequence, Counterfactual, Explanation, MetricCheck, Token

WIDTH = 110
"""Terminal cells per line of the summary."""
_NOISE = 3.0
"""A value within this many sigmas of the usual one is not called unusual."""

# --------------------------------------------------------------------------------------- sentences of summary and page


def headline(e: Explanation) -> tuple[str, str]:
    """The step's NLL and gradient against the usual; then which sequences dominate the gradient or have an outlying NLL."""
    checks = e.metrics.get("loss/nll"), e.metrics.get("grad_norm/total")
    first, last = e.usual_window
    counted = any(check is not None and check.sigmas is not None and math.isfinite(check.replayed) for check in checks)
    meaning = f" (median and MAD of steps {first} to {last})" if counted else ""
    return (
        f"Step {e.step}: {_against_usual('NLL', checks[0])}; {_against_usual('gradient norm', checks[1])}{meaning}.",
        " ".join(filter(None, [_origin(e), _high_nll(e)])),
    )


def _against_usual(label: str, check: MetricCheck | None) -> str:
    if check is None:
        return f"{label} not recorded"
    value = check.replayed  # everything else in the explanation is about the replay
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
    """Which sequences dominate the gradient."""
    shares, found, count = e.gradient_shares, e.gradient_outliers, len(e.sequences)
    broken = [s for s in found if not math.isfinite(s.grad_norm)]
    if broken:
        return f"The gradient of {len(broken)} of {count} sequences is not finite."
    if count == 1:
        return "The batch is one sequence."
    if not found:
        largest = e.by_gradient[:1]
        part = shares.get(largest[0].row) if largest else None
        share = f"the largest has {percent(part)} of the gradient{_beyond(part)}" if largest else "none recorded"
        return f"No sequence's gradient stands out among {count}: {share}."
    if not shares:
        return f"{len(found)} of {count} sequences have a gradient above {OUTLIER:g} x the median of the batch."
    part = math.fsum(shares[s.row] for s in found)
    beyond = _beyond(part, *(shares[s.row] for s in found))
    return f"{percent(part)} of the gradient comes from {len(found)} of {count} sequences{beyond}."


def _beyond(*parts: float | None) -> str:
    """What a share above 100% means, if one is printed (see :func:`gradient_shares`)."""
    most = max((part for part in parts if part is not None), default=0.0)
    return " (above 100%: the others pull against it)" if round(100 * most) > 100 else ""


def _high_nll(e: Explanation) -> str:
    """Sequences with an outlying NLL, unless all of them have an outlying gradient too."""
    found, named = e.nll_outliers, {s.row for s in e.gradient_outliers}
    if all(s.row in named for s in found):
        return ""
    median = float(np.median([s.nll for s in e.sequences if s.targets and math.isfinite(s.nll)] or [math.nan]))
    return (
        f"The NLL of {len(found)} of {len(e.sequences)} stands out: up to {number(found[0].nll)}, where the median sequence "
        f"has {number(median)}."
    )


def reproduction(e: Explanation) -> tuple[bool | None, str]:
    """Whether the replay agrees with the log (None: unknown), and a sentence that says so."""
    steps = f"{e.steps_compared} replayed {'step' if e.steps_compared == 1 else 'steps'}"
    within = "to the bit" if e.tolerance == 0 else f"to {e.tolerance:.1g} (relative)"
    reason = f" Bitwise agreement cannot be expected: {e.tolerance_reason}." if e.tolerance_reason else ""
    if e.disagreements:
        many = f"{len(e.disagreements)} {'value disagrees' if len(e.disagreements) == 1 else 'values disagree'}"
        return False, f"NOT REPRODUCED: {many} with the log, in {steps} compared {within}.{reason}"
    if not e.steps_compared:
        return None, "NOT CHECKED: the log has no row of the replayed steps to compare with."
    return True, f"Reproduced: all metrics of {steps} agree with the log {within}.{reason}"


def update_words(e: Explanation) -> str:
    """What the update did to the NLL of its own batch, and what clipping or an intervention did to the update."""
    words = f"The update took the NLL of its own batch from {number(e.nll_before)} to {number(e.nll_after)}"
    difference = e.nll_after - e.nll_before
    words += f" ({difference:+.3g} nats)" if math.isfinite(difference) else ""
    total = e.metrics.get("grad_norm/total")
    if total is not None and not math.isfinite(total.replayed):
        return words + "; the gradient is not finite."
    if skipped := [kind for kind, check in skips(e.metrics).items() if check.replayed > 0]:
        return words + f"; skipped by {' and '.join(skipped)}."
    if e.clipped_by is None:
        return words + "; clipping is off."
    if e.clipped_by == 1:
        return words + "; the gradient was not clipped."
    return words + f"; clipping scaled the gradient by {number(e.clipped_by, 2)}."


def window_words(e: Explanation) -> str:
    """Which steps define "usual"."""
    first, last = e.usual_window
    return f"Usual: median of the logged steps {first} to {last}" if last else "Usual: nothing was logged before"


def group_words(e: Explanation) -> str:
    """The parameter group whose gradient is farthest above its usual one."""
    broken = [g.name for g in e.groups if not math.isfinite(g.grad_norm)]
    if broken:
        return f"Gradients that are not finite: {first_of(broken, 8)}."
    known = [(times, g) for g in e.groups if (times := ratio(g.grad_norm, g.usual_grad_norm)) is not None]
    if not known:
        return "No group's usual gradient is known."
    times, group = max(known, key=lambda pair: pair[0])
    words = f"{group.name}, gradient {number(group.grad_norm, 3)}, {number(times, 3)} x its usual"
    return f"Group that stands out: {words}." if times >= OUTLIER else f"No group stands out; farthest: {words}."


def ratio(value: float, usual: float | None) -> float | None:
    """A value relative to its usual one; None if that is undefined."""
    return value / usual if usual and math.isfinite(value / usual) else None


def spike_words(e: Explanation) -> str:
    """The spike that the step belongs to, if there is one."""
    spike = e.spike or {}
    end = "" if spike.get("recovered", True) else ", from which the run did not recover"
    sigmas = spike.get("sigmas")
    height = "" if sigmas is None else f", {number(float(sigmas), 3)} sigma above the detector's forecast"
    return (
        f"It belongs to the spike of {spike.get('signal')} from step {spike.get('start_step')} to "
        f"{spike.get('end_step')} (peak at {spike.get('peak_step')}{height}){end}."
    )


def context(sequence: BatchSequence, token: Token, characters: int) -> tuple[str, str]:
    """The visible text before and after the token, at most ``characters`` on each side, with "…" where it is cut."""
    before, after = (
        visible("".join(t.text for t in sequence.tokens if side * (t.position - token.position) > 0))
        for side in (-1, 1)
    )
    if len(before) > characters:
        before = "…" + before[-characters:]
    return before, after if len(after) <= characters else after[:characters] + "…"


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
    shares, found = e.gradient_shares, e.gradient_outliers
    found += [s for s in e.nll_outliers if s not in found]
    lines += _wrapped(origin.removesuffix(".") + (":" if found else "."))
    for s in found[:3]:
        lines.append(f"  row {s.row}: {own_numbers(s, shares)}  “{visible(s.text[:WIDTH])}”")
    lines += [f"  and {len(found) - 3} more that stand out"] if len(found) > 3 else []
    lines += _wrapped(update_words(e))
    worst = e.worst_tokens(4)
    lines += ["Worst tokens, in «»:"] if worst else []
    for s, token in worst:
        before, after = context(s, token, 18)
        weight = "" if token.weight is None else f" c {number(token.weight, 3)}"
        model = f"; model: {token_text(token.top[0][0])} {percent(token.top[0][1])}" if token.top else ""
        which = f"; id {token.token_id}" if token.text in ("", "\ufffd") else ""  # a part of a character has no text
        loss, place = f"{number(token.nll):>6}{weight}", f"row {s.row}, position {token.position}:"
        lines.append(f"  {loss}  {place:<24}{before}«{visible(token.text)}»{after}{which}{model}")
    lines += [group_words(e)] if e.groups else []
    if e.embeddings:
        moved = [f"{token_text(m.text)} ({number(m.distance, 3)})" for m in e.embeddings]
        lines.append("Embeddings that moved most: " + first_of(moved, 4))
    lines += [f"planted by the configuration: {first_of(e.stress, 3)}"] if e.stress else []
    return [clip(visible(line), WIDTH) for line in lines]


def _wrapped(text: str) -> list[str]:
    """The text in at most two lines, which suffice for the sentences of this module."""
    return textwrap.wrap(visible(text), WIDTH, subsequent_indent="  ", max_lines=2, placeholder=" …")


def own_numbers(s: BatchSequence, shares: dict[int, float]) -> str:
    """A sequence's share of the gradient, and its NLL."""
    share = f"{percent(shares[s.row])} of the gradient" if shares else f"gradient {number(s.grad_norm, 3)}"
    return f"{share}, NLL {number(s.nll)}" if s.targets else f"{share}, no targets"


# ----------------------------------------------------------------------------------------------------- counterfactuals


def difference(c: Counterfactual) -> str:
    """The change in words, and what it did to the last NLL and to the highest values over its steps.

    Skipped batches count on neither side; values that are not finite do count.
    """
    words = visible(f"{c.change}: {c.meaning.rstrip('.')}.")
    counted = (np.array(c.steps) >= c.first_step) & presence(c.changed["loss/nll"])[1]
    if not counted.any():
        return words

    def compared(key: str, reduce: Callable[[Floats], float]) -> str:
        other, logged = (number(float(reduce(presence(curves[key])[0][counted]))) for curves in (c.changed, c.factual))
        return f"{other} instead of {logged}"

    last = min(10, int(counted.sum()))
    parts = [f"NLL of the last {last} steps {compared('loss/nll', lambda values: values[-last:].mean())}"]
    parts += [f"highest NLL {compared('loss/nll', np.max)}", f"highest gradient {compared('grad_norm/total', np.max)}"]
    return f"{words} {'; '.join(parts)}."
