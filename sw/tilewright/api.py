"""The public model API: load a checkpoint, generate text, stream it, get logits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

import numpy as np

from tilewright.calibration import check_quantiser, first_rows_for, quantiser_for
from tilewright.compiled import is_compiled
from tilewright.compiled import load as load_compiled
from tilewright.compiler.batch import MAX_BATCH
from tilewright.compiler.encoder import EncoderCompiler
from tilewright.compiler.image import ModelImage
from tilewright.compiler.llama import LlamaCompiler
from tilewright.compiler.plan import Tiling
from tilewright.devices import open_device
from tilewright.embedding import Recipe, read_recipe
from tilewright.formats import DEFAULT, Formats
from tilewright.importers import load_checkpoint
from tilewright.model import Checkpoint, Floats, ModelSpec, with_context
from tilewright.quantisers import DEFAULT_QUANTISER, Quantiser
from tilewright.requantise import Measured
from tilewright.request import Options, Request, check_request, read_defaults
from tilewright.roofline import Work, model_operations, roofline, total
from tilewright.runtime import Engine
from tilewright.sampling import Sampler, Sampling
from tilewright.text import TextStream
from tilewright.tokenizer import HuggingFaceTokenizer, Tokenizer, load_tokenizer
from tilewright_hw.arch import AcceleratorConfig, Device, InputError

BUILTIN = Path(__file__).parent / "models" / "fairytales"
"""The built-in model."""


@dataclass
class Stats:
    """What a generation took. Cycles, bytes and shares are 0 on the golden device, which has no notion of time.

    `bus_utilization` is the share of the bus: bytes that the mathematics needs / (cycles * bus bytes).
    `mac_utilization` is the share of the array's peak. Both over prompt and new tokens.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    cycles: int = 0
    decode_cycles: int = 0
    decode_steps: int = 0
    bus_bytes_read: int = 0
    bus_bytes_written: int = 0
    bus_utilization: float = 0.0
    mac_utilization: float = 0.0
    decode_roofline: float = 0.0
    seconds: float = 0.0
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def cycles_per_token(self) -> float:
        """Cycles of a decode step (the prompt is not counted); of the prompt if there was no decode step."""
        return self.decode_cycles / self.decode_steps if self.decode_steps else float(self.cycles)


@dataclass
class Check:
    """Comparison with the golden device: tokens (of an encoder: vectors), and the whole memory image."""

    tokens_equal: bool
    bytes_compared: int
    hash_device: str
    hash_golden: str

    @property
    def exact(self) -> bool:
        """Whether everything was equal."""
        return self.tokens_equal and self.hash_device == self.hash_golden


