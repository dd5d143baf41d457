"""What is said in every customer-service dialogue, whatever its topic: the word material of `embedded.py`.

A mirror is a pair (helpful, unhelpful) made of the same words in another order, or nearly so, such that a bag of words
can't tell its two sides apart. Where a swap changes a word (my/mine), a second mirror swaps it the other way round.
Slots: {item} {act} {burden} {chore} {fault} {cost} come from the topic, the others from FILLERS.
"""

from dataclasses import dataclass

Mirror = tuple[str, str]


@dataclass(frozen=True)
class Topic:
    """What a customer writes about. Phrases are bare ("send a new kettle"), so that they fit behind will, can and to.

    {item} is the thing in question, known as `vague` as long as the assistant hasn't asked `which`.
    """

    vague: str
    which: str
    items: tuple[str, ...]
    problems: tuple[str, ...]
    asks: tuple[str, ...]
    acts: tuple[str, ...]  # what we do for the customer
    chores: tuple[str, ...]  # what either of us could do
    burdens: tuple[str, ...]  # what the customer would rather not do; chores come on top
    faults: tuple[str, ...]  # what the customer may be blamed for
    costs: tuple[str, ...]
    facts: tuple[Mirror, ...]  # answers that fit this topic alone


# The answer proper. An unhelpful side refuses, loads the work on the customer, deflects, evades or blames.
CORES: tuple[Mirror, ...] = (
    (
        "I will {act} {when}{so} you will not have to {burden}.",
        "I will not {act} {when}{so} you will have to {burden}.",
    ),
    ("You do not have to {burden}. I can {act} {when}.", "You do have to {burden}. I can not {act} {when}."),
    ("We do not expect you to {burden}, we will {act}.", "We do expect you to {burden}, we will not {act}."),
    ("We always {act} and we never ask you to {burden}.", "We always ask you to {burden} and we never {act}."),
    (
        "I am happy to {act}, and I am not going to ask you to {burden}.",
        "I am not happy to {act}, and I am going to ask you to {burden}.",
    ),
    ("You did not {fault}, so I will {act} {when}.", "You did {fault}, so I will not {act} {when}."),
    ("I can {act}, because you did not {fault}.", "I can not {act}, because you did {fault}."),
    ("We do {act} here, you will not need another office.", "We do not {act} here, you will need another office."),
    (
        "That rule does not apply to your {item}, so I can {act}.",
        "That rule does apply to your {item}, so I can not {act}.",
    ),
    ("We do not need {paper}, so I can {act} {when}.", "We do need {paper}, so I can not {act} {when}."),
    ("Yes, I can {act}, and no, we will not charge you.", "No, I can not {act}, and yes, we will charge you."),
    ("It is not too late, so it is possible to {act}.", "It is too late, so it is not possible to {act}."),
    (
        "There is every reason to {act} and no reason for you to {burden}.",
        "There is no reason to {act} and every reason for you to {burden}.",
    ),
    ("I can and will {act}, you need not {burden}.", "I need not {act}, you can and will {burden}."),
    ("Please do not {burden}, we will {act} {when}.", "Please do {burden}, we will not {act} {when}."),
    ("It is my job to {chore}, not yours.", "It is your job to {chore}, not mine."),
    ("It is not your job to {chore}, it is mine.", "It is not my job to {chore}, it is yours."),
    ("I will {chore} so that you do not have to.", "You will have to {chore} so that I do not."),
    ("You can leave it to us to {chore}.", "We can leave it to you to {chore}."),
    ("We {chore} while you get on with your day.", "You {chore} while we get on with our day."),
    (
        "Here is what we do: we {act} {when}, then I write to you.",
        "Here is what you do: you {burden} {when}, then you write to me.",
    ),
    # not mirrored, for a plainer tone
    ("I only work here, but I do know how to {act}.", "I only work here, I do not know how to {act}."),
    ("All it says on our website is true: we {act}.", "All it says on our website is true: we do not {act}."),
    (
        "Somebody will {act} {when} and nobody will make you {burden}.",
        "Nobody will {act} {when} and somebody will make you {burden}.",
    ),
    ("First we {act}, and then you can have a rest.", "First you {burden}, and then you can have a rest."),
    ("It is up to me alone, and I say that we {act}.", "It is up to me alone, and I say that we do not {act}."),
    (
        "Good question, I will find the answer and {act}.",
        "Good question, you will have to find the answer and {burden}.",
    ),
    ("Everybody makes mistakes, so of course we {act}.", "Everybody makes mistakes, of course, but we do not {act}."),
)

# Better than a refusal, worse than help.
HALF_MEASURES: tuple[str, ...] = (
    "I will {act} {when}, but you will have to {burden} first.",
    "I will not {act} {when}, but you will not have to {burden}.",
    "I can {act}, if you can {burden}.",
    "I can not {act}, but I will {chore}.",
    "We do {act}, but we do expect you to {burden}.",
    "We never {act}, but we can {chore}.",
    "I see no way to {act}, so I will {chore} instead.",
    "If you {chore}, I will {act} {when}.",
    "It is possible to {act}, but not before you {burden}.",
    "I will ask my team to {act}, but I can not say when.",
    "You need not {burden}, but I need more time to {act}.",
    "Please {chore}, and then we will {act}.",
)

# No answer at all: before and after it could come one of OPENERS and CLOSINGS, as around any answer.
EVASIONS: tuple[str, ...] = (
    "",
    "Let me see.",
    "Anything else?",
    "Is that all?",
    "We will see.",
    "It depends.",
    "Sure.",
)

