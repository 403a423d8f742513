"""The built-in data: an executable bank of misconceptions.

Brown and Burton's BUGGY idea made factorial: mathematical contexts times faulty operations they share.
"""

from podium.procedural.bank import Misconception, catalogue, misconceptions_of_construct
from podium.procedural.generate import GeneratedBank, generate, write_bank
from podium.procedural.items import DrawnItem, draw_item, worked_solution

__all__ = [
    "DrawnItem",
    "GeneratedBank",
    "Misconception",
    "catalogue",
    "draw_item",
    "generate",
    "misconceptions_of_construct",
    "worked_solution",
    "write_bank",
]
