"""Measures of geometry against naive float64 definitions, what they are blind to, and runs that learn by them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config

from common.errors import InputError
from model import OBJECTIVES, SwapHeadConfig, load_model, new_model
from model.objective_geometry import MEASURES, spread
from stability.measure.norms import groups_of

from ..conftest import rows_of
from .conftest import SHORT

FORMS = sorted(MEASURES)


# ------------------------------------------------------------------------------------------------------ values and gradients


def centred(x_nD):
    """Times the centring matrix, with Frobenius norm 1."""
    n = len(x_nD)
    x_nD = (torch.eye(n, dtype=x_nD.dtype) - 1 / n) @ x_nD
    return x_nD / x_nD.square().sum().sqrt()


def naive_procrustes(a_nE, b_nD):
    """||A - B Q||^2 with the best Q, the narrower states padded with zeros."""
    a_nE, b_nD = centred(a_nE), centred(b_nD)
    width = max(a_nE.shape[1], b_nD.shape[1])
    a_nW, b_nW = (torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in (a_nE, b_nD))
    u_WW, _, v_WW = torch.linalg.svd((b_nW.T @ a_nW).detach())
    return (a_nW - b_nW @ u_WW @ v_WW).square().sum()


def naive_gram(a_nE, b_nD):
    def cosine(x, i, j):
        return x[i] @ x[j] / (x[i].norm() * x[j].norm())

    n = len(a_nE)
    return sum((cosine(a_nE, i, j) - cosine(b_nD, i, j)) ** 2 for i in range(n) for j in range(n)) / n**2


def naive_cka(a_nE, b_nD):
    """From the Hilbert-Schmidt independence criterion, tr(K H L H)."""
    n = len(a_nE)
    h_nn = torch.eye(n, dtype=a_nE.dtype) - 1 / n

    def hsic(x, y):
        return torch.trace(x @ x.T @ h_nn @ y @ y.T @ h_nn)

    return 1 - hsic(a_nE, b_nD) / (hsic(a_nE, a_nE) * hsic(b_nD, b_nD)).sqrt()


def naive_projection(a_nE, b_nE):
    return sum((x - y) ** 2 for x, y in zip(a_nE.flatten(), b_nE.flatten(), strict=True)) / a_nE.numel()


NAIVE = {"procrustes": naive_procrustes, "gram": naive_gram, "cka": naive_cka, "projection": naive_projection}


def states(n, E, D, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, width, generator=generator, dtype=torch.float64) + 0.5 for width in (E, D))


def ones(n):
    return torch.ones(n, dtype=torch.float64)


@pytest.mark.parametrize("form", FORMS)
@given(
    n=st.integers(3, 9),
    E=st.integers(1, 12),
    D=st.integers(1, 12),
    ignored=st.integers(0, 3),
    seed=st.integers(0, 10_000),
)
def test_value_and_gradient_are_those_of_the_definition_on_what_counts(form, n, E, D, ignored, seed):
    a_nE, b_nD = states(n + ignored, E, E if form == "projection" else D, seed)
    b_nD.requires_grad_()
    chosen = torch.randperm(n + ignored, generator=torch.Generator().manual_seed(seed))[:n]
    valid_n = torch.zeros(n + ignored, dtype=torch.float64).index_fill(0, chosen, 1.0)
    actual, expected = MEASURES[form](a_nE, b_nD, valid_n), NAIVE[form](a_nE[chosen], b_nD[chosen])
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)
    ours, theirs = (torch.autograd.grad(value, b_nD)[0] for value in (actual, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_float32_is_near_float64(form):
    a_nE, b_nD = states(300, 48, 48 if form == "projection" else 32)
    wide = MEASURES[form](a_nE, b_nD, ones(300))
    narrow = MEASURES[form](a_nE.float(), b_nD.float(), torch.ones(300))
    assert narrow.item() == pytest.approx(wide.item(), rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_perfect_student_of_many_tokens_has_no_loss_in_float32(form):
    a_nE, _ = states(2048, 48, 1)
    assert abs(float(MEASURES[form](a_nE.float(), a_nE.float(), torch.ones(2048)))) < 3e-6


def test_the_gradient_is_right_where_all_singular_values_coincide():
    """Of orthogonal columns, against differences; autograd through an SVD is not finite there."""
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    corners = torch.eye(8, dtype=torch.float64)
    a_nE = torch.cat([corners, -corners])
    b_nD = (a_nE @ turn + 0.1 * torch.cat([corners, corners])).requires_grad_()
    assert torch.linalg.svdvals(a_nE.T @ b_nD.detach()).std() < 1e-12
    (gradient,) = torch.autograd.grad(MEASURES["procrustes"](a_nE, b_nD, ones(16)), b_nD)
    direction = torch.randn(16, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    up, down = (naive_procrustes(a_nE, b_nD.detach() + step * direction) for step in (1e-5, -1e-5))
    assert float((gradient * direction).sum()) == pytest.approx(float(up - down) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", ["equal", "zero", "one direction", "nothing counts", "one counts"])
def test_degenerate_states_have_finite_losses_and_gradients(form, case):
    a_nE, b_nD = states(20, 30, 30)
    b_nD = {"equal": b_nD[:1].expand(20, 30), "zero": 0 * b_nD, "one direction": b_nD[:, :1] * b_nD[:1]}.get(case, b_nD)
    counted = {"nothing counts": 0, "one counts": 1}.get(case, 20)
    for dtype in (torch.float32, torch.float64):
        b = b_nD.to(dtype).clone().requires_grad_()
        value = MEASURES[form](a_nE.to(dtype), b, (torch.arange(20) < counted).to(dtype))
        (gradient,) = torch.autograd.grad(value, b)
        assert bool(value.isfinite()), (value, dtype)
        assert bool(gradient.isfinite().all()), dtype


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_finite_is_told_by_the_value(form):
    a_nE, b_nD = states(6, 4, 4)
    b_nD[2, 1] = math.nan
    assert math.isnan(MEASURES[form](a_nE, b_nD, ones(6)))


# --------------------------------------------------------------------------------------------------- what they are blind to


def changed(b_nD, change):
    generator = torch.Generator().manual_seed(7)
    n, D = b_nD.shape
    return {
        "rotation": lambda: b_nD @ torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=b_nD.dtype))[0],
        "scale": lambda: 3.7 * b_nD,
        "translation": lambda: b_nD + torch.randn(D, generator=generator, dtype=b_nD.dtype),
        "length of each token": lambda: b_nD * torch.rand(n, 1, generator=generator, dtype=b_nD.dtype).add(0.5),
        "linear map": lambda: b_nD @ torch.diag(torch.arange(1, D + 1, dtype=b_nD.dtype)),
    }[change]()


BLIND = {
    "procrustes": {"rotation", "scale", "translation"},
    "cka": {"rotation", "scale", "translation"},
    "gram": {"rotation", "scale", "length of each token"},
    "best projection": {"rotation", "scale", "linear map"},
}


def best_projection(a_nE, b_nD, valid_n):
    """With the map that has the least squares."""
    return MEASURES["projection"](a_nE, b_nD @ torch.linalg.lstsq(b_nD, a_nE).solution, valid_n)


@pytest.mark.parametrize("form", BLIND)
@pytest.mark.parametrize("change", ["rotation", "scale", "translation", "length of each token", "linear map"])
@given(seed=st.integers(0, 1000))
def test_each_measure_is_blind_to_these_changes_of_the_student_alone(form, change, seed):
    a_nE, b_nD = states(30, 7, 5, seed)
    measure = MEASURES.get(form, best_projection)
    before, after = (float(measure(a_nE, x, ones(30))) for x in (b_nD, changed(b_nD, change)))
    if change in BLIND[form]:
        assert after == pytest.approx(before, rel=1e-9, abs=1e-12)
    else:
        assert abs(after - before) > 1e-6


@pytest.mark.parametrize("form", BLIND)
def test_a_turned_teacher_is_the_perfect_student(form):
    a_nE, _ = states(30, 6, 6)
    assert float(MEASURES.get(form, best_projection)(a_nE, changed(a_nE, "rotation"), ones(30))) < 1e-12


# ---------------------------------------------------------------------- the synthetic experiments of Bhattarai et al. 2025, small


def cosines(x_nD):
    x_nD = torch.nn.functional.normalize(x_nD - x_nD.mean(0), dim=1)
    return (x_nD @ x_nD.T)[~torch.eye(len(x_nD), dtype=torch.bool)]


def learned(form, a_nE, b_nD):
    """The student's vectors after 500 steps of Adam down the measure, and its last value."""
    b_nD = b_nD.clone().requires_grad_()
    map_DE = torch.eye(b_nD.shape[1], a_nE.shape[1], dtype=b_nD.dtype).requires_grad_()
    optimizer = torch.optim.Adam([b_nD, map_DE], lr=1e-2)
    for _ in range(500):
        optimizer.zero_grad()
        mapped = b_nD @ map_DE if form == "projection" else b_nD
        value = MEASURES[form](a_nE, mapped, ones(len(a_nE)))
        value.backward()
        optimizer.step()
    return b_nD.detach(), value.item()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("begins", ["orthogonal", "at random"])
