"""A round to try the pages with: prompts of the embedded data, their answers, and answers to other prompts."""

from __future__ import annotations

from rlhf_lib.data import embedded
from rlhf_lib.data.rankings.files import task_id
from tasks.annotation.store import NewTask

PROMPTS = 24
CRITERION = "helpful"
INSTRUCTIONS = (
    "A customer writes to a shop. Rank the answers by how **helpful** they are:\n\n"
    "- Does the answer do what the customer asks for, about the thing that the customer named?\n"
    "- Does it spare the customer work and cost?\n\n"
    "Answers that help equally share a rank."
)


def tasks() -> list[NewTask]:
    """Tasks with four answers and with two, by turns."""
    rows = embedded.load(f"test[:{PROMPTS}]")
    pairs = []
    for chosen, rejected in zip(rows["chosen"], rows["rejected"], strict=True):
        at = chosen.rindex(embedded.ASSISTANT) + len(embedded.ASSISTANT)
        pairs.append((chosen[:at], chosen[at:].strip(), rejected[at:].strip()))
    made = []
    for place, (prompt, better, worse) in enumerate(pairs):
        answers = {better: "chosen", worse: "rejected"}
        if place % 2 == 0:
            _, *others = pairs[(place + 1) % PROMPTS]
            answers |= {text: "of another prompt" for text in others if text not in answers}
        keys = [chr(ord("a") + number) for number in range(len(answers))]
        made.append(
            NewTask(
                id=task_id(prompt, list(answers), CRITERION),
                prompt=prompt,
                responses=dict(zip(keys, answers, strict=True)),
                criterion=CRITERION,
                instructions=INSTRUCTIONS,
                models=dict(zip(keys, answers.values(), strict=True)),
            )
        )
    return made
