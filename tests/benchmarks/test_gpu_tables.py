"""The parts of the GPU check that measure, on a CPU: they leave complete lines, whatever fails or takes too long."""

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_check import loss_table, profile_step, training_table, workload
from benchmarks.gpu_check.kernel_groups import OTHER, group_of
from benchmarks.gpu_check.lines import Lines, described, read_lines
from benchmarks.gpu_check.names import GROUPS, LIGER, LOOP, OURS, PLAIN, SILENT, WHOLE
from benchmarks.gpu_check.names import OTHER as TFSD
from benchmarks.gpu_check.peaks import data_sheet_tflops
from benchmarks.gpu_check.tables import report
from benchmarks.loss import chunked, three_matmuls
from benchmarks.throughput import LINEAR, METRIC
from common.command import exit_status

from ..conftest import ROOT, python

CPU = torch.device("cpu")
SHAPE = (40, 8, 30)


def by_table(lines):
    found = {}
    for line in lines:
        found.setdefault(line["table"], []).append(line)
    return found


def last(lines, *keys):
    return {tuple(line[key] for key in keys): line for line in lines}


@pytest.fixture
def lines(tmp_path):
    return Lines(tmp_path / "lines.jsonl", 300)


@pytest.fixture
def own_state():
    """What a part does in this process: its precision is not that of other tests."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def small(own_state, tmp_path):
    """The workload in this process."""
    return workload.prepare(CPU, tmp_path)


# ----------------------------------------------------------------------------------------------------------------- lines


def test_lines_are_json_without_nan_and_a_cut_one_is_passed_over(tmp_path):
    path = tmp_path / "lines.jsonl"
    Lines(path, 1).write("a", x=float("nan"), y=[1.5, float("inf")], z={"n": 2})
    Lines(path, 1, "loss").left_out("b")
    with path.open("a") as file:
        file.write('{"table": "c", "x"')
    left_out = {"table": "left_out", "part": "loss", "what": "b", "why": "no time left"}
    assert read_lines(path) == [{"table": "a", "x": None, "y": [1.5, None], "z": {"n": 2}}, left_out]
    assert read_lines(tmp_path / "none.jsonl") == []
    Lines(path, 1).write("d")  # the next part goes on in the same file
    assert [line["table"] for line in read_lines(path)] == ["a", "left_out", "d"]


def test_an_error_is_one_line():
    assert described(ValueError("\nfirst\nsecond")) == "ValueError: first"
    assert described(KeyError()) == "KeyError: "
    assert len(described(ValueError("x" * 10_000))) == 300


# ------------------------------------------------------------------------------------------------------------------ loss


def test_a_loss_that_fails_is_named_and_the_others_go_on(lines, tmp_path):
    def fails_at_once():
        raise torch.OutOfMemoryError("no memory\nfor all that")

    def fails_later():
        left = iter(range(3))  # as many evaluations as the warm-up takes, and then StopIteration

        def loss(h_ND, w_VD, y_N):
            next(left)
            return chunked("linear", "ce")(h_ND, w_VD, y_N)

        return loss

    contestants = {"first": fails_at_once, "second": fails_later, OURS: lambda: chunked("linear", "ce")}
    loss_table.measure(lines, CPU, [SHAPE], contestants=contestants)
    written = by_table(read_lines(tmp_path / "lines.jsonl"))["loss"]
    errors = {line["contestant"]: line["error"] for line in written if "error" in line}
    assert errors == {"first": "OutOfMemoryError: no memory", "second": "StopIteration: "}
    complete = {line["contestant"] for line in written if "ratio" in line}
    assert complete == {WHOLE, loss_table.IN_CHUNKS, OURS}
    shown = report(written)
    assert "| second (failed later)" in shown  # with the figures of its warm-up
    assert "- second (N = 40, D = 8, V = 30) failed later: StopIteration: " in shown
    assert "not measured (OutOfMemoryError: no memory)" in shown


def test_the_benchmarks_products_are_those_of_the_loss():
    """Of the yardstick: it does three products of these sizes, no more."""
    h_ND, w_VD = torch.randn(40, 8), torch.randn(30, 8)
    with FlopCounterMode(display=False) as whole:
        loss_table.whole_matmuls(h_ND, w_VD)
    with FlopCounterMode(display=False) as chunks:
        three_matmuls(h_ND, w_VD, torch.bfloat16)
    assert whole.get_total_flops() == chunks.get_total_flops() == 6 * 40 * 8 * 30


# -------------------------------------------------------------------------------------------------------------- training


@pytest.mark.usefixtures("own_state")
def test_the_training_part_measures_a_group(tmp_path):
    file = tmp_path / "lines.jsonl"
    options = ["--lines", file, "--seconds", 300, "--device", "cpu", "--groups", "eager", "--blocks", 2]
    done = python("-m", training_table.__name__, *options)
    assert done.returncode == 0, done.stderr
    found = by_table(read_lines(file))
    (peak,) = found["peak"]
    assert peak["measured_tflops"] > 0
    assert peak["sheet_tflops"] is None
    assert [line["blocks"] for line in found["training"]] == 4 * [1] + 4 * [2]  # after every block, all contestants
    speeds = last(found["training"], "contestant")
    assert speeds.keys() == {(name,) for name in GROUPS["eager"]}
    for line in speeds.values():
        assert line["tokens_per_s"] == pytest.approx(1e3 * line["rows"] * line["length"] / line["ms"])
        assert min(line["host_ms"], line["first_s"], line["mfu_measured"]) > 0
        assert line["mfu_sheet"] is None
        assert "error" not in line
    ratios = last(found["training_ratio"], "above", "below")
    assert ratios.keys() == {(LOOP, SILENT), (TFSD, LOOP), (LOOP, PLAIN), (TFSD, PLAIN)}
    assert all(line["middle"] > 0 and line["blocks"] == 2 and line["low"] is None for line in ratios.values())
    assert "left_out" not in found


def nothing(_):
    """A step."""


def table_of(lines, workload, tmp_path, **changed):
    """The lines of a group of contestants that do nothing, but for those that are given, after two blocks."""
    builds = {name: lambda rows: nothing for name in GROUPS["eager"]} | changed
    training_table.Table(lines, workload, builds, blocks=2).measure(["eager"])
    return by_table(read_lines(tmp_path / "lines.jsonl"))


def test_a_loop_that_fails_is_named_and_the_others_go_on(lines, small, tmp_path):
    def fails_at_once(rows):
        raise RuntimeError("Triton error\nand a long explanation")

    def fails_in_the_second_block(rows):
        def step(number):
            if number == 50:
                raise RuntimeError("at step 50")

        return step

    found = table_of(lines, small, tmp_path, **{PLAIN: fails_at_once, SILENT: fails_in_the_second_block})
    errors = {line["contestant"]: line["error"] for line in found["training"] if "error" in line}
    assert errors == {PLAIN: "RuntimeError: Triton error", SILENT: "RuntimeError: at step 50"}
    blocks = {line["contestant"]: line["blocks"] for line in found["training"] if "blocks" in line}
    assert blocks == {LOOP: 2, TFSD: 2, SILENT: 1}


def test_where_memory_does_not_suffice_all_take_half_as_many_sequences(lines, small, tmp_path):
    def large(rows):
        if rows > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return nothing

    found = table_of(lines, small, tmp_path, **{PLAIN: large})
    (note,) = found["note"]
    assert note["text"] == ("plain GPT: OutOfMemoryError: CUDA out of memory.; 1 sequences a step from here on, not 2")
    assert {(line["contestant"], line["rows"]) for line in found["training"]} == {(name, 1) for name in GROUPS["eager"]}


def test_a_contestant_too_large_for_one_sequence_is_given_up(lines, small, tmp_path):
    def too_large(rows):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    found = table_of(lines, small, tmp_path, **{PLAIN: too_large})
    errors = {line["contestant"]: line["error"] for line in found["training"] if "error" in line}
    assert errors == {PLAIN: "OutOfMemoryError: CUDA out of memory."}
    assert {line["contestant"] for line in found["training"] if "ms" in line} == {LOOP, TFSD, SILENT}


def test_random_tokens_are_a_store_that_the_vocabulary_covers(small):
    assert small.store.vocab_size == 300
    assert {int(small.store.train.ids.min()), int(small.store.train.ids.max())} == {0, 299}
    small.store.verify()


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA GB200", 2500.0),
        ("Tesla V100-SXM2-16GB", 125.0),
        ("AMD Instinct MI300X", None),
    ],
)
def test_peaks_go_by_the_devices_name(name, peak):
    assert data_sheet_tflops(name) == peak


# --------------------------------------------------------------------------------------------------------------- profile


def test_an_arm_that_fails_is_named(lines, small, tmp_path):
    def fails():
        raise RuntimeError("no such kernel")

    profile_step.measure(lines, small, {LINEAR: fails, METRIC: lambda: lambda _: torch.ones(2) + 1})
    first, *others = by_table(read_lines(tmp_path / "lines.jsonl"))["profile"]
    assert first == {"table": "profile", "arm": LINEAR, "error": "RuntimeError: no such kernel"}
    assert others[0]["wall_ms"] > 0
    assert others[1]["device_ms"] > 0


def test_without_kernels_the_time_of_a_step_remains(lines, small, tmp_path):
    """As where the profiler may not look at the GPU."""
    profile_step.measure(lines, small, {LINEAR: lambda: nothing})
    found = by_table(read_lines(tmp_path / "lines.jsonl"))
    shown = report([line for one in found.values() for line in one])
    assert "Then: RuntimeError: the profiler recorded no kernels" in shown
    assert "ms of the host" in shown


def test_kernels_that_overlap_are_busy_once():
    assert profile_step.busy_ns([(0, 10), (5, 12), (6, 7), (20, 25)]) == 17
    assert profile_step.busy_ns([]) == 0


@pytest.mark.parametrize(
    ("kernel", "group"),
    [
        ("_masked_softmax", "our softmax kernel"),
        ("sm90_xmma_gemm_bf16f32_bf16f32_f32_tn_n_tilesize64x128x64_warpgroupsize1x1x1", "matmul"),
        ("nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_TNT", "matmul"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_nn_align8>", "matmul"),
        (
            "void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<64, cutlass::bfloat16_t>>",
            "attention",
        ),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128", "attention"),
        (
            "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::FusedAdamMathFunctor<float, 4>>",
            "optimizer",
        ),
        (
            "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<LpNormFunctor<float, 2>>",
            "norms, telemetry",
        ),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float>", "layer norm"),
        ("Memcpy HtoD (Pinned -> Device)", "copies, casts"),
        ("void at::native::elementwise_kernel<128, 4, bfloat16_copy_kernel_cuda>", "copies, casts"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", OTHER),
        ("a kernel of next year", OTHER),
    ],
)
def test_kernels_are_grouped_by_name(kernel, group):
    assert group_of(kernel) == group


# ------------------------------------------------------------------------------------------------- devices and deadlines


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_a_mistake_in_one_line(monkeypatch, capsys, tmp_path):
    arguments = ["--lines", str(tmp_path / "lines.jsonl"), "--seconds", "9", "--device", "cuda"]
    monkeypatch.setattr("sys.argv", ["part", *arguments])
    for part in (loss_table, training_table, profile_step):
        assert exit_status(part.main) == 2
        assert capsys.readouterr().err == "error: --device cuda: torch finds no GPU here; use --device cpu\n"


def test_without_time_everything_is_left_out_by_name(small, tmp_path):
    path = tmp_path / "lines.jsonl"
    loss_table.measure(Lines(path, 0, "loss"), CPU, [SHAPE, (50, 8, 30)], [16])
    contestants = training_table.contestants(small)
    training_table.Table(Lines(path, 0, "training"), small, contestants).measure(["eager", "compiled"])
    profile_step.measure(Lines(path, 0, "profile"), small, {LINEAR: lambda: nothing})
    lines = read_lines(path)
    assert [(line["table"], line["part"], line["what"]) for line in lines] == [
        ("left_out", "loss", "loss of N, D, V = 40, 8, 30"),
        ("left_out", "loss", "chunks of N, D, V = 40, 8, 30"),
        ("left_out", "loss", "loss of N, D, V = 50, 8, 30"),
        ("left_out", "training", "eager training"),
        ("left_out", "training", "compiled training"),
        ("left_out", "profile", f"profile of {LINEAR}"),
    ]
    assert {line["why"] for line in lines} == {"no time left"}


def test_a_deadline_in_the_middle_keeps_what_was_measured(small, tmp_path):
    path = tmp_path / "lines.jsonl"
    lines = Lines(path, 3, "training")
    training_table.Table(lines, small, training_table.contestants(small)).measure(["eager", "compiled"])
    found = by_table(read_lines(path))
    left_out = {line["what"] for line in found["left_out"]}
    assert "training: loop linear+CE compiled" in left_out  # nothing is compiled in 3 seconds
    assert any(line["contestant"] == LOOP and "ms" in line for line in found["training"])


# ---------------------------------------------------------------------------------------------------------------- tables


def test_tables_need_nothing_but_the_standard_library():
    """The parent makes the report where torch may be missing."""
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import benchmarks.gpu_check.tables, benchmarks.gpu_check.lines
print(sorted({{name.partition(".")[0] for name in sys.modules}} - set(sys.stdlib_module_names)))
"""
    done = python("-I", "-S", "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['__main__', 'benchmarks', 'common']"


def loss_line(contestant, ms, **more):
    figures = {"ms": ms, "low": ms - 0.1, "high": ms + 0.1, "rounds": 15, "memory_mib": 1234.5, "ratio": ms / 4}
    return {"table": "loss", "N": 8192, "D": 768, "V": 50304, "contestant": contestant, **figures, **more}


def speed_line(contestant, mfu, group="eager", **more):
    keys = {"table": "training", "group": group, "contestant": contestant, "rows": 32, "length": 1024, "blocks": 6}
    figures = {"tokens_per_s": 300_000.0, "ms": 109.2, "host_ms": 60.0, "first_s": 1.5, "peak_mib": 20_000.0}
    return keys | figures | {"mfu_sheet": mfu, "mfu_measured": 1.2 * mfu, **more}


def ratio_line(above, below, middle, low, high):
    return {
        **{"table": "training_ratio", "group": "eager", "above": above, "below": below},
        **{"middle": middle, "low": low, "high": high, "blocks": 6},
    }


def rows_of_table(text):
    """The cells of all table rows of a report, by the first."""
    rows = [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line.startswith("|")
    ]
    return {row[0]: row[1:] for row in rows}


def test_targets_are_met_or_missed_by_how_much():
    lines = [
        *(loss_line(WHOLE, 4.0, tflops=470.0), loss_line(OURS, 4.5), loss_line(LIGER, 4.2)),
        *(
            speed_line(LOOP, 41.5),
            ratio_line(LOOP, SILENT, 1.004, 1.001, 1.02),
            ratio_line(TFSD, LOOP, 1.05, 1.04, 1.06),
        ),
    ]
    rows = rows_of_table(report(lines))
    assert rows["linear + CE no slower than Liger, N = 8,192, D = 768, V = 50,304"] == ["1.071", "missed by 7.1%"]
    assert rows["telemetry costs at most 1% of a step"] == [
        "1.004 [1.001, 1.020]",
        "met (not certain: the interval includes the target)",
    ]
    assert rows["metric + TFSD at most 3% slower than linear + CE"] == ["1.050 [1.040, 1.060]", "missed by 1.9%"]
    assert rows["MFU at least 45%: loop linear+CE"] == ["41.5%", "missed by 3.5 points"]
    assert rows["MFU at least 45%: loop linear+CE compiled"][1].startswith("not measured (")
    assert rows[WHOLE][:3] == ["4.00 [3.90, 4.10]", "1.000", "470.0"]


def test_later_lines_replace_earlier_ones():
    lines = [loss_line(OURS, 9.0), loss_line(OURS, 4.5), loss_line(LIGER, 5.0)]
    rows = rows_of_table(report(lines))
    assert rows[OURS][0] == "4.50 [4.40, 4.60]"
    assert rows["linear + CE no slower than Liger, N = 8,192, D = 768, V = 50,304"] == ["0.900", "met"]


def test_what_is_missing_has_a_reason():
    lines = [
        loss_line(OURS, 4.5),
        {"table": "loss", "N": 8192, "D": 768, "V": 50304, "contestant": LIGER, "error": "ImportError: a | b"},
        {"table": "training", "group": "eager", "contestant": LOOP, "rows": 4, "length": 8, "error": "ValueError: x"},
        {"table": "left_out", "part": "training", "what": f"training: {LOOP} compiled", "why": "no time left"},
        {"table": "left_out", "part": "profile", "what": "profile of linear+CE", "why": "no time left"},
    ]
    shown = report(lines)
    rows = rows_of_table(shown)
    assert rows[LIGER][0] == "not measured (ImportError: a \\| b)"  # the bar must not end the cell
    assert rows[f"MFU at least 45%: {LOOP}"][1] == "not measured (ValueError: x)"
    assert rows[f"MFU at least 45%: {LOOP} compiled"][1] == "not measured (no time left)"
    assert rows[f"{LOOP} / {SILENT}"][0] == f"not measured ({LOOP}: ValueError: x)"
    assert rows["telemetry costs at most 1% of a step"][1] == f"not measured ({LOOP}: ValueError: x)"
    assert "## Profile of a step\n\nnot measured (no time left)" in shown
    assert f"- left out: training: {LOOP} compiled (no time left)" in shown


def test_an_empty_report_says_that_nothing_was_measured():
    shown = report([])
    assert shown.count("not measured") >= 8
    assert "None" not in shown
    assert "nan" not in shown


def test_every_row_of_a_table_has_as_many_cells_as_its_heading(tmp_path):
    lines = [
        *(loss_line(WHOLE, 4.0, tflops=470.0), loss_line(OURS, 4.5), speed_line(PLAIN, 30.0)),
        {"table": "profile_group", "arm": "a", "group": "matmul", "ms": 1.0, "share": 0.5, "calls": 3},
        {
            "table": "profile",
            "arm": "a",
            "steps": 4,
            "wall_ms": 2.0,
            "host_ms": 1.0,
            "device_ms": 1.5,
            "idle": 0.25,
            "clock": "c",
        },
        {
            **{"table": "profile_kernel", "arm": "a", "rank": 1, "name": "void f<a, b | c>" + "x" * 200},
            **{"group": "matmul", "ms": 1.0, "share": 0.5, "calls": 3.0},
        },
    ]
    shown = report(lines)
    for block in shown.split("\n\n"):
        if block.startswith("|"):
            assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1, block
    assert "idle 25.0%" in shown
