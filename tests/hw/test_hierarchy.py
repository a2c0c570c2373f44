"""Verilog with one module for each kind of component, whose ports are those of its signature."""

import re
from collections import Counter

import pytest
from amaranth import EnableInserter, Module, Signal
from amaranth.lib import fifo, memory, wiring
from amaranth.lib.wiring import In, Out

from tilewright_hw import Softmax, SystolicArray, hierarchy
from tilewright_hw.arch import AcceleratorConfig
from tilewright_hw.generate import export_block, to_verilog
from tilewright_hw.hierarchy import emit


class Adder(wiring.Component):
    def __init__(self, step, *, unused=0):
        self.step = step
        super().__init__({"i": In(8), "o": Out(8), "o_last": Out(8), "i_unused": In(4), "i_none": In(unused)})

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.o.eq(self.i + self.step)
        m.d.comb += self.o_last.eq(self.o - self.step)
        return m


class Chain(wiring.Component):
    """Each adder uses other ports of its neighbours than the next one does."""

    i: In(8)
    o: Out(8)

    def elaborate(self, platform):
        m = Module()
        m.submodules.first = first = Adder(1)
        m.submodules.second = second = Adder(1)
        m.submodules.third = third = Adder(2)
        m.submodules.queue = queue = fifo.SyncFIFOBuffered(width=8, depth=4)
        m.d.comb += [first.i.eq(self.i), second.i.eq(first.o), third.i.eq(second.o_last)]
        m.d.comb += [queue.w_data.eq(third.o), queue.w_en.eq(1), queue.r_en.eq(1), self.o.eq(queue.r_data)]
        return m


class Gated(wiring.Component):
    i: In(8)
    o: Out(8)

    def elaborate(self, platform):
        m = Module()
        m.submodules.adder = adder = Adder(1)
        awake = Signal()
        m.d.comb += [adder.i.eq(self.i), self.o.eq(adder.o), awake.eq(self.i != 0)]
        return EnableInserter(awake)(m)


def modules(text):
    return dict(re.findall(r"^module (\S+?) ?\(([^;]*)\);", text, re.M))


def test_equal_components_are_one_module_with_all_ports():
    _, notes = emit(Chain(), "chain")
    assert [(n.name, n.source, n.parameters, n.instances) for n in notes] == [
        ("chain", "Chain", {}, []),
        ("chain_Adder_2", "Adder", {"step": 2}, ["third"]),
        ("chain_Adder", "Adder", {"step": 1}, ["first", "second"]),
    ]
    text = export_block(Chain(), "top")
    found = modules(text)
    ports = {"i", "o", "o_last", "i_unused", "clk", "rst"}
    assert set(found["top_Adder"].split(", ")) == set(found["top_Adder_2"].split(", ")) == ports
    assert "top_Chain__queue" in found  # a part of Amaranth's library stays where it is
    comment = r"// Adder of \S*test_hierarchy.py: step = 1\n// used as block.first, block.second\nmodule top_Adder\("
    assert re.search(comment, text)
    assert "[-1:0]" not in text


def test_a_component_that_was_typed_at_a_prompt():
    made = {"__name__": "prompt"}
    exec("from amaranth.lib import wiring\n", made)
    exec("class Own(wiring.Component):\n    i: wiring.In(1)\n    o: wiring.Out(1)\n", made)
    exec("def elaborate(self, platform):\n    from amaranth import Module\n    return Module()\n", made)
    made["Own"].elaborate = made["elaborate"]
    _, notes = emit(made["Own"](), "own")
    assert (notes[0].file, notes[0].comment()) == ("", "// Own\n")


def test_what_clock_enables_reach_into_stays_whole():
    text = export_block(Gated(), "top")
    found = modules(text)
    assert set(found) == {"top", "top_Gated", "top_Gated__adder"}
    assert "awake" in found["top_Gated__adder"]
    assert "adder__i" in found["top_Gated__adder"]  # as in what contains it, which has an `i` of its own
    assert not re.search(r"^  wire .*\w\$\d", text, re.M)