@dataclass
class Generation:
    """A generated text: only what is new, without the prompt.

    `finish_reason` is 'eos', 'length' (of the request or the context) or 'stop' (a stop string or token). `sampling` is
    how it was chosen, the model's defaults included.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    stats: Stats
    check: Check | None = None
    sampling: Sampling = field(default_factory=Sampling)


class Model:
    """A model on a device; made by `load`.

    Parameters
    ----------
    checkpoint : Checkpoint
        The weights.
    tokenizer : Tokenizer or None
        Without one only token ids can be given.
    device : Device
        Where it runs.
    check : bool
        Run the golden device beside it, and compare.
    formats : Formats
        Number formats of weights, activations and cache.
    batch : int
        Most prompts that are continued at the same time.
    quantiser : Quantiser, optional
        Makes the weights (default: `quantisers.Plain`). One that measures them (of a GGUF file's model `load` takes
        such a one) is `requantised` afterwards; else that is None.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer | None,
        device: Device,
        *,
        check: bool = False,
        tiling: Tiling | None = None,
        progress: Callable[[int, int], None] | None = None,
        formats: Formats = DEFAULT,
        batch: int = MAX_BATCH,
        quantiser: Quantiser | None = None,
    ) -> None:
        self.name, self.spec, self.tokenizer, self.formats = checkpoint.name, checkpoint.spec, tokenizer, formats
        self.batch = check_batch(batch)
        self.recipe, self._vectors_equal = recipe_of(checkpoint), True
        self.defaults = read_defaults(checkpoint.files)
        self.requantised = quantiser if isinstance(quantiser, Measured) else None
        self._checkpoint = checkpoint
        self.engine = Engine(checkpoint, device, tiling, progress, formats=formats, quantiser=quantiser)
        self.golden: Engine | None = None
        if check:
            self.golden = Engine(
                checkpoint, open_device("golden", device.config), tiling, formats=formats, quantiser=quantiser
            )

    @property
    def device(self) -> Device:
        """The device it runs on."""
        return self.engine.device

    @property
    def engines(self) -> list[Engine]:
        """All that follow a request: the golden one first, if there is one, and the device's last."""
        return [self.golden, self.engine] if self.golden is not None else [self.engine]

    def close(self) -> None:
        """Release the device."""
        self.device.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(
        self, prompt: str | Sequence[int] | Sequence[str], max_new_tokens: int = 64, **options: Unpack[Options]
    ) -> Generation | list[Generation]:
        """Continue a prompt (text, or token ids), or each of a list of texts.

        Parameters
        ----------
        prompt : str, sequence of int, or list of str
            Text, token ids (used as they are), or several texts.
        max_new_tokens : int
            At most so many new tokens; at least one.
        temperature, top_k, top_p, repetition_penalty : float, int, float, float
            See `Sampling`. Where one is not given, the model's generation_config.json says it; without one, the most
            probable token is taken.
        seed : int
            Seed of the random numbers.
        stop : str or sequence of str
            The text ends before the one of these that is complete first.
        stop_tokens : sequence of int
            Tokens that end the text, besides the model's own.

        Returns
        -------
        Generation, or a list of them for a list of texts.

        Raises
        ------
        InputError
            A prompt that is empty (without BOS) or exceeds the context, a token out of range, a bad option.
        DeviceError
            The device stopped.
        """
        if isinstance(prompt, (list, tuple)) and prompt and all(isinstance(p, (str, list, tuple)) for p in prompt):
            runs = [self.start(each, max_new_tokens, **options) for each in prompt]
            self._together(runs)
            return [run.result() for run in runs]
        run = self.start(prompt, max_new_tokens, **options)
        for _ in run:
            pass
        return run.result()

    def embed(self, texts: Sequence[str]) -> Floats:
        """Return the vectors of some texts, float32 (texts, dim), as the model's own files say.

        Each text runs alone, through the same arithmetic wherever it stands in the list, so that its vector does not
        depend on the others. Rows come from the device; they are pooled and normalised on the host.

        Raises
        ------
        InputError
            The model is no encoder, or a text is not valid Unicode.
        DeviceError
            The device stopped.
        """
        rows = [self.text_ids(text)[0] for text in _as_texts(texts)]
        recipe = self._recipe()
        vectors = np.zeros((len(rows), self.spec.dim * len(recipe.poolings)), np.float32)
        # By length: texts of one length share a program.
        for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
            found = [recipe.vector(engine.encode(rows[i])) for engine in self.engines]
            self._vectors_equal &= np.array_equal(found[0], found[-1])
            vectors[i] = found[-1]
        return vectors

    def text_ids(self, text: str) -> tuple[list[int], bool]:
        """Return the token ids that `embed` runs for a text, and whether it was cut to the longest that it takes."""
        recipe = self._recipe()
        if not isinstance(self.tokenizer, HuggingFaceTokenizer):
            raise InputError("an encoder needs a tokenizer.json")
        return self.tokenizer.encode_cut(recipe.prepare(_as_unicode(text)), recipe.max_tokens)

    def compare(self) -> Check | None:
        """Compare memory, and the vectors of all texts so far, with the golden device's; None without one."""
        if self.golden is None:
            return None
        return compare(self.device, self.golden.device, self.engine.image.size, self._vectors_equal)

    def _recipe(self) -> Recipe:
        if self.recipe is None:
            raise InputError(f"{self.name} continues texts: only an encoder makes vectors of them")
        return self.recipe

    def _together(self, runs: Sequence[Run]) -> None:
        """Run some generations to their ends, up to `batch` of them at a time.

        Their rows share every weight tile, and each has a cache of its own, which it leaves to one that waits.
        """
        free = list(range(min(len(runs), self.batch)))
        self.allow(len(free))
        waiting, going = list(runs), list[Run]()
        while waiting or going:
            while waiting and free:
                run = waiting.pop(0)
                run.begin(free.pop(0))
                going.append(run)
                free += [r.sequence for r in going if r.finish_reason]
                going = [r for r in going if not r.finish_reason]
            if going:
                self._step(going)
            free += [r.sequence for r in going if r.finish_reason]
            going = [r for r in going if not r.finish_reason]

    def _step(self, runs: Sequence[Run]) -> None:
        """Run the next token of some generations together."""
        tokens = {run.sequence: run.token_ids[-1] for run in runs}
        before, seconds = dict(self.engine.counters.values), self.engine.device.seconds
        rows = [engine.step(tokens) for engine in self.engines]
        spent = {k: v - before[k] for k, v in self.engine.counters.values.items()}
        texts = [(self.engine.positions[run.sequence] - 1, 1) for run in runs]
        for run in runs:
            golden = rows[0][run.sequence] if self.golden is not None else None
            run.account(spent, self.engine.device.seconds - seconds, texts, prompt=False)
            run.take(rows[-1][run.sequence], golden)

    def allow(self, sequences: int) -> None:
        """Make room for so many sequences, unless there is; InputError if their caches do not fit."""
        for engine in self.engines:
            engine.grow(sequences)

    def stream(
        self, prompt: str | Sequence[int], max_new_tokens: int = 64, **options: Unpack[Options]
    ) -> Iterator[str]:
        """Yield pieces of the continuation's text as they are made; options and errors as in `generate`.

        Nothing of a stop string, and no half of a character, is among them.
        """
        return iter(self.start(prompt, max_new_tokens, **options))

    def start(
        self, prompt: str | Sequence[int] | Sequence[str], max_new_tokens: int = 64, **options: Unpack[Options]
    ) -> Run:
        """Check the request and return a `Run`: iterate it for text, then ask for its `result()`."""
        request = check_request(max_new_tokens, self.defaults, vocab=self.spec.vocab, **options)
        return Run(self, self._prompt_ids(prompt), request)

    def _prompt_ids(self, prompt: str | Sequence[int] | Sequence[str]) -> list[int]:
        check_continues(self._checkpoint)
        return prompt_ids(prompt, self.spec, self.tokenizer)

    def logits(self, token_ids: Sequence[int]) -> Floats:
        """Return teacher-forced logits, float32 (tokens, vocab): row i follows token i."""
        ids = self._prompt_ids(list(token_ids))
        # The golden device follows, so that the images stay comparable; the device's own rows are the last.
        for engine in self.engines:
            engine.reset()
            rows = engine.feed(ids, logits="all")
        return rows


