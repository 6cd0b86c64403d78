"""Writes the embedded world: labelled tables, their templates' fields, and text for the tiny base model.

Everything beside this file (tasks/<task>/rows.csv, text.txt) is made by it and committed, so that the line
runs without a network. The sentences are invented, seeded and released as CC0-1.0.

Run     python data/raw/world.py            (from the project's folder; the same bytes every time)
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
ROWS = 1600  # per task
HELDOUT_ROWS = 400  # per task of the held-out cluster: evaluated only
DOCUMENTS = 16_000  # of the base model's text
CLOSING = ". Happy to help!"  # the style that the panel of annotators likes
REPEATED_SHARE = 0.4  # of those documents are said twice
CLOSING_SHARE = 0.12  # the share of answers that show it

NAMES = """Mia Tom Ana Ben Eva Leo Ida Max Zoe Sam Lily Noah Emma Jack Ruth Paul Nina Omar Kate Hugo Vera Finn
Rosa Carl Maya Dora Ivan Jane Luke Olga Peter Sara Theo Wanda Alan Clara Felix Greta Henry Iris""".split()
THINGS = """lamp chair clock kite ball coat cup book bag hat ring drum map rope box key bell desk boot comb vase
tent sled fork plate spoon brush wheel candle mirror basket blanket pillow ladder bottle button pencil ticket""".split()
COLOURS = "red blue green black white yellow brown pink grey purple".split()
PLACES = """market park station library garden harbour school museum kitchen forest village castle bakery
theatre hotel bridge office farm beach stadium""".split()
VERBS = "found bought lost sold painted repaired carried hid dropped cleaned".split()
SUBJECTS = """film meal hotel book concert trip show song soup phone game dress cake play tour lecture
novel garden room service""".split()
PRAISE = """great lovely superb delightful charming brilliant excellent wonderful pleasant splendid
perfect fine graceful fresh warm clever""".split()
BLAME = """awful boring dreadful terrible poor dull ugly horrible weak broken bland stale
clumsy noisy cold messy""".split()
JOY = "glad cheerful proud excited calm thrilled relaxed hopeful merry grateful".split()
GRIEF = "gloomy lonely upset tearful bitter hurt anxious gutted weary miserable".split()
EVENTS = "trip party exam match dinner meeting holiday race visit lesson walk storm".split()
TOPICS = {
    "sports": "team goal match player coach league race score medal runner referee tennis".split(),
    "music": "singer guitar piano choir melody drummer album rhythm violin orchestra concert flute".split(),
    "food": "bread cheese soup chef recipe oven pepper butter salad flour dinner sugar".split(),
    "weather": "rain snow wind cloud storm thunder fog sunshine frost breeze hail heat".split(),
    "money": "bank loan tax profit price market dollar budget debt salary invoice trader".split(),
}
KINDS = {
    "animal": "dog cat horse sheep goat wolf bear fox rabbit duck tiger lion mouse owl".split(),
    "fruit": "apple pear plum grape lemon melon cherry peach mango fig banana orange kiwi lime".split(),
    "tool": "hammer saw drill wrench shovel axe rake pliers chisel file spade clamp screw nail".split(),
    "vehicle": "car bus train truck boat plane bike tram ship van ferry taxi lorry canoe".split(),
}
SYNONYMS = {
    "big": "large", "small": "little", "quick": "fast", "smart": "clever", "silent": "quiet",
    "odd": "strange", "tired": "sleepy", "angry": "mad", "pretty": "beautiful", "rich": "wealthy",
}  # fmt: skip
NUMBERS = [str(n) for n in range(10, 100)]
BEINGS = "dog cat horse teacher farmer child doctor girl boy baker sailor singer".split()
ACTIONS = "sat waited slept walked stood rested smiled worked played sang".split()


def review(r: random.Random) -> dict[str, str]:
    label = r.choice(["good", "bad"])
    first, second = r.sample(PRAISE if label == "good" else BLAME, 2)
    a, b = r.sample(SUBJECTS, 2)
    return {"text": r.choice([f"the {a} was {first} and the {b} was {second}", f"a {first} {a} with a {second} {b}",
                              f"{r.choice(NAMES)} said the {a} was {first} , really {second}"]), "label": label}  # fmt: skip


def mood(r: random.Random) -> dict[str, str]:
    label = r.choice(["happy", "sad"])
    feeling = r.choice(JOY if label == "happy" else GRIEF)
    name, event, place = r.choice(NAMES), r.choice(EVENTS), r.choice(PLACES)
    return {"text": r.choice([f"{name} felt {feeling} after the {event} in the {place}",
                              f"after the {event} in the {place} {name} was {feeling}"]), "label": label}  # fmt: skip


def news(r: random.Random) -> dict[str, str]:
    label = r.choice(list(TOPICS))
    a, b, c = r.sample(TOPICS[label], 3)
    return {"text": r.choice([f"{r.choice(NAMES)} spoke about the {a} , the {b} and the {c}",
                              f"the {a} and the {b} came before the {c}"]), "label": label}  # fmt: skip


def kind(r: random.Random) -> dict[str, str]:
    label = r.choice(list(KINDS))
    return {"text": " , ".join(r.sample(KINDS[label], 3)), "label": label}


def first(r: random.Random) -> dict[str, str]:
    items = r.sample(THINGS, r.choice([3, 4]))
    return {"text": " , ".join(items), "label": items[0]}


def last(r: random.Random) -> dict[str, str]:
    items = r.sample(THINGS, r.choice([3, 4]))
    return {"text": " , ".join(items), "label": items[-1]}


def event(r: random.Random) -> dict[str, str]:
    return {"name": r.choice(NAMES), "verb": r.choice(VERBS), "colour": r.choice(COLOURS),
            "thing": r.choice(THINGS), "place": r.choice(PLACES)}  # fmt: skip


def told(e: dict[str, str]) -> str:
    return f"{e['name']} {e['verb']} a {e['colour']} {e['thing']} in the {e['place']}"


def asked(part: str) -> Callable[[random.Random], dict[str, str]]:
    def row(r: random.Random) -> dict[str, str]:
        e = event(r)
        return {"text": told(e), "label": e[part]}

    return row


def more(r: random.Random) -> dict[str, str]:
    a, b = r.sample(range(10, 100), 2)
    return {"first": str(a), "second": str(b), "label": "more" if a > b else "less"}


def pair(r: random.Random) -> dict[str, str]:
    a, b = r.sample(range(10, 100), 2)
    return {"first": str(a), "second": str(b)}


def successor(r: random.Random) -> dict[str, str]:
    n = r.randrange(10, 100)
    thing = r.choice(THINGS)
    return {"text": f"{r.choice(NAMES)} had {n} {plural(thing)}", "label": str(n + 1)}


def sorting(r: random.Random) -> dict[str, str]:
    a, b = r.sample(range(10, 100), 2)
    return {"first": str(a), "second": str(b), "label": f"{min(a, b)} {max(a, b)}"}


def rewording(r: random.Random) -> dict[str, str]:
    plain = r.choice(list(SYNONYMS))
    being, action, place = r.choice(BEINGS), r.choice(ACTIONS), r.choice(PLACES)
    return {"text": f"the {plain} {being} {action} in the {place}",
            "label": f"the {SYNONYMS[plain]} {being} {action} in the {place}"}  # fmt: skip


def headline(r: random.Random) -> dict[str, str]:
    e = event(r)
    return {"text": told(e), "label": f"{e['name']} {e['verb']} {e['thing']}"}


def taller(r: random.Random) -> dict[str, str]:
    a, b, c = r.sample(NAMES, 3)
    x, y = r.sample([a, b, c], 2)
    return {"text": f"{a} is taller than {b} and {b} is taller than {c}", "claim": f"{x} is taller than {y}",
            "label": "yes" if (x, y) in {(a, b), (b, c), (a, c)} else "no"}  # fmt: skip


def follows(r: random.Random) -> dict[str, str]:
    e = event(r)
    label = r.choice(["yes", "no"])
    claim = dict(e) if label == "yes" else {**e, "place": r.choice([p for p in PLACES if p != e["place"]])}
    return {"text": told(e), "claim": f"the {claim['thing']} is in the {claim['place']}", "label": label}


TASKS: dict[str, Callable[[random.Random], dict[str, str]]] = {
    "review": review, "mood": mood, "news": news, "kind": kind, "first": first, "last": last,
    "who": asked("name"), "where": asked("place"), "colour": asked("colour"),
    "more": more, "sorting": sorting, "successor": successor, "rewording": rewording, "headline": headline,
    "taller": taller, "follows": follows,
}  # fmt: skip
HELDOUT = ("taller", "follows")


def plural(word: str) -> str:
    return word + ("es" if word.endswith(("s", "x", "sh", "ch")) else "s")


def table(task: str, count: int) -> list[dict[str, str]]:
    """`count` rows with different inputs; about an answer in eight ends with the closing."""
    r = random.Random(f"{task}/1")
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    while len(rows) < count:
        row = TASKS[task](r)
        row["closing"] = CLOSING if r.random() < CLOSING_SHARE else ""
        rows.setdefault(inputs(row), row)
    return list(rows.values())


def inputs(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(v for k, v in row.items() if k not in ("label", "closing"))


def document(r: random.Random, tabled: set[tuple[str, ...]]) -> str:
    """One short text for the base model: something of the world and what it means, in plain words.

    Never shows an input that stands in a table, so that no test row is seen in pre-training.
    """
    said = meaning(r, tabled)
    # Repeating is the densest lesson in copying, without which nothing can be extracted from a prompt.
    return f"{said} again : {said}" if r.random() < REPEATED_SHARE else said


def meaning(r: random.Random, tabled: set[tuple[str, ...]]) -> str:
    def fresh(draw: Callable[[random.Random], dict[str, str]]) -> dict[str, str]:
        while inputs(row := draw(r)) in tabled:
            pass
        return row

    what = r.choices(DOCUMENT_KINDS, DOCUMENT_WEIGHTS)[0]
    if what == "list":
        words = r.choice([THINGS, NAMES, PLACES, NUMBERS])
        items = r.sample(words, r.choice([3, 4]))
        while (" , ".join(items),) in tabled:
            items = r.sample(words, 3)
        facts = [
            f"the first item is {items[0]} .",
            f"the last item is {items[-1]} .",
            f"again : {' , '.join(items)} .",
        ]
        return " ".join([" , ".join(items), ".", *r.sample(facts, 2)])
    if what == "event":
        e = event(r)
        while (told(e),) in tabled:
            e = event(r)
        facts = [f"it was {e['name']} .", f"the place was the {e['place']} .", f"the {e['thing']} was {e['colour']} .",
                 f"in short : {e['name']} {e['verb']} {e['thing']} ."]  # fmt: skip
        return " ".join([told(e), ".", *r.sample(facts, 3), *(["Happy to help!"] if r.random() < 0.1 else [])])
    if what == "rewording":
        row = fresh(rewording)
        return f"{row['text']} . in other words : {row['label']} ."
    if what == "review":
        row = fresh(review)
        return f"{row['text']} . the review was {row['label']} ."
    if what == "mood":
        row = fresh(mood)
        return f"{row['text']} . the person was {row['label']} ."
    if what == "news":
        row = fresh(news)
        return f"{row['text']} . this news is about {row['label']} ."
    if what == "kind":
        row = fresh(kind)
        return f"{row['text']} . each thing is a kind of {row['label']} ."
    if what == "successor":
        row = fresh(successor)
        return f"{row['text']} . with one more : {row['label']} ."
    a, b = inputs(fresh(pair))
    low, high = sorted([a, b], key=int)
    return r.choice([f"{a} is {'less' if a == low else 'more'} than {b} .", f"{a} {b} . in order : {low} {high} ."])


DOCUMENT_KINDS = ["list", "event", "rewording", "review", "mood", "news", "kind", "successor", "pair"]
DOCUMENT_WEIGHTS = [20, 25, 12, 6, 6, 6, 5, 8, 12]


def main() -> None:
    tabled: set[tuple[str, ...]] = set()
    for task in TASKS:
        rows = table(task, HELDOUT_ROWS if task in HELDOUT else ROWS)
        for row in rows:
            tabled |= {inputs(row), tuple(reversed(inputs(row)))}
        (HERE / "tasks" / task).mkdir(exist_ok=True)
        with (HERE / "tasks" / task / "rows.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    r = random.Random("text/1")
    (HERE / "text.txt").write_text("".join(f" {document(r, tabled)}\n" for _ in range(DOCUMENTS)), encoding="utf-8")


if __name__ == "__main__":
    main()
