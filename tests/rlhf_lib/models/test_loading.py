"""Loading models: what is refused and how it is said, and what is chosen where the recipe says auto."""

import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    T5Config,
    set_seed,
)

from rlhf_lib.errors import ModelError, RecipeError
from rlhf_lib.models import device, loading
from rlhf_lib.recipe import ComputeConfig

SIZES = {"vocab_size": 11, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}


def word_tokenizer(**special):
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<eos>", *"abcdefghij"])}, "<eos>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


@pytest.fixture
def gpt2(tmp_path):
    set_seed(0)
    GPT2LMHeadModel(GPT2Config(**SIZES, bos_token_id=0, eos_token_id=0)).save_pretrained(tmp_path / "gpt2")
    word_tokenizer(eos_token="<eos>").save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def test_an_absent_hub_model_is_told_from_an_absent_folder(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (loading.load_causal_lm, loading.load_classifier, loading.load_tokenizer, loading.fingerprint):
        with pytest.raises(ModelError, match=r"nobody/nothing .*hub is out of reach.*local folder"):
            load("nobody/nothing")
        with pytest.raises(ModelError, match=r"/no/such/model: no such folder"):
            load("/no/such/model")
    with pytest.raises(ModelError, match="registry URI"):
        loading.load_causal_lm("models:/policy@champion")


def test_folders_that_are_no_model_are_refused(tmp_path, gpt2):
    with pytest.raises(ModelError, match=r"no config\.json"):
        loading.load_causal_lm(str(tmp_path))
    pickled = shutil.copytree(gpt2, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match="must be in safetensors format"):
        loading.load_causal_lm(str(pickled))
    DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=11, dim=8, hidden_dim=8, n_layers=1, n_heads=2)
    ).save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match="is not a causal language model"):
        loading.load_causal_lm(str(tmp_path / "bert"))


def test_a_language_model_is_no_classifier_unless_a_head_is_asked_for(gpt2):
    with pytest.raises(ModelError, match=r"weights are missing for score\.weight"):
        loading.load_classifier(str(gpt2))
    assert loading.load_classifier(str(gpt2), num_labels=1).score.weight.shape == (1, 8)


def test_a_tokenizer_needs_eos_and_pads_with_it(tmp_path, gpt2):
    assert loading.load_tokenizer(str(gpt2)).pad_token == "<eos>"
    word_tokenizer(pad_token="a").save_pretrained(tmp_path / "endless")
    with pytest.raises(ModelError, match="has no EOS token"):
        loading.load_tokenizer(str(tmp_path / "endless"))
    assert loading.load_tokenizer(str(tmp_path / "endless"), need_eos=False).eos_token is None


def test_gelu_is_switched_to_the_equal_faster_one(gpt2):
    slow, fast = AutoModelForCausalLM.from_pretrained(gpt2).eval(), loading.load_causal_lm(str(gpt2))
    assert (slow.config.activation_function, fast.config.activation_function) == ("gelu_new", "gelu_pytorch_tanh")
    assert fast.config._attn_implementation == "sdpa"
    assert fast.dtype == torch.float32
    assert not fast.training
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    torch.testing.assert_close(fast(ids).logits, slow(ids).logits, atol=1e-6, rtol=1e-5)
    assert loading.load_causal_lm(str(gpt2), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_distinct_pad_adds_one_row_once(gpt2):
    tokenizer, model = loading.load_tokenizer(str(gpt2)), loading.load_classifier(str(gpt2), num_labels=1)
    for _ in range(2):
        loading.distinct_pad(tokenizer, model)
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (11, 0)
        assert model.config.pad_token_id == 11
        assert model.get_input_embeddings().weight.shape[0] == 12


def test_the_fingerprint_is_of_the_content_wherever_it_lies(tmp_path, gpt2):
    before = loading.fingerprint(str(gpt2))
    copy = shutil.copytree(gpt2, tmp_path / "elsewhere" / "copy")
    (copy / ".cache").mkdir()
    (copy / ".cache" / "note").write_text("no part of the model")
    assert loading.fingerprint(str(copy)) == before
    weights = copy / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert loading.fingerprint(str(copy)) != before


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GPT2Config(n_positions=256), 256),
        (BertConfig(max_position_embeddings=128), 128),
        (RobertaConfig(max_position_embeddings=514, pad_token_id=1), 512),
        (T5Config(), 1 << 20),
        (MambaConfig(), 1 << 20),
    ],
)
def test_positions(config, expected):
    assert loading.positions(config) == expected


def test_device_and_precision(monkeypatch):
    cpu = torch.device("cpu")
    assert device.pick_device(ComputeConfig(device="cpu")) == cpu
    for absent in ("cuda:99", "quantum"):
        with pytest.raises(RecipeError, match=f"compute.device {absent} can't be used here"):
            device.pick_device(ComputeConfig(device=absent))
    assert device.pick_dtype(ComputeConfig(precision="bf16"), cpu) == torch.bfloat16
    assert device.pick_dtype(ComputeConfig(precision="fp32"), cpu) == torch.float32
    # the vector units of a processor that emulates bf16, and of one that multiplies it
    for units, expected in (
        ({"avx512_bw": True, "amx_bf16": False}, torch.float32),
        ({"amx_bf16": True}, torch.bfloat16),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda units=units: units)
        assert device.pick_dtype(ComputeConfig(), cpu) == expected
