"""The table at the end of a sweep."""

from pathlib import Path

from metagenrl_pl.reporting.sweep_table import SweepJob, sweep_table
from metagenrl_pl.results.rows import MetaTestRow, append_rows


def test_a_line_for_each_job_with_its_own_methods_return(tmp_path: Path) -> None:
    rows = [MetaTestRow("A", "learned", seed, n, n + seed, 100) for seed in (0, 2) for n in (10, 20)]
    append_rows(tmp_path / "0" / "meta_test.csv", [*rows, MetaTestRow("A", "critic", 0, 20, 99.0)])
    others = [MetaTestRow("B", "random", 0, 0, 1.0), MetaTestRow("B", "critic", 0, 5, 8.0)]
    append_rows(tmp_path / "1" / "meta_test.csv", [*others, MetaTestRow("B", "mine", 0, 5, 7.0)])
    (tmp_path / "1" / "config.yaml").write_text("callbacks: {evaluation: {method: mine}}")
    append_rows(tmp_path / "2" / "meta_test.csv", others)  # and no config.yaml
    jobs = [SweepJob(f"job {n}: seed={n}", tmp_path / str(n), code) for n, code in enumerate((0, 3, 0))]
    table = sweep_table([*jobs, SweepJob("job 3: seed=x", None, 2)])
    cells = [[str(cell) for cell in row] for row in zip(*(column.cells for column in table.columns), strict=True)]
    assert [str(column.header) for column in table.columns] == ["job", "outcome", "A", "B", "run folder"]
    assert cells == [
        ["job 0: seed=0", "finished", "21.0", "-", str(tmp_path / "0")],
        ["job 1: seed=1", "ended early (code 3)", "-", "7.0", str(tmp_path / "1")],
        ["job 2: seed=2", "finished", "-", "-", str(tmp_path / "2")],
        ["job 3: seed=x", "ended early (code 2)", "-", "-", "-"],
    ]
