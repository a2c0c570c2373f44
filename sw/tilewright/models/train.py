"""Train the built-in model: a small Llama that writes fairy tales.

    python train.py CORPUS -o DIR              train, write a Hugging Face model folder, measure it
    python train.py CORPUS -o DIR --evaluate   measure the model that DIR holds

CORPUS is `fairytales.txt`, one paragraph a line; its sha256 is checked. Needs torch, tokenizers,
safetensors and numpy. This script is no part of the package: nothing imports it.
"""

# ruff: noqa: D102 - what a module's `forward` does, its class says

# torch is no dependency of the package: to a type checker that does not find it, all of it is Any.
# mypy: disable-error-code="misc,no-any-return,no-untyped-call,unused-ignore"

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

CORPUS_SHA256 = "67ae294f75a222001a1f737080f5fad789d7a05c438ee740ddc8d478b474bf88"
BOS, EOS = 0, 1
SPECIAL = ["<|bos|>", "<|eos|>"]
# How a new tale begins; the corpus marks it in no other way.
OPENING = re.compile(
    r"(Once (upon|on|there|in|a|was|long)|There (lived|dwelt)|Hard by|Many years ago"
    r"|(There|It|In).{0,40}\b(once|upon a time|long ago|old times|times past)\b"
    r"|A (certain )?(king|man|poor|woman|peasant|farmer|miller|tailor|father|mother|merchant|cat)"
    r"[^,.]{0,30}(had|was)\b|Long(, long)? ago|A long time ago)"
)


@dataclass(frozen=True)
class Config:
    """A model's shape, and the dropout it is trained with."""

    vocab: int = 1024
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 288
    context: int = 256
    eps: float = 1e-5
    theta: float = 10000.0
    dropout: float = 0.05


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; `noise` is the share of input tokens replaced by others at random."""

    steps: int
    lr: float
    decay: float
    noise: float = 0.0
    batch: int = 64


# The text is short, 1.2 million tokens: a larger, heavily regularised model finds more in it than
# the small one does by itself, and the small one learns from both.
TEACHER = Config(hidden=384, layers=6, heads=6, kv_heads=6, ffn=1024, dropout=0.3)
TEACHER_RECIPE = Recipe(steps=2500, lr=2e-3, decay=2.0, noise=0.1)
STUDENT = Config()
STUDENT_RECIPE = Recipe(steps=4000, lr=4e-3, decay=0.5)


# ---- corpus --------------------------------------------------------------------------------------


def split(paragraphs: list[str], seed: int, block: int = 32) -> tuple[list[str], list[list[str]]]:
    """Training paragraphs, and contiguous held-out blocks of 5 % in all.

    Held-out paragraphs that share 8 words in a row with the training text are left out.
    """

    def runs(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"[a-z0-9']+", text.lower())
        return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}

    count = round(0.05 * len(paragraphs) / block)
    chosen = sorted(random.Random(seed).sample(range(len(paragraphs) // block), count))
    held = {i for b in chosen for i in range(b * block, (b + 1) * block)}
    train = [p for i, p in enumerate(paragraphs) if i not in held]
    seen = runs(" ".join(train))
    blocks = [[p for p in paragraphs[b * block : (b + 1) * block] if not runs(p) & seen] for b in chosen]
    return train, blocks


def excerpt(blocks: list[list[str]], limit: int = 60_000) -> str:
    """What is kept beside the model: the first whole paragraphs of every block."""
    kept: list[str] = []
    for paragraphs in blocks:
        room = limit // len(blocks)
        for p in paragraphs:
            room -= len(p) + 1
            if room < 0:
                break
            kept.append(p)
    return "\n".join(kept) + "\n"


def train_tokenizer(paragraphs: list[str], vocab: int) -> Tokenizer:
    """Byte-level BPE (any text encodes), which puts BOS in front of what it encodes."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=SPECIAL,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tok.train_from_iterator((p + "\n" for p in paragraphs), trainer)
    tok.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[(SPECIAL[0], BOS)])
    return tok