def test_orthogonal_vectors_are_kept_and_learned_by_a_narrower_student_but_not_through_a_projection(form, begins):
    """Sixteen orthogonal vectors in 32 dimensions, a student with 16: every loss falls to 0, the angles tell them apart."""
    a_nE = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0][:16]
    _, b_nD = states(16, 1, 16)
    b_nD, value = learned(form, a_nE, torch.eye(16, dtype=torch.float64) if begins == "orthogonal" else b_nD)
    assert value < 1e-2
    off = float((cosines(b_nD) - cosines(a_nE)).square().mean().sqrt())
    assert (off > 0.1) if form == "projection" else (off < 0.03), off


def test_cka_hardly_sees_small_orthogonal_parts_beside_a_large_common_one():
    """The first theorem's example: two antiparallel bundles, of which the teacher's vectors leave in a direction each, and the
    student's do not. Each measure as calculated by hand."""
    n, e = 32, 0.5
    signs_n = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(n // 2)
    b_nD = torch.stack([signs_n, torch.zeros(n, dtype=torch.float64)], dim=1)
    bundles = torch.cat([signs_n[:, None], e * torch.eye(n, dtype=torch.float64)], dim=1)
    a_nE = torch.cat([bundles, -bundles])  # the mean is 0
    b_nD, count = torch.cat([b_nD, -b_nD]), ones(2 * n)
    found = {form: float(MEASURES[form](a_nE, b_nD, count)) for form in ("cka", "procrustes", "gram")}
    # Of 2n vectors the common direction has the squared length 2n, each of the n others 2 e^2.
    assert found["cka"] == pytest.approx(1 - (n + e**2) / math.sqrt((n + e**2) ** 2 + (n - 1) * e**4), rel=1e-9)
    assert found["cka"] < 0.001
    assert found["procrustes"] == pytest.approx(2 - 2 * math.sqrt((1 + e**2 / n) / (1 + e**2)), rel=1e-9)
    assert found["procrustes"] > 0.2
    assert found["gram"] > 0.03


# --------------------------------------------------------------------------------------------------------------- in a run


@given(tokens=st.integers(1, 3000), most=st.integers(2, 600))
def test_sampled_tokens_are_distinct_and_spread_over_sequences_and_positions(tokens, most):
    places = spread(tokens, most, torch.device("cpu"))
    assert len(places.unique()) == len(places) == min(tokens, most)
    assert int(places.min()) >= 0
    assert int(places.max()) < tokens
    if tokens > 2 * most and most > 50:
        assert places.double().div(tokens).sort().values.diff().max() < 10 / most


def test_every_position_of_a_sequence_is_sampled():
    counts = spread(16 * 64, 512, torch.device("cpu")).remainder(64).bincount(minlength=64)
    assert counts.tolist() == [8] * 64


@pytest.fixture(scope="module")
def teacher(workspace, tmp_path_factory):
    """A checkpoint of tiny.yaml with another width."""
    from configs.load import load_config
    from training.loop import run_training

    place = tmp_path_factory.mktemp("teacher")
    wider = ("body.n_embd=48", "seed=3", "head={kind: linear}", "objective={kind: ce}")
    assert (
        run_training(load_config(workspace / "tiny.yaml", [f"output_dir={place}", "name=teacher", *SHORT, *wider])) == 0
    )
    return next((place / "teacher" / "checkpoints").glob("step_*12"))


def geometry(teacher, form, *more):
    return ("objective.kind=geometry", f"objective.teacher={teacher}", f"objective.form={form}", *more)


@pytest.mark.parametrize("form", FORMS)
def test_a_run_learns_a_geometry_goes_on_to_the_bit_and_generates(form, teacher, start, tmp_path):
    options = geometry(teacher, form, "objective.positions=100")
    assert start("name=whole", *options) == 0
    start("name=parts", *options, f"branch_from={tmp_path}/whole@8")
    rows = rows_of(tmp_path / "whole")
    assert rows_of(tmp_path / "parts") == rows[8:]
    assert rows[-1]["objective/geometry"] < rows[0]["objective/geometry"]
    assert rows[-1]["loss/nll"] < rows[0]["loss/nll"]
    model = load_model(next((tmp_path / "whole" / "checkpoints").glob("step_*12")))
    projected = [name for name, _ in model.named_parameters() if "projection" in name]
    assert projected == (["projection.weight"] if form == "projection" else [])
    if projected:
        assert model.projection.weight.shape == (48, 32)
        names = [name for name, _ in model.named_parameters()]
        assert groups_of(model)["head"] == [names.index("projection.weight")]
        assert "grad_norm/head" in rows[0]
    generated = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False)
    model.projection = None
    assert generated.equal(model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False))


