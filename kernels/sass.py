"""Machine code as `cuobjdump -sass` prints it: its loops, and how many instructions of which class one turn takes.

A count of instructions is no timing: it says what a warp issues, not how long it waits.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

MATRIX = re.compile(r"(HGMMA|IGMMA|QGMMA|HMMA|IMMA|QMMA|DMMA|UTC\w*MMA)\b")
CLASSES = {  # the first that matches the operation's name
    "matrix": MATRIX,
    "shared load": re.compile(r"LDSM?\b"),
    "shared store": re.compile(r"STSM?\b"),
    "tensor memory": re.compile(r"(LDTM|STTM|UTC)"),
    "global load": re.compile(r"(LDG|LD|LDGSTS|UBLKCP|UTMALDG)\b"),
    "global store": re.compile(r"(STG|ST|RED|REDG|ATOM|ATOMG)\b"),
    "local": re.compile(r"(LDL|STL)\b"),
    "special function": re.compile(r"MUFU\b"),
    "conversion": re.compile(r"(F2F|F2FP|F2I|F2IP|I2F|I2FP|FRND)\b"),
    "float": re.compile(r"(F|H)(FMA|MUL|ADD|MNMX|SETP|SET|SEL|CHK|SWZADD)\d*\b"),
    "shuffle": re.compile(r"(SHFL|REDUX|CREDUX|VOTE|VOTEU|MATCH)\b"),
    "barrier": re.compile(r"(BAR|WARPSYNC|WARPGROUP|WARPGROUPSET|DEPBAR|LDGDEPBAR|SYNCS|MEMBAR|FENCE|ARRIVES|ELECT)\b"),
    "control": re.compile(r"(BRA|BRX|JMP|EXIT|CALL|RET|BSSY|BSYNC|BREAK|NOP|YIELD|NANOSLEEP|PLOP3|UPLOP3)\b"),
    "uniform": re.compile(r"(U[A-Z]|R2UR|S2UR|LDC)"),
}
OTHER = "integer and moves"
SHORTEST = 8  # instructions: a shorter loop without a product waits for a barrier
_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;/]*);", re.MULTILINE)


class Instruction(NamedTuple):
    address: int
    guarded: bool  # it has a predicate, so that a branch may fall through
    operation: str  # "HGMMA.64x64x16.F32"
    operands: str


Loop = frozenset[int]  # positions of its instructions


def instructions(text: str) -> list[Instruction]:
    """Those of the kernel, in the order of their addresses."""
    body = text.partition("Function :")[2].partition("Function :")[0]
    return [Instruction(int(at, 16), bool(guard), *words) for at, guard, *words in _LINE.findall(body)]


def loops(code: list[Instruction]) -> list[Loop]:
    """Every loop with all that it contains.

    A jump backwards alone is none: waits that a compiler has put behind the kernel's end jump back too.
    """
    after = [list(_successors(code, place)) for place in range(len(code))]
    before: list[list[int]] = [[] for _ in code]
    for place in _reached(after):
        for other in after[place]:
            before[other].append(place)
    bodies: dict[int, set[int]] = {}
    for last, head in _back_edges(after):
        body, waiting = bodies.setdefault(head, {head}), [last]
        while waiting:
            place = waiting.pop()
            if place not in body:
                body.add(place)
                waiting += before[place]
    return [frozenset(body) for body in bodies.values()]


def main_loop(code: list[Instruction]) -> Loop:
    """The longest of the innermost loops, of those with matrix instructions where there are such; empty without any."""
    found = loops(code)
    products = [body for body in found if any(MATRIX.match(code[place].operation) for place in body)]
    candidates = products or [body for body in found if len(body) >= SHORTEST]
    innermost = [body for body in candidates if not any(other < body for other in candidates)]
    return max(innermost, key=len, default=frozenset())


def by_class(code: list[Instruction], loop: Loop) -> Counter[str]:
    """How many instructions of `CLASSES`, or `OTHER`, one turn of a loop has."""
    return Counter(classify(code[place].operation) for place in loop)


def classify(operation: str) -> str:
    return next((name for name, pattern in CLASSES.items() if pattern.match(operation)), OTHER)


def _successors(code: list[Instruction], place: int) -> Iterator[int]:
    """Positions that may be executed next. A called function returns: it is passed over."""
    instruction = code[place]
    name = instruction.operation.partition(".")[0]
    target = None
    if name in ("BRA", "JMP"):
        target = jump_target(instruction)
    elif name == "BSYNC":  # goes where its BSSY says
        barrier = instruction.operands.strip()
        opened = (i for i in reversed(code[:place]) if i.operation.startswith("BSSY"))
        target = next((jump_target(i) for i in opened if i.operands.split(",")[0].strip() == barrier), None)
    leaves = target is not None or name in ("EXIT", "RET", "BRX")
    if target is not None and 0 <= (position := (target - code[0].address) // 16) < len(code):
        yield position
    # "BRA.U UP1, 0x8650" has its condition among the operands.
    conditional = instruction.guarded or (name == "BRA" and "," in instruction.operands)
    if (conditional or not leaves) and place + 1 < len(code):
        yield place + 1


def jump_target(instruction: Instruction) -> int | None:
    """The address that a branch, or the opening of a BSYNC's region, names."""
    addresses = re.findall(r"0x([0-9a-f]+)", instruction.operands)
    return int(addresses[-1], 16) if addresses else None


def _reached(after: list[list[int]]) -> set[int]:
    """Positions that can be executed; a subroutine behind the kernel's end is none."""
    reached: set[int] = set()
    waiting = [0] if after else []
    while waiting:
        place = waiting.pop()
        if place not in reached:
            reached.add(place)
            waiting += after[place]
    return reached


def _back_edges(after: list[list[int]]) -> Iterator[tuple[int, int]]:
    """(from, to) wherever a depth-first walk from the first instruction meets one that it has not left."""
    if not after:
        return
    seen, open_ = {0}, {0}
    walk = [(0, iter(after[0]))]
    while walk:
        place, following = walk[-1]
        other = next(following, None)
        if other is None:
            open_.discard(place)
            walk.pop()
        elif other in open_:
            yield place, other
        elif other not in seen:
            seen.add(other)
            open_.add(other)
            walk.append((other, iter(after[other])))
