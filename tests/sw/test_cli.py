"""The command line: what goes to stdout and stderr, the JSON object, the exit codes."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from console import Done

import tilewright as tw
from tilewright.cli import main
from tilewright.cli.progress import Progress
from tilewright.cli.verilog import write
from tilewright_hw import generate
from tilewright_sim.golden import GoldenDevice

Command = Callable[..., Done]
GOLDEN = ("--device", "golden", "--max-new-tokens", "6")
KEYS = {
    "schema_version",
    "text",
    "token_ids",
    "prompt_tokens",
    "new_tokens",
    "finish_reason",
    "device",
    "config",
    "cycles",
    "cycles_per_token",
    "bus_bytes_read",
    "bus_bytes_written",
    "bus_utilization",
    "mac_utilization",
    "seconds",
    "bit_exact",
}
COMMANDS = (
    "generate",
    "chat",
    "compile",
    "demo",
    "embed",
    "eval",
    "configs",
    "verilog",
    "synth",
    "bench",
    "profile",
    "doctor",
)


def tilewright(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tilewright.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_version(command: Command) -> None:
    done = command("--version")
    assert (done.code, done.out) == (0, f"tilewright {tw.__version__}\n")


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_has_examples(command: Command, name: str) -> None:
    done = command(*filter(None, [name]), "--help")
    assert done.code == 0
    assert f"examples:\n  tilewright {name}" in done.out
    assert done.err == ""


def test_text_is_what_the_api_makes(command: Command, hf_folder: Path) -> None:
    done = command("generate", hf_folder, "--prompt", "ab", *GOLDEN)
    with tw.load(hf_folder) as model:
        expected = model.generate("ab", max_new_tokens=6)
    assert isinstance(expected, tw.Generation)
    assert (done.code, done.out) == (0, expected.text + "\n")
    assert "6 tokens (length)" in done.err


def test_quiet(command: Command, hf_folder: Path) -> None:
    done = command("generate", hf_folder, "--prompt", "ab", *GOLDEN, "--quiet", "--check")
    assert done.code == 0
    assert done.err == ""


def test_json(command: Command, hf_folder: Path) -> None:
    done = command("generate", hf_folder, "--prompt", "ab", *GOLDEN, "--json")
    found = json.loads(done.out)
    assert found.keys() >= KEYS
    assert done.out.count("\n") == 1
    assert found["schema_version"] == 1
    assert (found["prompt_tokens"], found["new_tokens"], found["finish_reason"]) == (3, 6, "length")
    assert (found["device"], found["config"]) == ("golden", "default")
    assert found["bit_exact"] is None
    assert len(found["token_ids"]) == 6
    assert found["seconds"] > 0
    for key in ("cycles", "bus_bytes_read", "bus_bytes_written"):
        assert isinstance(found[key], int)


def test_json_with_check(command: Command, hf_folder: Path) -> None:
    done = command("generate", hf_folder, "--prompt", "ab", *GOLDEN, "--json", "--check", "--quiet")
    found = json.loads(done.out)
    assert done.code == 0
    assert found["bit_exact"] is True
    assert found["check"]["hash_device"] == found["check"]["hash_golden"]


def test_sampling_options_reach_the_sampler(command: Command, hf_folder: Path) -> None:
    words = ("generate", hf_folder, "--prompt", "ab", *GOLDEN, "--temperature", "1.5", "--top-k", "50", "--quiet")
    first, again, other = (command(*words, "--seed", seed).out for seed in ("1", "1", "2"))
    assert first == again
    assert first != other


def test_stop(command: Command) -> None:
    words = ("generate", "--prompt", "Once upon a time", *GOLDEN, "--json", "--quiet")
    whole = json.loads(command(*words).out)["text"]
    found = json.loads(command(*words, "--stop", "zzz", "--stop", whole[6:9]).out)
    assert (found["finish_reason"], found["text"]) == ("stop", whole[:6])


def test_prompt_from_stdin(hf_folder: Path) -> None:
    words = ("generate", hf_folder, *GOLDEN, "--quiet", "--prompt")
    piped, plain = tilewright(*words, "-", input="ab\n"), tilewright(*words, "ab")
    assert piped.returncode == 0
    assert piped.stdout == plain.stdout


def test_prompt_on_stdin_must_be_text(hf_folder: Path) -> None:
    done = tilewright("generate", hf_folder, *GOLDEN, "--prompt", "-", input="\udcff", errors="surrogateescape")
    assert done.returncode == 2
    assert done.stderr.endswith("error: the prompt on stdin must be UTF-8: invalid start byte at byte 0\n")


class BrokenDevice(GoldenDevice):
    """A golden device whose memory has one wrong bit after each run."""

    def wait(self, max_cycles: int) -> None:
        super().wait(max_cycles)
        last = self.memory_size - 1
        self.write_memory(last, self.read_memory(last, 1) | np.uint8(1))


class StoppingDevice(GoldenDevice):
    """A golden device that stops at once."""

    def wait(self, max_cycles: int) -> None:
        raise tw.DeviceError("the golden device stopped with error 3 (READ_RESPONSE) near instruction 7", 3)


def use(monkeypatch: pytest.MonkeyPatch, device: type[GoldenDevice]) -> None:
    def open_device(_: str, config: tw.AcceleratorConfig, **__: object) -> GoldenDevice:
        return device(config)

    monkeypatch.setattr("tilewright.cli.options.open_device", open_device)


def test_a_mismatch_is_exit_code_1(command: Command, hf_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, BrokenDevice)
    done = command("generate", hf_folder, "--prompt", "ab", *GOLDEN, "--check")
    assert done.code == 1
    assert "MISMATCH: golden gave the same tokens and ANOTHER MEMORY IMAGE" in done.err
    done = command("generate", hf_folder, "--prompt", "ab", *GOLDEN, "--check", "--json", "--quiet")
    assert (done.code, json.loads(done.out)["bit_exact"]) == (1, False)


def test_a_device_that_stops_is_exit_code_1(command: Command, hf_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, StoppingDevice)
    done = command("generate", hf_folder, "--prompt", "ab", *GOLDEN, "--quiet")
    assert (done.code, done.out) == (1, "")
    assert done.err == "tilewright: error: the golden device stopped with error 3 (READ_RESPONSE) near instruction 7\n"


@pytest.mark.parametrize(
    "error", [RuntimeError("no C++ compiler:\ninstall one"), OSError(28, "No space left", "cache")]
)
def test_a_device_that_cannot_be_built_is_exit_code_2(
    command: Command, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def open_device(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("tilewright.cli.options.open_device", open_device)
    done = command("generate", "--prompt", "a", "--quiet")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("tilewright: error: cannot open the rtl device: ")
    assert done.err.count("\n") == 1


def test_a_bug_is_one_line_too(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilewright.cli.session.read_model", lambda *_: 1 / 0)
    done = command("generate", "--prompt", "a", *GOLDEN)
    assert done.code == 1
    assert done.err == (
        "tilewright: error: internal error: ZeroDivisionError: division by zero (TILEWRIGHT_DEBUG=1 shows where)\n"
    )
    monkeypatch.setenv("TILEWRIGHT_DEBUG", "1")
    assert "Traceback" in command("generate", "--prompt", "a", *GOLDEN).err


def test_ctrl_c_is_exit_code_130(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_model(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tilewright.cli.session.read_model", read_model)
    assert command("generate", "--prompt", "a", *GOLDEN) == Done(130, "", "interrupted\n")


def test_ctrl_c_while_it_writes() -> None:
    words = ["generate", "--prompt", "Once", "--device", "golden", "--max-new-tokens", "250", "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tilewright.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.read(1)  # it streams: the first words come before the last
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"interrupted\n")


def test_a_reader_that_goes_away() -> None:
    words = ["generate", "--prompt", "Once", "--device", "golden", "--max-new-tokens", "40", "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tilewright.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(timeout=30) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tilewright.cli", "configs"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (2, b"tilewright: error: No space left on device\n")


def test_a_terminal_without_unicode(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = tilewright("generate", "--prompt", "Once", *GOLDEN, "--tokenizer", "gefäß", env=environment)
    assert done.returncode == 2
    assert "gef\\xe4\\xdf" in done.stderr


def test_configs(command: Command) -> None:
    done = command("configs")
    head, _, *rows = done.out.splitlines()
    assert head.split() == ["tiny", "edge", "default", "large"]
    cells = {re.split(r"\s{2,}", row)[0]: re.split(r"\s{2,}", row)[1:] for row in rows}
    assert cells["MACs per cycle"] == ["16", "128", "256", "1,024"]
    assert cells["bus bytes per cycle"] == ["4", "8", "16", "32"]
    assert cells["weight FIFO, KiB"] == ["1", "16", "32", "64"]


def test_configs_json(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('preset = "edge"\nbus_bits = 128\n')
    found = json.loads(command("configs", "default", tmp_path / "mine.toml", "--json").out)["configs"]
    assert [c["bus_bytes_per_cycle"] for c in found] == [16, 16]
    default = found[0]
    assert default["macs_per_cycle"] == 256
    assert default["buffer_bytes"]["accumulators"] == 2 * 512 * 16 * 4
    assert default["on_chip_bytes"] == sum(default["buffer_bytes"].values())


def test_configs_toml(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(command("configs", "edge", "--toml").out)
    assert tw.AcceleratorConfig.resolve(str(tmp_path / "mine.toml")) == tw.AcceleratorConfig.preset("edge")


@pytest.fixture
def quick_verilog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a comment where the Verilog would be; a cache of its own."""

    def write_verilog(config: tw.AcceleratorConfig, directory: Path) -> Path:
        path = directory / generate.verilog_file_name(config)
        path.write_text(f"// {config.name}")
        return path

    monkeypatch.setattr(generate, "write_verilog", write_verilog)
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))


