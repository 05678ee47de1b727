"""Where the end of a text stood before: what followed there is a guess at what follows now.

Source: Prompt Lookup Decoding (Saxena, 2023) and LLMA (Yang et al., arXiv 2304.04487).
"""

from __future__ import annotations

__all__ = ["Lookup"]


class Lookup:
    """Follows a list of token ids that others append to; each token costs the same, however long
    the list is.

    A place, once found, is followed as long as the tokens that come are those that stand there.
    Otherwise it is the newest earlier place of the last three tokens, or else of the last two.
    place: the index of the token there that may be the next one. length: how many of the last
    tokens stand before it, as far as that is known; 0 where there is no such place.
    """

    def __init__(self, tokens: list[int]) -> None:
        self.place = self.length = 0
        self._tokens = tokens
        self._known = 0
        self._pair, self._triple = (-1, -1), (-1, -1, -1)  # the last tokens that are known
        # The index behind where a pair, or a triple, stood last, not counting the list's end.
        self._behind_pairs: dict[tuple[int, int], int] = {}
        self._behind_triples: dict[tuple[int, int, int], int] = {}

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
