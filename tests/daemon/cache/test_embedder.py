"""The embedder is shared by every thread of the pool."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from semcache.daemon.cache.embedder import Embedder

MAX_TOKENS = 32
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "two", "three"]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    """A tiny random one."""
    folder = tmp_path_factory.mktemp("embedder")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=MAX_TOKENS, **shape)
    BertModel(config).save_pretrained(folder)
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=MAX_TOKENS, **special).save_pretrained(folder)
    return Embedder.load(str(folder))


def test_long_texts_are_counted_whole_while_others_are_embedded(embedder: Embedder) -> None:
    assert embedder.max_tokens == MAX_TOKENS
    texts = [f"{'one ' * num_words}two" for num_words in range(400)]

    def counted(text: str) -> int:
        embedder.embed(text)
        return embedder.num_tokens(text)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(counted, texts)) == [num_words + 3 for num_words in range(400)]
