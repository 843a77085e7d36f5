"""Words that households draw their names and habits from. Names here are made up; none belongs to a
person.

Knows plain lists. Knows nothing of templates.
Always: a device name stands under one domain only, so that a name never means two kinds of thing.
"""

FLOORS = ("ground floor", "first floor", "second floor", "top floor", "basement", "attic")

AREAS = (
    "kitchen",
    "living room",
    "bedroom",
    "bathroom",
    "hallway",
    "office",
    "garage",
    "garden",
    "dining room",
    "nursery",
    "guest room",
    "laundry room",
    "study",
    "library",
    "den",
    "pantry",
    "workshop",
    "conservatory",
    "playroom",
    "music room",
    "utility room",
    "porch",
    "balcony",
    "terrace",
    "snug",
    "games room",
    "sewing room",
    "wine cellar",
    "loft",
    "sunroom",
)

# Domain → (device name, device class or ""). The class says what a cover or a sensor is.
DEVICES: dict[str, tuple[tuple[str, str], ...]] = {
    "light": tuple(
        (name, "")
        for name in (
            "ceiling lamp",
            "reading lamp",
            "floor lamp",
            "desk lamp",
            "chandelier",
            "night light",
            "wall light",
            "spotlight",
            "fairy lights",
            "lantern",
            "bedside lamp",
            "mirror light",
            "pendant",
            "uplighter",
            "mood light",
            "string lights",
            "worktop light",
            "picture light",
            "globe lamp",
            "lava lamp",
            "sconce",
            "banker lamp",
            "orb",
            "candelabra",
        )
    ),
    "switch": tuple(
        (name, "")
        for name in (
            "coffee machine",
            "kettle",
            "dehumidifier",
            "aquarium pump",
            "toaster",
            "space heater",
            "electric blanket",
            "printer",
            "fountain",
            "christmas tree",
            "slow cooker",
            "towel warmer",
            "rice cooker",
            "game console",
            "air purifier",
            "iron",
        )
    ),
    "fan": tuple(
        (name, "")
        for name in (
            "ceiling fan",
            "desk fan",
            "tower fan",
            "box fan",
            "extractor",
            "breeze",
            "ventilator",
            "pedestal fan",
            "whirlwind",
        )
    ),
    "cover": (
        ("roller blind", "blind"),
        ("velvet curtain", "curtain"),
        ("awning", "awning"),
        ("garage door", "garage"),
        ("driveway gate", "gate"),
        ("bamboo shade", "shade"),
        ("storm shutter", "shutter"),
        ("skylight", "window"),
        ("venetian blind", "blind"),
        ("lace curtain", "curtain"),
        ("patio door", "door"),
        ("pleated shade", "shade"),
        ("side gate", "gate"),
        ("oak shutter", "shutter"),
        ("roof window", "window"),
        ("linen curtain", "curtain"),
    ),
    "media_player": tuple(
        (name, "")
        for name in (
            "tv",
            "stereo",
            "soundbar",
            "record player",
            "radio",
            "projector",
            "jukebox",
            "boombox",
            "gramophone",
            "hi-fi",
            "big screen",
            "speaker",
            "media centre",
            "turntable",
        )
    ),
    "climate": tuple(
        (name, "")
        for name in (
            "thermostat",
            "heat pump",
            "air conditioner",
            "radiator",
            "underfloor heating",
            "fireplace",
            "stove",
            "boiler",
        )
    ),
    "lock": tuple(
        (name, "")
        for name in (
            "front door",
            "back door",
            "cellar door",
            "shed door",
            "garden gate",
            "side entrance",
            "mailbox",
            "bike shed",
        )
    ),
    "valve": tuple(
        (name, "")
        for name in (
            "water main",
            "sprinkler",
            "gas valve",
            "drip line",
            "pool valve",
            "rain barrel",
        )
    ),
    "vacuum": tuple(
        (name, "")
        for name in (
            "robbie",
            "dusty",
            "crumbs",
            "hoover",
            "sir sucks",
            "sweeper",
            "bubbles",
            "mopsy",
        )
    ),
    "lawn_mower": tuple(
        (name, "") for name in ("clipper", "goat", "mowgli", "meadow", "bertha", "grazer")
    ),
    "binary_sensor": (
        ("kitchen window", "window"),
        ("pantry door", "door"),
        ("attic hatch", "opening"),
        ("hall motion", "motion"),
        ("parking spot", "occupancy"),
        ("medicine cabinet", "door"),
        ("balcony door", "door"),
        ("sofa", "occupancy"),
        ("cat flap", "opening"),
        ("stairs", "motion"),
        ("letter box", "opening"),
        ("guest bed", "occupancy"),
    ),
    "sensor": tuple(
        (name, "")
        for name in ("outdoor humidity", "power meter", "rain gauge", "freezer temperature")
    ),
    "scene": tuple(
        (name, "")
        for name in (
            "movie night",
            "good morning",
            "dinner party",
            "cosy evening",
            "party mode",
            "bedtime story",
            "yoga hour",
            "romantic",
        )
    ),
    "script": tuple(
        (name, "")
        for name in ("leaving home", "wake up call", "vacation mode", "panic", "coffee routine")
    ),
    "button": tuple(
        (name, "") for name in ("doorbell", "reset router", "feeder", "elevator", "photo booth")
    ),
    "input_boolean": tuple(
        (name, "")
        for name in ("guest mode", "quiet hours", "alarm bell", "sleep tracking", "pet mode")
    ),
}