class Run:
    """One generation under way; iterate for pieces of text."""

    def __init__(self, model: Model, prompt: list[int], request: Request) -> None:
        self.model, self.prompt, self.request = model, prompt, request
        self.sampler, self.golden_sampler = Sampler(request.sampling), Sampler(request.sampling)
        self.sequence = 0
        self.token_ids: list[int] = []
        self._text = TextStream(model.tokenizer, prompt, request.stop)
        self.finish_reason = ""
        self.tokens_equal = True
        self.stats = Stats(prompt_tokens=len(prompt))
        self._work = Work()
        self._decode_least = 0.0

    def __iter__(self) -> Iterator[str]:
        """Yield text as it is made."""
        for engine in self.model.engines:
            engine.reset()
        token = self._step(self.prompt, prompt=True)
        while not self._ends(token):
            piece = self._new_text(final=False)
            if piece:
                yield piece
            if self.finish_reason:
                return
            token = self._step([token], prompt=False)
        piece = self._new_text(final=True)
        if piece:
            yield piece

    def begin(self, sequence: int) -> None:
        """Read the prompt as one of several sequences, and choose the first token."""
        self.sequence = sequence
        for engine in self.model.engines:
            engine.reset(sequence)
        self._finish(self._step(self.prompt, prompt=True))

    def take(self, logits: Floats, golden: Floats | None) -> None:
        """Choose the next token from logits that a batch gave, and from golden's."""
        token = self.sampler(logits, self.seen)
        if golden is not None:
            self.tokens_equal &= self.golden_sampler(golden, self.seen) == token
        self._finish(token)

    def _finish(self, token: int) -> None:
        self._new_text(final=self._ends(token))

    def _step(self, tokens: list[int], prompt: bool) -> int:
        """Feed tokens, account for it, and choose the next token."""
        engine = self.model.engine
        before, seconds = dict(engine.counters.values), engine.device.seconds
        token = self._next(engine, tokens, self.sampler)
        spent = {k: v - before[k] for k, v in engine.counters.values.items()}
        first = engine.positions[self.sequence] - len(tokens)
        self.account(spent, engine.device.seconds - seconds, [(first, len(tokens))], prompt=prompt)
        if self.model.golden is not None:
            self.tokens_equal &= self._next(self.model.golden, tokens, self.golden_sampler) == token
        return token

    def _next(self, engine: Engine, tokens: list[int], sampler: Sampler) -> int:
        """Return the token after these: the device's own choice where the largest logit is wanted."""
        if sampler.sampling.takes_the_largest:
            return engine.choose(tokens, self.sequence)
        return sampler(engine.feed(tokens, sequence=self.sequence), self.seen)

    @property
    def seen(self) -> list[int]:
        """The tokens of prompt and text so far."""
        return self.prompt + self.token_ids

    def account(self, spent: dict[str, int], seconds: float, texts: Sequence[tuple[int, int]], *, prompt: bool) -> None:
        """Add this generation's share of what a run took.

        `texts` are (first position, tokens) of each generation that took part; all have an equal share.
        """
        model, stats, sharing = self.model, self.stats, len(texts)
        stats.seconds += seconds / sharing
        stats.cycles += spent["CYCLES"] // sharing
        for name, value in spent.items():
            stats.counters[name] = stats.counters.get(name, 0) + value // sharing
        operations = model_operations(model.spec, texts, weights=model.formats.weights)
        work = total(operations)
        self._work += Work(work.macs // sharing, work.read // sharing, work.written // sharing)
        if not prompt:
            stats.decode_cycles += spent["CYCLES"] // sharing
            stats.decode_steps += 1
            self._decode_least += roofline(operations, model.engine.config) / sharing

    def _ends(self, token: int) -> bool:
        """Take the new token; return whether it ends the text."""
        tokenizer = self.model.tokenizer
        if tokenizer is not None and token in tokenizer.eos:
            self.finish_reason = "eos"
            return True
        if token in self.request.stop_tokens:
            self.finish_reason = "stop"
            return True
        self.token_ids.append(token)
        self.stats.new_tokens += 1
        full = len(self.prompt) + len(self.token_ids) >= self.model.spec.context + 1
        if (
            len(self.token_ids) >= self.request.max_new_tokens
            or full
            or self.model.engine.positions[self.sequence] >= self.model.spec.context
        ):
            self.finish_reason = "length"
            return True
        return False

    def _new_text(self, final: bool) -> str:
        """Return the text that is certain by now and has not been given yet; finds stop strings."""
        piece = self._text.update(self.token_ids, final=final)
        if self._text.stopped:
            self.finish_reason = "stop"
        return piece

    def result(self) -> Generation:
        """Return the finished generation, with its statistics and, if asked for, the comparison with golden."""
        engine, stats, config = self.model.engine, self.stats, self.model.engine.config
        stats.bus_bytes_read = stats.counters.get("READ_BEATS", 0) * config.bus_bytes
        stats.bus_bytes_written = stats.counters.get("WRITE_BEATS", 0) * config.bus_bytes
        if stats.cycles:
            stats.bus_utilization = self._work.read / (stats.cycles * config.bus_bytes)
            stats.mac_utilization = self._work.macs / (stats.cycles * config.peak_macs)
        if stats.decode_cycles:
            stats.decode_roofline = self._decode_least / stats.decode_cycles
        check = None
        if self.model.golden is not None:
            check = compare(engine.device, self.model.golden.device, engine.image.size, self.tokens_equal)
        return Generation(
            self._text.text, self.token_ids, self.finish_reason, stats, check, sampling=self.request.sampling
        )


def prompt_ids(prompt: str | Sequence[int] | Sequence[str], spec: ModelSpec, tokenizer: Tokenizer | None) -> list[int]:
    """Return the token ids of a prompt; InputError if the model cannot take them."""
    ids = _encode(prompt, tokenizer) if isinstance(prompt, str) else _as_ids(prompt)
    if not ids:
        raise InputError("the prompt must hold at least one token")
    if len(ids) > spec.context:
        raise InputError(f"the prompt has {len(ids)} tokens; the context holds {spec.context}")
    for token in ids:
        if not 0 <= token < spec.vocab:
            raise InputError(f"token ids must be 0 to {spec.vocab - 1}, not {token}")
    return ids


def _encode(prompt: str, tokenizer: Tokenizer | None) -> list[int]:
    if tokenizer is None:
        raise InputError("this model has no tokenizer: give token ids")
    return tokenizer.encode(_as_unicode(prompt, "the prompt"))


def _as_unicode(text: str, what: str = "a text") -> str:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise InputError(f"{what} must be valid Unicode: {e.reason} at character {e.start}") from e
    return text


def _as_texts(texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"texts must be a list of str, not {texts!r}")
    return texts


def _as_ids(prompt: Sequence[int] | Sequence[str]) -> list[int]:
    if not isinstance(prompt, Iterable):
        raise InputError(f"a prompt must be text or token ids, not {prompt!r}")
    ids = []
    for token in prompt:
        if isinstance(token, bool) or not isinstance(token, (int, np.integer)):
            raise InputError(f"a prompt must be text or token ids, not {token!r} among them")
        ids.append(int(token))
    return ids


def compare(device: Device, golden: Device, size: int, tokens_equal: bool = True) -> Check:
    """Compare the memory images of two devices by their SHA-256, in pieces."""
    hashes = []
    for d in (device, golden):
        h = hashlib.sha256()
        for at in range(0, size, 1 << 24):
            h.update(d.read_memory(at, min(1 << 24, size - at)).tobytes())
        hashes.append(h.hexdigest())
    return Check(tokens_equal, size, hashes[0], hashes[1])


def load(
    path: str | Path | None = None, *, device: Device | str = "golden", config: str | None = None,
    weights: str | None = None, activations: int | None = None, overrides: Mapping[str, str] | None = None,
    context: int | None = None, batch: int = MAX_BATCH, tokenizer: str | Path | None = None, check: bool = False,
    quantiser: str = DEFAULT_QUANTISER, calibration: str | Path | None = None, first_row: str | None = None,
    tiling: Tiling | None = None, progress: Callable[[int, int], None] | None = None,
) -> Model:  # fmt: skip
    """Load a model onto a device.

    Parameters
    ----------
    path : path or None
        A Hugging Face folder, a GGUF file, a llama2.c .bin file, or a file that `tilewright compile` wrote; None: the
        built-in model.
    device : Device or str
        An open device, or the name of one.
    config : str
        Preset or .toml file, if `device` is a name; 'default', or what a compiled model is for.
    weights : str
        'int8' (default) or 'int4'.
    activations : int
        8 (default) or 16: bits of what is multiplied by a matrix, of queries and of probabilities.
    overrides : mapping, optional
        Weight formats of single matrices; see `Formats`. A compiled model has the formats that it was compiled with.
    context : int, optional
        Most positions of prompt and text together, fewer than the model's own: a shorter cache, and smaller tables.
    batch : int
        Most prompts that `generate` continues at the same time; results do not depend on it.
    quantiser : {"round", "search", "compensate"}
        How weights are quantised: by rounding; with a search over the scales (of int4, and where first rows are known
        of int8); or with each weight's error made up for by others, as the inputs of a few texts go together.
    calibration : path, optional
        A file with these texts; else some tales that come with the package.
    first_row : {"plain", "known"}, optional
        How the first row of a text is quantised: like all others, or as its distance from one that is known from the
        same texts (`tilewright.first_rows`). Default: known for encoders, plain for others.
    tokenizer : path
        Instead of the one that comes with the model.
    check : bool
        Run the golden device beside it and compare every token and the memory image.

    Raises
    ------
    InputError
        The checkpoint, the tokenizer or an option is wrong; nothing has been written then.
    DeviceError
        The device cannot be opened.
    """
    check_batch(batch)
    check_quantiser(quantiser, calibration, first_row)
    given = None
    if weights is not None or activations is not None or overrides:
        given = Formats(
            weights=weights or "int8", activations=8 if activations is None else activations, overrides=overrides or {}
        )
    checkpoint, found = read_model(path, tokenizer, context)
    wanted = device.config if not isinstance(device, str) else AcceleratorConfig.resolve(config) if config else None
    target, formats = settle(checkpoint, wanted, given)
    check_fits(checkpoint.spec, target, tiling, formats)
    checkpoint = first_rows_for(checkpoint, found, first_row, calibration)
    makes_weights = quantiser_for(quantiser, checkpoint, found, calibration)
    opened = open_device(device, target) if isinstance(device, str) else device
    return Model(
        checkpoint, found, opened, check=check, tiling=tiling, progress=progress, formats=formats, batch=batch,
        quantiser=makes_weights,
    )  # fmt: skip


def settle(
    checkpoint: Checkpoint, config: AcceleratorConfig | None, formats: Formats | None
) -> tuple[AcceleratorConfig, Formats]:
    """Return the configuration and the formats that a model runs with: what is asked for, else the defaults.

    Those of a compiled model are its own; InputError if others are asked for.
    """
    stored = checkpoint.stored
    if stored is None:
        return config or AcceleratorConfig(), formats or DEFAULT
    stored.check(config or stored.config, formats or stored.formats)
    return stored.config, stored.formats


def check_batch(batch: int) -> int:
    """Return the batch; InputError unless it is a positive integer."""
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise InputError(f"batch must be a positive integer, not {batch!r}")
    return batch


def read_model(
    path: str | Path | None = None, tokenizer: str | Path | None = None, context: int | None = None
) -> tuple[Checkpoint, Tokenizer]:
    """Return a model's checkpoint and tokenizer, as `load` does; every tensor has been looked at."""
    path = BUILTIN if path is None else Path(path)
    checkpoint = load_compiled(path) if is_compiled(path) else load_checkpoint(path)
    found = tokenizer_of(checkpoint, path, tokenizer)
    checkpoint = with_context(checkpoint, context)
    recipe_of(checkpoint)
    read_defaults(checkpoint.files)
    checkpoint.check()
    return checkpoint, found


def tokenizer_of(checkpoint: Checkpoint, path: Path, override: str | Path | None = None) -> Tokenizer:
    """Return a model's tokenizer: the one that is named, else the file's own, else the one beside it."""
    if override is None and checkpoint.tokenizer is not None:
        return checkpoint.tokenizer()
    return load_tokenizer(path, checkpoint.spec.vocab, override)


def check_continues(checkpoint: Checkpoint) -> None:
    """InputError if the model cannot continue a text."""
    if not checkpoint.spec.causal or not checkpoint.spec.classifier:
        raise InputError(f"{checkpoint.name} is an encoder: it makes vectors of texts (embed), and continues none")


def recipe_of(checkpoint: Checkpoint) -> Recipe | None:
    """Return how an encoder's rows become vectors; None for a model that continues texts."""
    spec = checkpoint.spec
    return read_recipe(checkpoint.files, spec) if not spec.causal and not spec.classifier else None


def check_fits(
    spec: ModelSpec, config: AcceleratorConfig, tiling: Tiling | None = None, formats: Formats = DEFAULT
) -> None:
    """InputError if the model cannot be compiled for this configuration; needs no device."""
    image = ModelImage(spec, config, formats)
    if spec.causal:
        LlamaCompiler(image, tiling or Tiling()).decode()
    else:
        EncoderCompiler(image, tiling or Tiling()).encode(1)