# A second, shorter thing to say.
TAILS: tuple[Mirror, ...] = (
    ("It was our mistake, not yours.", "It was your mistake, not ours."),
    ("It was not your mistake but ours.", "It was not our mistake but yours."),
    ("We pay for {cost}, you pay nothing.", "You pay for {cost}, we pay nothing."),
    ("The bill for {cost} goes to us, not to you.", "The bill for {cost} goes to you, not to us."),
    ("That is a yes, not a maybe.", "That is a maybe, not a yes."),
    (
        "There is a lot I can do and nothing you have to do.",
        "There is nothing I can do and a lot you have to do.",
    ),
    ("You are right and our {system} is wrong.", "Our {system} is right and you are wrong."),
    ("I do believe you and I do not need {paper}.", "I do not believe you and I do need {paper}."),
    ("We owe you {debt}, you owe us nothing.", "You owe us {debt}, we owe you nothing."),
    (
        "This is the right desk, so I will not send you to another one.",
        "This is not the right desk, so I will send you to another one.",
    ),
    (
        "I do know why it happened and will not leave you guessing.",
        "I do not know why it happened and will leave you guessing.",
    ),
    ("We will call you, you do not have to call us.", "You will have to call us, we do not call you."),
    ("You will hear from me soon, not some day.", "You will hear from me some day, not soon."),
    ("We should be sorry, you should not.", "You should be sorry, we should not."),
    ("There will be more help and no more forms.", "There will be more forms and no more help."),
)

FILLERS: dict[str, tuple[str, ...]] = {
    "when": ("today", "tomorrow", "tonight", "this week", "this morning", "this afternoon", "right now", "on Friday"),
    "so": (", so", ", and", ";"),
    "paper": ("a receipt", "a signed form", "a photo", "proof", "a witness", "your papers", "a letter"),
    "short": ("two days", "an hour", "ten minutes", "one day", "a few hours", "one evening"),
    "long": ("three weeks", "a month", "six weeks", "two months", "half a year", "all summer"),
    "system": ("computer", "system", "list", "last letter", "website", "manager"),
    "debt": ("an apology", "an explanation", "a reply", "some thanks", "a favour"),
    "petty": ("closing time", "my lunch", "the paperwork", "my coffee", "the rule book", "our budget"),
}

# Before and after the answer proper: helpful and unhelpful answers draw from the same.
OPENERS = (
    "I am sorry about the {item}.",
    "I am sorry to hear that.",
    "Thank you for writing.",
    "Thanks for telling us about the {item}.",
    "I see.",
    "I understand.",
    "I understand how you feel.",
    "Let me be clear.",
    "Right.",
    "Good morning.",
    "Hello there.",
    "I have read your message.",
    "I looked at your {item}.",
    "So this is about the {item}.",
    "Listen.",
    "Well.",
    "All right.",
    "Thank you for your patience.",
    "That must be annoying.",
    "I can see the {item} here.",
    "We get this question a lot.",
    "I will be honest.",
    "Dear customer.",
    "Okay.",
)
CLOSINGS = (
    "Have a nice day.",
    "Thank you.",
    "Goodbye.",
    "Best wishes.",
    "I hope that is clear.",
    "That is all.",
    "Take care.",
    "Is there anything else?",
    "We hope to see you again.",
    "That is how it works here.",
    "Kind regards.",
)

# The customer, in several moods: polite, angry, worried, tired, chatty, curt.
GREETINGS = (
    "Hello.",
    "Hi there.",
    "Good evening.",
    "Excuse me.",
    "Hello, I hope you can help me.",
    "Sorry to bother you.",
    "I have a small question.",
    "This is the third time I write!",
    "I am really angry.",
    "I am quite worried.",
    "I am so tired of this.",
    "Nobody answers the phone!",
    "It is urgent.",
    "My wife told me to write to you.",
    "I have been a customer for ten years.",
    "I am new here.",
    "What a mess!",
    "I do not want to complain, but listen.",
    "Maybe I did something silly.",
    "Good grief.",
)
PLEAS = (
    "Please hurry.",
    "Thank you in advance.",
    "Thanks.",
    "I do not know what to do.",
    "I am waiting.",
    "My patience is gone.",
    "I would be very grateful.",
    "I need it by Sunday.",
    "Be honest with me.",
    "Otherwise I go to another shop.",
    "Any help is welcome.",
    "I am getting nervous.",
)
ASKS = (
    "What can you do about it?",
    "Can somebody help me?",
    "What happens now?",
    "How do we solve this?",
    "What should I do?",
    "Who takes care of this?",
    "Is there anything to be done?",
    "Can you sort it out?",
)

# How the problem may be put; {problem} starts in lower case.
PREFACES = (
    "You will not believe it, but {problem}",
    "It seems that {problem}",
    "Again: {problem}",
    "The thing is, {problem}",
    "I am afraid {problem}",
    "As you know, {problem}",
    "My neighbour laughs at me, because {problem}",
    "First the rain, and now {problem}",
)

# An exchange in between: what the assistant asks, what the customer says to it.
EXCHANGES = (
    ("Since when?", ("Since Monday.", "Since last week.", "For two weeks now.", "Since this morning.")),
    ("Have you written to us before?", ("Yes, twice.", "No, never.", "Once, in May.", "Yes, and nobody replied.")),
    ("May I have your name?", ("It is Martin.", "Anna Berg.", "My name is Sara.", "It is Tom Miller.")),
    ("Thank you, we got your message.", ("That is no answer.", "And what now?", "Fine, but it does not help me.")),
    ("Please tell me more.", ("There is not much to tell.", "I told you all I know.", "It came as a surprise.")),
    ("How can we help?", ("I just told you.", "I want a clear answer.", "Please read what I wrote.")),
    ("I am here, go on.", ("Good.", "Finally, a human.", "I hope so.")),
)
