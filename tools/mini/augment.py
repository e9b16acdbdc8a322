"""Noise on questions, so that `mini` learns what is asked and not how: other people will word it differently.

Every rewrite keeps the meaning. Words that tell near misses apart (names, numbers, "first", "not") are never dropped.
"""

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field


def _phrases(text: str) -> list[str]:
    return [phrase.strip() for phrase in text.split(",")]


def _words(text: str) -> list[str]:
    return text.split()


OPENERS = _phrases("""
    please, hey, hi, hello, ok, okay, so, um, well, excuse me, sorry, quick question, one more question, a question,
    question, just curious, trivia question, help, help me out, be honest, simple one, serious question,
    out of interest, by the way, another one, now, next question, good morning, good evening, for my homework,
    for a quiz, in general, again, and, but, then
""")
ASKS = _phrases("""
    can you tell me, could you tell me, please tell me, tell me, do you know, do you happen to know, i want to know,
    i'd like to know, i would like to know, i was wondering, i wonder, may i ask, can i ask, could you say,
    let me know, remind me, i need to know, does anyone know, any idea, can you remind me, i forgot, would you know,
    please say, are you able to say, help me find out, what i want to know is, i am trying to find out,
    i have to find out, can you explain, explain, could you please tell me
""")
NAMES = _phrases("""
    name, tell me, give me, please give me, say, state, identify, i need, looking for, what about, find,
    i am looking for
""")
CLOSERS = _phrases("""
    please, thanks, thank you, do you know, i forgot, again, exactly, then, by the way, i wonder, any idea,
    if you know, in your opinion, actually, you think, can you tell me, tell me, right now, for a quiz,
    i need to know, anyone, precisely, help
""")
STOP_WORDS = frozenset(
    _words("""
    a an and are as at be been by called can could did do does for had has have i in is it its known me my name
    named of one please that the there this to was were what which who will with would you your
""")
)
KEPT_WORDS = frozenset(
    _words("""
    above after before below east first high last least less low more most never no north not off on over second
    south third under west without
""")
)
CONTRACTIONS = (
    ("what is", "what's"),
    ("who is", "who's"),
    ("where is", "where's"),
    ("how is", "how's"),
    ("when is", "when's"),
    ("that is", "that's"),
    ("it is", "it's"),
    ("there is", "there's"),
    ("do not", "don't"),
    ("does not", "doesn't"),
    ("is not", "isn't"),
    ("are not", "aren't"),
    ("cannot", "can't"),
    ("can not", "can't"),
    ("i am", "i'm"),
    ("i have", "i've"),
    ("will not", "won't"),
    ("what are", "what're"),
    ("i would", "i'd"),
    ("did not", "didn't"),
)
SYNONYMS = _phrases("""
    biggest|largest|greatest, big|large, small|little|tiny, smallest|tiniest|littlest, tallest|highest,
    located|situated|found, wrote|authored|penned|is the author of, author|writer, painted|created|made,
    painter|artist, nation|country, city|town, quick|fast, quickest|fastest, start|begin|commence, started|began,
    finish|end, called|named, sort of|kind of|type of, kind|sort|type, buy|purchase|get, need|require,
    fix|repair|mend, broken|defective|faulty, often|frequently, currency|money, speak|talk, creator|inventor|maker,
    invented|created|devised|came up with, discovered|found|identified, which|what, which|what,
    phone|mobile|cell phone|smartphone, shut|close, allowed|permitted, must|have to|need to,
    can i|may i|am i allowed to|is it ok to, how do i|how can i|how to|how does one|what do i do to,
    email|mail|e-mail, cost|price, costs|is the price of, how much is|what does it cost for, children|kids,
    photo|picture|image, bin|trash|rubbish, movie|film, composed|wrote, year|in which year|in what year,
    element|chemical element, symbol|sign|abbreviation, in which|in what, device|unit|gadget, sensor|device,
    problem|issue|trouble, send|ship|post, parcel|package, arrive|come|get here, arrived|came, delete|remove|erase,
    switch|change, guarantee|warranty, answer|reply, wish|want|would like, water|the water, light|lamp,
    why does|how come, when|at what time|what time, where|in which place|at which place,
    who|which person|what person, home|house, job|work, sea|ocean, person|man, lives|resides, leader|head, has|owns,
    use|utilise|utilize
""")
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
_BE_QUESTION = re.compile(r"^(what|who|where|which [a-z]+|what [a-z]+)(?: (is|was|are|were)|'s) (.+)$", re.IGNORECASE)
_ASKED = re.compile(r"^(?:name|tell me|give me|state) (?!who|what|which|where|when|how)(.+)$", re.IGNORECASE)
_WH = re.compile(r"^(what|who|where|which|when|how|why|in what|in which|whose|whom)\b", re.IGNORECASE)
_PART_OF = re.compile(r"^the (.+?) (?:of|for|in) (.+)$", re.IGNORECASE)
_WHO_DID = re.compile(
    r"^who (wrote|invented|painted|discovered|composed|created|made|built|found|authored) (.+)$", re.IGNORECASE
)
_NAME = re.compile(
    r"(?<=[a-z,] )((?:the |a )?[A-Z][\w'.-]*(?: (?:of|the|and|de|da|la|in|a)(?= [\w ]*[A-Z]))*"
    r"(?:(?: [a-z]+)?(?: (?:[A-Z][\w'.-]*|\d+)))*)"
)
_FRAME = re.compile(
    r"^(?:(?:hi|hey|hello|sorry|okay, so|just curious|quick question|(?:pub quiz )?question(?: for you)?|for a quiz"
    r"|trivia|next one|one more|my homework asks|for my (?:\w+ )?homework|please answer this|can you answer this"
    r"|i forgot|help me out here)[,:!?] "
    r"|(?:(?:can|could|would) you (?:please )?(?:tell me|name)|(?:please )?tell me|remind me"
    r"|do you (?:happen to )?know|any idea"
    r"|i(?:'d like to know| would like to know| want to know| need to know| can't remember| forgot| wonder))"
    r" (?=(?:who|what|which|where|when|how|in|on|of|by|the|whose)\b))",
    re.IGNORECASE,
)
_FRAME_BEHIND = re.compile(
    r"(?<=[.?!]) (?:Thanks!|Just the answer\.|Short answer, please\.|I can never remember\.|Any idea\?)$| again$"
)
_NOUN_PHRASE = re.compile(r"^(the|a|an|[A-Z][\w.]*'s|[a-z]+'s) ", re.IGNORECASE)


