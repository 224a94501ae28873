"""Declared tools of everyday kinds, with the sentences that ask for them.

Those of `test` never appear in training, though they are shaped like their neighbours there.
"""

from dataclasses import dataclass

# What a parameter's value is drawn from: a kind of word ("city", "name", "thing", "phone",
# "symbol"), a range of numbers, a list of options, or None for true and false.
Source = str | tuple[int, int] | list[str] | None


@dataclass(frozen=True)
class Everyday:
    """A tool and its use.

    parameters: name -> (JSON type, source). requests: (sentence, the parameters that it fills).
    result: what the tool returns, as a range or a list of options for each field. answer: the
    sentence made of the arguments and the result.
    """

    name: str
    description: str
    parameters: dict[str, tuple[str, Source]]
    required: list[str]
    requests: list[tuple[str, list[str]]]
    result: dict[str, tuple[int, int] | list[str]]
    answer: str


TRAIN = [
    Everyday(
        "get_weather",
        "Get the weather for a city.",
        {"city": ("string", "city"), "unit": ("string", ["celsius", "fahrenheit"])},
        ["city"],
        [
            ("What is the weather in {city}?", ["city"]),
            ("How is the weather in {city} today?", ["city"]),
            ("Weather in {city} in {unit}, please.", ["city", "unit"]),
            ("Tell me the weather in {city} in {unit}.", ["city", "unit"]),
        ],
        {"temp": (1, 39), "sky": ["sunny", "rainy", "cloudy", "windy"]},
        "In {city} it is {sky} with {temp} degrees.",
    ),
    Everyday(
        "get_time",
        "Get the local time of a city.",
        {"city": ("string", "city")},
        ["city"],
        [("What time is it in {city}?", ["city"]), ("Tell me the time in {city}.", ["city"])],
        {"hour": (1, 23), "minute": (10, 59)},
        "It is {hour}:{minute} in {city}.",
    ),
    Everyday(
        "send_email",
        "Send an email.",
        {"to": ("string", "name"), "subject": ("string", "thing")},
        ["to", "subject"],
        [
            ("Send an email to {to} about {subject}.", ["to", "subject"]),
            ("Email {to} with subject {subject}.", ["to", "subject"]),
        ],
        {"status": ["sent", "queued"]},
        "The email to {to} is {status}.",
    ),
    Everyday(
        "set_alarm",
        "Set an alarm.",
        {"hour": ("integer", (1, 23)), "label": ("string", "thing")},
        ["hour"],
        [
            ("Set an alarm for {hour}.", ["hour"]),
            ("Wake me at {hour} for {label}.", ["hour", "label"]),
        ],
        {"status": ["set", "active"]},
        "The alarm for {hour} is {status}.",
    ),
    Everyday(
        "convert_currency",
        "Convert money.",
        {
            "amount": ("number", (2, 99)),
            "source": ("string", ["USD", "EUR", "GBP", "JPY"]),
            "target": ("string", ["CNY", "CHF", "SEK", "INR"]),
        },
        ["amount", "source", "target"],
        [
            ("Convert {amount} {source} to {target}.", ["amount", "source", "target"]),
            ("How much is {amount} {source} in {target}?", ["amount", "source", "target"]),
        ],
        {"result": (10, 999)},
        "{amount} {source} is {result} {target}.",
    ),
    Everyday(
        "book_hotel",
        "Book a hotel room.",
        {
            "city": ("string", "city"),
            "nights": ("integer", (1, 14)),
            "breakfast": ("boolean", None),
        },
        ["city", "nights"],
        [
            ("Book a hotel in {city} for {nights} nights.", ["city", "nights"]),
            (
                "I need a hotel in {city} for {nights} nights, breakfast {breakfast}.",
                ["city", "nights", "breakfast"],
            ),
        ],
        {"booking": (1000, 9999)},
        "Your hotel in {city} is booked, number {booking}.",
    ),
    Everyday(
        "search_books",
        "Search for books.",
        {"author": ("string", "name"), "limit": ("integer", (1, 20))},
        ["author"],
        [
            ("Find books by {author}.", ["author"]),
            ("Search {limit} books by {author}.", ["limit", "author"]),
        ],
        {"found": (1, 99)},
        "I found {found} books by {author}.",
    ),
    Everyday(
        "order_pizza",
        "Order a pizza.",
        {"size": ("string", ["small", "medium", "large"]), "toppings": ("array", "thing")},
        ["size", "toppings"],
        [
            ("Order a {size} pizza with {toppings}.", ["size", "toppings"]),
            ("I want a {size} pizza with {toppings}.", ["size", "toppings"]),
        ],
        {"minutes": (10, 59)},
        "Your {size} pizza arrives in {minutes} minutes.",
    ),
    Everyday(
        "get_population",
        "Get the population of a city.",
        {"city": ("string", "city")},
        ["city"],
        [("How many people live in {city}?", ["city"]), ("Population of {city}?", ["city"])],
        {"people": (1000, 9999)},
        "{city} has {people} people.",
    ),
    Everyday(
        "play_song",
        "Play a song.",
        {"title": ("string", "thing"), "volume": ("integer", (1, 10))},
        ["title"],
        [
            ("Play the song {title}.", ["title"]),
            ("Play {title} at volume {volume}.", ["title", "volume"]),
        ],
        {"status": ["playing"]},
        "Now playing {title}.",
    ),
    Everyday(
        "add_contact",
        "Add a contact.",
        {"name": ("string", "name"), "phone": ("string", "phone")},
        ["name", "phone"],
        [
            ("Add {name} with phone {phone} to my contacts.", ["name", "phone"]),
            ("Save the contact {name}, phone {phone}.", ["name", "phone"]),
        ],
        {"contacts": (10, 99)},
        "{name} is saved. You have {contacts} contacts.",
    ),
    Everyday(
        "book_flight",
        "Book a flight.",
        {
            "origin": ("string", "city"),
            "destination": ("string", "city"),
            "seats": ("integer", (1, 9)),
        },
        ["origin", "destination"],
        [
            ("Book a flight from {origin} to {destination}.", ["origin", "destination"]),
            (
                "I need {seats} seats on a flight from {origin} to {destination}.",
                ["seats", "origin", "destination"],
            ),
        ],
        {"price": (50, 999), "gate": (1, 40)},
        "Your flight to {destination} costs {price} and leaves from gate {gate}.",
    ),
    Everyday(
        "create_note",
        "Create a note.",
        {"text": ("string", "thing"), "tags": ("array", "thing")},
        ["text"],
        [
            ("Make a note: {text}.", ["text"]),
            ("Make a note {text} with tags {tags}.", ["text", "tags"]),
        ],
        {"id": (100, 999)},
        "Note {id} is saved.",
    ),
    Everyday(
        "set_light",
        "Control a light.",
        {"room": ("string", ["kitchen", "bedroom", "office", "hall"]), "on": ("boolean", None)},
        ["room", "on"],
        [
            ("Set the {room} light to {on}.", ["room", "on"]),
            ("The light in the {room} should be {on}.", ["room", "on"]),
        ],
        {"status": ["done"]},
        "The {room} light is set.",
    ),
    Everyday(
        "get_stock",
        "Get a stock price.",
        {"symbol": ("string", "symbol")},
        ["symbol"],
        [
            ("What is the stock price of {symbol}?", ["symbol"]),
            ("How is {symbol} doing?", ["symbol"]),
        ],
        {"price": (10, 999)},
        "{symbol} is at {price}.",
    ),
    Everyday(
        "now",
        "Get the current date.",
        {},
        [],
        [("What day is it today?", []), ("What is the date?", [])],
        {"day": (1, 28), "month": ["May", "June", "July", "March"]},
        "Today is {month} {day}.",
    ),
]

