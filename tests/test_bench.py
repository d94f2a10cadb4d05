"""The benchmark runs as a whole, its contenders compute the same results, and the table of the README comes from the recorded results."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import command

import softxent.torch
from softxent import bench
from softxent.bench import contenders, distributed, fits, gpu, linear, measure, modes, options, report
from softxent.bench import jax as of_jax
from softxent.bench import readme as write_readme

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench/results"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    bench.run("16x50,1x300", "f32,bf16", "2", 2, folder, quick=True)
    return folder


def test_a_run_writes_times_tables_and_a_plot(results):
    found = json.loads((results / "bench.json").read_text())
    assert found["notes"] == []
    assert found["machine"]["backend"].startswith("cpu")
    times = [r for r in found["records"] if r["kind"] == "times" and not r["isa"]]
    assert len(times) == 2 * 2 + 2  # shapes x dtypes + the very small matrices
    for r in times:
        assert {"memcpy", "fused", "forward", "backward", "torch", "softxent.torch"} <= r["seconds"].keys()
        assert ("sklearn" in r["seconds"]) == (r["dtype"] == "f32")
        assert all(t is None or t > 0 for took in r["seconds"].values() for t in took)
    text = (results / "bench.md").read_text()
    assert text.count("[16, 50] | f32") == len([r for r in found["records"] if r["shape"] == [16, 50] and r["dtype"] == "f32"]) + 2
    assert (results / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_readme_takes_its_table_from_the_results_and_stays(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{write_readme.BEGIN}\nold\n{write_readme.END}\nafter\n")
    pages = []
    for _ in range(2):
        command = [sys.executable, "-m", "softxent.bench", "--output", RESULTS, "readme", "--readme", readme]
        subprocess.run(command, check=True)
        pages.append(readme.read_text())
    assert pages[0] == pages[1]
    assert pages[0].startswith("before\n") and pages[0].endswith("\nafter\n") and "old" not in pages[0]
    rows = [line for line in pages[0].splitlines() if line.startswith("| `")]
    assert len(rows) == 6 and rows[-1].startswith("| `softxent.torch.linear_cross_entropy` | [2048, 50257], D = 768 | f32 | ")


def test_the_readme_has_the_table_of_the_recorded_results(tmp_path):
    """It has at most six rows, and at least one ratio is below 1, so that an unfavorable result is shown too."""
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / "README.md").read_text())
    write_readme.into_readme(RESULTS / "bench.json", readme)
    assert readme.read_text() == (ROOT / "README.md").read_text(), "run python -m softxent.bench readme"
    table = readme.read_text().split(write_readme.BEGIN)[1].split(write_readme.END)[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert 0 < len(rows) <= 6
    assert any(float(x) < 1 for row in rows for cell in row[3:] for x in cell.split(" on ")[0].split(" / ") if x != "-")


def test_a_cell_of_the_readme_is_a_peer_s_time_over_ours():
    seconds = {"fused": [1.0, 2.0], "torch": [4.0, 8.0], "memcpy": [0.5, 1.0]}
    record = {"kind": "times", "shape": [1024, 32000], "dtype": "f32", "threads": 1, "isa": "", "seconds": seconds, "failed": {}}
    found = write_readme.readme_table({"machine": report.machine(), "repeats": 2, "records": [record]}, None)
    assert "| `cross_entropy_and_grad` | [1024, 32000] | f32 | 4 | - | - | - | 0.5 |" in found and "linear" not in found


def test_results_without_a_row_of_the_readme_are_refused(results, tmp_path):
    (tmp_path / "README.md").write_text(f"{write_readme.BEGIN}\n{write_readme.END}")
    with pytest.raises(ValueError, match=r"^bench: the results must hold a row of the README such as \[1024, 32000\] f32; got none"):
        write_readme.into_readme(results / "bench.json", tmp_path / "README.md")


def test_readme_without_markers_is_left_alone(results, tmp_path):
    (tmp_path / "README.md").write_text("no markers")
    with pytest.raises(ValueError, match="once each; got 0 and 0"):
        write_readme.into_readme(results / "bench.json", tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == "no markers"


@pytest.mark.parametrize("dtype", bench.DTYPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_contenders_compute_the_same(dtype, threads):
    c = contenders.case((13, 40), dtype, threads)
    loss, dz = (np.array(x, np.float64) for x in softxent.cross_entropy_and_grad(c.z, c.labels))
    tolerance = 1e-5 if dtype == "f32" else 1e-2
    calls, failed = contenders.peers(c, (contenders.COMPILED,))
    assert not failed
    assert len(calls) == (4 if dtype == "f32" else 1)
    for name, call in calls.items():
        peers_loss, gradient = (x.detach().float().numpy() if name == "torch" else x for x in call())
        rows = len(dz) if name == "sklearn" else 1
        np.testing.assert_allclose(peers_loss, loss, rtol=tolerance, err_msg=name)
        np.testing.assert_allclose(gradient / rows, dz, rtol=0, atol=tolerance / len(dz), err_msg=name)
    for name in ("fused", "backward"):
        c.dz[...] = 7
        contenders.ours(c)[name]()
        assert (c.dz.astype(np.float64) == dz).all(), name
    contenders.memcpy(c)()
    assert (c.dz == c.z).all()


def test_a_ratio_is_the_median_of_the_rounds_both_took_part_in():
    record = {"seconds": {"a": [2.0, None, 9.0, 8.0], "b": [1.0, 5.0, 3.0, 2.0]}}
    assert report.ratio(record, "a", "b") == (3.0, 2.0)
    assert report.ratio(record, "a", "absent") is None


def test_a_peer_that_fails_is_said_to(monkeypatch):
    def broken(c):
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setitem(contenders.PEERS, "torch compiled", broken)
    calls, failed = contenders.peers(contenders.case((2, 3), "f32", 1))
    assert failed == {"torch compiled": "RuntimeError: no compiler"} and "torch compiled" not in calls
    record = {"kind": "times", "shape": [2, 3], "dtype": "f32", "threads": 1, "isa": "", "seconds": {"memcpy": [1.0], "fused": [2.0]}}
    found = {"machine": report.machine(), "repeats": 1, "notes": [], "records": [record | {"failed": failed}]}
    assert "| fails |" in report.summary(found) and "torch compiled fails: RuntimeError: no compiler" in report.text(found)


def test_a_missing_peer_is_left_out_and_said(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench, "find_spec", lambda name: None if name in ("torch", "ml_dtypes", "rich") else importlib.util.find_spec(name))
    monkeypatch.setattr(bench, "_work", lambda job: iter(()))
    bench.run(None, "f32,bf16", "1", 1, tmp_path, quick=True)
    errors = capsys.readouterr().err
    assert "left out: torch, not installed (pip install torch" in errors
    assert {tuple(job.dtypes) for job in bench.plan(None, "f32,bf16", "1", 1, True)} == {("f32",)}


def test_a_process_that_dies_is_said_to(monkeypatch):
    job = bench.Job("times", 1, [(2, 3)], ["f32"], 1, True, isa="no-such-isa")
    (record,) = bench._work(job)
    assert "times on 1 thread(s) no-such-isa ended with 1" in record["note"] and "SOFTXENT_ISA" in record["note"]


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_growth_sees_what_a_call_allocates():
    assert measure.growth(lambda: np.ones(64 << 17)) == pytest.approx(64 << 20, rel=0.05)  # pages of memory
    assert measure.growth(lambda: None) < 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_memory_of_a_call_is_what_it_needs_beyond_its_output():
    (record,) = bench._work(bench.Job("memory", 1, [(512, 8000)], ["f32"], 1, True))
    logits = 512 * 8000 * 4
    assert record["extra"]["fused"] < logits / 8
    assert record["extra"]["numpy"] < logits / 8  # works in place
    assert 1.5 * logits < record["extra"]["torch"] < 3 * logits  # keeps log_softmax and its gradient


@pytest.mark.parametrize(
    ("shapes", "dtypes", "threads", "repeats", "argument"),
    [
        ("12", "f32", "1", 1, "shapes"),
        ("0x3", "f32", "1", 1, "shapes"),
        (None, "f8", "1", 1, "dtypes"),
        (None, "f32", "one", 1, "threads"),
        (None, "f32", "1", 0, "repeats"),
    ],
)
def test_what_cannot_be_read_is_an_error(shapes, dtypes, threads, repeats, argument):
    with pytest.raises(ValueError, match=f"^bench: {argument} must .*; got "):
        bench.run(shapes, dtypes, threads, repeats, None, quick=True)


def test_the_gpu_bench_runs_on_what_there_is(tmp_path):
    """Without a GPU it runs in Triton's interpreter on CPU tensors, with the same contenders and table but meaningless times."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with softxent.torch.use_backend("triton"):
        record = gpu.measure((16, 10), "bf16", device, 2, quick=True)
    assert set(record["seconds"]) >= {gpu.COPY, gpu.OURS, gpu.EAGER} and not record["failed"]
    assert all(len(times) == 2 and min(filter(None, times)) > 0 for times in record["seconds"].values())  # slow ones take part in one round
    text = gpu.text({"machine": "here", "records": [record]})
    line = text.splitlines()[-1]
    assert line.startswith("| (16, 10) | bf16 | ") and float(line.split("|")[4]) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where nothing is")
