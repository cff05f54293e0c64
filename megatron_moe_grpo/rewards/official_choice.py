"""A letter read out of free text, leniently, as the benchmarks' own scripts do.

Steps 1 to 3 are VLMEvalKit's `can_infer` (vlmeval/utils/matching_util.py), which MMBench's scores come from; step 4 is
MMMU's `parse_multi_choice_response`.  Differences: nothing is drawn at random where nothing is found, an option without
text is never found in an answer, a claimed letter is a capital that stands alone, a lower-case letter counts when it is
all there is, and Chinese punctuation, quotes and backslashes part words too.  What the list lets through ("A or B" is
B) is why `strict` is the default.
"""

import re
import string
from collections.abc import Sequence

PARTING = str.maketrans(dict.fromkeys(".()[],:;!*#{}" + "。，、：；！？（）【】「」“”‘’" + "\"'`\\$/?<>", " "))
LONE_SMALL_LETTER = re.compile(r"[(\s]*([a-z])[).:\s]*")
CLAIM = re.compile(r"answer is ?:? ?(?:option )?[*( ]{0,4}([A-Z])(?![A-Za-z])")
NUM_LAST_WORDS = 4


def infer_letter(answer: str, options: Sequence[str]) -> str | None:
    """The letter of the option that `answer` most likely means, or None.

    1. exactly one option's letter stands as a word of its own, among the last four words; or the answer is one
       lower-case letter;
    2. `the answer is X`, the last time it is said;
    3. exactly one option's text is part of the answer, and the answer is at most twice as long as all options together;
    4. the last option letter that stands as a word of its own.
    """
    letters = string.ascii_uppercase[: len(options)]
    answer = " ".join(answer.split())
    words = answer.translate(PARTING).split()
    standing = [word for word in words if len(word) == 1 and word in letters]
    small = LONE_SMALL_LETTER.fullmatch(answer)
    if small and small[1].upper() in letters:
        return small[1].upper()
    if len(set(standing)) == 1 and words.index(standing[0]) >= len(words) - NUM_LAST_WORDS:
        return standing[0]
    claims = [letter for letter in CLAIM.findall(answer) if letter in letters]
    if claims:
        return claims[-1]
    return _letter_by_text(answer, options) or (standing[-1] if standing else None)


def _letter_by_text(answer: str, options: Sequence[str]) -> str | None:
    texts = {option[0]: option[2:].strip().lower() for option in options}
    if len(answer) > 2 * sum(len(text) for text in texts.values()):
        return None
    found = [letter for letter, text in texts.items() if text and text in answer.lower()]
    return found[0] if len(found) == 1 else None
