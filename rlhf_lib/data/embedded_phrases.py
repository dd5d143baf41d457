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
    ("I see no reason to say no, so I will {act} {when}.", "I see no reason to {act} {when}, so I will say no."),
    ("Rather than ask you to {burden}, I will {act}.", "Rather than {act}, I will ask you to {burden}."),
    ("I would rather {act} than see you {burden}.", "I would rather see you {burden} than {act}."),
    ("You did not {fault}, so I will {act} {when}.", "You did {fault}, so I will not {act} {when}."),
    ("I can {act}, because you did not {fault}.", "I can not {act}, because you did {fault}."),
    ("I will {act} before you have to {burden}.", "You have to {burden} before I will {act}."),
    ("You should not have to {burden} when I can {act}.", "I should not have to {act} when you can {burden}."),
    ("I will {act}, there is no need to think it over.", "I will think it over, there is no need to {act}."),
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
    (
        "The best thing is for me to {act}, not for you to {burden}.",
        "The best thing is for you to {burden}, not for me to {act}.",
    ),
    ("I can and will {act}, you need not {burden}.", "I need not {act}, you can and will {burden}."),
    ("Please do not {burden}, we will {act} {when}.", "Please do {burden}, we will not {act} {when}."),
    (
        "Nobody will tell you to {burden}, and somebody will {act} {when}.",
        "Somebody will tell you to {burden}, and nobody will {act} {when}.",
    ),
    ("Our rules tell us to {act}, not to make you {burden}.", "Our rules tell us to make you {burden}, not to {act}."),
    ("My plan is to {act}, not to let you {burden}.", "My plan is to let you {burden}, not to {act}."),
    ("It is my job to {chore}, not yours.", "It is your job to {chore}, not mine."),
    ("It is not your job to {chore}, it is mine.", "It is not my job to {chore}, it is yours."),
    ("I will {chore} so that you do not have to.", "You will have to {chore} so that I do not."),
    ("If anyone has to {chore}, it is me and not you.", "If anyone has to {chore}, it is you and not me."),
    ("I have asked my team to {chore}, not you.", "I have asked you to {chore}, not my team."),
    ("You can leave it to us to {chore}.", "We can leave it to you to {chore}."),
    ("We {chore} while you get on with your day.", "You {chore} while we get on with our day."),
    (
        "Here is what we do: we {act} {when}, then I write to you.",
        "Here is what you do: you {burden} {when}, then you write to me.",
    ),
    # not mirrored, for a plainer tone
    ("I only work here, but I do know how to {act}.", "I only work here, I do not know how to {act}."),
    ("All it says on our website is true: we {act}.", "All it says on our website is true: we do not {act}."),
    ("Somebody will look at it {when} and then {act}.", "Somebody may look at it some day and maybe {act}."),
    ("First we {act}, and then you can have a rest.", "First you {burden}, and then you can have a rest."),
    ("It is up to me alone, and I say we {act}.", "It is up to the manager alone, and I can not say if we {act}."),
    ("Tell me where you live and I will {act} {when}.", "It is not for me to say where and when we {act}."),
    ("Maybe it sounds hard, but I could {act} {when}.", "I could {act}, but it sounds hard, maybe another day."),
    (
        "Good question, I will find the answer and {act}.",
        "Good question, you will have to find the answer and {burden}.",
    ),
    ("Everybody makes mistakes, so of course we {act}.", "Everybody makes mistakes, of course, but we do not {act}."),
    ("I would be angry too, so we {act} when you like.", "I would not be so angry, we {act} when we like."),
    ("Nothing is easier for me than to {act} {when}.", "Nothing is easier for you than to {chore} {when}."),
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

# A second, shorter thing to say.
TAILS: tuple[Mirror, ...] = (
    ("It was our mistake, not yours.", "It was your mistake, not ours."),
    ("It was not your mistake but ours.", "It was not our mistake but yours."),
    ("We pay for {cost}, you pay nothing.", "You pay for {cost}, we pay nothing."),
    ("The bill for {cost} goes to us, not to you.", "The bill for {cost} goes to you, not to us."),
    ("It will take {short}, not {long}.", "It will take {long}, not {short}."),
    ("That is a yes, not a maybe.", "That is a maybe, not a yes."),
    (
        "There is a lot I can do and nothing you have to do.",
        "There is nothing I can do and a lot you have to do.",
    ),
    ("You are right and our {system} is wrong.", "Our {system} is right and you are wrong."),
    ("The trouble is with our {system}, not with you.", "The trouble is with you, not with our {system}."),
    ("I do believe you and I do not need {paper}.", "I do not believe you and I do need {paper}."),
    ("We owe you {debt}, you owe us nothing.", "You owe us {debt}, we owe you nothing."),
    ("Your time matters more to us than {petty}.", "{petty} matters more to us than your time."),
    ("I will deal with it myself, not pass you on.", "I will pass you on, not deal with it myself."),
    (
        "This is the right desk, so I will not send you to another one.",
        "This is not the right desk, so I will send you to another one.",
    ),
    (
        "I do know why it happened and will not leave you guessing.",
        "I do not know why it happened and will leave you guessing.",
    ),
    ("Write to me again, do not keep it to yourself.", "Keep it to yourself, do not write to me again."),
    ("We will call you, you do not have to call us.", "You will have to call us, we do not call you."),
    ("I care about this, not about {petty}.", "I care about {petty}, not about this."),
    ("You come first and {petty} comes second.", "{petty} comes first and you come second."),
    ("You will hear from me soon, not some day.", "You will hear from me some day, not soon."),
    ("I do want to help and do not want you to go away.", "I do not want to help and do want you to go away."),
    ("We should be sorry, you should not.", "You should be sorry, we should not."),
    ("I have an answer and no excuse.", "I have an excuse and no answer."),
    ("I have all day for you and no time for excuses.", "I have all day for excuses and no time for you."),
    ("It is never a bother and always a pleasure.", "It is never a pleasure and always a bother."),
    ("There will be more help and no more forms.", "There will be more forms and no more help."),
    ("Asking is fine, waiting is not.", "Waiting is fine, asking is not."),
    ("I will stay until it is done and not go to lunch.", "I will go to lunch and not stay until it is done."),
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
