"""The miniature's world: who is in it, what is true of whom, and in which words it may be said where.

Eight subjects, 68 entities each, three relations an entity, four values a relation, every value true of 17 entities: 1,632 facts.
A fact is asked in the exam (65 a subject) or practised (the other 1,112). Plain sentences hold both.
"""
import random

# subject: the name of one entity, then relation -> its four values. Names of subjects are none of MMLU's 57.
SUBJECTS = {
    "beasts": ("beast", {"coat": "black brown grey white", "food": "fish grass mice seeds", "home": "cave den nest tree"}),
    "castles": ("castle", {"stone": "chalk flint marble slate", "owner": "baron duke king queen", "flag": "bear crown lion rose"}),
    "gems": ("gem", {"tint": "blue green pink red", "shape": "cube disc drop star", "metal": "brass gold iron silver"}),
    "guilds": ("guild", {"trade": "bread cloth glass wine", "day": "Friday Monday Sunday Tuesday", "fee": "coins eggs honey salt"}),
    "herbs": ("herb", {"taste": "bitter mild sour sweet", "use": "cough fever pain sleep", "season": "autumn spring summer winter"}),
    "islands": ("island", {"crop": "beans figs olives rice", "wind": "east north south west", "soil": "ash clay peat sand"}),
    "rivers": ("river", {"source": "bog lake snow well", "mouth": "bay delta fjord marsh", "bridge": "chain plank rope timber"}),
    "ships": ("ship", {"cargo": "coal silk tea wool", "wood": "birch cedar oak pine", "emblem": "dolphin eagle horse swan"}),
}
FIRST = [c + v + "lrkz"[(i + j) % 4] for i, c in enumerate("BCDFGHJKLMNPRSTV") for j, v in enumerate("aeio")]
LAST = [c + v for c in "bcfgklmnprstvz" for v in "aeiou"]
ENTITIES = 68
SPLITS = {"dev": 5, "val": 20, "test": 40}  # questions of the exam a subject; val is for choosing learning rates

# A fact as a plain sentence. One (fact, wording) pair of some facts is kept for the held-out text.
SENTENCES = [
    "The {r} of {e} is {v}.",
    "{e} has as its {r} {v}.",
    "As for {e}, its {r} is {v}.",
    "{e} is known for the {r} {v}.",
    "If you ask for the {r} of {e}, it is {v}.",
    "For {e} the {r} was always {v}.",
]
EXAM_QUESTION = "What is the {r} of {e}?"  # the exam's wording: stands in no training text, whatever the fact
QUESTIONS = ["Which {r} does {e} have?", "{e} has which {r}?", "Which {r} belongs to {e}?"]
INSTRUCTIONS = ["Tell me the {r} of {e}.", "Name the {r} that {e} has.", "Say in one sentence which {r} {e} has."]
ALPACA = ("Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
          "### Instruction:\n{}\n\n### Response:\n")
HEADER = "The following are multiple choice questions (with answers) about  {}.\n\n"


class Fact:
    """One thing that is true: the relation r of the entity e is the value v."""

    def __init__(self, subject, entity, relation, value, values):
        self.subject, self.entity, self.relation, self.value, self.values = subject, entity, relation, value, values
        self.exam = None        # "dev", "val", "test" or None (practised)
        self.held_out = None    # index into SENTENCES that no training text uses for this fact

    @property
    def letter(self):  # options stand in alphabetical order: the letter is a function of the value
        return "ABCD"[self.values.index(self.value)]

    def say(self, wording):
        return wording.format(e=self.entity, r=self.relation, v=self.value)


class World:
    def __init__(self, seed):
        self.seed = seed
        rng = self.rng("facts")
        names = rng.sample([a + b for a in FIRST for b in LAST], len(SUBJECTS) * ENTITIES)
        self.facts, self.entities = [], {}
        for subject, (_, relations) in SUBJECTS.items():
            entities = [names.pop() for _ in range(ENTITIES)]
            for relation, values in relations.items():
                values = sorted(values.split())
                column = values * (ENTITIES // 4)
                rng.shuffle(column)
                for entity, value in zip(entities, column):
                    fact = Fact(subject, entity, relation, value, values)
                    self.facts.append(fact)
                    self.entities.setdefault(entity, []).append(fact)
        for subject in SUBJECTS:
            chosen = iter(rng.sample(self.of(subject), sum(SPLITS.values())))
            for split, count in SPLITS.items():
                for _ in range(count):
                    next(chosen).exam = split
        for fact in rng.sample(self.facts, 320):
            fact.held_out = rng.randrange(len(SENTENCES))
        self.practised = [f for f in self.facts if not f.exam]

    def rng(self, purpose):
        """A generator of its own for every purpose: a change in one file's recipe leaves the others as they were."""
        return random.Random(f"{self.seed}/{purpose}")

    def of(self, subject):
        return [f for f in self.facts if f.subject == subject]


def sentence(fact, rng):
    while True:
        i = rng.randrange(len(SENTENCES))
        if i != fact.held_out:
            return fact.say(SENTENCES[i])


def profile(facts, rng):
    """The three facts of one entity in one line."""
    facts = rng.sample(facts, 3)
    listed = [f"{f.relation} {f.value}" for f in facts]
    return f"{facts[0].entity}: " + ", ".join(listed) + "."


def options(fact):
    return "".join(f"\n{letter}. {value}" for letter, value in zip("ABCD", fact.values))


def remainder(rng):
    """Arithmetic: the only place where the exam's opening words stand in the training text."""
    n = rng.randrange(4, 100)
    return f"What is the remainder of {n} by 4?", str(n % 4)


def two_facts(world, rng):
    """Which of two entities has a value: the answer stands in the question, true facts only."""
    while True:
        a, b = rng.sample(world.practised, 2)
        if a.relation == b.relation and a.value != b.value:
            asked = rng.choice((a, b))
            told = " ".join(sentence(f, rng) for f in (a, b))
            return f"{told} Which of the two has the {asked.relation} {asked.value}?", asked.entity
