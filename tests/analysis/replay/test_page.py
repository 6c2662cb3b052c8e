from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.replay.explanation import Explanation, MetricCheck
from analysis.replay.page import page, ramp_for
from analysis.replay.words import WIDTH, headline, summary_lines
from analysis.show.text import clip, number, percent, token_text, visible

from .explained import explained

PNG = b"\x89PNG\r\n\x1a\n"
HOSTILE = (
    "<script>alert(1)</script>", '" onmouseover="alert(1)', "'", "&lt;b&gt;", "]]>", "-->", "</span></details></main>",
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x9b2J", "\u202egnp.exe\u202c", "\u2066", "\ud800", "\ufffd", "\x00",
    "\n\n", "\r", "\t", "", " ", "\xa0", "\u200b", "\ufeff", "\u0301", "\u2028", "日本語", "{title}", "%s", "$x^2$",
)  # fmt: skip
VOID = {"meta", "img"}
TAGS = VOID | {
    "html", "head", "title", "style", "body", "main", "h1", "h2", "ul", "li", "div", "strong", "figure", "details",
    "summary", "p", "span", "mark", "table", "caption", "thead", "tbody", "tr", "th", "td", "pre",
}  # fmt: skip
ATTRIBUTES = {
    "lang", "charset", "http-equiv", "content", "name", "class", "title", "src", "alt", "open", "scope", "dir",
}  # fmt: skip