def test_verilog(command: Command, tmp_path: Path) -> None:
    done = command("verilog", "--block", "StreamFifo", "--set", "depth=3", "--mhz", "75", "-o", tmp_path / "a" / "b")
    assert (done.code, done.out) == (0, f"{tmp_path / 'a' / 'b'}\n")
    made = json.loads((tmp_path / "a" / "b" / "manifest.json").read_text())
    assert (made["parameters"]["depth"], made["clock_mhz"]) == (3, 75)
    assert (tmp_path / "a" / "b" / "tilewright_stream_fifo.v").exists()


def test_the_verilog_of_the_demo_comes_from_the_cache(tmp_path: Path, quick_verilog: None) -> None:
    config = tw.AcceleratorConfig.preset("tiny")
    for _ in range(2):  # made, and from the cache
        path = write(config, tmp_path / "a" / "b")
        assert path == tmp_path / "a" / "b" / "tilewright_tiny.v"
        assert path.read_text() == "// tiny"
        assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_verilog_without_a_cache(tmp_path: Path, quick_verilog: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "file"))
    write(tw.AcceleratorConfig.preset("tiny"), tmp_path)
    assert (tmp_path / "tilewright_tiny.v").read_text() == "// tiny"


def test_verilog_without_its_tools(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "amaranth", None)
    done = command("verilog", "-o", tmp_path / "out", "--quiet")
    assert done.code == 2
    assert "pip install 'tilewright[rtl]'" in done.err
    assert not (tmp_path / "out").exists()