def stream(tok: Tokenizer, paragraphs: list[str]) -> tuple[Tensor, Tensor]:
    """The training text's tokens in document order, and where paragraphs start.

    A newline joins paragraphs; where a tale begins, EOS and BOS stand in its place.
    """
    newline = tok.encode("\n", add_special_tokens=False).ids
    ids: list[int] = []
    starts: list[int] = []
    encoded = tok.encode_batch(paragraphs, add_special_tokens=False)
    for p, e in zip(paragraphs, encoded, strict=True):
        if ids:
            ids += [EOS, BOS] if OPENING.match(p) else newline
        starts.append(len(ids))
        ids += e.ids
    return torch.tensor([*ids, EOS]), torch.tensor(starts)


# ---- model ---------------------------------------------------------------------------------------


def int8(x: Tensor) -> Tensor:
    """Round x to int8 with one scale for each row of the last axis, and back."""
    scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-9) / 127
    return (x / scale).round() * scale


def linear(x: Tensor, layer: nn.Linear, quant: bool) -> Tensor:
    """The layer's product; where `quant`, with int8 weights by output channel and inputs by row."""
    return F.linear(int8(x), int8(layer.weight)) if quant else F.linear(x, layer.weight)


def rope(x: Tensor, theta: float) -> Tensor:
    """Rotary embedding as Hugging Face's Llama has it: element i turns with element i + half."""
    half = x.shape[-1] // 2
    freq = theta ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)[:, None] * freq
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Attention(nn.Module):
    """Causal attention with rotary embedding and shared K/V heads."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c, self.dim = c, c.hidden // c.heads
        self.q_proj = nn.Linear(c.hidden, c.hidden, bias=False)
        self.k_proj = nn.Linear(c.hidden, c.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(c.hidden, c.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(c.hidden, c.hidden, bias=False)

    def forward(self, x: Tensor, quant: bool) -> Tensor:
        c, (b, t, _) = self.c, x.shape
        projections = (linear(x, p, quant) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (y.view(b, t, -1, self.dim).transpose(1, 2) for y in projections)
        q, k = rope(q, c.theta), rope(k, c.theta)
        k, v = (y.repeat_interleave(c.heads // c.kv_heads, 1) for y in (k, v))
        if quant:
            # V's scales lie along the product's inner axis: the probabilities take them in.
            v_scale = v.abs().amax(-1, keepdim=True).clamp_min(1e-9) / 127
            mask = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
            score = int8(q) @ int8(k).transpose(-1, -2) / math.sqrt(self.dim)
            p = score.masked_fill(mask, -torch.inf).softmax(-1)
            y = int8(p * v_scale.transpose(-1, -2)) @ (int8(v) / v_scale)
        else:
            drop = c.dropout * self.training
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=drop)
        return linear(y.transpose(1, 2).reshape(b, t, c.hidden), self.o_proj, quant)


class MLP(nn.Module):
    """The gated feed-forward block."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden, c.ffn, bias=False)
        self.up_proj = nn.Linear(c.hidden, c.ffn, bias=False)
        self.down_proj = nn.Linear(c.ffn, c.hidden, bias=False)

    def forward(self, x: Tensor, quant: bool) -> Tensor:
        y = F.silu(linear(x, self.gate_proj, quant)) * linear(x, self.up_proj, quant)
        return linear(y, self.down_proj, quant)


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(c), MLP(c)
        self.input_layernorm = nn.RMSNorm(c.hidden, c.eps)
        self.post_attention_layernorm = nn.RMSNorm(c.hidden, c.eps)
        self.drop = nn.Dropout(c.dropout)

    def forward(self, x: Tensor, quant: bool) -> Tensor:
        x = x + self.drop(self.self_attn(self.input_layernorm(x), quant))
        return x + self.drop(self.mlp(self.post_attention_layernorm(x), quant))


