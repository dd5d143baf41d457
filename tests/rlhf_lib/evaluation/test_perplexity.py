"""Perplexity against a uniform model, a loop over single texts, and the formula of Hugging Face's metric."""

import math

import evaluate
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from rlhf_lib.data.corpus import load_texts
from rlhf_lib.errors import DataError, ModelError
from rlhf_lib.evaluation.perplexity import Perplexity
from rlhf_lib.models import likelihood
from rlhf_lib.models.likelihood import encode, target_losses
from rlhf_lib.models.logprobs import response_logprobs
from rlhf_lib.recipe import PerplexitySetConfig

VOCABULARY = {word: i for i, word in enumerate(["<eos>", "<unk>", *"abcdefghijklmnopqr"])}
TEXTS = ["a b c", "d", "e f g h i j k l", "m n", "a a a a a a a a a a a a a a", "o p q r"]


@pytest.fixture
def tokenizer():
    words = Tokenizer(WordLevel(VOCABULARY, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>", bos_token="<eos>")


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(VOCABULARY), n_positions=10, n_embd=16, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config).eval()
    for weight in model.parameters():
        weight.data.normal_(0, 0.5)  # the default initialisation is nearly uniform, and would hide mistakes
    return model


def measure(model, tokenizer, texts=TEXTS, **options):
    return Perplexity(keep_in_memory=True).compute(predictions=texts, model=model, tokenizer=tokenizer, **options)


def single_loss(model, ids):
    """Summed negative log-likelihood of ids[1:], one text alone, straight from the definition."""
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(float(logprobs[t, token]) for t, token in enumerate(ids[1:]))


def test_uniform_model_has_the_vocabulary_as_perplexity(model, tokenizer):
    for weight in model.parameters():
        weight.data.zero_()
    result = measure(model, tokenizer)
    assert result["perplexity"] == pytest.approx(20, rel=1e-5)
    assert result["mean_perplexity"] == pytest.approx(20, rel=1e-5)
    assert result["perplexities"] == pytest.approx([20] * 6, rel=1e-5)


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_agrees_with_a_loop_over_single_texts(model, tokenizer, start, batch_size, monkeypatch):
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", 20 * 12)  # some batches bounded by rows, some by tokens
    result = measure(model, tokenizer, add_start_token=start, batch_size=batch_size)
    losses, counts = [], []
    for text in TEXTS:
        ids = [VOCABULARY[word] for word in text.split()]
        ids = [0, *ids[-9:]] if start else ids[-10:]
        losses.append(single_loss(model, ids))
        counts.append(len(ids) - 1)
    expected = [math.exp(loss / n) if n else None for loss, n in zip(losses, counts, strict=True)]
    scored = [figure for figure in expected if figure]
    assert [f is None for f in result["perplexities"]] == [f is None for f in expected]
    assert [f for f in result["perplexities"] if f] == pytest.approx(scored, rel=1e-4)
    assert result["perplexity"] == pytest.approx(math.exp(sum(losses) / sum(counts)), rel=1e-4)
    assert result["mean_perplexity"] == pytest.approx(sum(scored) / len(scored), rel=1e-4)
    assert result["perplexity"] != pytest.approx(result["mean_perplexity"], rel=0.01)
    assert result["tokens"] == sum(counts) == (27 if start else 22)
    assert result["truncated"] == 1
    assert result["skipped"] == (0 if start else 1)  # "d" alone: nothing to predict it from


def test_is_the_formula_of_hugging_faces_metric(model, tokenizer):
    """Right-padded batch with BOS in front, shifted, masked, exp of the mean per text, mean of those."""
    texts = [text for text in TEXTS if len(text.split()) < 10]
    tokenizer.pad_token = tokenizer.eos_token
    encoded = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    start = torch.zeros(len(texts), 1, dtype=torch.long)
    ids = torch.cat([start, encoded["input_ids"]], 1)
    mask = torch.cat([start + 1, encoded["attention_mask"]], 1)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits[:, :-1]
    loss = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * mask[:, 1:]
    expected = torch.exp(loss.sum(1) / mask[:, 1:].sum(1))
    result = measure(model, tokenizer, texts)
    assert result["perplexities"] == pytest.approx(expected.tolist(), rel=1e-4)
    assert result["mean_perplexity"] == pytest.approx(float(expected.mean()), rel=1e-4)


def test_agrees_with_the_log_probs_of_ppo(model, tokenizer):
    encoded = encode(TEXTS, tokenizer, 10, start=[0])
    scored = response_logprobs(model, encoded.contexts, encoded.targets)
    expected = [-float(logprobs.sum()) for logprobs in scored]
    assert target_losses(model, encoded.contexts, encoded.targets) == pytest.approx(expected, rel=1e-4)


def test_long_texts_keep_their_end(tokenizer):
    with_start = encode(["a b c d e", "a b"], tokenizer, 4, start=[0])
    assert with_start.contexts == [[0], [0]]
    assert with_start.targets == [[4, 5, 6], [2, 3]]
    assert with_start.truncated == 1
    without = encode(["a b c d e", "a b"], tokenizer, 4, start=[])
    assert without.contexts == [[3], [2]]
    assert without.targets == [[4, 5, 6], [3]]
    assert without.truncated == 1


def test_a_prompt_gives_way_before_its_text(tokenizer):
    encoded = encode(["d e", "a b c d e f", "e"], tokenizer, 4, start=[], prompts=["a b c", "g", "f"])
    assert encoded.contexts == [[3, 4], [8], [7]]
    assert encoded.targets == [[5, 6], [5, 6, 7], [6]]
    assert encoded.truncated == 2


def test_text_given_its_prompt(model, tokenizer):
    result = measure(model, tokenizer, ["c d"], prompts=["a b"])
    loss = single_loss(model, [2, 3, 4, 5]) - single_loss(model, [2, 3])
    assert result["perplexity"] == pytest.approx(math.exp(loss / 2), rel=1e-4)
    with pytest.raises(DataError, match="prompt 1 is empty"):
        measure(model, tokenizer, ["a b", "c d"], prompts=["a", ""])


def test_seq2seq_scores_the_response_given_its_prompt(tokenizer):
    torch.manual_seed(0)
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    config = T5Config(vocab_size=20, **shape, decoder_start_token_id=0, pad_token_id=0, eos_token_id=0)
    t5 = T5ForConditionalGeneration(config).eval()
    for weight in t5.parameters():
        weight.data.normal_(0, 0.3)
    prompts, responses = ["a b c", "d", "g h i j"], ["e f", "c b a d", "k"]
    expected = []
    for prompt, response in zip(prompts, responses, strict=True):
        source, target = tokenizer([prompt, response])["input_ids"]
        with torch.no_grad():
            logits = t5(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[0, *target[:-1]]])).logits
        expected.append(math.exp(float(F.cross_entropy(logits[0], torch.tensor(target)))))
    result = measure(t5, tokenizer, responses, prompts=prompts)
    assert result["perplexities"] == pytest.approx(expected, rel=1e-4)