TEST = [
    Everyday(
        "get_humidity",
        "Get the humidity of a city.",
        {"city": ("string", "city"), "unit": ("string", ["percent", "grams"])},
        ["city"],
        [
            ("What is the humidity in {city}?", ["city"]),
            ("Tell me the humidity in {city} in {unit}.", ["city", "unit"]),
        ],
        {"humidity": (10, 99)},
        "In {city} it is {humidity}.",
    ),
    Everyday(
        "book_train",
        "Book a train.",
        {
            "origin": ("string", "city"),
            "destination": ("string", "city"),
            "seats": ("integer", (1, 9)),
        },
        ["origin", "destination"],
        [
            ("Book a train from {origin} to {destination}.", ["origin", "destination"]),
            (
                "I need {seats} seats on a train from {origin} to {destination}.",
                ["seats", "origin", "destination"],
            ),
        ],
        {"price": (50, 999), "gate": (1, 40)},
        "Your train to {destination} costs {price} and leaves from gate {gate}.",
    ),
    Everyday(
        "send_sms",
        "Send a text message.",
        {"to": ("string", "name"), "text": ("string", "thing")},
        ["to", "text"],
        [("Send a message to {to} about {text}.", ["to", "text"])],
        {"status": ["sent"]},
        "The message to {to} is {status}.",
    ),
    Everyday(
        "search_movies",
        "Search for movies.",
        {"director": ("string", "name"), "limit": ("integer", (1, 20))},
        ["director"],
        [
            ("Find movies by {director}.", ["director"]),
            ("Search {limit} movies by {director}.", ["limit", "director"]),
        ],
        {"found": (1, 99)},
        "I found {found} movies by {director}.",
    ),
    Everyday(
        "order_salad",
        "Order a salad.",
        {"size": ("string", ["small", "medium", "large"]), "toppings": ("array", "thing")},
        ["size", "toppings"],
        [("Order a {size} salad with {toppings}.", ["size", "toppings"])],
        {"minutes": (10, 59)},
        "Your {size} salad arrives in {minutes} minutes.",
    ),
]