def test_the_loss_is_the_sum_of_its_parts(teacher, start, tmp_path):
    """At the first step: predictions x (1 - alpha) CE + weight x G, which an evaluation leaves out."""
    options = geometry(teacher, "procrustes", "objective.alpha=0", "objective.predictions=0.25", "objective.weight=3.0")
    start("name=sum", *options)
    for row in rows_of(tmp_path / "sum"):
        expected = 0.25 * row["loss/nll"] + 3 * row["objective/geometry"]
        assert row["loss/objective"] == pytest.approx(expected, rel=1e-5)
        if "validation/nll" in row:
            assert row["validation/objective"] == pytest.approx(0.25 * row["validation/nll"], rel=1e-5)


def test_without_a_geometry_to_speak_of_it_is_distillation(teacher, start, tmp_path):
    shared = (f"objective.teacher={teacher}", "objective.alpha=0.7", "objective.temperature=2.0")
    start("name=distill", "objective.kind=distill", *shared)
    start("name=geometry", *geometry(teacher, "cka"), *shared[1:], "objective.weight=1e-30")
    for one, other in zip(rows_of(tmp_path / "distill"), rows_of(tmp_path / "geometry"), strict=True):
        del other["objective/geometry"]
        assert one == other


def test_geometry_alone_does_not_learn_to_predict(teacher, start, tmp_path):
    """The teacher's geometry is taken on, while the NLL stays where it began: a turned space fits no embedding."""
    start("name=alone", "train.steps=30", *geometry(teacher, "procrustes", "objective.predictions=0"))
    start("name=both", "train.steps=30", *geometry(teacher, "procrustes"))
    alone, both = (rows_of(tmp_path / name) for name in ("alone", "both"))
    assert alone[-1]["objective/geometry"] < 0.8 * alone[0]["objective/geometry"]
    assert alone[-1]["loss/nll"] > alone[0]["loss/nll"] - 0.1
    assert both[-1]["loss/nll"] < alone[-1]["loss/nll"] - 0.5


