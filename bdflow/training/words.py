"""The everyday words of the tiny bundle's tokenizer, and the byte-pair merges that make each of them one
token.
"""

from collections import Counter
from itertools import pairwise

TEXT = """
a an the and or of in on at by to with without from over under above below behind beside between near into
onto out up down left right top bottom middle center corner side front back far close inside outside around
across along is are was be has have there this that these those it its they their he she his her him who
which while as some one two three four five six seven eight nine ten many few several single pair group
couple row number lot big large huge small little tiny tall short long wide narrow round square flat high low
old young new red orange yellow green blue purple violet pink brown black white grey gray dark bright light
pale blond golden silver colorful colored color colour striped plain
person people man woman boy girl child children baby face faces head eyes eye mouth nose ear hair smile
smiling portrait looking stare happy sad friend crowd hand arm leg body bodies figure standing sitting
walking running jumping lying holding wearing playing riding eating waiting dancing stretching
word words text letter letters sign written writing reads says saying page book books poster posters label name stop
open exit hello love home cat dog sun sky hot cold go yes no
place places house houses building buildings tower towers church churches bridge street road path city town village room
kitchen bedroom bathroom hall wall door window floor roof fence garden park field meadow grass hill hills mountain
mountains valley forest wood tree trees bush flower flowers leaf leaves beach sand sea ocean lake river water
wave waves island desert snow ice rock stone sky cloud clouds sun moon star stars night day evening morning
sunset sunrise rain storm horizon landscape scene view background foreground ground
animal animals cat cats bird birds horse sheep cow elephant bear zebra giraffe duck fish rabbit mouse
car cars bus train truck boat boats ship plane airplane bicycle bike motorcycle wheel ball balls balloon balloons box
cup glass bottle bowl plate table chair bed sofa lamp clock phone computer television toy kite umbrella
bag hat shirt shirts dress shoe food fruit apple banana pizza cake bread
circle circles board boards signs triangle triangles square squares ring shape shapes line lines dot dots stripe stripes
pattern photo picture image painting drawing shows showing seen filled covered full empty next other another same
floating hanging flying shining waving resting placed set against lit calm wild wooden
"""
WORDS = TEXT.split()


def byte_symbols() -> list[str]:
    """One printable character for each of the 256 bytes, in the order of GPT-2's and CLIP's vocabularies."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(rest))]


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent first (ties: alphabetically), until each word is one token.

    R. Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units", algorithm 1.
    """
    split = [[*word[:-1], f"{word[-1]}</w>"] for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for parts in split for pair in pairwise(parts))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = [_merge(parts, best) for parts in split]


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    index = 0
    while index < len(parts):
        if tuple(parts[index : index + 2]) == pair:
            merged.append(parts[index] + parts[index + 1])
            index += 2
        else:
            merged.append(parts[index])
            index += 1
    return merged


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Token -> id in CLIP's order: bytes, bytes that end a word, merges, start, end (the highest id)."""
    symbols = byte_symbols()
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(a + b for a, b in merges)]
    return {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