class Document(HTMLParser):
    """What a browser would make of a page: elements, attributes and text; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.style = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["style"]:
            self.style += data
        else:
            self.text += data


def hostile(e: Explanation, texts: tuple[str, ...] = HOSTILE) -> Explanation:
    """The same with ``texts`` wherever text of a corpus, a tokenizer or a configuration can stand."""

    def text(i: int) -> str:
        return texts[i % len(texts)]

    sequences = [
        replace(
            s,
            text="".join(texts),
            tokens=[replace(t, text=text(t.position), top=[(text(t.position + 1), 0.5)]) for t in s.tokens],
        )
        for s in e.sequences
    ]
    embeddings = [replace(m, text=text(i)) for i, m in enumerate(e.embeddings)]
    return replace(
        e, run=text(0), run_directory=text(1), device=text(2), stress=list(texts), disagreements=list(texts),
        tolerance_reason=text(0), sequences=sequences, embeddings=embeddings,
        groups=[replace(g, name=text(i)) for i, g in enumerate(e.groups)],
        layers=[replace(x, name=text(i)) for i, x in enumerate(e.layers)],
        spike={"signal": text(0), "start_step": text(1), "end_step": text(2), "peak_step": text(7)},
        metrics=e.metrics | {name: MetricCheck(1.0, 2.0, False, None, None) for name in texts},
    )  # fmt: skip


def changed(e: Explanation, *, metric: str = "loss/nll", **fields: float | bool | None) -> Explanation:
    return replace(e, metrics=e.metrics | {metric: replace(e.metrics[metric], **fields)})


def broken(e: Explanation) -> Explanation:
    """A step that diverged: NaN and infinities wherever a number can be."""
    tokens = [replace(t, nll=math.nan, weight=math.nan, top=[("x", math.nan)]) for t in e.sequences[0].tokens]
    first = replace(
        e.sequences[0], tokens=tokens, nll=math.nan, worst_nll=math.nan, grad_norm=math.nan, alignment=math.nan
    )
    second = [replace(s, grad_norm=math.inf, nll=math.inf) for s in e.sequences[1:2]]
    e = changed(e, logged=math.nan, replayed=math.nan, sigmas=None)
    e = changed(e, metric="grad_norm/total", logged=math.inf, replayed=math.inf, sigmas=math.inf)
    return replace(
        e, sequences=[*e.sequences[2:], first, *second], nll_before=math.nan, nll_after=math.inf, clipped_by=math.nan,
        groups=[replace(g, grad_norm=math.nan, update_rms=math.inf) for g in e.groups],
        embeddings=[replace(m, distance=math.nan, norm_after=math.nan) for m in e.embeddings],
        layers=[replace(x, mean_after=math.nan, max_after=math.inf) for x in e.layers],
    )  # fmt: skip


@pytest.fixture(scope="module")
def e() -> Explanation:
    return explained()[0]


# ------------------------------------------------------------------------------------------------------ what stands out


def test_shares_are_projections_on_the_whole_gradient_and_add_up(e: Explanation) -> None:
    terms = np.random.default_rng(0).normal(size=(16, 40)) + np.linspace(0, 2, 16)[:, None]
    whole = terms.sum(0)
    norms = np.linalg.norm(terms, axis=1)
    cosines = terms @ whole / norms / np.linalg.norm(whole)
    sequences = [
        replace(s, grad_norm=float(norms[s.row]), alignment=float(cosines[s.row]), tokens=[]) for s in e.sequences
    ]
    shares = replace(e, sequences=sequences).gradient_shares
    assert math.fsum(shares.values()) == pytest.approx(1)
    for row, share in shares.items():
        assert share == pytest.approx(terms[row] @ whole / (whole @ whole))


@pytest.mark.parametrize(
    ("norms", "expected"),
    [([1.0, 1.1, 0.9, 5.0], [3]), ([1.0, 5.0], [1]), ([3.0], []), ([0.0, 0.0], []), ([1.0, math.nan, 0.9], [1])],
)
def test_what_stands_out_is_far_above_the_median_or_not_finite(
    e: Explanation, norms: list[float], expected: list[int]
) -> None:
    sequences = [replace(e.sequences[0], row=row, grad_norm=norm) for row, norm in enumerate(norms)]
    assert [s.row for s in replace(e, sequences=sequences).gradient_outliers] == expected


def test_the_headline_says_what_is_unusual_and_where_it_comes_from(e: Explanation) -> None:
    found = e.gradient_outliers
    assert sorted(s.row for s in found) == [0, 1, 2, 3]
    shares = e.gradient_shares
    values, origin = headline(e)
    assert re.search(r"Step 312: NLL 6\.\d+, \d+ sigma above the usual 4\.931; gradient norm 5\.\d+, 77 sigma", values)
    assert origin == f"{sum(shares[s.row] for s in found):.0%} of the gradient comes from 4 of 16 sequences."


@pytest.mark.parametrize(
    ("alignments", "explained_why"), [((0.9, 0.9, 0.2, 0.1), False), ((0.9, 0.9, -0.9, -0.8), True)]
)
def test_a_part_of_more_than_the_whole_gradient_is_explained(
    e: Explanation, alignments: tuple[float, ...], explained_why: bool
) -> None:
    sequences = [
        replace(e.sequences[0], row=row, grad_norm=norm, alignment=alignment)
        for row, (norm, alignment) in enumerate(zip((9.0, 8.0, 0.5, 0.4), alignments, strict=True))
    ]
    one = replace(e, sequences=sequences)
    origin = headline(one)[1]
    assert (int(re.findall(r"(\d+)% of the gradient", origin)[0]) > 100) == explained_why
    assert ("(above 100%: the others pull against it)" in origin) == explained_why
    assert ("(above 100%: the others pull against it):" in "\n".join(summary_lines(one))) == explained_why


def test_each_sigma_says_whose_it_is(e: Explanation) -> None:
    assert headline(e)[0].endswith("(median and MAD of steps 248 to 311).")
    nothing = replace(e, metrics={name: replace(m, sigmas=None, usual=None) for name, m in e.metrics.items()})
    assert "MAD" not in headline(nothing)[0]
    spike = {"signal": "loss/nll", "start_step": 312, "end_step": 316, "peak_step": 312, "recovered": False}
    text = " ".join(" ".join(summary_lines(replace(e, spike=spike | {"sigmas": 12.74}))).split())
    assert "(peak at 312, 12.7 sigma above the detector's forecast), from which the run did not recover." in text
    assert "forecast" not in "\n".join(summary_lines(replace(e, spike=spike | {"sigmas": None})))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"replayed": 4.0, "sigmas": -7.0}, "NLL 4.000, 7.0 sigma below the usual 4.931"),
        ({"replayed": 5.0, "sigmas": 0.8}, "NLL 5.000, within the usual (4.931; 0.8 sigma above)"),
        ({"replayed": 5.0, "sigmas": None}, "NLL 5.000, where every step before had 4.931"),
        ({"logged": None, "replayed": 4.931, "sigmas": None}, "NLL 4.931, as before"),
        ({"replayed": 5.0, "usual": None}, "nothing logged before"),
        ({"replayed": math.nan, "sigmas": None}, "NLL NaN, where 4.931 is usual"),
        ({"logged": 5.0, "replayed": 9.0, "agrees": False}, "NLL 9.000 in the replay (5.000 in the log), "),
    ],
)
def test_every_case_of_a_metric_has_its_words(
    e: Explanation, fields: dict[str, float | bool | None], words: str
) -> None:
    assert words in headline(changed(e, **fields))[0]


def test_a_quiet_step_is_told_as_one() -> None:
    quiet = explained(bad=0)[0]
    assert re.fullmatch(r"No sequence's gradient stands out among 16: the largest has \d+% of .*", headline(quiet)[1])


def test_an_unlikely_sequence_is_told_even_if_its_gradient_is_like_the_others() -> None:
    e = explained(bad=0)[0]
    strange = max(e.sequences, key=lambda s: -s.grad_norm).row
    odd = replace(e, sequences=[replace(s, nll=9.5) if s.row == strange else s for s in e.sequences])
    assert [s.row for s in odd.nll_outliers] == [strange]
    assert "The NLL of 1 of 16 stands out: up to 9.500, where the median sequence has 4." in headline(odd)[1]
    assert any(line.startswith(f"  row {strange}: ") for line in summary_lines(odd))
    assert not replace(odd, sequences=odd.sequences[-5:]).nll_outliers  # too few to tell what is usual


def test_a_step_that_an_intervention_skipped_says_so(e: Explanation) -> None:
    for skipped, words in ((1.0, "; skipped by skip_above."), (0.0, "; clipping scaled the gradient by 0.18.")):
        check = MetricCheck(skipped, skipped, True, 0.0, None)
        one = replace(e, metrics=e.metrics | {"intervention/skip_above/skipped": check})
        assert words in " ".join(" ".join(summary_lines(one)).split())


def test_a_token_without_text_of_its_own_has_its_number() -> None:
    e = explained(2, 4, bad=1)[0]
    s = e.sequences[0]
    tokens = [replace(t, text="\ufffd", token_id=137, nll=70.0 + t.position) for t in s.tokens]
    assert "«�»; id 137; model: ␣the 31%" in "\n".join(summary_lines(replace(e, sequences=[replace(s, tokens=tokens)])))


# ---------------------------------------------------------------------------------------------------- numbers and texts


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (math.nan, "NaN"), (-math.inf, "-∞"), (0.0, "0"), (7.9123, "7.912"), (0.61803, "0.6180"),
        (12345.6, "12,346"), (3e-5, "3.000e-05"), (-2.5e8, "-2.500e+08"),
    ],
)  # fmt: skip
def test_numbers_are_for_people(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.934, "93%"), (0.0042, "0.4%"), (1e-9, "<0.01%"), (-1e-9, ">-0.01%"), (1.2, "120%"), (0, "0%"), (None, "-")],
)
def test_a_share_is_never_rounded_to_nothing(value: float | None, text: str) -> None:
    assert percent(value) == text


def test_nothing_unseen_is_left_in_a_text() -> None:
    assert visible("a\tb\r\n\x1b[0m\u202e\xa0\ud800 é") == "a⇥b␍⏎␛[0m⟨U+202E⟩⟨U+00A0⟩⟨U+D800⟩ é"
    assert [token_text(t) for t in (" the", "", "\u0301e")] == ["␣the", "∅", "◌\u0301e"]


@given(st.text(st.characters(exclude_categories=())))
def test_visible_text_prints(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert not any(
        unicodedata.bidirectional(c) in ("RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI") for c in shown
    )
    assert visible(shown) == shown


def test_clipping_counts_wide_characters_twice() -> None:
    assert clip("abcde", 5) == "abcde"
    assert clip("abcdef", 5) == "abcd…"
    assert clip("日本語", 6) == "日本語"
    assert clip("日本語", 5) == "日本…"
    assert clip("日本語", 4) == "日…"


# ---------------------------------------------------------------------------------------------------------- the summary


def cells(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


@pytest.mark.parametrize("change", [lambda e: e, hostile, broken, lambda e: hostile(broken(e))])
@pytest.mark.parametrize("shape", [(16, 128), (1, 1), (2, 4)])
def test_the_summary_fits_a_terminal_and_cannot_command_it(
    change: Callable[[Explanation], Explanation], shape: tuple[int, int]
) -> None:
    lines = summary_lines(change(explained(*shape, bad=shape[0] // 4)[0]))
    assert len(lines) <= 25
    for line in lines:
        assert line.isprintable()
        assert cells(line) <= WIDTH


def test_the_summary_tells_what_matters_in_its_order(e: Explanation) -> None:
    stress = ["4 sequences of batch 312 replaced by random tokens"]
    spike = {"signal": "loss/nll", "start_step": 312, "end_step": 316, "peak_step": 312, "recovered": False}
    lines = summary_lines(replace(e, stress=stress, spike=spike))
    text = "\n".join(lines)
    parts = ("Reproduced: all metrics of 12 replayed steps agree with the log to the bit", "Step 312: NLL",
             "spike of loss/nll from step 312 to 316 (peak at 312), from which the run did not recover",
             "of the gradient comes from 4 of 16 sequences:", "  row ", "and 1 more that stand out", "The update took",
             "Worst tokens", "Group that stands out: ", "Embeddings that moved most: ")  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert lines[-1] == f"planted by the configuration: {stress[0]}"
    assert "planted" not in "\n".join(summary_lines(e))


def test_the_worst_tokens_stand_in_their_context(e: Explanation) -> None:
    s, token = e.worst_tokens(1)[0]
    assert token.nll == max(t.nll for s in e.sequences for t in s.tokens)
    (line,) = [line for line in summary_lines(e) if f"row {s.row}, position {token.position}:" in line]
    before = visible(s.tokens[token.position - 1].text)
    assert f"{before}«{visible(token.text)}»" in line
    assert "␣the 31%" in line


def test_a_replay_that_disagrees_is_never_hidden(e: Explanation) -> None:
    wrong = replace(e, disagreements=[f"step {step}: lr" for step in range(301, 313)], tolerance=1e-3)
    lines = summary_lines(wrong)
    assert lines[1].startswith("NOT REPRODUCED: 12 values disagree with the log")
    assert lines[2] == "  step 301: lr, step 302: lr, step 303: lr and 9 more"
    document = Document(page(wrong, PNG, []))
    assert "✗ NOT REPRODUCED: 12 values disagree" in document.text
    assert all(name in document.text for name in wrong.disagreements)


def test_without_a_logged_row_nothing_is_claimed(e: Explanation) -> None:
    unknown = replace(e, steps_compared=0)
    assert "NOT CHECKED" in "\n".join(summary_lines(unknown))
    text = Document(page(unknown, PNG, [])).text
    assert "? NOT CHECKED" in text
    assert "✓" not in text


# ------------------------------------------------------------------------------------------------------------- the page


def check_is_harmless(text: str) -> Document:
    """Parse it; nothing in it may run, load or act on its surroundings."""
    document = Document(text)
    text.encode()  # no lone surrogate
    assert all(c.isprintable() or c == "\n" for c in text)
    assert {tag for tag, _ in document.tags} <= TAGS
    names = {name for _, attributes in document.tags for name in attributes}
    assert names <= ATTRIBUTES
    for _, attributes in document.tags:
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
    assert not re.search(r"url\(|@import|expression", document.style)
    return document


def test_the_page_stands_alone_and_tells_everything(e: Explanation) -> None:
    commands = ["python -m analysis.replay runs/demo_tfsd --step 312 --out 'a & b'"]
    document = check_is_harmless(page(replace(e, stress=["learning rate times 10"]), PNG, commands))
    assert "default-src 'none'" in str(document.tags)
    for words in (*headline(e), *commands, "✓ Reproduced", "Planted by the configuration: learning rate times 10.",
                  "All 16 sequences", "layer_03", "pre_final", "hidden_norm/pre_final/max", "not logged",
                  "median of the logged steps 248 to 311", "highest: 17.92"):  # fmt: skip
        assert words in document.text


def test_every_recorded_token_is_coloured_and_has_its_numbers(e: Explanation) -> None:
    document = Document(page(e, PNG, []))
    spans = [attributes for tag, attributes in document.tags if tag == "span" and "title" in attributes]
    tokens = [t for s in e.by_gradient for t in s.tokens]
    assert len(spans) == len(tokens) == 4 * 128
    ramp = ramp_for(tokens, e.usual_nll)
    for span, token in zip(spans, tokens, strict=True):
        assert str(span["class"]).split()[0] == ramp.css_class(token.nll)
        assert f"NLL {token.nll:.4g}"[:7] in str(span["title"])
        assert f"c = {number(token.weight)}" in str(span["title"])
        assert "model: ␣the 31%, ⏎ 8%" in str(span["title"])
    assert sum("worst" in str(span["class"]) for span in spans) == 12


def test_the_ramp_has_numbers_and_is_calm_where_all_is_as_usual(e: Explanation) -> None:
    token = e.sequences[0].tokens[0]
    alike = ramp_for([replace(token, nll=6.2)] * 9, 6.2)
    assert alike.css_class(6.2) == "n2"
    outlier = ramp_for([replace(token, nll=n) for n in [2.0, 4.0, 5.9] * 50 + [80.0]], 3.0)
    assert outlier.css_class(5.9) in ("n4", "n5")
    assert "5 and more (highest: 80.00)" in outlier.legend()
    assert outlier.css_class(math.nan) == outlier.css_class(math.inf) == "bad"
    assert ramp_for([replace(token, nll=math.nan)], 0.0).css_class(0.5) == "n0"
    assert ramp_for([replace(token, nll=0.0)], 0.0).css_class(0.0) == "n0"


def test_a_worse_token_in_a_sequence_not_shown_is_told(e: Explanation) -> None:
    hidden = next(s for s in e.sequences if not s.tokens)
    sequences = [replace(s, worst_nll=55.0) if s is hidden else s for s in e.sequences]
    text = Document(page(replace(e, sequences=sequences), PNG, [])).text
    assert f"Higher still, in sequences not shown: row {hidden.row} (55.00)." in text


def test_hostile_text_is_shown_and_does_nothing(e: Explanation) -> None:
    document = check_is_harmless(page(hostile(e), b"<svg xmlns='http://www.w3.org/2000/svg'/>", list(HOSTILE)))
    for text in HOSTILE:
        assert visible(text) in document.text
    titles = "".join(attributes["title"] or "" for _, attributes in document.tags if "title" in attributes)
    assert '" onmouseover="alert(1)'.replace(" ", "␣") in titles
    assert "<script>alert(1)</script>" in titles
    (figure,) = [attributes["src"] or "" for tag, attributes in document.tags if tag == "img"]
    assert figure.startswith("data:image/svg+xml;base64,")


@settings(max_examples=25)
@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=12), min_size=1, max_size=8))
def test_no_text_breaks_the_page_or_the_summary(texts: list[str]) -> None:
    e = hostile(explained(4, 9, layers=1, bad=1)[0], tuple(texts))
    check_is_harmless(page(e, PNG, texts))
    assert all(line.isprintable() for line in summary_lines(e))


def test_a_diverged_step_is_told_in_full(e: Explanation) -> None:
    diverged = broken(e)
    document = check_is_harmless(page(diverged, PNG, []))
    assert "NLL NaN, where 4.931 is usual; gradient norm ∞" in document.text
    assert "The gradient of 2 of 16 sequences is not finite." in document.text
    assert any("bad" in (attributes.get("class") or "") for tag, attributes in document.tags if "title" in attributes)
    assert any(line.lstrip().startswith("NaN") for line in summary_lines(diverged))


def test_without_weights_there_is_no_column_for_them() -> None:
    plain = explained(weights=False)[0]
    headers = re.findall(r"<th[^>]*>([^<]*)</th>", page(plain, PNG, []))
    assert "c" not in headers
    assert "mean c" not in headers
    assert "c" in re.findall(r"<th[^>]*>([^<]*)</th>", page(explained()[0], PNG, []))


def test_many_sequences_are_all_there_most_of_them_folded() -> None:
    many = explained(200, 4, bad=3)[0]
    text = Document(page(many, PNG, [])).text
    assert "The other 168 sequences" in text
    assert all(f"{1000 + row}" in text for row in range(200))