@pytest.mark.filterwarnings("ignore::amaranth.UnusedElaboratable")
def test_the_array_has_one_module_for_each_width_of_its_sums():
    _, notes = emit(SystolicArray(16, 16, 2), "array")
    cells = [n for n in notes if n.source == "ProcessingElement"]
    assert sum(len(n.instances) for n in cells) == 256
    assert len(cells) <= 16
    text = export_block(SystolicArray(4, 4), "array")
    multiplies = re.findall(
        r"^module (\S+?)\((?:(?!endmodule).)*?\$signed\(\w+\) \* \$signed\(\w+\)", text, re.M | re.S
    )
    assert multiplies
    assert all(name.startswith("array_ProcessingElement") for name in multiplies)


def test_every_note_of_the_accelerator_is_a_module_and_names_are_plain(monkeypatch):
    emitted = []
    monkeypatch.setattr(hierarchy, "emit", lambda *about: emitted.append(emit(*about)) or emitted[-1])
    text = to_verilog(AcceleratorConfig.preset("tiny"))
    ((_, notes),) = emitted
    found = modules(text)
    assert {n.name for n in notes} <= set(found)
    assert all(re.fullmatch(r"tilewright\w*", name) for name in found)
    assert not re.search(r"port\$\d+", " ".join(found[n.name] for n in notes))
    assert all(n.instances for n in notes[1:])
    top = text[text.index("module tilewright(") :].split("endmodule")[0]
    assert ".acc_addr(matrix__acc_addr)" in top  # a wire between instances is called after one of them
    assert not re.search(r"^  wire .*\\[a-z]\w*\$\d+", top, re.M)
    assert "$auto$" not in text
    assert "at_start" in text


@pytest.fixture(scope="module")
def tiny():
    return to_verilog(AcceleratorConfig.preset("tiny"))


def test_no_expression_is_written_out_again_and_again(tiny):
    """Amaranth writes an expression wherever it is used: a choice of a few bits became 10,000 lines once."""
    for name, body in re.findall(r"^module (\S+?)\((.*?)^endmodule", tiny, re.M | re.S):
        written = Counter(re.findall(r"^  assign \\\$\d+  = (.*);$", body, re.M))
        expression, times = max(written.items(), key=lambda item: item[1], default=("", 0))
        assert times <= 30, f"{name} has {times} times {expression!r}: let a signal hold it"


def test_every_signal_has_a_name(tiny):
    """Amaranth finds none for what is made in `a, b = Signal(), Signal()`."""
    assert "$signal" not in tiny
    assert "$signal" not in export_block(Softmax(lanes=2, max_length=8), "softmax")


class Storage(wiring.Component):
    """Memories that are cleared, and one that is not."""

    i: In(9)
    o: Out(8).array(3)

    def elaborate(self, platform):
        m = Module()
        for index, init in enumerate(([], [0] * 511 + [3], [])):
            depth = 512 if index < 2 else 20
            m.submodules[f"words_{index}"] = words = memory.Memory(shape=8, depth=depth, init=init)
            read, write = words.read_port(), words.write_port()
            m.d.comb += [read.addr.eq(self.i), self.o[index].eq(read.data)]
            m.d.comb += [write.addr.eq(self.i), write.data.eq(self.i), write.en.eq(self.i[8])]
        return m


def test_a_memory_is_cleared_by_loops_that_are_short():
    text = export_block(Storage(), "top")
    assert len(re.findall(r"^    for \(words_0_block = 0; words_0_block < 512; ", text, re.M)) == 1
    assert "words_0[7] = " not in text
    assert "words_1[511] = 8'h03;" in text
    assert "words_2[7] = 8'h00;" in text  # no multiple of the inner loop


def test_what_begins_as_unknown_begins_as_zero_in_simulation():
    text = export_block(Storage(), "top")
    assert text.startswith("// For simulators that know unknown values")
    assert not re.search(r"^  reg (\[\d+:0\] )?(\\\S+ |\w+);$", text, re.M)
    assert re.search(r"^  reg \[7:0\] _\d+_ `TILEWRIGHT_START;$", text, re.M)
    assert text.count("  reg at_start = 0;\n") == text.count("  `TILEWRIGHT_RUN\n")


def test_signals_keep_their_names():
    chain = Chain()
    before = emit(chain, "chain")[0]
    assert chain.i.name == "i"
    assert emit(chain, "chain")[0] == before
