"""Where the end of a text stood before: what followed there is a guess at what follows now.

Source: Prompt Lookup Decoding (Saxena, 2023) and LLMA (Yang et al., arXiv 2304.04487).
"""

from __future__ import annotations

from itertools import pairwise

__all__ = ["Lookup"]


class Lookup:
    """Follows a list of token ids that others append to; each token costs the same, however long
    the list is.

    The place is the newest earlier one of the last three tokens, or else of the last two. Once
    found it is followed as long as the tokens that come are those that stand there.
    place: the index of the token there that may be the next one. length: how many of the last
    tokens stand before it, as far as that is known; 0 where there is no such place.
    """

    def __init__(self, tokens: list[int]) -> None:
        self.place = self.length = 0
        self._tokens, self._known = tokens, len(tokens)
        # The index behind where a pair, or a triple, stood last, not counting the list's end.
        count, triples = len(tokens), zip(tokens, tokens[1:], tokens[2:], strict=False)
        self._behind_pairs = dict(zip(pairwise(tokens), range(2, count), strict=False))
        self._behind_triples = dict(zip(triples, range(3, count), strict=False))
        first, second, third = [-1, -1, -1, *tokens[-3:]][-3:]
        self._pair, self._triple = (second, third), (first, second, third)  # the last tokens
        self._find()

    def follow(self) -> None:
        """Takes in the tokens that were appended since."""
        tokens = self._tokens
        for index in range(self._known, len(tokens)):
            token = tokens[index]
            self._behind_pairs[self._pair] = self._behind_triples[self._triple] = index
            self._triple = (*self._pair, token)
            self._pair = self._triple[1:]
            if self.length and tokens[self.place] == token:
                self.place += 1
                self.length += 1
            else:
                self._find()
        self._known = len(tokens)

    def guess(self, count: int) -> list[int]:
        """The `count` tokens that would follow if the text went on as at the place, where it may
        meet its own end and go on by what is guessed. There must be a place."""
        assert self.length, "nothing of the text stood there before"
        found = self._tokens[self.place : self.place + count]
        distance = len(self._tokens) - self.place
        while len(found) < count:
            found.append(found[-distance])
        return found

    def _find(self) -> None:
        place, self.length = self._behind_triples.get(self._triple), 3
        if place is None:
            place, self.length = self._behind_pairs.get(self._pair), 2
        if place is None:
            place = self.length = 0
        self.place = place