def test_is_an_evaluate_metric(model, tokenizer, tmp_path):
    metric = Perplexity(cache_dir=str(tmp_path))
    assert isinstance(metric, evaluate.Metric)
    metric.add_batch(predictions=TEXTS[:3])
    metric.add_batch(predictions=TEXTS[3:])
    added = metric.compute(model=model, tokenizer=tokenizer)
    assert added["perplexities"] == measure(model, tokenizer)["perplexities"]
    combined = evaluate.combine([Perplexity(cache_dir=str(tmp_path))])
    assert combined.compute(predictions=TEXTS, model=model, tokenizer=tokenizer)["tokens"] == 27


def test_nothing_to_score_is_said(model, tokenizer):
    with pytest.raises(DataError, match="there are no texts"):
        measure(model, tokenizer, [])
    with pytest.raises(DataError, match="none of the 2 texts"):
        measure(model, tokenizer, ["", " "])
    assert measure(model, tokenizer, ["", "a"])["skipped"] == 1


def test_a_start_token_is_needed_only_where_asked_for(model, tokenizer):
    tokenizer.bos_token = None
    assert measure(model, tokenizer)["tokens"] == 27  # EOS stands in
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="add_start_token"):
        measure(model, tokenizer)
    assert measure(model, tokenizer, add_start_token=False)["tokens"] == 22


def test_texts_of_the_recipe(tmp_path):
    path = tmp_path / "set.jsonl"
    Dataset.from_dict({"chosen": [f"text {i}" for i in range(20)]}).to_json(path)
    everything, _ = load_texts(PerplexitySetConfig(dataset=str(path), split="train"))
    assert everything == [f"text {i}" for i in range(20)]
    some, _ = load_texts(PerplexitySetConfig(split="train", limit=5), default=str(path), seed=1)
    assert len(some) == 5
    assert sorted(some, key=everything.index) == some
    assert (some, None) == load_texts(PerplexitySetConfig(split="train", limit=5), default=str(path), seed=1)
    assert some != everything[:5]
    with pytest.raises(DataError, match=r"column 'text' not found in .*available: chosen"):
        load_texts(PerplexitySetConfig(dataset=str(path), split="train", column="text"))
