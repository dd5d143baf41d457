"""evaluation.judges: what a judge may be, and that none is the reward itself."""

from __future__ import annotations

import pytest

from rlhf_lib.errors import RecipeError
from rlhf_lib.recipe import JudgeConfig, RewardConfig, load_recipe
from rlhf_lib.recipe.judges import check_judges, held_out_shares, is_rewarded

ROBERTA = {"kind": "classifier", "model": "roberta", "label": "joy"}
COUNT = {"kind": "function", "function": "words:count"}
SUM = {"kind": "sum", "terms": [{"reward": ROBERTA}, {"weight": -0.1, "reward": COUNT}]}
HELD_OUT = {"kind": "preference", "pairs": "held_out"}


def check(judge: dict, reward: dict, *, pairs: bool = True) -> None:
    check_judges(
        {"mine": JudgeConfig.model_validate(judge)}, RewardConfig.model_validate(reward), pairs=pairs, labelled=False
    )


@pytest.mark.parametrize(
    ("judge", "reward"),
    [
        (COUNT, COUNT),
        (ROBERTA | {"label": "anger"}, ROBERTA),  # another opinion of the same network
        (ROBERTA | {"kind": "pair"}, ROBERTA),
        ({"kind": "sum", "terms": [{"reward": COUNT}]}, COUNT),
        (SUM, SUM),
        (COUNT, {"kind": "sum", "terms": [{"reward": COUNT | {"normalize": True}}]}),
    ],
)
def test_the_reward_itself_is_refused(judge, reward):
    with pytest.raises(ValueError, match=r"evaluation\.judges\.mine is the reward itself, and so no judge"):
        check(judge, reward)


@pytest.mark.parametrize(
    ("judge", "reward"),
    [
        (COUNT, ROBERTA),
        (ROBERTA | {"model": "other"}, ROBERTA),
        (HELD_OUT, {"kind": "preference"}),
        (HELD_OUT, {"kind": "sum", "terms": [{"reward": {"kind": "preference"}}]}),
        (COUNT, {"kind": "sum", "terms": [{"reward": {"kind": "preference"}}, {"reward": COUNT}]}),
        (HELD_OUT | {"model": "gpt2"}, {"kind": "preference", "model": "gpt2"}),  # the same start, other pairs
        (COUNT, SUM),  # a part of it: reported
    ],
)
def test_anything_else_may_judge(judge, reward):
    check(judge, reward)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("ppo.keep_best=judge/gold", r"ppo\.keep_best: gold is none of evaluation\.judges \(they are mine\): name one"),
        ("ppo.keep_best=eval/judge/gold", r"ppo\.keep_best: gold is none of evaluation\.judges"),
        ("ppo.stop_when={judge: gold}", r"ppo\.stop_when\.judge: gold is none of evaluation\.judges"),
    ],
)
def test_ppo_can_act_on_a_judge_alone_that_there_is(settings, says):
    judges = "evaluation.judges={mine: {kind: function, function: 'words:count'}}"
    with pytest.raises(RecipeError, match=says):
        load_recipe("embedded", [judges, "ppo.eval_every=5", settings])
    recipe = load_recipe("embedded", [judges, "ppo.eval_every=5", settings.replace("gold", "mine")])
    (does,) = recipe.ppo.acting_judges.values()
    assert ("keep_best" in does) == ("keep_best" in settings)


@pytest.mark.parametrize("settings", ["ppo.keep_best=judge/fair", "ppo.stop_when={judge: fair}"])
def test_ppo_acts_on_no_language_model_which_scores_no_answer_alone(settings):
    judges = "evaluation.judges={fair: {kind: llm, model: m}, mine: {kind: function, function: 'words:count'}}"
    with pytest.raises(RecipeError, match=r"ppo\.\S+: fair is of kind llm, which compares two answers and scores none"):
        load_recipe("embedded", [judges, "ppo.eval_every=5", settings])
    assert list(load_recipe("embedded", [judges, "ppo.eval_every=5"]).judges_in_ppo) == ["mine"]
    assert not load_recipe("embedded", [judges, "ppo.eval_every=null"]).judges_in_ppo