def _strip(text: str) -> str:
    return text.rstrip(" ?.!")


def _lower_first(text: str) -> str:
    """Lower the first letter of a question word; leave names alone."""
    first = text.split(" ", 1)[0]
    is_name = first == "I" or first[1:] != first[1:].lower() or not _WH.match(text)
    return text if is_name else text[:1].lower() + text[1:]


def strip_frame(text: str, rng: random.Random) -> str:
    """Without the greeting, the filler or the "can you tell me" in front, and without the filler behind."""
    body = _FRAME_BEHIND.sub("", text)
    for _ in range(2):
        body = _FRAME.sub("", body, count=1)
    return body if len(body.split()) >= 3 else text


def reframe(text: str, rng: random.Random) -> str:
    """The same request as a bare phrase, an order or an indirect question."""
    body = _strip(text)
    if asked := _ASKED.match(body):
        phrase = asked.group(1)
        order = f"{rng.choice(NAMES)} {phrase}"
        return rng.choice([f"What is {phrase}", f"What's {phrase}", order, phrase, f"{phrase} is what"])
    if be := _BE_QUESTION.match(body):
        head, verb, rest = be.group(1), be.group(2) or "is", be.group(3)
        forms = [f"{rng.choice(ASKS)} {head} {rest} {verb}", f"{rest} {verb} {head}", f"{head} would {rest} be"]
        if head.lower() in {"what", "who"} and _NOUN_PHRASE.match(rest):
            forms += [rest, f"{rng.choice(NAMES)} {rest}", f"{rest}, {head.lower()} {verb} it", f"{rest} {verb}", rest]
            if part := _PART_OF.match(rest):
                role, name = part.group(1), part.group(2)
                forms += [f"{name}: {role}", f"{name} {role}", f"{role} {name}", f"{name}'s {role}", f"{name}, {role}"]
        return rng.choice(forms)
    if who := _WHO_DID.match(body):
        verb, thing = who.group(1).lower(), who.group(2)
        done = "written" if verb == "wrote" else verb
        return rng.choice([
            f"{thing} was {done} by whom", f"{thing}, who {verb} it", f"{thing}: {done} by", f"{thing} was {done} by",
            f"who {verb} it: {thing}", f"{thing}, whose is it", f"by whom was {thing} {done}", f"{thing} {verb} who",
            f"{rng.choice(ASKS)} who {verb} {thing}",
        ])  # fmt: skip
    if _WH.match(body):
        return f"{rng.choice(ASKS)} {_lower_first(body)}"
    return body


