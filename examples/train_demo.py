"""Train the demo model: a small Llama that writes children's stories, in Hugging Face layout.

    python examples/train_demo.py STORIES.txt -o examples/demo-model

STORIES.txt holds short stories separated by `<|endoftext|>`. Nothing is downloaded. The model is
saved whenever it does better on held-out stories: the output always holds the best one so far.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

SEPARATOR = "<|endoftext|>"
BOS, EOS = "<s>", "</s>"
VOCABULARY = 2048
POSITIONS = 1024  # rows are shorter: what lies beyond `--length` is untrained
HELD_OUT = 0.05  # share of the stories that only measures
PROMPT = "Once upon a time"
PLAIN = str.maketrans({"“": '"', "”": '"', "«": '"', "»": '"', "‘": "'", "’": "'", "…": "..."})

Story = list[int]  # token ids: BOS, text, EOS


@dataclass(frozen=True)
class Training:
    """How to train. `steps` set: a reproducible run; unset: the schedule follows the wall clock."""

    minutes: float
    steps: int | None
    batch: int  # rows per step
    length: int  # tokens per row
    learning_rate: float  # at the end of the warm-up
    dropout: float
    seed: int

    def progress(self, step: int, seconds: float) -> float:
        """Share of the training that is done, 0 to 1."""
        done = seconds / (60 * self.minutes) if self.steps is None else step / self.steps
        return min(done, 1.0)

    def learning_rate_at(self, progress: float, warm_up: float = 0.03) -> float:
        """Linear warm-up, then a cosine to zero."""
        if progress < warm_up:
            return self.learning_rate * (progress + 1e-3) / warm_up
        cosine = math.cos(math.pi * (progress - warm_up) / (1 - warm_up))
        return self.learning_rate * (1 + cosine) / 2


def main() -> None:
    """Read the arguments, train, and report on the saved model as others will load it."""
    arguments = parse_arguments()
    disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    training = Training(**{f.name: getattr(arguments, f.name) for f in fields(Training)})
    texts = read_stories(arguments.text)
    random.Random(arguments.seed).shuffle(texts)
    held_out = max(1, round(HELD_OUT * len(texts)))
    tokenizer = train_tokenizer(texts[held_out:])
    stories: list[Story] = [tokenizer(text + EOS).input_ids for text in texts]
    model = build_model(tokenizer)
    log(f"{len(stories)} stories ({held_out} held out), {sum(map(len, stories))} tokens")
    log(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")

    train(model, tokenizer, stories[held_out:], stories[:held_out], training, arguments.output)
    report(arguments.output, stories[:held_out])


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the demo model from a file of stories.")
    parser.add_argument("text", type=Path, help=f"UTF-8 stories separated by {SEPARATOR}")
    parser.add_argument("-o", "--output", type=Path, required=True, help="directory to write")
    parser.add_argument("--minutes", type=float, default=25, help="wall-clock budget (default 25)")
    duration = parser.add_mutually_exclusive_group()
    duration.add_argument("--steps", type=int, help="train so many steps instead (reproducible)")
    duration.add_argument("--quick", action="store_const", const=20, dest="steps", help="20 steps")
    parser.add_argument("--batch", type=int, default=2, help="rows per step (default 2)")
    parser.add_argument("--length", type=int, default=512, help="tokens per row (default 512)")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="peak")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def read_stories(path: Path) -> list[str]:
    """The stories with plain quotes and dashes, single spaces, one newline between paragraphs."""
    stories = []
    for raw in path.read_text(encoding="utf-8").split(SEPARATOR):
        plain = re.sub(r"[^\S\n]*[–—][^\S\n]*", " - ", raw.translate(PLAIN))
        lines = [" ".join(line.split()) for line in plain.splitlines()]
        story = "\n".join(line for line in lines if line)
        if story:
            stories.append(story)
    if len(stories) < 2:
        raise SystemExit(f"{path}: {len(stories)} stories separated by {SEPARATOR}; 2 are needed")
    return stories


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; like Llama's, it puts BOS before every text that it encodes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # so that any text can be encoded
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama of 3.3 M parameters with grouped-query attention and tied embeddings."""
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        initializer_range=0.05,  # about 1 / sqrt(hidden_size); 0.02 suits wider models
        **ids,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_p=0.95,
        max_new_tokens=256,
        pad_token_id=tokenizer.pad_token_id,
        **ids,
    )
    return model


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    stories: list[Story],
    held_out: list[Story],
    training: Training,
    output: Path,
) -> None:
    """Train in place, measure once per pass over the stories, save to `output` what improved."""
    add_dropout(model, training.dropout)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))  # few tokens a step: remember longer
    rows = pack_rows(stories, training.length, random.Random(training.seed))
    steps_per_pass = max(1, sum(map(len, stories)) // (training.batch * training.length))

    best = math.inf
    start = time.monotonic()
    step, progress = 0, 0.0
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate_at(progress)
        ids = torch.tensor([next(rows) for _ in range(training.batch)])
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        step += 1
        seconds = time.monotonic() - start
        progress = training.progress(step, seconds)
        if step % 20 == 0:
            speed = step * ids.numel() / seconds
            log(f"step {step}  {progress:.0%}  loss {loss.item():.3f}  {speed:.0f} tokens/s")
        if step % steps_per_pass == 0 or progress >= 1:
            validation = evaluate(model, held_out)
            log(f"step {step}  validation loss {validation:.4f}{'  saved' * (validation < best)}")
            if validation < best:
                best = validation
                save(model, tokenizer, output)


def add_dropout(model: LlamaForCausalLM, probability: float) -> None:
    """Drop out what enters the residual stream; `LlamaConfig` can only do so in the attention."""

    def drop(module: torch.nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
        return functional.dropout(output, probability, module.training)

    for name, module in model.named_modules():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):
            module.register_forward_hook(drop)


def pack_rows(stories: list[Story], length: int, order: random.Random) -> Iterator[Story]:
    """Rows of `length` tokens without end: whole stories in random order, the last one cut.

    A row begins with a story, because position 0 holds BOS when the model is used.
    """
    while True:
        row: Story = []
        for story in order.sample(stories, len(stories)):
            row += story
            if len(row) >= length:
                yield row[:length]
                row = []


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, stories: list[Story], batch: int = 16) -> float:
    """Mean loss per token in nats, each story read by itself from position 0."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    stories = sorted((story[:POSITIONS] for story in stories), key=len)
    for first in range(0, len(stories), batch):
        part = [torch.tensor(story) for story in stories[first : first + batch]]
        ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=-100)
        targets = int((labels[:, 1:] != -100).sum())
        total += model(input_ids=ids, labels=labels).loss.item() * targets
        count += targets
    model.train(was_training)
    return total / count


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write the model as bfloat16; a file is replaced at once, a reader never sees half of one."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        for file in Path(scratch).iterdir():
            file.chmod(0o644)
            file.replace(output / file.name)


def report(directory: Path, held_out: list[Story]) -> None:
    """Print what the saved files measure and write, read back by the public loaders."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    loss = evaluate(model, held_out)
    megabytes = (directory / "model.safetensors").stat().st_size / 1e6
    print(f"{directory}: {megabytes:.2f} MB")
    print(f"validation loss {loss:.4f}, perplexity {math.exp(loss):.2f}")
    prompt = tokenizer(PROMPT, return_tensors="pt")
    for name, options in {"greedy": {"do_sample": False}, "sampled": {"do_sample": True}}.items():
        ids = model.generate(**prompt, **options, max_new_tokens=200)
        print(f"\n[{name}] {tokenizer.decode(ids[0], skip_special_tokens=True)}")


def log(message: str) -> None:
    """Progress goes to stderr; stdout holds the report."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