def test_a_part_of_the_reward_is_known_as_such():
    reward = RewardConfig.model_validate(SUM)
    assert is_rewarded(JudgeConfig.model_validate(COUNT), reward)
    assert not is_rewarded(JudgeConfig.model_validate(COUNT | {"function": "words:other"}), reward)
    assert not is_rewarded(JudgeConfig.model_validate(HELD_OUT), RewardConfig())


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["helpful.kind=preference"], "kind preference needs model, or pairs: held_out to train one here"),
        (["helpful.kind=classifier"], "kind classifier needs model"),
        (["helpful={kind: function, function: 'a:b', pairs: held_out}"], "pairs: held_out is for kind preference"),
        (["a b={kind: function, function: 'a:b'}"], "evaluation.judges.a b"),
        (["h={pairs: held_out, share: 0.6}", "i={pairs: held_out, share: 0.4}"], "leave no pairs to train the reward"),
        (["h={pears: held_out}"], "unknown key 'evaluation.judges.h.pears': did you mean 'pairs'?"),
    ],
)
def test_a_judge_that_can_t_be_is_one_line(overrides, says):
    with pytest.raises(RecipeError) as raised:
        load_recipe("embedded", [f"evaluation.judges.{override}" for override in overrides])
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_held_out_pairs_need_pairs():
    with pytest.raises(ValueError, match=r"evaluation\.judges\.mine: pairs: held_out needs data\.preferences"):
        check(HELD_OUT, COUNT, pairs=False)


def test_judges_are_named_on_the_command_line():
    recipe = load_recipe("embedded", ["evaluation.judges.other.pairs=held_out", "evaluation.judges.other.share=0.25"])
    assert held_out_shares(recipe.evaluation.judges) == {"other": 0.25}


def test_a_judges_sum_is_of_existing_models():
    for part in ({"kind": "preference"}, COUNT | {"normalize": True}):
        with pytest.raises(ValueError, match="a judge's sum has existing models alone"):
            JudgeConfig.model_validate({"kind": "sum", "terms": [{"reward": part}]})


def test_a_term_that_is_trained_needs_pairs():
    sums = ["reward.kind=sum", "reward.terms=[{reward: {kind: preference}}]"]
    nothing = ["data.preferences=null", "policy.train=null", "policy.model=gpt2"]
    assert list(load_recipe("embedded", sums).reward.learned()) == ["term_0"]
    with pytest.raises(RecipeError, match=r"a preference term without model needs data\.preferences to train on"):
        load_recipe("embedded", [*sums, *nothing])


@pytest.mark.parametrize(
    ("llm", "says"),
    [
        ("{}", None),
        ("{base_url: 'http://127.0.0.1:8000/v1/', api_key_env: MY_TOKEN, temperature: null}", None),
        ("{prompt: '{conversation} {answer_a} {answer_b}: [[A]], [[B]], [[C]]?'}", None),
        ("{base_url: '127.0.0.1:8000'}", "base_url must begin with http:// or https://"),
        ("{base_url: 'http://me:secret@host/v1'}", "holds a password or token"),
        ("{api_key_env: my_key}", "llm.api_key_env: api_key_env is the name of an environment variable"),
        ("{api_key_env: sk-abcdefghijklmnopqrstuvwxyz}", "holds a password or token (***)"),
        ("{prompt: '{conversation} {answer_a}: [[A]] or [[B]]?'}", "prompt lacks {answer_b}, [[C]]: it must hold"),
        ("{max_request: 5}", "unknown key 'evaluation.judges.fair.llm.max_request': did you mean 'max_requests'?"),
    ],
)
def test_a_language_model_s_section(llm, says):
    override = f"evaluation.judges.fair={{kind: llm, model: m, llm: {llm}}}"
    if says is None:
        judge = load_recipe("embedded", [override]).evaluation.judges["fair"]
        assert judge.endpoint.url in ("https://api.openai.com/v1", "http://127.0.0.1:8000/v1")
        return
    with pytest.raises(RecipeError) as raised:
        load_recipe("embedded", [override])
    assert says in str(raised.value)


def test_a_language_model_s_keys_are_its_own():
    with pytest.raises(RecipeError, match="kind llm needs model"):
        load_recipe("embedded", ["evaluation.judges.fair.kind=llm"])
    with pytest.raises(RecipeError, match="the section llm is for kind llm, not function"):
        load_recipe("embedded", ["evaluation.judges.fair={kind: function, function: 'a:b', llm: {}}"])
    with pytest.raises(RecipeError, match=r"reward\.kind"):
        load_recipe("embedded", ["reward.kind=llm"])
    judge = JudgeConfig.model_validate({"kind": "llm", "model": "m"})
    assert (judge.endpoint.key_variable, judge.endpoint.host) == ("OPENAI_API_KEY", "api.openai.com")


def test_a_judge_follows_the_rewards_label():
    judge = "evaluation.judges.other={kind: classifier, model: some/other, label: reward.label}"
    recipe = load_recipe("gpt2-imdb-positive", [judge, "reward.label=NEGATIVE"])
    assert {name: judge.label for name, judge in recipe.evaluation.judges.items()} == {
        "siebert": "NEGATIVE",
        "other": "NEGATIVE",
    }
    with pytest.raises(RecipeError, match=r"evaluation\.judges\.other\.label is reward\.label, which is null: name"):
        load_recipe("embedded", [judge])
