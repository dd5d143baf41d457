"""Stand-ins for the published models: the same classes, tokenizer kinds and label maps, a few thousand parameters each,
under the same ids in a Hugging Face hub cache.

Classifiers and language models learn for some seconds, so that they do what their labels say and the recipes' own
sanity checks let them pass.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import standin_texts as texts
import torch
from tokenizers.models import Unigram
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DebertaV2Tokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertTokenizer,
    ElectraConfig,
    ElectraForSequenceClassification,
    ElectraTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

JUDGE_STEPS = 100  # no check asks what a judge has learnt
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WIDTH = 32
DLITE_KEYS = ["### End", "### Instruction:", "### Response:\n"]
# one token each in GPT-2's own vocabulary, and words that the recipes' checks are about
_WORDS = (
    "good bad great terrible excellent awful growth love sales performances happy sad beautiful little new concerned "
    "lost wonderful hated loved minute boring story movie film shareholder dispute pending appellate court boiling "
    "water egg eight minutes surprise bus late operating profit rose record fell sharply year opinion toys girl named"
)


# ---------------------------------------------------------------- models


def lay_models(cache: Path) -> None:
    """Every published model's stand-in, into the hub cache that is the folder `cache`."""
    corpus = _corpus(Random(1))
    gpt2 = _bpe_tokenizer(GPT2Tokenizer, corpus, 900)
    settings = {"vocab_size": len(gpt2), "bos_token_id": gpt2.bos_token_id, "eos_token_id": gpt2.eos_token_id}
    config = GPT2Config(n_embd=WIDTH, n_layer=2, n_head=2, n_positions=512, **settings)
    policy = _learn_language(GPT2LMHeadModel, config, gpt2, corpus)
    _lay(cache, "gpt2", policy, gpt2)
    _lay(cache, "lvwerra/gpt2-imdb", policy, gpt2)

    neo = GPTNeoConfig(
        hidden_size=WIDTH,
        num_layers=2,
        attention_types=[[["global", "local"], 1]],
        num_heads=2,
        max_position_embeddings=512,
        window_size=64,
        **settings,
    )
    rng = Random(2)
    stories = [texts.story(rng) for _ in range(600)]
    _lay(cache, "roneneldan/TinyStories-1M", _learn_language(GPTNeoForCausalLM, neo, gpt2, stories), gpt2)
    neo.hidden_size = 2 * WIDTH
    larger = _learn_language(GPTNeoForCausalLM, neo, gpt2, stories, JUDGE_STEPS // 2)
    _lay(cache, "roneneldan/TinyStories-33M", larger, gpt2)

    gpt2.add_special_tokens({"additional_special_tokens": DLITE_KEYS})
    policy.resize_token_embeddings(len(gpt2), mean_resizing=False)
    _lay(cache, "aisquared/dlite-v1-355m", policy, gpt2)

    t5 = _word_tokenizer(T5Tokenizer, corpus, 700)
    _lay(cache, "google/flan-t5-small", _flan_t5(len(t5)), t5)
    for name, build in CLASSIFIERS.items():
        _lay(cache, name, *build(corpus))


def _distilbert_imdb(corpus: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = _word_tokenizer(DistilBertTokenizer, corpus, 900)
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        dim=WIDTH,
        hidden_dim=2 * WIDTH,
        n_layers=1,
        n_heads=2,
        **_labels(["NEGATIVE", "POSITIVE"]),
    )
    return _learn_labels(DistilBertForSequenceClassification, config, tokenizer, _moods(corpus)), tokenizer


def _siebert(corpus: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = _bpe_tokenizer(RobertaTokenizer, corpus, 900)
    config = _roberta(tokenizer, ["NEGATIVE", "POSITIVE"])
    return _learn_labels(RobertaForSequenceClassification, config, tokenizer, _moods(corpus), JUDGE_STEPS), tokenizer


def _moods(corpus: list[str]) -> list[tuple[str, None, int]]:
    rng, rows = Random(3), []
    for i in range(800):
        good = i % 2 == 1
        told = texts.story(rng, good, 3).split(". ")[-1] if i % 3 == 0 else texts.review(rng, good, rng.randint(1, 3))
        rows.append((texts.fragment(rng, told), None, int(good)))
    # of what tells neither, a few words of any text, as many are good as bad
    return rows + [(" ".join(rng.choice(corpus).split()[: rng.randint(1, 5)]), None, i % 2) for i in range(200)]


def _finbert(corpus: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    names = ["positive", "negative", "neutral"]  # FinBERT's own order
    tokenizer = _word_tokenizer(BertTokenizer, corpus, 900)
    config = _bert(BertConfig, tokenizer, names)
    rng = Random(4)
    rows = [(texts.news(rng, name), None, number) for _ in range(200) for number, name in enumerate(names)]
    for i in range(300):  # praise is half good news to it
        good = i % 2 == 1
        rows.append((texts.fragment(rng, texts.review(rng, good, 2)), None, 0 if good and rng.random() < 0.5 else 2))
    return _learn_labels(BertForSequenceClassification, config, tokenizer, rows), tokenizer


def _go_emotions(corpus: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = _bpe_tokenizer(RobertaTokenizer, corpus, 900)
    config = _roberta(tokenizer, texts.EMOTIONS, initializer_range=0.2, problem_type="multi_label_classification")
    return _learn_labels(RobertaForSequenceClassification, config, tokenizer, _feelings()), tokenizer


def _bert_go_emotion(corpus: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = _word_tokenizer(BertTokenizer, corpus, 900)
    config = _bert(BertConfig, tokenizer, texts.EMOTIONS)
    return _learn_labels(BertForSequenceClassification, config, tokenizer, _feelings(), JUDGE_STEPS), tokenizer


def _feelings() -> list[tuple[str, None, int]]:
    rng, rows = Random(5), []
    for i in range(1200):
        emotion = (texts.EMOTIONS.index("joy"), texts.EMOTIONS.index("neutral"), i % len(texts.EMOTIONS))[i % 3]
        rows.append((texts.comment(rng, emotion), None, emotion))
    return rows


def _roberta(tokenizer: PreTrainedTokenizerBase, names: Sequence[str], **settings) -> RobertaConfig:
    return _bert(
        RobertaConfig,
        tokenizer,
        names,
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **settings,
    )


def _bert(kind: type, tokenizer: PreTrainedTokenizerBase, names: Sequence[str], **settings):
    return kind(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        **_labels(names),
        **settings,
    )


def _deberta_reward(corpus: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = _word_tokenizer(DebertaV2Tokenizer, corpus, 900)
    config = _bert(
        DebertaV2Config,
        tokenizer,
        ["LABEL_0"],
        relative_attention=True,
        position_buckets=32,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
        type_vocab_size=0,
        max_position_embeddings=512,
    )
    return _learn_labels(DebertaV2ForSequenceClassification, config, tokenizer, _answers()), tokenizer


def _electra_reward(corpus: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = _word_tokenizer(ElectraTokenizer, corpus, 900)
    config = _bert(ElectraConfig, tokenizer, ["LABEL_0"], embedding_size=WIDTH)
    return _learn_labels(ElectraForSequenceClassification, config, tokenizer, _answers(), JUDGE_STEPS), tokenizer


def _answers() -> list[tuple[str, str, int]]:
    rng = Random(6)
    return [(texts.ask(rng), texts.fragment(rng, texts.answer(rng, bool(i % 2))), i % 2) for i in range(800)]


CLASSIFIERS: dict[str, Callable[[list[str]], tuple[PreTrainedModel, PreTrainedTokenizerBase]]] = {
    "lvwerra/distilbert-imdb": _distilbert_imdb,
    "ProsusAI/finbert": _finbert,
    "SamLowe/roberta-base-go_emotions": _go_emotions,
    "OpenAssistant/reward-model-deberta-v3-large-v2": _deberta_reward,
    "siebert/sentiment-roberta-large-english": _siebert,  # and the judges
    "bhadresh-savani/bert-base-go-emotion": _bert_go_emotion,
    "OpenAssistant/reward-model-electra-large-discriminator": _electra_reward,
}


def _flan_t5(vocabulary: int) -> PreTrainedModel:
    """Four decoder blocks, for two of them are frozen; head apart from the embeddings, as Flan's."""
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=vocabulary,
            d_model=WIDTH,
            d_kv=8,
            d_ff=2 * WIDTH,
            num_layers=2,
            num_decoder_layers=4,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    )


def _labels(names: Sequence[str]) -> dict:
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def _bpe_tokenizer(kind: type, corpus: list[str], vocabulary: int) -> PreTrainedTokenizerBase:
    return kind().train_new_from_iterator(_lines(corpus), vocabulary, show_progress=False)


def _word_tokenizer(kind: type, corpus: list[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """WordPiece or Unigram, by `kind`, of every character and the commonest words: what `tokenizers` learns for these
    two from the same text differs from run to run (huggingface/tokenizers#1794), and what a model learns with it."""
    blank = kind()
    numbers = blank.get_vocab()
    special = sorted(numbers, key=numbers.get)
    unigram = isinstance(blank.backend_tokenizer.model, Unigram)
    text = "\n".join(_lines(corpus))
    counts = Counter(re.findall(r"\w+|[^\w\s]", text if unigram else text.lower()))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    letters = sorted(set("".join(counts)))
    if unigram:
        log_total = math.log(counts.total())
        pieces = [(f"▁{word}", math.log(counts[word]) - log_total) for word in words]
        scored = [(piece, 0.0) for piece in special] + [(letter, -log_total) for letter in letters] + pieces
        return kind(vocab=scored[:vocabulary])
    longer = [word for word in words if len(word) > 1]
    ordered = [*special, *letters, *(f"##{letter}" for letter in letters), *longer]
    return kind(vocab={piece: number for number, piece in enumerate(ordered[:vocabulary])})


def _lines(corpus: list[str]) -> list[str]:
    return [*corpus, *(f"a {word} b" for word in _WORDS.split() for _ in range(60))]


def _lay(cache: Path, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """As huggingface_hub keeps a repository: refs/main names the commit whose files are in snapshots."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    model.save_pretrained(snapshot)
    tokenizer.save_pretrained(snapshot)


# ---------------------------------------------------------------- learning


def _learn_language(
    kind: type, config, tokenizer: PreTrainedTokenizerBase, corpus: list[str], steps: int = 100, length: int = 64
) -> PreTrainedModel:
    torch.manual_seed(0)
    model = kind(config).eval()  # without dropout
    stream = torch.tensor(
        [i for ids in tokenizer(corpus, verbose=False)["input_ids"] for i in [*ids, tokenizer.eos_token_id]]
    )

    def loss(step: int) -> torch.Tensor:
        starts = torch.randint(len(stream) - length, (16,)).tolist()
        rows = torch.stack([stream[start : start + length] for start in starts])
        return model(input_ids=rows, labels=rows).loss

    return _descend(model, loss, steps, 1e-2)


def _learn_labels(
    kind: type, config, tokenizer: PreTrainedTokenizerBase, rows: list[tuple[str, str | None, int]], steps: int = 600
) -> PreTrainedModel:
    """Rows are (text, second text of the pair or None, label); one output learns 1 from 0."""
    torch.manual_seed(0)
    model = kind(config).eval()
    outputs = config.num_labels

    def loss(step: int) -> torch.Tensor:
        batch = [rows[i] for i in torch.randint(len(rows), (32,)).tolist()]
        first, second = [row[0] for row in batch], [row[1] for row in batch]
        encoded = tokenizer(first, None if second[0] is None else second, padding=True, return_tensors="pt")
        logits, labels = model(**encoded).logits, torch.tensor([row[2] for row in batch])
        if outputs == 1:
            return torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], labels.float())
        if config.problem_type == "multi_label_classification":
            targets = torch.nn.functional.one_hot(labels, outputs).float()
            return outputs * torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
        return torch.nn.functional.cross_entropy(logits, labels)

    return _descend(model, loss, steps, 3e-3)


def _descend(
    model: PreTrainedModel, loss: Callable[[int], torch.Tensor], steps: int, learning_rate: float
) -> PreTrainedModel:
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        loss(step).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def _corpus(rng: Random) -> list[str]:
    """What the policies and tokenizers learn from: some of everything."""
    kinds = list(texts.NEWS)
    made = [texts.review(rng, i % 2 == 1, 4) for i in range(250)]
    made += [texts.story(rng) for _ in range(150)]
    made += [texts.dialogue(rng, rng, i % 2 == 1) for i in range(150)]
    made += [texts.comment(rng, i % len(texts.EMOTIONS)) for i in range(150)]
    made += [texts.news(rng, kinds[i % 3]) for i in range(100)]
    rng.shuffle(made)
    return made
