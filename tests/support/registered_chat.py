"""A tiny chat policy in a registry, and its words spelt out."""

import mlflow
import pytest
import torch
import yaml
from chat_models import chat_folder
from registered import PROMPTS, load, make_recipe, register

from tasks.tracking.runs import PipelineRun

SYSTEM = "Be kind."
LIMIT = 24  # tokens of an answer
ASK = [{"role": "user", "content": "where is my parcel?"}]  # of PROMPTS[0]; the policy's answer ends itself
LATER = [*ASK, {"role": "assistant", "content": "At the door."}, {"role": "user", "content": "hello"}]


def chat_recipe(**sections):
    return make_recipe(
        **{
            "policy": {"model": "tiny", "system": SYSTEM},
            "generation": {"max_new_tokens": LIMIT},
            "data": {"prompts": {"dataset": "local", "query": {"kind": "dialogue"}}},
        }
        | sections
    )


@pytest.fixture(scope="module", name="chat")
def one_chat_version(tmp_path_factory, mlflow_store, folders):
    """The folder of version 1 of `letters`, a chat policy, in a store that a file's tests share."""
    root = tmp_path_factory.mktemp("chat")
    folder = chat_folder(root / "policy", seed=30)
    with mlflow_store(root), pytest.MonkeyPatch.context() as patch, mlflow.start_run() as parent:
        patch.chdir(root)
        recipe = chat_recipe()
        mlflow.log_text(yaml.safe_dump(recipe.model_dump(mode="json")), "recipe.yaml")
        run = PipelineRun(run_dir=str(root / "runs"), parent_run_id=parent.info.run_id)
        reference = str(chat_folder(root / "reference", seed=39))
        register(run, folders | {"plain": reference}, str(folder), recipe, model=reference)
        yield str(folder)


def spelt_out(folder, messages, steps=LIMIT, system=SYSTEM, temperature=0.0, seed=0):
    """(the answer's text, its token ids, the prompt's length): the whole text anew for each token, the largest logit
    or torch's stream, until an end or the limit."""
    model, tokenizer = load(folder)
    told = messages if system is None else [{"role": "system", "content": system}, *messages]
    ids = tokenizer(tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=True)).input_ids
    start, ends = len(ids), model.generation_config.eos_token_id
    assert len(ends) == 2
    torch.manual_seed(seed)
    while len(ids) < start + steps and (len(ids) == start or ids[-1] not in ends):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        drawn = torch.multinomial((logits / temperature).softmax(-1), 1) if temperature else logits.argmax()
        ids.append(int(drawn))
    drawn = ids[start:]
    text = drawn[:-1] if drawn[-1] in ends else drawn
    return tokenizer.decode(text, skip_special_tokens=True), drawn, start


assert PROMPTS[0].split(":")[1].startswith(f" {ASK[0]['content']}")
