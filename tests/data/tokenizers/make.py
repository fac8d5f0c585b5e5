"""Trains the small tokenizers beside it and writes the ids that the tokenizers library gives for texts that are easy to get wrong.

    python make.py      (needs tokenizers 0.21 or newer)
"""
import json
import pathlib
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

FOLDER = pathlib.Path(__file__).parent
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
LINES = [line for path in sorted((FOLDER.parent / "miniature").glob("*")) if path.is_file()
         for line in path.read_text(encoding="utf-8").splitlines()[:2000]]
LINES += ["they're we've I'm you'll he'd it's don't DON'T", "  indented\n\n\tcode();\r\n", "1 12 123 1234 12345 3.14 1,000",
          "naïve café déjà vu Straße 漢字 かな 한국어 русский עברית 😀👍🏽 e\u0301"] * 20

TEXTS = ["", " ", "  ", "a", " a", "  a", "a ", "a  ", "\n", "\n\n", " \n", "\n ", " \n ", "\t\t", "a\nb", "a\r\nb", "a\n\n  b", "a   b", "   a\n   ",
         "it's IT'S it\u2019s we'LL 'tis 's's", "don't'd've", "x'\u017f", "12", "123", "1234", "12345678", "1 22 333 4444", "3.14159", "a1b22c333",
         "hello world", "Hello, world!", "HELLO", "...!!!???", " ...", "a...b", "()[]{}", "==>\n", "==>\r\n\r\n x", "# title\n\ntext", "\u00a0a\u00a0\u00a0b",
         "\u3000a", "a\u180eb \u180e", "a\u0085b\u0085", "\u2028x\u2029", "a\u200bb", "\ufeffa", "\x00", "a\x00b", "\x7f", "\x1b[0m", "naïve café", "e\u0301 é",
         "a\u0308\u0323", "\u1100\u1161\u11a8", "\u212b\u2126", "ﬁ ② Ⅳ ½ ٣४", "漢字とかな", "中文 123 测试。", "한국어 시험", "русский текст", "עברית العربية",
         "😀", "😀😀 👍🏽 👩\u200d👩\u200d👧", "🇩🇪", "\ufffd", "\U0010ffff", "<|begin|>", "a<|end|>b", "<|begin|>a<|end|> b <|end|>", " <|end|>", "<tool> x</tool>",
         "a <pad> b", "x<strip>y", "x  <strip>  y", "é<norm>e\u0301", "<no\u0301rm>", "<n\u00f3rm>", "<s>a</s>", "<s> a </s>b", "▁a ▁", "a▁b", "<0x41>"]


def more_texts():
    rng = random.Random(11)
    pools = ["abc dE", "0123 ", " \t\n\r\u00a0\u3000\u180e\u0085", "'s't'LL", "漢かな한", "éß\u0301ñ", "😀🏽\u200d", ".,-_()=\"#", "<|end|>", "٣②½"]
    for _ in range(150):
        yield "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 24)))


def special_tokens(extra=()):
    return [AddedToken("<|begin|>", special=True), AddedToken("<|end|>", special=True), AddedToken("<pad>", special=True),
            AddedToken("<tool>", special=False, normalized=False), AddedToken("<strip>", special=False, normalized=False, lstrip=True, rstrip=True),
            AddedToken("<n\u00f3rm>", special=False, normalized=True), AddedToken("<norm>", special=False, normalized=True), *extra]


def byte_level(pre_tokenizer, normalizer=None, ignore_merges=False, begins=False, size=520):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.add_tokens(special_tokens())
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if begins:
        begin = tokenizer.token_to_id("<|begin|>")
        tokenizer.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<|begin|> $A", pair="<|begin|> $A <|begin|>:1 $B:1", special_tokens=[("<|begin|>", begin)])])
    return tokenizer


def split_by(regex):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated", invert=False),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def blank_marks(first_only):
    """As LLaMA 2: every way to make a piece is a merge."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=300, show_progress=False, limit_alphabet=60))
    learnt = json.loads(trained.to_str())["model"]
    made = {}
    for merge in learnt["merges"]:
        made.setdefault("".join(merge), len(made))
    singles = [piece for piece in learnt["vocab"] if piece not in made]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *made, *singles]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    merges = [(piece[:at], piece[at:]) for piece in made for at in range(1, len(piece)) if piece[:at] in vocab and piece[at:] in vocab]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if first_only:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    return tokenizer


def main():
    kinds = {
        "llama3": byte_level(split_by(LLAMA3), ignore_merges=True, begins=True),
        "qwen2": byte_level(split_by(QWEN2), normalizers.NFC()),
        "gpt2": byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
        "gpt2_prefix": byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), size=300),
        "llama2": blank_marks(first_only=False),
        "llama2_first": blank_marks(first_only=True),
    }
    texts = TEXTS + list(more_texts())
    vectors = {"texts": texts, "ids": {}, "decoded": {}, "skipped": {}}
    for name, tokenizer in kinds.items():
        (FOLDER / name).mkdir(exist_ok=True)
        content = json.loads(tokenizer.to_str())
        if name == "gpt2":  # as older files have them
            content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
        (FOLDER / name / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
        encoded = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        vectors["ids"][name] = encoded
        vectors["decoded"][name] = [tokenizer.decode(ids, skip_special_tokens=False) for ids in encoded]
        vectors["skipped"][name] = [tokenizer.decode(ids[:-1], skip_special_tokens=True) for ids in encoded]
        print(name, tokenizer.get_vocab_size(), sum(map(len, encoded)))
    (FOLDER / "vectors.json").write_text(json.dumps(vectors, separators=(",", ":")) + "\n", encoding="utf-8")


main()
