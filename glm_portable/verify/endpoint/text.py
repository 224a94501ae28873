"""What the text itself shows: its length beside the reference's, and whether it goes in circles."""

from collections import Counter

from glm_portable.verify.endpoint.client import brief
from glm_portable.verify.endpoint.exam import Exam, Notes, Skipped

DRIFT = (0.9, 1.1)
"""Of the reference's tokens; the band that MLPerf allows for tokens per sample."""
PERIOD, TIMES, LEAST = 120, 5, 24
"""A loop: a piece of at most PERIOD characters TIMES over at the end, LEAST characters in all."""
GRAM, SHARE = 4, 0.5
"""Or: half of all sequences of four words were there before."""
_FEW = 3 * GRAM


def loop(text: str) -> str | None:
    """What a text repeats at its end, or the words it repeats all over; None if neither."""
    text = text.rstrip()
    for period in range(1, min(PERIOD, len(text) // TIMES) + 1):
        same = 0
        while same < len(text) - period and text[-1 - same] == text[-1 - same - period]:
            same += 1
        if same + period >= max(TIMES * period, LEAST):
            return text[-period:]
    words = text.split()
    grams = Counter(zip(*(words[i:] for i in range(GRAM)), strict=False))
    total = sum(grams.values())
    if total > _FEW and total - len(grams) > SHARE * total:
        return " ".join(grams.most_common(1)[0][0])
    return None


def repetition(exam: Exam, notes: Notes) -> None:
    """No answer given so far repeats itself, unless the reference does so too."""
    recorded = exam.reference.recorded if exam.reference else ()
    known = {record.question.name: loop(record.text) for record in recorded}
    found: dict[str, str] = {}
    for question, said in exam.heard:
        piece = loop(said.text)
        if piece is not None and not known.get(question.name):
            found.setdefault(question.text, piece)
    for text, piece in list(found.items())[:5]:
        notes.fail(
            f"{text!r}",
            f"{brief(piece, 60)!r} over and over",
            "a sign of wrong numbers in deep layers or caches: vllm#47367, zai-org/GLM-4.5#77",
        )
    notes.measures |= {"answers": len(exam.heard), "looping": len(found)}


def length(exam: Exam, notes: Notes) -> None:
    """Answers have nine to eleven tenths of the reference's tokens, the worst one left out."""
    recorded = exam.reference.recorded if exam.reference else ()
    if not recorded:
        raise Skipped(
            "no answers to compare with: make a file with glm-portable verify endpoint-reference"
        )
    said = [exam.once(record.question) for record in recorded]
    pairs = [
        (answer.count("completion_tokens"), len(record.answer_ids))
        for answer, record in zip(said, recorded, strict=True)
    ]
    same = sum(a.text == record.text for a, record in zip(said, recorded, strict=True))
    kept = sorted(pairs, key=lambda pair: abs(pair[0] - pair[1]))[: max(1, len(pairs) - 1)]
    ratio = sum(ours for ours, _ in kept) / sum(theirs for _, theirs in kept)
    notes.measures |= {"ratio": ratio, "answers": len(pairs), "same_as_reference": same}
    notes.series["tokens"] = [float(ours) for ours, _ in pairs]
    notes.remarks.append(f"{same} of {len(pairs)} answers are the reference's, word for word")
    if not DRIFT[0] <= ratio <= DRIFT[1]:
        notes.fail(
            f"{len(pairs)} questions at temperature 0",
            f"{ratio:.2f} of the reference's tokens, outside {DRIFT[0]} to {DRIFT[1]}",
            "a damaged model or another template stops early or talks on",
        )