def test_without_a_gpu_its_bench_says_so(capsys):
    code, _, error = command(["bench", "--gpu", "--quick"], capsys)
    assert code == 2 and "softxent bench: --gpu must be given where PyTorch finds a CUDA device; got torch" in error


def test_the_loss_in_every_mode_is_a_contender():
    calls = modes.pytorch(4, 5)
    assert {name.removeprefix(modes.TORCH) for name in calls} == {name for name in calls if not name.startswith(modes.TORCH)}
    for name, call in calls.items():
        if "compiled" not in name or name == "loss alone, compiled":
            call()


def test_the_bench_of_options_runs(tmp_path):
    options.run(2, tmp_path, quick=True)
    records = json.loads((tmp_path / "options.json").read_text())["records"]
    assert [r["case"][0] for r in records] == ["numpy", "torch", "head", "numpy head", "small", "layouts", "numpy layouts"]
    for r in records:
        assert all(any(s) for s in r["seconds"].values())
        assert {options.PLAIN, "softcap", "temperature"} <= set(r["seconds"]) or "layouts" in r["case"][0]
    text = (tmp_path / "options.md").read_text()
    assert text.count("multiples of the plain loss and gradient") == 4 and "| with entropy |" in text and "microseconds a call" in text
    assert "| [8, 128, 1000] transposed |" in text and "| [2, 21, 256, 256] |" in text and "softxent : memcpy" in text


