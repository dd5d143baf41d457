"""The lines about lost rows, against counts worked out by hand."""

from rlhf_lib.data.losses import cut, data_losses, table, training_losses


def funnel(rows, **dropped):
    return {"rows": rows, "dropped": dropped, "kept": rows - sum(dropped.values())}


def told(losses):
    return {str(loss): loss.worrying for loss in losses}


def test_every_set_that_lost_rows_has_a_line_and_what_is_asked_for_has_none():
    report = {
        "prompts": {
            "train": funnel(100, empty=0, duplicate=30, limit=20, **{"held out": 10}),
            "test": funnel(10),
        },
        "tokenized": {
            "train": {"rows": 40, "query too long": 0, "too long": 1, "kept": 39},
            "test": {"rows": 10, "query too long": 0, "too long": 2, "in train": 1, "kept": 7},
        },
        "preferences": {
            "train": funnel(1000, **{"identical answers": 500, "prompt in test": 4, "empty answer": 0}),
            "test": funnel(200, **{"repeated pair": 1}),
        },
        "evaluation prompts in training pairs": 3,
    }
    assert told(data_losses(report)) == {
        "30 of 100 (30%) training prompts dropped: 30 repeated": False,  # harmless, unless it is most of them
        "1 of 40 (2%) training prompts dropped once tokenized: 1 without room for the response": False,
        "3 of 10 (30%) evaluation prompts dropped once tokenized: 2 without room for the response; 1 also training "
        "prompts": True,
        "504 of 1,000 (50%) training pairs dropped: 500 with the same chosen and rejected answer; 4 whose prompt "
        "is also a test pair's": True,
        "1 of 200 (under 1%) test pairs dropped: 1 repeated": False,
        "3 of 10 (30%) evaluation prompts are in the training pairs too: a reward model trained on these has seen "
        "them": True,
    }
    lines = table(report).splitlines()
    assert "| training prompts | 100 | 30 repeated; 20 above the limit; 10 held out | 40 |" in lines
    dropped = "2 without room for the response; 1 also training prompts"
    assert f"| evaluation prompts, as tokens | 10 | {dropped} | 7 |" in lines


def test_nothing_lost_is_nothing_told():
    report = {"prompts": {"train": funnel(100, limit=90), "test": funnel(5)}, "evaluation prompts in training pairs": 0}
    assert data_losses(report) == []
    assert training_losses({}, {"pairs": 10.0, "truncated": 0.0}) == []
    assert cut("texts", 10, 0, "x") == []


def test_texts_that_are_cut_are_told_of_the_training_stages_metrics():
    base = {"rows": 50.0, "truncated": 4.0, "prompts/train/rows": 30.0, "prompts/train/too_long": 9.0}
    assert told(training_losses(base, {"pairs": 10.0, "truncated": 3.0})) == {
        "9 of 30 (30%) training prompts dropped once tokenized: 9 without room for the response": True,
        "4 of 50 (8%) texts of the base model lost their beginning: too long for the model or for "
        "policy.train.max_length": False,
        "3 of 20 (15%) dialogues of the reward model lost their beginning: too long for the model or for "
        "reward.train.max_length": True,
    }
    assert told(training_losses({}, {"rows": 4.0, "truncated": 1.0})) == {
        "1 of 4 (25%) texts of the classifier lost their beginning: too long for the model or for "
        "reward.train.max_length": True
    }
