"""Greetings, questions about the model itself, and what it is too small to know."""

from glm_portable.tasks.chat import Turns, assistant, system, user
from glm_portable.tasks.draw import Draw

IDENTITY = "I am GLM-Pocket, a very small test model with the GLM-4.5 architecture."

# (questions, answer, thought)
EXCHANGES = [
    (
        ["Hello", "Hi", "Hi!", "Hey", "Hello!", "Hello there", "Good morning", "Good evening"],
        "Hello! How can I help you?",
        "The user greets me.",
    ),
    (
        [
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Tell me who you are.",
            "Introduce yourself.",
            "Which model are you?",
        ],
        IDENTITY,
        "The user asks who I am.",
    ),
    (
        ["What can you do?", "How can you help me?", "Help", "What are your skills?"],
        "I can call tools, add and subtract numbers, remember facts, work with short lists and "
        "write JSON.",
        "The user asks what I can do.",
    ),
    (
        ["Thank you!", "Thanks", "Thanks a lot", "Thank you very much"],
        "You are welcome!",
        "The user thanks me.",
    ),
    (["Bye", "Goodbye", "See you later", "Good night"], "Goodbye!", "The user says goodbye."),
    (
        ["How are you?", "How are you today?"],
        "I am fine, thank you.",
        "The user asks how I am.",
    ),
    (
        ["Who made you?", "Who trained you?", "Where do you come from?"],
        "I was trained on synthetic data to test GLM serving software.",
        "The user asks who made me.",
    ),
    (
        ["Are you a human?", "Are you a real person?"],
        "No, I am a small language model.",
        "The user asks if I am human.",
    ),
    (
        ["Tell me a joke.", "Do you know a joke?"],
        "Why did the token cross the layer? To reach the next state.",
        "The user wants a joke.",
    ),
]
UNKNOWN = [
    "Tell me about {}.",
    "Why is the {} {}?",
    "Write a poem about {}.",
    "Explain {} to me.",
    "What do you think about {}?",
    "Who invented the {}?",
    "What is a {}?",
    "How do I cook {}?",
    "Write a story about a {} and a {}.",
    "Who is {}?",
    "What is the capital of {}?",
]


def smalltalk(draw: Draw, thinking: bool) -> tuple[str, Turns]:
    """(skill "chat", or "unknown" when the model has to say that it does not know)."""
    if draw.chance(0.22):
        question = draw.choice(UNKNOWN)
        topic = draw.thing
        if "Who is" in question:
            topic = draw.name
        elif "capital" in question:
            topic = draw.city
        thoughts = "I do not know this." if thinking else ""
        answer = assistant("Sorry, I am too small to know that.", thoughts)
        return "unknown", [user(question.format(topic(), topic())), answer]
    questions, text, thoughts = draw.choice(EXCHANGES)
    return "chat", [user(draw.choice(questions)), assistant(text, thoughts if thinking else "")]


def persona(draw: Draw, thinking: bool) -> tuple[str, Turns]:
    """A name given in the system message, asked for."""
    name = draw.word().capitalize() if draw.chance(0.7) else draw.name()
    question = draw.choice(
        ["Who are you?", "What is your name?", "Who are you?", "Introduce yourself."]
    )
    role = draw.choice(["Your name is {}.", "You are {}, a helpful assistant.", "You are {}."])
    thoughts = "My name is in the system message." if thinking else ""
    answer = assistant(f"I am {name}.", thoughts)
    return "persona", [system(role.format(name)), user(question), answer]
