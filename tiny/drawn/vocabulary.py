"""The words images are named with: colors, shapes, textures, places, and words given to invented things.

`CLASSES` is everything a drawn image can be called, in a fixed order: the auxiliary head of pretraining counts on it.
"""

from __future__ import annotations

from tiny.drawn.silhouettes import THINGS
from tiny.drawn.strokes import VARIANTS

SHAPES = (
    "circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart", "arrow", "moon", "rectangle",
    "hexagon",
)  # fmt: skip
TEXTURES = ("stripes", "checks", "dots", "waves", "rings", "bricks", "noise", "clouds", "grid", "gradient")
PLACES = ("sky", "sea", "road", "grass", "forest", "home", "plain", "sand", "snow", "night")
DIGITS = tuple("0123456789")
# Without letters that, filling the image, are indistinguishable from a digit or from their capital.
LETTERS = tuple(letter for letter in VARIANTS if letter.isalpha() and letter not in ("I",))

# Each word stands for one invented look (shape, palette, texture, place): so that many ordinary words are answers.
INVENTED = (
    "anchor", "ant", "arm", "bag", "basket", "bat", "beach", "bear", "beaver", "bed", "bee", "beetle", "bell",
    "belt", "book", "bowl", "box", "boy", "bread", "brick", "brush", "bucket", "camel", "camera", "can",
    "candle", "carpet", "carrot", "cave", "chain", "cheese", "church", "city", "cloud", "coat", "coin",
    "comb", "corn", "couch", "crab", "crown", "curtain", "desert", "desk", "dolphin", "door", "dragon",
    "dress", "drum", "duck", "eagle", "egg", "engine", "eye", "farm", "fence", "field", "fire", "flag",
    "foot", "fork", "fox", "garden", "gate", "girl", "glass", "glove", "goat", "grape", "hammer", "hand",
    "helmet", "hill", "honey", "ice", "island", "jacket", "kettle", "king", "kite", "knife", "ladder", "lake",
    "leaf", "lemon", "lion", "lizard", "man", "map", "mask", "meat", "milk", "mirror", "monkey", "motorcycle",
    "mountain", "mouth", "nail", "neck", "needle", "nest", "nose", "nut", "ocean", "oil", "orchid", "otter",
    "owl", "paint", "palm", "paper", "pear", "pen", "pencil", "pepper", "piano", "pig", "pillow", "pipe",
    "pizza", "plane", "plate", "pot", "potato", "queen", "rain", "rice", "river", "robot", "rock", "roof",
    "rope", "rose", "sail", "salt", "school", "screw", "seal", "shark", "shelf", "shell", "shop", "sink",
    "skirt", "smoke", "soap", "sock", "soup", "spoon", "squirrel", "station", "stone", "stove", "street",
    "sun", "swan", "sweater", "sword", "tank", "tea", "telephone", "tent", "tiger", "toast", "tomato",
    "tooth", "towel", "tractor", "trumpet", "tulip", "turtle", "van", "vase", "violin", "volcano", "wall",
    "watch", "water", "whale", "wheel", "window", "wolf", "woman", "wood", "worm", "zebra",
)  # fmt: skip

CLASSES: tuple[str, ...] = (*DIGITS, *LETTERS, *SHAPES, *TEXTURES, *THINGS, *INVENTED)