def test_a_model_that_projects_needs_a_width():
    with pytest.raises(
        ValueError, match=r"^taught_width: the objective maps hidden states to a teacher's; give their width$"
    ):
        new_model(SwapHeadConfig(objective={"kind": "geometry", "teacher": "none", "form": "projection"}), 0)


def test_an_untied_head_begins_as_it_does_without_a_projection():
    text, untied = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20), {"kind": "linear", "tied": False}
    objective = {"kind": "geometry", "teacher": "none", "form": "projection"}
    with_it = new_model(SwapHeadConfig(text, head=untied, objective=objective, taught_width=6), 0)
    without = new_model(SwapHeadConfig(text, head=untied), 0).state_dict()
    assert all(torch.equal(with_it.state_dict()[name], weight) for name, weight in without.items())


def test_a_branch_may_not_add_a_projection(teacher, start, tmp_path):
    start("name=plain")
    with pytest.raises(InputError, match=r"^objective: .* was not written with the same projection of hidden states"):
        start("name=branch", f"branch_from={tmp_path}/plain@8", *geometry(teacher, "projection"))


@pytest.mark.parametrize("form", FORMS)
def test_rounded_states_are_measured_in_float32(form):
    a_nE, b_nD = (x.bfloat16() for x in states(40, 8, 8))
    objective = OBJECTIVES["geometry"](OBJECTIVES["geometry"].Options(teacher="none", form=form))
    mapped = torch.nn.Linear(8, 8, bias=False) if form == "projection" else None
    expected = objective.of_states(b_nD.float(), a_nE.float(), torch.ones(40), mapped)
    with torch.autocast("cpu", torch.bfloat16):
        actual = objective.of_states(b_nD, a_nE, torch.ones(40), mapped)
    assert actual.dtype == torch.float32
    assert actual.equal(expected)


def test_one_line_says_that_tokens_are_compared(teacher, start, capsys):
    start("name=noted", "train.steps=6", *geometry(teacher, "gram"))
    assert capsys.readouterr().err.count("geometry: the tokens of a micro-batch are compared with each other") == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"weight": 0.0}, "weight must be above 0 and at most 1e6, not 0.0; without G it is kind distill"),
        ({"predictions": -1.0}, "predictions must be from 0 to 1000, not -1.0"),
        ({"positions": 1}, "positions must be from 2 to 8192, not 1"),
        ({"alpha": 2.0}, "alpha must be from 0 to 1, not 2.0"),
    ],
)
def test_options_that_make_no_loss_are_refused(options, expected):
    with pytest.raises(ValueError, match=f"^{expected}$"):
        OBJECTIVES["geometry"].Options(teacher="none", **options)
