"""Coverage: Verilator's counts are read, traced back to Python, added up and reported."""

import json
from collections import Counter

import pytest

from tilewright_hw.arch import AcceleratorConfig
from tilewright_sim.coverage.__main__ import main
from tilewright_sim.coverage.read import CoverageError, Point, read_folder, read_points, source_lines
from tilewright_sim.coverage.report import holes, reports

VERILOG = """\
(* src = "/somewhere/hw/tilewright_hw/gateware/top.py:57" *)
module m(clk, a, o);
  (* src = "/somewhere/hw/tilewright_hw/gateware/fifo.py:10" *)
  wire [1:0] a;
  (* src = "/somewhere/hw/tilewright_hw/gateware/fifo.py:12" *)
  wire o;
  (* src = "/somewhere/hw/tilewright_hw/gateware/fifo.py:20" *)
  always @* begin
    (* src = "/somewhere/hw/tilewright_hw/gateware/fifo.py:21" *)
    casez (a)
      2'h1: o = 1;
    endcase
  end
endmodule
module n();
  wire b;
endmodule
"""


def point(line, count, what="block", kind="line", verilog="tilewright.v"):
    page = f"v_{kind}/m"
    fields = {"f": f"/cache/x/{verilog}", "l": line, "n": 3, "page": page, "o": what, "h": "TOP.m"}
    return "C '" + "".join(f"\x01{key}\x02{value}" for key, value in fields.items()) + f"' {count}\n"


def folder(path, *points):
    path.mkdir(exist_ok=True)
    (path / "rtl-tiny-1.v").write_text(VERILOG)
    (path / f"rtl-tiny-1.{len(list(path.iterdir()))}.dat").write_text("# SystemC::Coverage-3\n" + "".join(points))
    return path


def test_lines_of_verilog_know_their_line_of_python():
    places = source_lines(VERILOG)
    name = "tilewright_hw/gateware/fifo.py"
    assert places[4] == (name, 10)
    assert places[6] == (name, 12)
    assert places[8] == (name, 20)
    assert places[10] == places[11] == (name, 21)
    assert 16 not in places  # a wire without an attribute is not of the line before its module


def test_points_of_all_instances_and_runs_are_added(tmp_path):
    path = folder(tmp_path, point(8, 3), point(8, 4), point(11, 0, kind="branch"))
    counts = read_points(next(path.glob("*.dat")))
    assert counts == Counter(
        {Point("line", "tilewright.v", 8, "block", "m"): 7, Point("branch", "tilewright.v", 11, "block", "m"): 0}
    )
    folder(tmp_path, point(11, 2, kind="branch"))
    coverage = read_folder([tmp_path])
    assert {p.line: count for p, count in coverage.counts.items()} == {8: 7, 11: 2}


def test_a_report_by_line_and_bit(tmp_path):
    toggles = [point(4, 1, "a[0]:0->1", "toggle"), point(4, 0, "a[0]:1->0", "toggle"), point(4, 9, "a[1]", "toggle")]
    path = folder(tmp_path, point(8, 3), point(11, 0, kind="branch"), *toggles, point(16, 0, "b", "toggle"))
    (report,) = reports(read_folder([path]))
    assert report.file == "tilewright_hw/gateware/fifo.py"
    assert report.lines == {20: True, 21: False}
    assert report.bits == {(10, "a[0]"): False, (10, "a[1]"): True}
    assert (report.lines_reached, report.bits_reached) == (1, 1)
    found = [(hole.place[1], hole.what) for hole in holes(read_folder([path]))]
    assert found == [(10, "a: 1 of 2 bits never toggled"), (21, "never ran")]


def test_the_command(tmp_path, capsys):
    path = folder(tmp_path / "runs", point(8, 3), point(11, 0, kind="branch"))
    assert main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "fifo.py" in out
    assert "1 of 2       50.0%" in out
    assert "fifo.py:21: never ran" in out
    assert main([str(path), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["files"] == [
        {"file": "tilewright_hw/gateware/fifo.py", "lines": 2, "ran": 1, "bits": 0, "toggled": 0}
    ]
    assert [hole["place"] for hole in answer["holes"]] == [["tilewright_hw/gateware/fifo.py", 21]]


def test_bad_files(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: there is no coverage (*.dat): run `make coverage`\n"
    (tmp_path / "x.dat").write_text("C 'nonsense' many\n")
    with pytest.raises(CoverageError, match=r"x\.dat:1 is no coverage point$"):
        read_folder([tmp_path])
    with pytest.raises(CoverageError, match=r"^cannot read .*none\.dat: No such file or directory$"):
        read_folder([tmp_path / "none.dat"])


@pytest.mark.slow
def test_a_device_counts(tmp_path, monkeypatch):
    """A real simulator: what a reset and some register reads do runs; the vector unit does not."""
    from tilewright_hw.arch.registers import IDENTITY
    from tilewright_sim.rtl import RtlDevice

    monkeypatch.setenv("TILEWRIGHT_COVERAGE", str(tmp_path))
    with RtlDevice(AcceleratorConfig.preset("tiny")) as device:
        device.allocate(4096)
        assert device.read_register(0) == IDENTITY
    files = {report.file.rpartition("/")[2]: report for report in reports(read_folder([tmp_path]))}
    assert files["registers.py"].lines_reached > 20
    assert files["registers.py"].lines_reached > 2 * files["results.py"].lines_reached
    assert not all(files["lane.py"].bits.values())
