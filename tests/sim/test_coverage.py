"""Coverage: Verilator's counts are read, traced back to Python, added up and reported."""

import gzip
import json
from collections import Counter

import pytest

from tilewright_hw.arch import AcceleratorConfig
from tilewright_sim.coverage.__main__ import main
from tilewright_sim.coverage.read import CoverageError, Point, Source, read_folder, read_points, source_lines
from tilewright_sim.coverage.report import holes, reports

NAME = "tilewright_hw/gateware/fifo.py"
VERILOG = """\
(* src = "/somewhere/hw/tilewright_hw/gateware/top.py:57" *)
module m(clk, a, o);
  (* src = "/somewhere/hw/tilewright_hw/gateware/fifo.py:10" *)
  wire [1:0] a;
  reg [1:0] _7_;
  (* src = "/somewhere/hw/tilewright_hw/gateware/fifo.py:12" *)
  reg \\o.x ;
  assign b = a + (* src = "/somewhere/hw/tilewright_hw/gateware/fifo.py:30" *) c;
  (* src = "/somewhere/hw/tilewright_hw/gateware/fifo.py:20" *)
  always @(posedge clk)
    held <= _7_;
  always @* begin
    if (a) begin
      _7_ = 2'h0;
    end
  end
  always @* begin
    \\o.x  = 1'h0;
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
    """A declaration that before it, an expression that inside it, a block that of the register or signal it is of."""
    sources = source_lines(VERILOG)
    assert sources[4] == Source((NAME, 10))
    assert sources[7] == Source((NAME, 12))
    assert sources[8] == Source((NAME, 30))
    assert [sources[i] for i in range(12, 17)] == [Source((NAME, 20), "held", i) for i in range(5)]
    assert sources[18] == Source((NAME, 12), "\\o.x", 1)
    assert 5 not in sources
    assert 22 not in sources  # a wire without an attribute is not of the module before


def test_points_of_all_instances_and_runs_are_added(tmp_path):
    path = folder(tmp_path, point(8, 3), point(8, 4), point(11, 0, kind="branch"))
    counts = read_points(next(path.glob("*.dat")))
    assert counts == Counter(
        {Point("line", "rtl-tiny-1.v", 8, "block", "m"): 7, Point("branch", "rtl-tiny-1.v", 11, "block", "m"): 0}
    )
    folder(tmp_path, point(11, 2, kind="branch"))
    coverage = read_folder([tmp_path])
    assert {p.line: count for p, count in coverage.counts.items()} == {8: 7, 11: 2}


def test_a_report_by_line_and_bit(tmp_path):
    toggles = [point(4, 1, "a[0]:0->1", "toggle"), point(4, 0, "a[0]:1->0", "toggle"), point(4, 9, "a[1]", "toggle")]
    blocks = [point(13, 0, "if", "branch"), point(13, 3, "else", "branch"), point(18, 2)]
    path = folder(tmp_path, *blocks, *toggles, point(22, 0, "b", "toggle"))
    (report,) = reports(read_folder([path]))
    assert report.file == NAME
    assert report.branches == {(20, "held +1 if"): False, (20, "held +1 else"): True, (12, "\\o.x +1 block"): True}
    assert report.lines == {20: False, 12: True}
    assert report.bits == {(10, "a[0]"): False, (10, "a[1]"): True}
    assert (report.lines_reached, report.branches_reached, report.bits_reached) == (1, 2, 1)
    found = [(hole.place[1], hole.what) for hole in holes(read_folder([path]))]
    assert found == [(10, "1 of 2 bits of a never toggled"), (20, "1 of 2 branches were never taken")]


def test_the_command(tmp_path, capsys):
    path = folder(tmp_path / "runs", point(13, 0, "if", "branch"), point(13, 3, "else", "branch"))
    assert main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "1 of 2       50.0%" in out
    assert "fifo.py:20: 1 of 2 branches were never taken" in out
    assert main([str(path), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["files"] == [{"file": NAME, "lines": [0, 1], "branches": [1, 2], "bits": [0, 0]}]
    assert [hole["place"] for hole in answer["holes"]] == [[NAME, 20]]


def test_packed_files(tmp_path):
    path = folder(tmp_path, point(13, 3, "else", "branch"))
    plain = next(path.glob("*.dat"))
    (path / f"{plain.name}.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert list(read_folder([path]).counts.values()) == [6]


def test_bad_files(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: there is no coverage (*.dat, *.dat.gz): run `make coverage`\n"
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