def test_the_bench_of_linear_cross_entropy_runs(tmp_path):
    linear.run(2, tmp_path, quick=True)
    results = json.loads((tmp_path / "linear.json").read_text())
    assert [r["kind"] for r in results["records"]] == ["times"] * 3 + ["memory"] * 2
    first, narrow, frozen = results["records"][:3]
    assert {linear.GEMMS, linear.WHOLE, linear.name(64)} <= set(first["seconds"]) and linear.TWO in frozen["seconds"]
    errors = narrow["error"]
    assert len(errors) == 4 and all(0 <= loss < 0.01 and 0 < dw < 0.01 for loss, dw in errors.values())  # bfloat16 has 2^-9
    text = (tmp_path / "linear.md").read_text()
    assert text.count("\n| N=") == 5 and (tmp_path / "linear.png").stat().st_size > 5000


def test_the_bench_of_processes_runs(tmp_path):
    distributed.run(2, tmp_path, quick=True)
    records = json.loads((tmp_path / "distributed.json").read_text())["records"]
    assert [r["case"][0] for r in records] == ["logits", "options", "head"]
    assert all(len(s) == 2 and min(s) > 0 for r in records for s in r["seconds"].values())
    assert distributed.PARALLEL in (text := (tmp_path / "distributed.md").read_text()) and "| - |" in text


@pytest.mark.parametrize("which", fits.CASES)
def test_the_bench_of_fits_runs(which, tmp_path):
    """Both contenders arrive at the same loss."""
    fits.run(which, 1, tmp_path, quick=True)
    records = json.loads((tmp_path / f"{which}.json").read_text())["records"]
    assert [r["case"] for r in records] == [list(c) for c in fits.QUICK[which]]
    for r in records:
        (_, ours), (_, theirs) = (r["found"][name] for name in (fits.OURS, r["case"][0]))
        # both stop where the gradient is below their own tolerances
        assert ours == pytest.approx(theirs, rel=1e-3) and all(s[0] > 0 for s in r["seconds"].values())
    assert (tmp_path / f"{which}.md").read_text().count(" classes | ") == len(records)


def test_the_bench_of_jax_runs(tmp_path):
    of_jax.run(2, tmp_path, quick=True)
    records = json.loads((tmp_path / "jax.json").read_text())["records"]
    assert [r["kind"] for r in records] == ["fresh", "in place"] * 2 + ["time"] + ["memory"] * 2 + [*of_jax.OF_SHARDS]
    assert all(min(s) > 0 for r in records if r["kind"] != "memory" for s in r["seconds"].values())
    assert records[-3]["extra"][of_jax.HEAD] > 0
    text = (tmp_path / "jax.md").read_text()
    assert text.count("\n| [") == 6 and text.count("\n| N=") == 3
