"""What customers of the embedded dialogues write about, and what can be done about it: word material of `embedded.py`.

Phrases are bare ("send a new kettle"), so that they fit behind will, can and to. {item} is the thing in question, known
to the dialogue as `vague` as long as the assistant hasn't asked `which`.
"""

from dataclasses import dataclass

from rlhf_lib.data.embedded_phrases import Mirror


@dataclass(frozen=True)
class Topic:
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


TOPICS: tuple[Topic, ...] = (
    Topic(
        "order",
        "What did you order?",
        ("kettle", "lamp", "bookcase", "tent", "mirror", "rug", "radio", "clock"),
        (
            "My {item} has not arrived.",
            "I have been waiting for my {item} for two weeks.",
            "The driver left my {item} at the wrong house.",
            "Your page says my {item} was delivered, but I have nothing.",
            "I paid for fast delivery and the {item} is still not here.",
        ),
        ("Where is it?", "When will it come?", "Can you send it again?", "Can you find it?"),
        (
            "send a new {item}",
            "find your {item}",
            "bring the {item} to your door",
            "trace the parcel",
            "send the {item} by express",
        ),
        ("call the driver", "look for the parcel", "phone the depot about the {item}"),
        ("wait at home all week", "drive to the depot", "order another {item}"),
        ("write down the wrong address", "miss the driver", "send the {item} away"),
        ("the express delivery", "the postage"),
        (
            ("Your {item} is on its way to you, not back to us.", "Your {item} is on its way back to us, not to you."),
            (
                "The {item} comes this week and the bill next month.",
                "The bill comes this week and the {item} next month.",
            ),
            ("The parcel was found, it is not lost.", "The parcel was not found, it is lost."),
        ),
    ),
    Topic(
        "purchase",
        "What did you buy?",
        ("coat", "dress", "shirt", "sweater", "hat", "skirt", "scarf", "jacket"),
        (
            "The {item} I bought is too small.",
            "I got the {item} in the wrong colour.",
            "I would like to bring back a {item} that I never wore.",
            "The {item} was a present and it does not fit.",
            "The {item} lost a button on the first day.",
        ),
        ("Can I return it?", "Can I swap it?", "Do you take it back?", "How do I get another size?"),
        (
            "take the {item} back",
            "swap the {item}",
            "send you a bigger {item}",
            "order the right colour",
            "mend the {item}",
        ),
        ("pack the {item}", "print the label", "carry it to the post office"),
        ("keep a {item} that does not fit", "queue at the counter", "buy a second {item}"),
        ("wear the {item}", "cut off the label", "choose that size"),
        ("the return", "the new label"),
        (
            (
                "You can return the {item} and you can not lose money.",
                "You can lose money and you can not return the {item}.",
            ),
            ("The shop takes the {item} and you take the money.", "The shop takes the money and you take the {item}."),
            ("A swap is welcome and a receipt is not needed.", "A receipt is needed and a swap is not welcome."),
        ),
    ),
    Topic(
        "refund",
        "Which product is it?",
        ("camera", "watch", "printer", "speaker", "tablet", "keyboard", "monitor", "drone"),
        (
            "I sent the {item} back in May and I have no refund.",
            "You refunded only half of my {item}.",
            "The {item} was cancelled but you kept my money.",
            "I was promised a refund for the {item}.",
            "The refund for my {item} went to a stranger.",
        ),
        ("Where is my money?", "When do I get the refund?", "Can you pay me back?", "Why does it take so long?"),
        (
            "refund the {item}",
            "pay you back for the {item}",
            "transfer the money",
            "return the full price of the {item}",
            "speed up the refund",
        ),
        ("contact the bank", "prove that the {item} came back", "fill in the refund form"),
        ("wait for your money", "accept a voucher", "send us the {item} again"),
        ("damage the {item}", "return the {item} too late", "agree to a voucher"),
        ("the transfer", "the bank fee"),
        (
            (
                "You will get the money for the {item} and not a voucher.",
                "You will get a voucher for the {item} and not the money.",
            ),
            ("The refund has gone out, it has not been refused.", "The refund has been refused, it has not gone out."),
            (
                "All of the price comes back to you and none stays with us.",
                "All of the price stays with us and none comes back to you.",
            ),
        ),
    ),
    Topic(
        "account",
        "Which account is it?",
        ("email account", "photo account", "music account", "forum account", "game account", "school account"),
        (
            "I can not log in to my {item}.",
            "I forgot the password of my {item}.",
            "My {item} is locked.",
            "The reset link for my {item} does not work.",
            "Somebody changed the password of my {item}.",
        ),
        ("Can you reset it?", "How do I get in again?", "Can you unlock it?", "Did I lose everything?"),
        (
            "unlock your {item}",
            "reset the password",
            "open the {item} again",
            "send a new reset link",
            "restore the {item}",
        ),
        ("change the settings", "check the {item} for strangers", "answer the security questions"),
        ("make a new {item}", "guess the password", "start from zero"),
        ("share your password", "type it wrong", "close the {item}"),
        ("the security check", "the new login"),
        (
            ("Your data is safe and only the password is gone.", "Your data is gone and only the password is safe."),
            ("The {item} will open again, not stay locked.", "The {item} will stay locked, not open again."),
            ("A link is coming and nothing is lost.", "A link is lost and nothing is coming."),
        ),
    ),
    Topic(
        "bill",
        "Which bill do you mean?",
        ("water bill", "phone bill", "gas bill", "power bill", "heating bill", "rent bill"),
        (
            "I was charged twice on my {item}.",
            "My {item} is far too high.",
            "There is a fee on my {item} that I do not know.",
            "You sent my {item} to my old flat.",
            "I paid the {item} and got a reminder.",
        ),
        ("Can you correct it?", "Why do I pay so much?", "Can you take the charge off?", "Can I pay it later?"),
        (
            "correct the {item}",
            "take the fee off your {item}",
            "cancel the reminder",
            "lower the {item}",
            "split the {item} into parts",
        ),
        ("read the meter", "compare the {item} with the last one", "add up the numbers"),
        ("pay the {item} twice", "pay first and ask later", "hire a lawyer"),
        ("use too much", "forget to pay the {item}", "sign for that fee"),
        ("the late fee", "the meter reading"),
        (
            ("The fee comes off and the discount stays on.", "The discount comes off and the fee stays on."),
            ("We made the error and you get the discount.", "You made the error and we get the discount."),
            (
                "We counted wrong on the {item} and you counted right.",
                "You counted wrong on the {item} and we counted right.",
            ),
        ),
    ),
    Topic(
        "booking",
        "What did you book?",
        ("room", "table", "cabin", "boat", "hall", "tour", "villa"),
        (
            "I need to move my booking for the {item}.",
            "The {item} we booked is smaller than in the picture.",
            "You gave our {item} to other guests.",
            "I booked the {item} for the wrong weekend.",
            "I never got a confirmation for the {item}.",
        ),
        ("Can I change the date?", "Can I cancel it?", "Can we have another one?", "Is it still ours?"),
        (
            "change the date of the {item}",
            "keep the {item} for you",
            "confirm the {item}",
            "find you a better {item}",
            "cancel it for free",
        ),
        ("talk to the hotel", "ask the owner of the {item}", "look for free dates"),
        ("come on the wrong day", "sleep in the car", "pay for an empty {item}"),
        ("pick the wrong date", "cancel the {item}", "come too late"),
        ("the change of date", "the cancellation"),
        (
            (
                "The {item} is for you and the other guests have to move.",
                "The {item} is for the other guests and you have to move.",
            ),
            ("You may change the date, we may not say no.", "We may change the date, you may not say no."),
            (
                "You can come, you are not too late for the {item}.",
                "You can not come, you are too late for the {item}.",
            ),
        ),
    ),
    Topic(
        "trip",
        "Where do you travel to?",
        ("Rome flight", "Oslo flight", "Paris train", "Madrid flight", "Vienna train", "Dublin flight", "Berlin train"),
        (
            "My {item} was cancelled last night.",
            "I missed the {item} because of you.",
            "My bag did not come with the {item}.",
            "There is a wrong name on my ticket for the {item}.",
            "I can not sit next to my child on the {item}.",
        ),
        (
            "Can you book me on the next one?",
            "Do I get a new ticket?",
            "Who pays for the hotel?",
            "Can you change my seat?",
        ),
        (
            "book you on the next {item}",
            "change the ticket for the {item}",
            "find your bag",
            "give you a better seat",
            "correct the name on the ticket",
        ),
        ("ask at the gate", "search for the bag", "call the crew of the {item}"),
        ("sleep at the station", "buy a new ticket", "walk home from the {item}"),
        ("arrive late for the {item}", "type the wrong name", "lose the ticket"),
        ("the hotel", "the new ticket"),
        (
            ("Your seat is safe and your bag is not lost.", "Your seat is lost and your bag is not safe."),
            (
                "You will be on the next {item}, not on the platform.",
                "You will be on the platform, not on the next {item}.",
            ),
            (
                "We will hold the {item} for you, you will not be late.",
                "We will not hold the {item} for you, you will be late.",
            ),
        ),
    ),
    Topic(
        "machine",
        "Which machine is it?",
        ("fridge", "oven", "washer", "dryer", "freezer", "heater", "vacuum", "toaster"),
        (
            "My {item} makes a strange noise.",
            "The {item} stopped after one month.",
            "There is water under my {item}.",
            "The {item} does not switch on any more.",
            "Your mechanic never came for my {item}.",
        ),
        ("Can you repair it?", "Is it under warranty?", "Can I get a new one?", "When does the mechanic come?"),
        (
            "repair your {item}",
            "replace the {item}",
            "send a mechanic",
            "order the part for the {item}",
            "lend you a {item}",
        ),
        ("clean the filter", "find the fault in the {item}", "take the {item} apart"),
        ("live without a {item}", "read the manual again", "carry the {item} to us"),
        ("drop the {item}", "open the back of the {item}", "use the wrong plug"),
        ("the mechanic", "the spare part"),
        (
            (
                "The warranty is still good, only the {item} is not.",
                "The {item} is still good, only the warranty is not.",
            ),
            (
                "The fault is in the {item}, not in how you use it.",
                "The fault is in how you use it, not in the {item}.",
            ),
            (
                "The mechanic will come to you, not you to the mechanic.",
                "You will come to the mechanic, not the mechanic to you.",
            ),
        ),
    ),
    Topic(
        "card",
        "Which card is it?",
        ("credit card", "debit card", "gift card", "travel card", "fuel card", "bonus card"),
        (
            "I lost my {item} on the bus.",
            "Somebody used my {item} in a bar.",
            "The machine swallowed my {item}.",
            "My {item} was declined at the checkout.",
            "The code of my {item} does not work.",
        ),
        ("Can you block it?", "When do I get a new one?", "Is my money safe?", "Can you raise the limit?"),
        (
            "block the {item}",
            "print a new {item}",
            "raise the limit of your {item}",
            "cancel those payments",
            "give you a new code",
        ),
        ("tell the police", "go through the payments", "look for the {item}"),
        ("come to the branch", "carry cash", "live without a {item}"),
        ("write the code on the {item}", "lend the {item} to a friend", "report it too late"),
        ("the new card", "the stolen money"),
        (
            ("The thief loses the money and you lose nothing.", "You lose the money and the thief loses nothing."),
            (
                "Your {item} works again and the old code is blocked.",
                "Your {item} is blocked and the old code works again.",
            ),
            (
                "The bank carries the loss, not the holder of the {item}.",
                "The holder of the {item} carries the loss, not the bank.",
            ),
        ),
    ),
    Topic(
        "subscription",
        "Which one do you mean?",
        ("news plan", "film plan", "sports plan", "cooking plan", "yoga plan", "puzzle plan"),
        (
            "I want to stop my {item}.",
            "You renewed my {item} without asking.",
            "The free month of my {item} was charged.",
            "I pay for the {item} but I see only adverts.",
            "The price of the {item} went up overnight.",
        ),
        ("How do I cancel?", "Can you stop it today?", "Can I have the old price?", "Can I pause it?"),
        ("cancel the {item}", "pause your {item}", "keep the old price", "end the {item}", "give you a free month"),
        ("switch off the renewal", "write the letter", "find the contract of the {item}"),
        ("keep the {item} for a year", "pay for another month", "read the contract"),
        ("sign up for the {item}", "ignore our letter", "renew it"),
        ("the last month", "the renewal"),
        (
            ("The {item} ends now and your access ends later.", "Your access ends now and the {item} ends later."),
            (
                "When the {item} ends is for you to say, not for us.",
                "When the {item} ends is for us to say, not for you.",
            ),
            (
                "The contract does let you go and does not keep you.",
                "The contract does keep you and does not let you go.",
            ),
        ),
    ),
    Topic(
        "box",
        "Which box is it?",
        ("router", "modem", "antenna", "decoder", "repeater", "receiver"),
        (
            "My {item} drops out every evening.",
            "The light on the {item} is red.",
            "Since the storm the {item} is dead.",
            "The new {item} is slower than the old one.",
            "Your man put the {item} in and left.",
        ),
        ("Can you fix it?", "Why is it so slow?", "Do I need a new one?", "Is there a fault in my street?"),
        (
            "test your {item}",
            "restart the {item} from here",
            "send a technician",
            "swap the {item}",
            "boost the signal",
        ),
        ("restart the {item}", "check the cables", "climb on the roof"),
        ("sit offline all month", "buy your own {item}", "move house"),
        ("pull out the cable", "hide the {item} in a drawer", "break the seal"),
        ("the technician", "the new cable"),
        (
            ("The line will be up and the price down.", "The line will be down and the price up."),
            (
                "The fault is in our street box, not in your {item}.",
                "The fault is in your {item}, not in our street box.",
            ),
            ("Your {item} gets faster and nothing gets dearer.", "Your {item} gets dearer and nothing gets faster."),
        ),
    ),
    Topic(
        "claim",
        "What is the claim about?",
        ("car claim", "roof claim", "bike claim", "window claim", "flood claim", "garden claim"),
        (
            "I have heard nothing about my {item}.",
            "You turned down my {item} without a word.",
            "You offered me too little for the {item}.",
            "The expert for my {item} did not show up.",
            "My {item} has been open since spring.",
        ),
        ("Will you pay?", "Can you look at it again?", "Why was it refused?", "What is still missing?"),
        ("pay the {item}", "look at your {item} again", "approve the {item}", "send the expert", "raise our offer"),
        ("take pictures of the damage", "get three offers", "copy the papers of the {item}"),
        ("pay for the repair", "take us to court", "give up the {item}"),
        ("cause the damage", "hide something in the {item}", "miss the deadline"),
        ("the damage", "the expert"),
        (
            (
                "The damage is covered and the deadline is not over.",
                "The damage is not covered and the deadline is over.",
            ),
            (
                "The {item} is accepted and the first letter is void.",
                "The first letter is accepted and the {item} is void.",
            ),
            ("The money will arrive and the case will close.", "The case will close and the money will not arrive."),
        ),
    ),
    Topic(
        "class",
        "Which class is it?",
        ("swimming class", "dance class", "piano class", "chess class", "pottery class", "Spanish class"),
        (
            "My {item} was moved to a time when I work.",
            "The teacher of my {item} is always ill.",
            "My son does not like his {item}.",
            "I signed up for the {item} and there is no place.",
            "The {item} is much too hard for me.",
        ),
        ("Can I change the group?", "Can I stop?", "Is there a place on another day?", "Can I get the fee back?"),
        (
            "move you to another {item}",
            "give you a place in the {item}",
            "find a new teacher",
            "let you leave the {item}",
            "add a lesson",
        ),
        ("speak with the teacher", "find another group", "put your name on the list for the {item}"),
        ("miss the {item}", "pay for lessons that you miss", "come at six in the morning"),
        ("skip the {item}", "sign up too late", "choose that level"),
        ("the missed lessons", "the book"),
        (
            ("There is a place for you and no waiting list.", "There is a waiting list and no place for you."),
            (
                "The teacher of the {item} will change, the fee will not.",
                "The fee of the {item} will change, the teacher will not.",
            ),
            ("You may try two lessons and pay for none.", "You may try none and pay for two lessons."),
        ),
    ),
    Topic(
        "furniture",
        "What are you building?",
        ("shelf", "wardrobe", "bed", "cabinet", "bench", "desk", "crib"),
        (
            "There is a leg missing from my {item}.",
            "The screws for the {item} do not fit.",
            "My {item} came with a broken door.",
            "I do not understand the plan for the {item}.",
            "I built the {item} and now it leans to the left.",
        ),
        (
            "Can you send the missing part?",
            "How do I put it together?",
            "Can somebody build it for me?",
            "Do I have to take it down?",
        ),
        (
            "send the part for your {item}",
            "build the {item} for you",
            "explain the plan step by step",
            "exchange the {item}",
            "collect the {item}",
        ),
        ("count the screws", "build the {item}", "drill new holes"),
        ("take the {item} down again", "sleep on the floor", "glue the {item}"),
        ("lose the screws", "build the {item} upside down", "throw away the plan"),
        ("the missing part", "the collection"),
        (
            (
                "The plan is wrong, your work on the {item} is not.",
                "Your work on the {item} is wrong, the plan is not.",
            ),
            ("The part is in the post, not in your box.", "The part is in your box, not in the post."),
            ("We will build and you will watch.", "You will build and we will watch."),
        ),
    ),
    Topic(
        "groceries",
        "Which one was it?",
        ("cheese", "bread", "fish", "salad", "soup", "cake", "chicken"),
        (
            "The {item} in my basket was off.",
            "You forgot the {item} again.",
            "I found a hair in the {item}.",
            "The {item} was cold and wet.",
            "I got the {item} of my neighbour.",
        ),
        (
            "Can you bring me a fresh one?",
            "Do I get my money back?",
            "Is it safe to eat?",
            "Can you check the kitchen?",
        ),
        (
            "bring fresh {item}",
            "take the {item} off your bill",
            "warn the kitchen",
            "add free {item} to your next basket",
            "test the {item}",
        ),
        ("throw the {item} away", "tell the cook", "go back to the market"),
        ("eat the {item}", "go to bed hungry", "cook it yourself"),
        ("leave the {item} in the sun", "forget to order the {item}", "eat half of it"),
        ("the next basket", "the fresh food"),
        (
            (
                "The {item} goes back to the shop and the money to you.",
                "The money goes back to the shop and the {item} to you.",
            ),
            ("Fresh {item} will come and old food will go.", "Old food will come and fresh {item} will go."),
            ("The cook pays for the {item}, not the customer.", "The customer pays for the {item}, not the cook."),
        ),
    ),
)