class Llama(nn.Module):
    """Parameters have LlamaForCausalLM's names less `model.`; the embeddings are tied."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.embed_tokens = nn.Embedding(c.vocab, c.hidden)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = nn.RMSNorm(c.hidden, c.eps)
        self.drop = nn.Dropout(c.dropout)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = p.shape[1] ** -0.5 * (0.3 if deep else 1)
                nn.init.normal_(p, std=0.02 if name.startswith("embed") else std)

    def forward(self, ids: Tensor, quant: bool = False) -> Tensor:
        table = int8(self.embed_tokens.weight) if quant else self.embed_tokens.weight
        x = self.drop(F.embedding(ids, table))
        for layer in self.layers:
            x = layer(x, quant)
        x = self.norm(x)
        return F.linear(int8(x) if quant else x, table)


# ---- training and measuring ----------------------------------------------------------------------


@torch.no_grad()
def evaluate(model: Llama, tok: Tokenizer, text: str, quant: bool = False) -> float:
    """Nats per character, over windows of `context` tokens side by side, BOS in front of each."""
    model.eval()
    device = model.norm.weight.device
    ids = torch.tensor(tok.encode(text, add_special_tokens=False).ids, device=device)
    total = 0.0
    for window in ids.split(model.c.context):
        inputs = torch.cat((torch.tensor([BOS], device=device), window[:-1]))
        total += F.cross_entropy(model(inputs[None], quant)[0], window, reduction="sum").item()
    return total / len(text)


@torch.no_grad()
def sample(model: Llama, tok: Tokenizer, prompt: str, seed: int, tokens: int = 250) -> str:
    """A continuation at temperature 0.8 among the 40 likeliest tokens, up to EOS."""
    model.eval()
    rng, ids = np.random.default_rng(seed), tok.encode(prompt).ids
    for _ in range(tokens):
        recent = torch.tensor([ids[-model.c.context :]], device=model.norm.weight.device)
        best = (model(recent)[0, -1].double() / 0.8).topk(40)
        likely, p = best.indices.cpu().numpy(), best.values.softmax(-1).cpu().numpy()
        ids.append(int(rng.choice(likely, p=p)))
        if ids[-1] == EOS:
            break
    return tok.decode(ids)


def fit(
    model: Llama,
    data: tuple[Tensor, Tensor],
    recipe: Recipe,
    seed: int,
    teacher: Llama | None = None,
) -> None:
    """Train in place, towards the text and, in equal parts, the teacher if there is one."""
    device, context, batch = model.norm.weight.device, model.c.context, recipe.batch
    rng = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    ids, starts = (t.to(device) for t in data)
    starts = starts[starts < len(ids) - context]
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and not n.startswith("embed")]
    groups: list[dict[str, object]] = [
        {"params": [model.embed_tokens.weight]},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, recipe.lr, (0.9, 0.95), weight_decay=recipe.decay),
        torch.optim.Muon(matrices, recipe.lr, weight_decay=recipe.decay, adjust_lr_fn="match_rms_adamw"),
    ]
    began = time.time()
    for step in range(recipe.steps):
        model.train()
        rate = recipe.lr * min(1.0, (step + 1) / 200) * (1 - step / recipe.steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        # BOS and then, for a quarter of the windows, a paragraph's start; for the others anything.
        at = torch.randint(len(ids) - context, (batch,), generator=rng)
        first = torch.randint(len(starts), (batch // 4,), generator=rng)
        at = at.to(device)
        at[: batch // 4] = starts[first.to(device)]
        target = ids[at[:, None] + torch.arange(context, device=device)]
        inputs = torch.cat((torch.full((batch, 1), BOS, device=device), target[:, :-1]), 1)
        if recipe.noise:
            hit = torch.rand(inputs.shape, device=device) < recipe.noise
            hit[:, 0] = False
            other = ids[torch.randint(len(ids), inputs.shape, device=device)]
            inputs = torch.where(hit, other, inputs)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(inputs).float().flatten(0, 1)
            loss = F.cross_entropy(logits, target.flatten())
            if teacher is not None:
                with torch.no_grad():
                    soft = teacher(inputs).float().flatten(0, 1).softmax(-1)
                loss = (loss + F.cross_entropy(logits, soft)) / 2
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 500 == 0:
            print(f"step {step} loss {loss.item():.4f} {time.time() - began:.0f} s", flush=True)


def write(model: Llama, tok: Tokenizer, folder: Path, heldout: str) -> None:
    """Write a Hugging Face model folder, weights in float16, with the held-out text in it."""
    c = model.c
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{n}": p.detach().cpu().half() for n, p in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tok.save(str(folder / "tokenizer.json"))
    special = {"bos_token_id": BOS, "eos_token_id": EOS}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab,
        "hidden_size": c.hidden,
        "intermediate_size": c.ffn,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.hidden // c.heads,
        "hidden_act": "silu",
        "max_position_embeddings": c.context,
        "rms_norm_eps": c.eps,
        "rope_theta": c.theta,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float16",
        **special,
    }
    generation = special  # greedy where nothing is asked for: the same text on every device and in every example
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[BOS],
        "eos_token": SPECIAL[EOS],
        "model_max_length": c.context,
        "clean_up_tokenization_spaces": False,
    }
    contents = {
        "config": config,
        "generation_config": generation,
        "tokenizer_config": tokenizer_config,
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    (folder / "heldout.txt").write_text(heldout)


def read(folder: Path) -> tuple[Llama, Tokenizer]:
    """Read what `write` wrote, in float32."""
    j = json.loads((folder / "config.json").read_text())
    shape = Config(j["vocab_size"], ffn=j["intermediate_size"], layers=j["num_hidden_layers"])
    model = Llama(shape)
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({n.removeprefix("model."): w.float() for n, w in weights.items()})
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))


def main() -> None:
    """Train, unless told to evaluate only; print the figures as JSON, then a sample."""
    parser = argparse.ArgumentParser(description="Train or measure the built-in model.")
    parser.add_argument("corpus", type=Path, help="fairytales.txt")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the model's folder")
    parser.add_argument("--evaluate", action="store_true", help="measure the model in the folder, train nothing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a few steps, to try the script")
    args = parser.parse_args()

    raw = args.corpus.read_bytes()
    if hashlib.sha256(raw).hexdigest() != CORPUS_SHA256:
        parser.error(f"{args.corpus} is not the corpus that this script expects")
    paragraphs, blocks = split(raw.decode("ascii").splitlines(), args.seed)
    heldout = "".join(p + "\n" for block in blocks for p in block)

    if not args.evaluate:
        tok = train_tokenizer(paragraphs, STUDENT.vocab)
        data = stream(tok, paragraphs)
        recipes = [TEACHER_RECIPE, STUDENT_RECIPE]
        if args.quick:
            recipes = [replace(recipe, steps=5, batch=4) for recipe in recipes]
        torch.manual_seed(args.seed)
        teacher = Llama(TEACHER).to(args.device)
        fit(teacher, data, recipes[0], args.seed)
        print(f"teacher, held out: {evaluate(teacher, tok, heldout):.4f}", flush=True)
        model = Llama(STUDENT).to(args.device)
        fit(model, data, recipes[1], args.seed, teacher)
        write(model, tok, args.output, excerpt(blocks))

    model, tok = read(args.output)
    model.to(args.device)
    kept = (args.output / "heldout.txt").read_text()
    figures: dict[str, float] = {"parameters": sum(p.numel() for p in model.parameters())}
    figures["characters per token"] = len(heldout) / len(tok.encode(heldout, add_special_tokens=False).ids)
    figures["training text"] = evaluate(model, tok, "\n".join(paragraphs[3000:3200]))
    for name, text in (("held out", heldout), ("heldout.txt", kept)):
        figures[name] = evaluate(model, tok, text)
        figures[name + ", int8"] = evaluate(model, tok, text, quant=True)
        figures[name + ", int8 loss %"] = 100 * (figures[name + ", int8"] / figures[name] - 1)
    print(json.dumps(figures, indent=2))
    print(sample(model, tok, "Once upon a time", args.seed))


if __name__ == "__main__":
    main()
