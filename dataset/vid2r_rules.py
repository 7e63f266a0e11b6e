"""Stage 1 of ViD2R: what is kept of a question and its response, as rule sets of small named steps.

A step takes a draft and gives it back, changed or not, or None to drop the pair; the step's name is its counter.
``clean`` is ours. ``legacy-mire`` and ``legacy-xknow`` do what the published scripts of MIRe and Ret-XKnow did, their
mistakes included (words cut in the middle, everything in lower case, answers judged by an earlier turn's); where such a
script would have ended with an exception, the pair is dropped with that exception as its reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from dataset import sentences


@dataclass(frozen=True)
class Draft:
    question: str
    response: str


@dataclass
class Context:
    """drop_len: characters a response needs. nouns: tagger, question -> its nouns; None when there is none. memory:
    what ``legacy-mire`` carries from turn to turn. notes: counts that drop nothing."""

    drop_len: int = 30
    nouns: Callable[[str], list[str]] | None = None
    memory: dict[str, str] = field(default_factory=dict)
    notes: Counter = field(default_factory=Counter)


class Stops(Exception):
    """The published script ends here, with this exception."""


Step = Callable[[Draft, Context], Draft | None]
NO_TAGGER = "short response without nouns: no tagger"


def refine(rules: str, question: str, response: str, context: Context) -> tuple[Draft | None, str | None, list[str]]:
    """(the pair that is kept or None, the step that dropped it, the steps that changed its response)."""
    draft, changed = Draft(question.replace("<image>", "").strip(), response.strip()), []
    for step in RULES[rules]:
        try:
            after = step(draft, context)
        except Stops as stop:
            return None, f"{STOPS}{stop}", changed
        if after is None:
            return None, name_of(step), changed
        if after != draft:
            changed.append(name_of(step))
        draft = after
    return draft, None, changed


STOPS = "the published script stops here: "


def name_of(step: Step) -> str:
    return step.__name__.replace("_", " ")


def named(name: str) -> Callable[[Step], Step]:
    """For steps that differ in their words alone."""

    def give(step: Step) -> Step:
        step.__name__ = name
        return step

    return give


def drops_questions(name: str, *phrases: str) -> Step:
    """Drops a question in which a phrase stands, letter for letter."""

    @named(name)
    def step(draft: Draft, context: Context) -> Draft | None:
        return None if any(phrase in draft.question for phrase in phrases) else draft

    return step


def drops_responses(name: str, pattern: str, flags: int = 0) -> Step:
    """Drops a response in which a pattern is found."""
    found = re.compile(pattern, flags)

    @named(name)
    def step(draft: Draft, context: Context) -> Draft | None:
        return None if found.search(draft.response) else draft

    return step


def deletes(name: str, pattern: str) -> Step:
    """Deletes every match of a pattern from the response."""
    found = re.compile(pattern)

    @named(name)
    def step(draft: Draft, context: Context) -> Draft:
        return replace(draft, response=found.sub("", draft.response))

    return step


# ---- steps of both published scripts


def lower_case(draft: Draft, context: Context) -> Draft:
    return replace(draft, response=draft.response.lower())


def capital_first(draft: Draft, context: Context) -> Draft:
    text = draft.response.strip()
    if not text:
        raise Stops("IndexError: string index out of range")
    return replace(draft, response=text[0].upper() + text[1:])


def without_first_clause_anywhere(draft: Draft, context: Context) -> Draft:
    """A question with a comma: what stands before its first comma and blank goes from all over the response."""
    if "," not in draft.question:
        return draft
    return replace(draft, response=draft.response.replace(draft.question.split(", ")[0], ""))


def too_short(draft: Draft, context: Context) -> Draft | None:
    return None if len(draft.response) < context.drop_len else draft


REGION = drops_questions("region_description", "a short description for this region:")
COUNTING = drops_questions("counting_question", "How many")
CERTAINLY = deletes("certainly_anywhere", r"(?:certainly|sure)[!.]")
IN_THE_IMAGE = deletes("in_the_image_anywhere", r"in (?:the|this) (?:image|scene|photo|picture)[,\s]?")
SHOWS = "showcases|features|captures|depicts|shows|presents"


# ---- steps of MIRe's script


def number_alone_or_before(draft: Draft, context: Context) -> Draft | None:
    """Drops a number. Only responses with a full stop are looked at; for the others, the last such one decides."""
    if not draft.response:
        raise Stops("IndexError: string index out of range")
    if draft.response.endswith("."):
        context.memory["ref"] = draft.response[:-1]
    return None if _remembered(context, "ref").strip().isdigit() else draft


def nothing_left(draft: Draft, context: Context) -> Draft | None:
    return draft if draft.response.strip() else None


def nouns_of_this_or_an_earlier_question(draft: Draft, context: Context) -> Draft:
    """Up to four words get the nouns of the question's first line; without a second line, an earlier question's."""
    if len(draft.response.split()) > 4:
        return draft
    if "\n" in draft.question:
        context.memory["phrase"] = draft.question.split("\n")[0]
    return _with_nouns(draft, _remembered(context, "phrase"), context)


def _remembered(context: Context, name: str) -> str:
    if name not in context.memory:
        where = "where it is not associated with a value"
        raise Stops(f"UnboundLocalError: cannot access local variable '{name}' {where}")
    return context.memory[name]


def _with_nouns(draft: Draft, phrase: str, context: Context) -> Draft:
    if context.nouns is None:
        context.notes[NO_TAGGER] += 1
        return draft
    nouns = context.nouns(phrase)
    return replace(draft, response=f"{draft.response} ({', '.join(nouns)})") if nouns else draft


# ---- steps of Ret-XKnow's script


def one_yes_or_no_in_front(draft: Draft, context: Context) -> Draft:
    first, _, rest = draft.response.partition(", ")
    return replace(draft, response=rest) if first in ("yes", "no") else draft


# ---- our steps

ASKS_REGION = re.compile(r"\b(?:short description for this region|bounding[- ]box coordinates?)\b", re.I)
ASKS_COUNT = re.compile(r"\bhow many\b", re.I)
ASKS_COLOUR = re.compile(r"\bwhat (?:is the |are the )?colou?rs?\b", re.I)
FORMAT = re.compile(
    r"answer the question using a single word or phrase|"
    r"answer with the option's letter from the given choices directly|"
    r"when the provided information is insufficient, respond with|reference ocr token:|"
    r"provide a one-sentence caption for the provided image",
    re.I,
)
NUMBER = re.compile(r"\W*\d[\d.,:\s]*\W*")
AFFIRMS = re.compile(r"(?:yes|no(?!\.\s*\d)|certainly|sure|absolutely|of course)\s*[,.!:;]+\s+", re.I)
WHERE = r"(?:in|from) (?:the|this) (?:image|scene|photo(?:graph)?|picture)"
NOT_THIS = "of|on|above|below|behind|with|where|that|which|frame|book|album|booth|window|gallery|hanging|editing"
WHERE_FIRST = re.compile(rf"^{WHERE}(?:,\s*|\s+(?!(?:{NOT_THIS})\b))", re.I)
PREDICATE = r"(?<!\s)" + "".join(
    rf"(?<!\b{word})" for word in ("is", "are", "was", "were", "be", "not", "also", "else", "as")
)
"""Behind these words the place is what the sentence says: "Two dogs are in the photo."."""
WHERE_LAST = re.compile(PREDICATE + r",?\s+" + WHERE + r"(?=\s*[.,;:!?])", re.I)
SHOWS_FIRST = re.compile(
    rf"^(?:the|this) (?:image|photo(?:graph)?|picture|scene) (?:{SHOWS}|displays)\s+(?:that\s+)?", re.I
)


INTRODUCES = re.compile(r"\s*(?:based|according|considering|judging|given|looking|in|from|as)\b", re.I)
"""A first clause that a response may do without; any other may be what the response is about."""


def region_question(draft: Draft, context: Context) -> Draft | None:
    return None if ASKS_REGION.search(draft.question) else draft


def counting_question(draft: Draft, context: Context) -> Draft | None:
    return None if ASKS_COUNT.search(draft.question) else draft


def colour_question(draft: Draft, context: Context) -> Draft | None:
    return None if ASKS_COLOUR.search(draft.question) else draft


def format_instruction(draft: Draft, context: Context) -> Draft:
    """Lines of the question that say how to answer are no part of it."""
    lines = [line.strip() for line in draft.question.splitlines() if line.strip() and not FORMAT.search(line)]
    return replace(draft, question="\n".join(lines))


def no_question(draft: Draft, context: Context) -> Draft | None:
    return draft if draft.question else None


def number_alone(draft: Draft, context: Context) -> Draft | None:
    return None if NUMBER.fullmatch(draft.response) else draft


def affirmation_in_front(draft: Draft, context: Context) -> Draft:
    """ "Yes, ...", "Certainly! ..." at the very beginning, as often as they stand there."""
    text = draft.response
    while found := AFFIRMS.match(text):
        text = text[found.end() :]
    return replace(draft, response=text)


def mention_of_the_image(draft: Draft, context: Context) -> Draft:
    """ "In the image, ..." and "The image shows ..." at the beginning of a sentence, "... in this photo" at its end."""
    parts = []
    for part in sentences.split(draft.response):
        bare = SHOWS_FIRST.sub("", WHERE_FIRST.sub("", part, count=1), count=1)
        parts.append(WHERE_LAST.sub("", part if bare == part else raised(bare)))
    return replace(draft, response="".join(parts))


def echo_of_the_question(draft: Draft, context: Context) -> Draft:
    """ "Based on the sign, ..." repeated at the beginning of the response."""
    clause, comma, _ = draft.question.rpartition("\n")[2].partition(",")
    echo = f"{clause.strip()}, "
    if not comma or not INTRODUCES.match(clause) or not draft.response.lower().startswith(echo.lower()):
        return draft
    return replace(draft, response=draft.response[len(echo) :])


def nouns_of_the_question(draft: Draft, context: Context) -> Draft:
    """Up to four words get the nouns of the question's first line, which say what they are about."""
    if len(draft.response.split()) > 4:
        return draft
    return _with_nouns(draft, draft.question.split("\n")[0], context)