# Domain → fewest and most devices of a household.
COUNTS = {
    "light": (4, 6),
    "switch": (2, 3),
    "fan": (1, 2),
    "cover": (2, 4),
    "media_player": (2, 3),
    "climate": (1, 2),
    "lock": (1, 2),
    "valve": (0, 1),
    "vacuum": (0, 1),
    "lawn_mower": (0, 1),
    "binary_sensor": (1, 3),
    "sensor": (0, 1),
    "scene": (1, 2),
    "script": (0, 1),
    "button": (0, 1),
    "input_boolean": (0, 1),
}

LISTS = (
    "groceries",
    "chores",
    "weekend",
    "hardware store",
    "packing",
    "birthday",
    "homework",
    "camping",
    "garden tasks",
    "books",
    "pharmacy",
    "repairs",
    "party",
    "bucket",
)

# Free text that templates leave open; each household uses some of it.
FREE_TEXT: dict[str, tuple[str, ...]] = {
    "shopping_list_item": (
        "milk",
        "eggs",
        "bread",
        "butter",
        "oat milk",
        "bananas",
        "rice",
        "olive oil",
        "coffee beans",
        "cheddar",
        "tomatoes",
        "spinach",
        "dog food",
        "toilet paper",
        "batteries",
        "yoghurt",
        "green tea",
        "chickpeas",
        "salmon",
        "honey",
        "flour",
        "garlic",
        "lemons",
        "soap",
        "noodles",
        "apples",
        "mustard",
        "almonds",
        "carrots",
        "cat litter",
    ),
    "todo_list_item": (
        "call the plumber",
        "water the plants",
        "sweep the porch",
        "buy stamps",
        "fix the bike",
        "wash the car",
        "pay the rent",
        "clean the oven",
        "book a table",
        "return the ladder",
        "light bulbs",
        "tent pegs",
        "sunscreen",
        "screws",
        "paint",
        "mow the verge",
        "feed the fish",
        "renew the passport",
        "wrap the presents",
        "charge the drill",
    ),
    "timer_name": (
        "pasta",
        "pizza",
        "tea",
        "laundry",
        "nap",
        "eggs",
        "cookies",
        "workout",
        "bread",
        "homework",
        "rice",
        "chicken",
        "meditation",
        "sauna",
        "compost",
        "parking",
    ),
    "search_query": (
        "jazz",
        "the beatles",
        "classical piano",
        "nina simone",
        "rock anthems",
        "whale sounds",
        "bach",
        "summer hits",
        "miles davis",
        "lullabies",
        "bossa nova",
        "abba",
        "rain sounds",
        "johnny cash",
        "techno",
        "vivaldi",
        "blues",
        "mozart",
        "folk songs",
        "ella fitzgerald",
    ),
    "message": (
        "dinner is ready",
        "time for school",
        "the bus leaves soon",
        "we are going out",
        "breakfast is served",
        "the parcel is here",
        "lights out",
        "come downstairs",
        "grandma is here",
        "the match starts now",
        "bath time",
        "please be quiet",
    ),
    "zone": ("home", "work", "school", "the gym"),
}

# Numbers that people say. The package's ranges are wider (a room at 87.5 degrees).
PERCENT = tuple(range(5, 101, 5))
NUMBERS: dict[str, tuple[float, ...]] = {
    "brightness": PERCENT,
    "fan_speed": PERCENT,
    "position": PERCENT,
    "volume": PERCENT,
    "volume_step_up": (5, 10, 15, 20, 25, 30),
    "volume_step_down": (5, 10, 15, 20, 25, 30),
    "temperature": (16, 17, 17.5, 18, 18.5, 19, 19.5, 20, 20.5, 21, 21.5, 22, 22.5, 23, 24, 25),
    "color_temperature": tuple(range(2000, 6600, 100)),
    "timer_seconds": (5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 75, 90),
    "timer_minutes": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 18, 20, 25, 30, 35, 40, 45, 50, 55),
    "timer_hours": (1, 2, 3, 4, 5, 6, 8, 10, 12, 24),
}

# How often an intent is wanted in an average home; each household's own share is drawn around this.
POPULARITY = {
    "HassTurnOn": 6.0,
    "HassTurnOff": 6.0,
    "HassLightSet": 4.0,
    "HassGetState": 4.0,
    "HassStartTimer": 3.0,
    "HassSetPosition": 2.0,
    "HassClimateSetTemperature": 2.0,
    "HassMediaSearchAndPlay": 2.0,
    "HassShoppingListAddItem": 2.0,
    "HassListAddItem": 2.0,
    "HassSetVolume": 2.0,
    "HassCancelTimer": 1.5,
    "HassVacuumStart": 1.0,
    "HassNevermind": 0.3,
    "HassRespond": 0.3,
}
USUAL = 1.0