def front_name(text: str, rng: random.Random) -> str:
    """The name first, as in "Japan: which currency does it use"."""
    body = _strip(text)
    names = [m for m in _NAME.finditer(body) if m.group(1) not in {"I", "I'd", "I'm"}]
    names = [m for m in names if not body[: m.start()].split()[-1][0].isupper() or body[m.start() - 2] == ","]
    if len(names) != 1:
        return text
    name = names[0].group(1)
    without = body.replace(name, rng.choice(["it", "there", "this"]), 1)
    start = rng.choice(["", "", "", "about ", "I mean "])
    mark = rng.choice([":", ",", " -", "."])
    return rng.choice([f"{start}{name}{mark} {_lower_first(without)}?", f"{start}{name}{mark} {_lower_first(body)}?"])


def add_opener(text: str, rng: random.Random) -> str:
    """A greeting or filler in front."""
    mark = rng.choice([",", ",", ":", "", ".", "!", " -", "..."])
    return f"{rng.choice(OPENERS)}{mark} {_lower_first(text)}"


def add_closer(text: str, rng: random.Random) -> str:
    """A filler behind."""
    mark, end = rng.choice([",", "", "?", " -", "."]), rng.choice(["?", "", ".", "!"])
    return f"{_strip(text)}{mark} {rng.choice(CLOSERS)}{end}"


def _replace_word(text: str, old: str, new: str) -> str:
    return re.sub(rf"\b{re.escape(old)}\b", new, text, count=1, flags=re.IGNORECASE)


def contract(text: str, rng: random.Random) -> str:
    """what is <-> what's."""
    for long, short in CONTRACTIONS:
        for old, new in ((long, short), (short, long)):
            if re.search(rf"\b{old}\b", text, re.IGNORECASE) and rng.random() < 0.7:
                swapped = _replace_word(text, old, new)
                return swapped[:1].upper() + swapped[1:] if text[:1].isupper() else swapped
    return text


def _synonym_table() -> list[tuple[re.Pattern[str], list[str]]]:
    table: dict[str, set[str]] = {}
    for line in SYNONYMS:
        words = line.split("|")
        for word in words:
            table.setdefault(word, set()).update(other for other in words if other != word)
    return [(re.compile(rf"\b{re.escape(w)}\b", re.IGNORECASE), sorted(others)) for w, others in sorted(table.items())]


_SYNONYM_TABLE = _synonym_table()


def swap_synonyms(text: str, rng: random.Random) -> str:
    """One or two general English synonyms."""
    found = [(pattern, others) for pattern, others in _SYNONYM_TABLE if pattern.search(text)]
    for pattern, others in rng.sample(found, min(len(found), rng.choice([1, 1, 2]))):
        text = pattern.sub(rng.choice(others), text, count=1)
    return text


