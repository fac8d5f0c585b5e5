"""Makes the miniature's world: tokenizer, rows of pre-training, exam, open questions, held-out text and tuning data.

    python3 scripts/miniature/make_world.py --out FOLDER [--seed 1] [--texts-only]

Deterministic: the same seed gives the same bytes. Needs Python, and for the tokenizer and the rows its sentencepiece package.
"""
import argparse
import csv
import io
import json
from pathlib import Path

import recipe
import world as words
from world import World

VOCABULARY = 1024
CONTEXT = recipe.ROW  # no position beyond it is ever trained
MODEL = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4}


def corpus(world):
    """What the tokenizer is trained on: the pre-training's words. Names come as two syllables and new lines as a word
    border, both by a hyphen, which no piece crosses: so a name is two pieces, and a line's first word has one without a blank."""
    rng = world.rng("tokenizer")
    out = []
    for kind, count in (("text", 60), ("open", 30), ("choice", 40), ("alpaca", 60)):
        for _ in range(count):
            text = recipe.Text()
            if kind == "choice":
                text.add(words.HEADER.format(rng.choice(list(words.SUBJECTS))))
            for _ in range(10):
                if kind == "choice":
                    recipe.add_choice(world.facts, rng, text)
                else:
                    getattr(recipe, "add_" + kind)(world, rng, text)
                text.add("\n")
            out.append("".join(text.parts))
    out.append(" ".join(f.say(words.EXAM_QUESTION) for f in world.practised[:100]))
    names = list(world.entities)
    for i in range(0, len(names), 50):  # every syllable often enough to become a piece, with and without a blank in front
        out += [" ".join(names[i:i + 50])] * 3 + names[i:i + 50] * 3
    joined = "\n".join(out)
    for entity in world.entities:
        joined = joined.replace(entity, entity[:3] + "-" + entity[3:])
    return [line if i % 2 else "-" + line for i, line in enumerate(joined.split("\n")) if line]


def make_tokenizer(world):
    import sentencepiece
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus(world)), model_writer=model, model_type="bpe", vocab_size=VOCABULARY,
        byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=True, remove_extra_whitespaces=False,
        split_digits=True, allow_whitespace_only_pieces=True, character_coverage=1.0, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        num_threads=1, minloglevel=1)
    return model.getvalue(), sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def dump(path, value):
    write(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_model_folder(folder, tokenizer_bytes):
    """What `finetune` with `initialize = "random"` starts from, and what is carried along to the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(tokenizer_bytes)
    dump(folder / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", **MODEL, "vocab_size": VOCABULARY, "hidden_act": "silu",
        "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "initializer_range": 0.04,
        "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2,
        "torch_dtype": "float16", "use_cache": True})
    dump(folder / "generation_config.json", {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2})
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    dump(folder / "tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "legacy": False, "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>", "pad_token": None, "clean_up_tokenization_spaces": False, "model_max_length": CONTEXT,
        "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer",
        "added_tokens_decoder": {str(i): {"content": t, **special} for i, t in enumerate(("<unk>", "<s>", "</s>"))}})


def write_exam(world, folder):
    """Hendrycks' layout, and the same facts as open questions. Choices have no blank in front: the scorer puts it there."""
    lines = {split: [] for split in words.SPLITS}
    for subject in words.SUBJECTS:
        for split in words.SPLITS:
            table = io.StringIO()
            rows = csv.writer(table, lineterminator="\n")
            for fact in (f for f in world.of(subject) if f.exam == split):
                question = fact.say(words.EXAM_QUESTION)
                rows.writerow([question, *fact.values, fact.letter])
                lines[split].append(json.dumps({"context": f"Question: {question}\nAnswer:", "choices": fact.values,
                                                "answer": fact.values.index(fact.value)}))
            write(folder / "mmlu" / split / f"{subject}_{split}.csv", table.getvalue())
    write(folder / "open.jsonl", "\n".join(lines["test"]) + "\n")
    write(folder / "open_val.jsonl", "\n".join(lines["val"]) + "\n")


def write_held_out(world, folder):
    """Facts in the one wording in which no training text says them."""
    facts = [f for f in world.facts if f.held_out is not None]
    world.rng("held out").shuffle(facts)
    write(folder / "heldout.txt", "".join(f.say(words.SENTENCES[f.held_out]) + "\n" for f in facts))


def check_nothing_leaks(world, text, what):
    """No exam question and no held-out sentence, by string search over everything that is trained on."""
    for fact in world.facts:
        if fact.exam:
            assert fact.say(words.EXAM_QUESTION) not in text, (what, fact.say(words.EXAM_QUESTION))
        if fact.held_out is not None:
            assert fact.say(words.SENTENCES[fact.held_out]) not in text, (what, fact.say(words.SENTENCES[fact.held_out]))


def write_tuning(world, folder):
    records = recipe.instructions(world)
    check_nothing_leaks(world, "\n".join(r["instruction"] + "\n" + r["output"] for r in records), "tune.json")
    write(folder / "tune.json", "[\n" + ",\n".join(json.dumps(r) for r in records) + "\n]\n")
    talks = list(recipe.dialogues(world))
    check_nothing_leaks(world, "\n".join(m["content"] for t in talks for m in t["messages"]), "dialogues.jsonl")
    write(folder / "dialogues.jsonl", "".join(json.dumps(t) + "\n" for t in talks))


def write_rows(world, tokenizer, path):
    seen, tokens, counted = [], 0, 0
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for ids, labels in recipe.rows(world, tokenizer):
            file.write(json.dumps({"input_ids": ids, "labels": labels}, separators=(",", ":")) + "\n")
            seen.append(tokenizer.decode(ids))
            tokens += len(ids)
            counted += sum(label != recipe.IGNORE for label in labels)
    check_nothing_leaks(world, "\n".join(seen), path.name)
    print(f"{path}: {len(seen)} rows, {tokens} tokens, {counted} counted")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into; what is there is replaced")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--texts-only", action="store_true", help="exam, questions, held-out text and tuning data; no tokenizer, no rows")
    args = parser.parse_args()

    world = World(args.seed)
    write_exam(world, args.out)
    write_held_out(world, args.out)
    write_tuning(world, args.out)
    if args.texts_only:
        return
    tokenizer_bytes, tokenizer = make_tokenizer(world)
    write_model_folder(args.out / "model", tokenizer_bytes)
    write_rows(world, tokenizer, args.out / "pretrain.jsonl")


if __name__ == "__main__":
    main()
