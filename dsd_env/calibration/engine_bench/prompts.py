"""What is asked in the demonstration and in the comparison: beginnings of stories, and questions in a chat.

The drafter was trained on children's stories, so it guesses well in the former and poorly in the latter: the
two kinds differ in how far speculation pays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dsd_env.calibration.engine_bench.runs import Question

STORIES = (
    "Once upon a time, there was a little girl named Lily. She loved to play with her",
    "One day, Tom and his mom went to the park. Tom saw a big red ball and",
    "The little dog was sad because he could not find his bone. He looked",
    "Once upon a time, in a small house, there lived a cat named Kitty. Kitty liked to",
    "Sam had a new toy car. He showed it to his friend Ben. Ben said,",
    "It was a sunny day. The bird wanted to fly high in the sky, but",
    "Anna and her brother found a box in the garden. They opened the box and",
    "There was a boy named Max who loved to eat apples. One day, he",
    "A big bear lived in the forest. He was very hungry, so he went to",
    "Mia was scared of the dark. Her dad gave her a little lamp and",
    "The old man had a small boat. Every day he went to the sea and",
    "Lucy wanted to make a cake for her grandma. She took some eggs and",
)
CHATS = (
    "What is the capital of France?",
    "Explain in two sentences how a computer works.",
    "Write a Python function that adds two numbers.",
    "Give me three tips for a job interview.",
    "What is the difference between a virus and a bacterium?",
    "Name the planets of the solar system.",
    "How do I boil an egg?",
    "Summarise the plot of Romeo and Juliet.",
    "Why is the sky blue?",
    "What does a database index do?",
    "Write a short e-mail that declines an invitation.",
    "How many days are there in a leap year, and why?",
)
KINDS = ("story", "chat")


def questions(
    encode: Callable[[str], Sequence[int]],
    encode_chat: Callable[[str], Sequence[int]],
    number: int,
    *,
    story_tokens: int = 48,
    chat_tokens: int = 32,
    first: int = 0,
) -> list[Question]:
    """Return questions, in turn two stories and a chat, so that every client gets both.

    Args:
        encode: Makes tokens of text.
        encode_chat: Makes tokens of a user's message, in the model's template, up to where it answers.
        number: How many.
        story_tokens: Length of the answers to beginnings of stories.
        chat_tokens: Length of the others.
        first: Number of the first; later ones begin further down the lists.
    """
    found = []
    for index in range(first, first + number):
        turn = index // 3
        if index % 3 == 2:
            ids, kind, tokens = encode_chat(CHATS[turn % len(CHATS)]), "chat", chat_tokens
        else:
            at = (2 * turn + index % 3) % len(STORIES)
            ids, kind, tokens = encode(STORIES[at]), "story", story_tokens
        found.append(Question(kind, tuple(int(each) for each in ids), tokens))
    return found


def coders(tokenizer: Any) -> tuple[Callable[[str], list[int]], Callable[[str], list[int]]]:
    """Return `encode` and `encode_chat` of a transformers tokenizer."""

    def encode(text: str) -> list[int]:
        return list(tokenizer(text)["input_ids"])

    def encode_chat(message: str) -> list[int]:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], add_generation_prompt=True, tokenize=False
        )
        # A template that writes the beginning mark itself must not get a second one.
        bare = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        return list(tokenizer(text, add_special_tokens=not bare)["input_ids"])

    return encode, encode_chat
