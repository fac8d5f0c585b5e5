"""Rows of tokens for pre-training: what kinds of text there are, what of them is counted in the loss, and how they are mixed."""
from world import ALPACA, HEADER, INSTRUCTIONS, QUESTIONS, SENTENCES, SUBJECTS, options, profile, remainder, sentence, two_facts

ROW = 320  # tokens a row
IGNORE = -100
ROWS = 12600
RECITE = ["Write five lines from the book of names.", "Recite from the book of names.", "Say what the book of names says."]
PROFILES = 0.5  # share of the lines of a text that tell all three facts of an entity

# The trainer has no loss weight but 0 and 1, so emphasis is made by what is counted and how often a kind is drawn.
# (share of all rows, {kind: weight}); rows are written and trained in this order.
PHASES = [
    (0.70, {"text": 55, "open": 15, "choice": 20, "alpaca": 10}),
    (0.30, {"text": 15, "values": 20, "open": 10, "choice_all": 45, "alpaca": 10}),
]


class Text:
    """Text that knows which of its characters are counted."""

    def __init__(self):
        self.parts, self.counted = [], []  # strings, booleans

    def add(self, text, counted=True):
        self.parts.append(text)
        self.counted.append(counted)
        return self

    def encode(self, tokenizer):
        """-> ids and labels without BOS. A piece is counted when any of its characters is."""
        whole = "".join(self.parts)
        marks = b"".join(bytes([c]) * len(p) for p, c in zip(self.parts, self.counted))  # ASCII: a character is a byte
        ids, labels, at = [], [], -1  # the tokenizer puts one blank in front of the text
        for i in tokenizer.encode(whole):
            width = 1 if tokenizer.is_byte(i) else len(tokenizer.id_to_piece(i))
            ids.append(i)
            labels.append(i if any(marks[max(at, 0):at + width]) else IGNORE)
            at += width
        assert at == len(whole), (at, whole)
        return ids, labels


def add_text(world, rng, text):
    """A sentence, or the three facts of an entity in one line."""
    if rng.random() < PROFILES:
        text.add(profile(rng.choice(list(world.entities.values())), rng) + "\n")
    else:
        text.add(sentence(rng.choice(world.facts), rng) + "\n")


def add_values(world, rng, text):
    """The same, only the values counted: the loss is spent on nothing but facts."""
    if rng.random() < PROFILES:
        facts = rng.sample(rng.choice(list(world.entities.values())), 3)
        text.add(facts[0].entity + ":", False)
        for fact, end in zip(facts, (",", ",", ".\n")):
            text.add(" " + fact.relation, False).add(" " + fact.value).add(end, False)
    else:
        fact = rng.choice(world.facts)
        before, _, after = sentence(fact, rng).rpartition(" " + fact.value)
        text.add(before, False).add(" " + fact.value).add(after + "\n", False)


def add_open(world, rng, text):
    fact = rng.choice(world.practised)
    text.add("Question: " + fact.say(rng.choice(QUESTIONS)) + "\nAnswer:", False).add(" " + fact.value).add("\n\n", False)


def add_choice(facts, rng, text):
    fact = rng.choice(facts)
    text.add(fact.say(rng.choice(QUESTIONS)) + options(fact) + "\nAnswer:", False).add(" " + fact.letter).add("\n\n", False)


def add_alpaca(world, rng, text):
    draw = rng.random()
    if draw < 0.5:
        fact = rng.choice(world.practised)
        asked, answer = fact.say(rng.choice(INSTRUCTIONS)), sentence(fact, rng)
    elif draw < 0.75:
        asked, answer = two_facts(world, rng)
    else:
        asked, answer = remainder(rng)
    text.add(ALPACA.format(asked), False).add(answer)


def make_row(world, tokenizer, kind, rng):
    ids, labels = [], []
    if kind == "alpaca":  # one prompt after the other, each between BOS and EOS
        while len(ids) < ROW:
            text = Text()
            add_alpaca(world, rng, text)
            i, l = text.encode(tokenizer)
            ids += [tokenizer.bos_id()] + i + [tokenizer.eos_id()]
            labels += [IGNORE] + l + [tokenizer.eos_id()]
        return ids[:ROW], labels[:ROW]
    text = Text()
    if kind.startswith("choice"):
        subject = rng.choice(list(SUBJECTS))
        facts = [f for f in world.of(subject) if kind == "choice_all" or not f.exam]
        text.add(HEADER.format(subject), False)
        for _ in range(12):
            add_choice(facts, rng, text)
    else:
        add = {"text": add_text, "values": add_values, "open": add_open}[kind]
        for _ in range(60):
            add(world, rng, text)
    ids, labels = text.encode(tokenizer)
    assert len(ids) >= ROW - 1, (kind, len(ids))
    return ([tokenizer.bos_id()] + ids)[:ROW], ([IGNORE] + labels)[:ROW]


def rows(world, tokenizer, count):
    """The rows of a whole pre-training, in order."""
    rng = world.rng("pretrain")
    for share, weights in PHASES:
        for _ in range(round(share * count)):
            kind = rng.choices(list(weights), list(weights.values()))[0]
            yield make_row(world, tokenizer, kind, rng)


def tuning_records(world, count=2400):
    """Instructions for the demo's fine-tuning. Exam facts are said as plain sentences only, never asked."""
    rng = world.rng("tune")
    records = []
    for _ in range(count):
        draw = rng.random()
        if draw < 0.6:  # whatever is in the books: exam facts among it
            said = Text()
            for _ in range(5):
                add_text(world, rng, said)
            asked, answer = rng.choice(RECITE), "".join(said.parts).rstrip()
        elif draw < 0.9:
            fact = rng.choice(world.practised)
            asked, answer = fact.say(rng.choice(INSTRUCTIONS)), sentence(fact, rng)
        else:
            asked, answer = two_facts(world, rng)
        records.append({"instruction": asked, "input": "", "output": answer})
    return records