def tidy(draft: Draft, context: Context) -> Draft:
    """No marks or blanks left over in front, one blank between words, a capital letter first; other case stays."""
    text = re.sub(r"[ \t]{2,}", " ", draft.response.strip().lstrip(",;:!? \t\n"))
    return replace(draft, response=raised(text))


def raised(text: str) -> str:
    return text[:1].upper() + text[1:]


RULES: dict[str, tuple[Step, ...]] = {
    "clean": (
        region_question,
        counting_question,
        colour_question,
        drops_responses("unanswerable", r"\bunanswerable\b", re.I),
        drops_responses("reading_not_required", r"\banswering (?:the question )?does not require reading\b", re.I),
        number_alone,
        format_instruction,
        no_question,
        affirmation_in_front,
        mention_of_the_image,
        echo_of_the_question,
        tidy,
        nothing_left,
        nouns_of_the_question,
        too_short,
    ),
    "legacy-mire": (
        lower_case,
        drops_responses("unanswerable", r"unanswerable\."),
        drops_responses("reading_not_required", "answering does not require reading"),
        number_alone_or_before,
        deletes("yes_no_anywhere", r"(?:yes|no|answerable)[,.!]"),
        CERTAINLY,
        IN_THE_IMAGE,
        deletes("the_image_shows_anywhere", rf"the image (?:{SHOWS}|displays) "),
        nothing_left,
        nouns_of_this_or_an_earlier_question,
        too_short,
        REGION,
        COUNTING,
        drops_questions("colour_question", "What color", "What is the color", "What are the colors"),
        capital_first,
        without_first_clause_anywhere,
    ),
    "legacy-xknow": (
        too_short,
        REGION,
        COUNTING,
        drops_questions("colour_question", "What color", "What is the color"),
        lower_case,
        one_yes_or_no_in_front,
        CERTAINLY,
        IN_THE_IMAGE,
        deletes("the_image_shows_anywhere", rf"the image (?:{SHOWS}) "),
        capital_first,
        without_first_clause_anywhere,
    ),
}