def test_demo(command: Command, tmp_path: Path, quick_verilog: None) -> None:
    done = command("demo", "--device", "golden", "--max-new-tokens", "8", "-o", tmp_path)
    assert done.code == 0
    assert done.out.startswith("\nOnce upon a time")
    for text in ("tokens ", "tokens per second ", "golden model ", "bit-exact: golden gave the same tokens"):
        assert text in done.out
    assert str(tmp_path / "tilewright_default.v") in done.out
    assert "What to try next:" in done.out


def test_the_demo_writes_64_tokens_or_more(command: Command) -> None:
    text = command("demo", "--help").out
    found = re.search(r"length of the tale\s+\(default: (\d+)\)", text)
    assert found
    assert int(found[1]) >= 64


def test_doctor(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("doctor", "--for", "golden").code == 0
    assert json.loads(command("doctor", "--for", "golden", "--json").out)["ok"] is True


@pytest.mark.parametrize(("words", "what"), [
    (("gemm", "--shape", "5x20x9"), "5x20x9"),
    (("gemm", "--shape", "5x20x9", "--result", "int8"), "5x20x9, int8 result"),
    (("gemm", "--shape", "5x40x9", "--weights", "int4", "--check"), "5x40x9, int4 weights"),
    (("decode", "--context", "10"), "fairytales, context 10"),
    (("decode", "--model", "random:dim=16,ffn=24,heads=2,vocab=40", "--context", "9", "--tokens", "2"), "context 9"),
    (("decode", "--model", "random:dim=16,ffn=24,heads=2,vocab=40", "--context", "9", "--tokens", "2", "--batch", "3",
      "--check"), "context 9, 3 together"),
    (("prefill", "--context", "7"), "fairytales, 7 tokens"),
    (("prefill", "--model", "random:dim=16,ffn=24,heads=2,vocab=40", "--context", "7", "--weights", "int4",
      "--activations", "16"), ", int4 weights, 16 bits of activations, 7 tokens"),
])  # fmt: skip
def test_bench(command: Command, words: tuple[str, ...], what: str) -> None:
    done = command("bench", *words, "--device", "golden")
    assert done.code == 0
    (line,) = done.out.splitlines()[4:]
    assert line.startswith(words[0])
    assert what in line


def test_bench_json(command: Command) -> None:
    done = command("bench", "gemm", "--device", "golden", "--shape", "5x20x9", "--shape", "1x8x8", "--json", "--quiet")
    found = json.loads(done.out)
    assert [row["what"] for row in found["rows"]] == ["5x20x9", "1x8x8"]
    assert found["rows"][0]["roofline_cycles"] == (5 * 20 + 20 * 9) / 16  # bound by reading


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal() -> None:
    stream = Terminal()
    with Progress(stream=stream).stage("model loaded") as stage:
        stage.update(1, 4)
        time.sleep(0.25)
    text = stream.getvalue()
    assert "model loaded [######..................] 1/4" in text
    assert re.search(r"\r\x1b\[Kmodel loaded: 0\.\d s\n$", text)


def test_progress_elsewhere_is_plain_lines() -> None:
    stream = io.StringIO()
    with Progress(stream=stream).stage("device opened") as stage:
        stage.say("compiling")
        stage.update(1, 2)
    assert re.fullmatch(r"compiling\ndevice opened: 0\.\d s\n", stream.getvalue())


def test_progress_of_what_fails() -> None:
    stream = Terminal()
    with pytest.raises(ValueError, match="no"), Progress(stream=stream).stage("device opened"):
        raise ValueError("no")
    assert stream.getvalue() == "\r\x1b[K"


def test_main_takes_the_process_arguments(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["tilewright", "configs", "--toml", "tiny"])
    assert main() == 0
    assert "rows = 4\n" in capsys.readouterr().out


def test_synth_tells_what_a_block_takes(command: Command) -> None:
    done = command("synth", "--config", "tiny", "--block", "act", "--json")
    assert done.code == 0
    made = json.loads(done.out)
    assert made["block"] == "act"
    assert made["fits"] is True
    assert made["total"]["block_rams"] == 4
    assert made["luts_per_mac"] == made["total"]["luts"] / 16
    assert "act of tiny synthesised for ecp5-85k: " in done.err
    text = command("synth", "--config", "tiny", "--block", "act", "--quiet")
    assert (text.code, text.err) == (0, "")
    assert re.search(r"^all +[\d,]+ +\d+ +0 +4$", text.out, re.M)
    assert "LUT per MAC (16 MACs)" in text.out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--block", "arry"], "unknown block 'arry': did you mean"),
        (["--target", "xc7a100t", "--pnr"], "--pnr needs --target ecp5-85k, not xc7a100t"),
        (["--seed", "-1"], "seed must be at least 0, not -1"),
    ],
)
def test_synth_refuses(command: Command, words: list[str], text: str) -> None:
    done = command("synth", "--config", "tiny", "--quiet", *words)
    assert (done.code, done.out) == (2, "")
    assert text in done.err