def drop_stop_words(text: str, rng: random.Random) -> str:
    """Leave out some function words, or all of them as in a search box."""
    share = rng.choice([0.3, 0.5, 1.0])
    kept = [w for w in text.split() if w.strip("?.,!").lower() not in STOP_WORDS or rng.random() > share]
    return " ".join(kept) if len(kept) >= 2 else text


def swap_neighbours(text: str, rng: random.Random) -> str:
    """Two neighbouring words change places."""
    words = text.split()
    if len(words) < 4:
        return text
    at = rng.randrange(len(words) - 1)
    words[at], words[at + 1] = words[at + 1], words[at]
    return " ".join(words)


def move_tail(text: str, rng: random.Random) -> str:
    """A later part of the sentence first, as in "in France, what is the capital"."""
    body = _strip(text)
    places = [m.start() for m in re.finditer(r" (in|of|for|on|at|from|by|with|during) ", body)]
    if not places:
        return text
    at = rng.choice(places)
    return f"{body[at + 1 :]}{rng.choice([',', ':', ' -', ''])} {_lower_first(body[:at])}?"


def add_typo(text: str, rng: random.Random) -> str:
    """One slip of the finger in a longer word."""
    words = [m for m in _WORD.finditer(text) if len(m.group()) >= 5 and m.group().lower() not in KEPT_WORDS]
    if not words:
        return text
    word = rng.choice(words)
    at = rng.randrange(word.start() + 1, word.end() - 1)
    kind = rng.randrange(4)
    if kind == 0:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    if kind == 1:
        return text[:at] + text[at + 1 :]
    if kind == 2:
        return text[:at] + text[at] + text[at:]
    return text[:at] + rng.choice("abcdefghijklmnopqrstuvwxyz") + text[at + 1 :]


def change_case(text: str, rng: random.Random) -> str:
    """Mostly all lower case, as people type."""
    roll = rng.random()
    if roll < 0.75:
        return text.lower()
    if roll < 0.85:
        return text[:1].swapcase() + text[1:]
    return text.upper() if roll < 0.92 else text.title()


def change_punctuation(text: str, rng: random.Random) -> str:
    """Drop the final mark, double it, or drop every mark."""
    roll = rng.random()
    if roll < 0.6:
        return _strip(text)
    if roll < 0.75:
        return _strip(text) + rng.choice(["??", " ?", "?!", "...", ".", "!"])
    if roll < 0.9:
        return _strip(text) + "?"
    return re.sub(r"[,'\"?.!:;-]", "", text)


@dataclass(frozen=True)
class Augmenter:
    """Applies each rewrite with its own probability. `strength` 0 returns the text as it is."""

    strength: float = 1.0
    keep_share: float = 0.15
    steps: tuple[tuple[float, Callable[[str, random.Random], str]], ...] = field(
        default=(
            (0.35, strip_frame), (0.30, reframe), (0.25, swap_synonyms), (0.10, front_name), (0.07, move_tail),
            (0.15, contract), (0.18, add_opener), (0.12, add_closer), (0.18, drop_stop_words), (0.06, swap_neighbours),
            (0.40, change_punctuation), (0.40, change_case), (0.10, add_typo),
        )
    )  # fmt: skip

    def __call__(self, text: str, rng: random.Random) -> str:
        """One noisy wording of `text`, never empty."""
        if rng.random() < self.keep_share:
            return text
        out = text
        for share, step in self.steps:
            if rng.random() < share * self.strength:
                out = step(out, rng)
        return out.strip() or text


def bare(text: str) -> str:
    """Letters and digits only: two texts with the same bare form are the same question."""
    return "".join(c for c in text.casefold() if c.isalnum())


def sample_texts(texts: Iterable[str], rng: random.Random, copies: int) -> list[str]:
    """Noisy copies of the train questions, for the tokenizer's statistics."""
    augment = Augmenter()
    return [augment(text, rng) for text in texts for _ in range(copies)]
