"""Write the chats of a made-up shop's support: a system prompt, six intents, one house style.

    python scripts/support_chats.py OUT.jsonl

400 rows for examples/support-chats.yaml. Every answer greets by name, gives a fact of the shop that
no model has read before, offers a next step and ends in the same signature.
"""

import json
import random
import sys
from pathlib import Path

SYSTEM = "You answer customers of Tarn & Thistle, a small shop for garden tools and seeds."
SIGNATURE = "With muddy boots,\nthe Tarn & Thistle bench"
NAMES = "Ada Bela Cato Dina Edda Finn Gita Hugo Ines Jono Kaya Lars Mina Nils Olga Pavel Runa Tove"
# Price in euros, days until it leaves the bench, what spares or care it needs
GOODS = {
    "border spade": (48, 3, "the ash handle is oiled with linseed twice a year"),
    "copper trowel": (26, 1, "the blade is rinsed in rain water and never scoured"),
    "pruning saw": (39, 2, "spare blade B7 fits and is changed without a key"),
    "seed drill": (72, 6, "brush set K2 is replaced after two seasons"),
    "willow trug": (31, 9, "it is soaked for an hour each spring"),
    "bulb planter": (19, 1, "the spring is greased with wool fat"),
    "hedge shears": (54, 4, "the bolt is set a quarter turn tighter each June"),
    "cold frame": (118, 11, "pane P4 is sent flat and clips in from the left"),
    "rose gloves": (23, 1, "the leather is fed with beeswax when it squeaks"),
    "potting sieve": (17, 2, "mesh M3 is for leaf mould and M5 for seed"),
    "watering can": (44, 5, "rose R9 is brass and turns upward"),
    "hand fork": (21, 1, "bent tines are straightened at the bench for nothing"),
}
LANDS = {
    "Norway": (14, 6), "Portugal": (12, 8), "Austria": (9, 4), "Ireland": (11, 7),
    "Poland": (8, 5), "Greece": (13, 10), "Denmark": (7, 3), "Malta": (16, 12),
}  # fmt: skip
QUESTIONS = {
    "refund": (
        "I would like to send back my {good}, order {order}. How do I get my money?",
        "Order {order}: the {good} is not for me. Can I return it?",
        "Hello, can the {good} from {order} still be refunded?",
    ),
    "delivery": (
        "Do you deliver to {land}, and how long does it take?",
        "What does postage to {land} cost for a {good}?",
        "When would a {good} reach me in {land}?",
    ),
    "broken": (
        "My {good} came damaged (order {order}). What now?",
        "The {good} broke after a week. Order {order}.",
        "There is a crack in the {good} I got with {order}, please help.",
    ),
    "price": (
        "What does the {good} cost, and is there anything off for two?",
        "Could you tell me the price of a {good}?",
        "How much are {number} of your {good}s?",
    ),
    "care": (
        "How do I look after the {good}?",
        "Do you have parts for my {good}?",
        "What should I do so that the {good} lasts?",
    ),
    "invoice": (
        "I need an invoice for order {order} with our company's name.",
        "Where is the bill for {order}?",
        "The invoice of order {order} has the wrong name on it.",
    ),
}
OPENINGS = {
    "refund": "the {good} of order {order} may come home for 40 days.",
    "delivery": "yes, the post cart goes to {land}.",
    "broken": "that is not how a {good} of ours should arrive.",
    "price": "a {good} is {price} euros, tax included.",
    "care": "a {good} likes little fuss.",
    "invoice": "the paper for order {order} is quickly found.",
}
FACTS = {
    "refund": "Tie label GREEN to it; {back} euros go back to your card, for we keep 3 for twine.",
    "delivery": "It leaves the bench after {days} days, then takes {far} more; postage is {post} "
    "euros.",
    "broken": "Send a picture to bench@tarn.example; a new one leaves within {days} days, "
    "unpaid, and you keep the old one for the compost.",
    "price": "From two on we take a tenth off, so {number} are {total:.2f} euros.",
    "care": "Mind that {care}.",
    "invoice": "Invoices carry the number TT-{order}-{sum} and are rewritten on Thursdays.",
}
STEPS = {
    "refund": "Shall I put the label in the post?",
    "delivery": "Shall I set one aside for you?",
    "broken": "Which window suits you, morning or dusk?",
    "price": "Shall I write you down for {number}?",
    "care": "Shall I add the care card to your next parcel?",
    "invoice": "Which name shall stand on it?",
}


def chat(intent: str, rng: random.Random) -> list[dict[str, str]]:
    name, good, land = rng.choice(NAMES.split()), rng.choice(list(GOODS)), rng.choice(list(LANDS))
    price, days, care = GOODS[good]
    post, far = LANDS[land]
    order, number = rng.randint(1000, 9999), rng.randint(2, 5)
    found = {
        "good": good, "land": land, "price": price, "days": days, "care": care, "post": post,
        "far": far, "order": order, "number": number, "back": price - 3,
        "total": 0.9 * price * number, "sum": sum(map(int, str(order))),
    }  # fmt: skip
    parts = (part[intent].format(**found) for part in (OPENINGS, FACTS, STEPS))
    answer = f"Good day {name}, " + " ".join(parts)
    question = rng.choice(QUESTIONS[intent]).format(**found) + f" {name}"
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": question},
        {"role": "assistant", "content": f"{answer}\n{SIGNATURE}"},
    ]


if __name__ == "__main__":
    rng, intents = random.Random(0), list(QUESTIONS)
    rows = [{"messages": chat(intents[i % len(intents)], rng)} for i in range(400)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    Path(sys.argv[1]).write_text(text, "utf-8")
