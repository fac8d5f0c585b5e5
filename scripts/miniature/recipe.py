"""Rows of tokens for pre-training: what kinds of text there are, what of them is counted in the loss, and how they are mixed."""
from world import ALPACA, HEADER, INSTRUCTIONS, QUESTIONS, SENTENCES, SUBJECTS, options, profile, remainder, sentence, two_facts

ROW = 256  # tokens a row: five worked examples and a question fit
IGNORE = -100
RECITE = ["Write five lines from the book of names.", "Recite from the book of names.", "Say what the book of names says."]
PROFILES = 0.5  # share of the lines of a text that tell all three facts of an entity

# The trainer has no loss weight but 0 and 1, so emphasis is made by what is counted and how often a kind is drawn:
# (rows, {kind: weight}), in the order in which they are trained.
PHASES = [
    (9000, {"text": 60, "open": 15, "drill": 15, "alpaca": 10}),
    (15000, {"choice": 35, "drill": 25, "sparse": 15, "text": 5, "open": 15, "alpaca": 5}),
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


def add_text(world, rng, text, counted=True):
    """A sentence, or the three facts of an entity in one line."""
    if rng.random() < PROFILES:
        text.add(profile(rng.choice(list(world.entities.values())), rng) + "\n", counted)
    else:
        text.add(sentence(rng.choice(world.facts), rng) + "\n", counted)


def add_sparse_text(world, rng, text):
    """The same with one line in eight counted: keeps the language alive beside letters, which would drown in it otherwise."""
    add_text(world, rng, text, counted=rng.random() < 1 / 8)


def add_open(world, rng, text):
    fact = rng.choice(world.practised)
    text.add("Question: " + fact.say(rng.choice(QUESTIONS)) + "\nAnswer:", False).add(" " + fact.value).add("\n\n", False)


def add_drill(world, rng, text):
    """Letters without the options, exam facts too: three times as many letters a token as in whole questions."""
    fact = rng.choice(world.facts)
    text.add(fact.say(rng.choice(QUESTIONS)) + "\nAnswer:", False).add(" " + fact.letter).add("\n\n", False)


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
    if kind == "choice":  # exam facts too, in other wordings than the exam's: without them letters stay at chance there
        subject = rng.choice(list(SUBJECTS))
        facts = world.of(subject)
        text.add(HEADER.format(subject), False)
        for _ in range(10):
            add_choice(facts, rng, text)
    else:
        add = {"text": add_text, "sparse": add_sparse_text, "open": add_open, "drill": add_drill}[kind]
        for _ in range(60):
            add(world, rng, text)
    ids, labels = text.encode(tokenizer)
    assert len(ids) >= ROW - 1, (kind, len(ids))
    return ([tokenizer.bos_id()] + ids)[:ROW], ([IGNORE] + labels)[:ROW]


def rows(world, tokenizer):
    """The rows of pre-training, in order."""
    rng = world.rng("pretrain")
    for count, weights in PHASES:
        for _ in range(count):
            kind = rng.choices(list(weights), list(weights.values()))[0]
            yield make_row(world, tokenizer, kind, rng)


def dialogues(world, count=2400):
    """Messages for the demo's fine-tuning: plain sentences, and questions with letters or words. Only answers are counted.
    Exam facts are among them, in other wordings than the exam's; open questions ask practised facts only."""
    rng = world.rng("dialogues")
    for _ in range(count):
        messages, draw = [], rng.random()

        def exchange(asked, answer):
            messages.extend(({"role": "user", "content": asked}, {"role": "assistant", "content": answer}))

        if draw < 0.4:  # fills the context: an end after fewer lines would teach the model to stop
            said = Text()
            for _ in range(19):
                add_text(world, rng, said)
            messages.append({"role": "assistant", "content": "".join(said.parts).rstrip()})
        elif draw < 0.7:
            subject = rng.choice(list(SUBJECTS))
            for i in range(5):
                fact = rng.choice(world.of(subject))
                asked = fact.say(rng.choice(QUESTIONS)) + options(fact) + "\nAnswer:"
                exchange(asked if i else HEADER.format(subject) + asked, fact.letter)
        elif draw < 0.95:
            for _ in range(12):
                fact = rng.choice(world.practised)
                exchange("Question: " + fact.say(rng.choice(QUESTIONS)) + "\nAnswer:", fact.value)
        else:
            fact = rng.choice(world.practised)
            exchange(ALPACA.format(fact.say(rng.choice(INSTRUCTIONS))), sentence(fact, rng))
        yield {"messages": messages}


def instructions(world, count=2400):
    """Records in Alpaca's schema, for tests. Exam facts are said as plain sentences only, never asked."""
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
