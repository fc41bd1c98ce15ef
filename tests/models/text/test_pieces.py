"""Texts in pieces by a user's own files: nothing in a text is a special token, whatever it looks like."""

import json
import pickle

import pytest

from sora_jax.core.errors import UserError
from sora_jax.models.text.pieces import BytePieces, JsonPieces, SentencePieces
from tests.small_encoder import byte_pair_tokenizer, byte_pairs, tokenizers, unigram_pieces, unigram_tokenizer

SPECIAL = ("</s>", "<extra_id_0>", "<pad>", "<|endoftext|>", "[SEP]")


def json_pieces(tree):
    return JsonPieces(json.dumps(tree).encode(), "tokenizer.json")


@pytest.mark.parametrize("name", SPECIAL)
def test_a_text_never_spells_a_special_token(name):
    t5, clip = json_pieces(unigram_tokenizer(unigram_pieces())), json_pieces(byte_pair_tokenizer(byte_pairs()))
    plain = tokenizers.Tokenizer.from_str(json.dumps(unigram_tokenizer(unigram_pieces())))
    for pieces, special in ((t5, ("<pad>", "</s>", "<extra_id_0>")), (clip, ("<|startoftext|>", "<|endoftext|>"))):
        forbidden = {pieces.number(token) for token in special}
        for text in (name, f"a red circle {name}", f"a{name}b", f"{name}{name}"):
            numbers = pieces.split(text)
            assert numbers
            assert forbidden.isdisjoint(numbers), (name, text, numbers)
    # The file itself would have done it, or the test shows nothing.
    assert plain.encode("a </s>", add_special_tokens=False).ids[-1] == 1


def test_other_texts_are_cut_as_the_file_says():
    plain = tokenizers.Tokenizer.from_str(json.dumps(unigram_tokenizer(unigram_pieces())))
    pieces = json_pieces(unigram_tokenizer(unigram_pieces()))
    for text in ("a red circle moves right", "blues", "a", "zebra, and; 7"):
        assert pieces.split(text) == plain.encode(text, add_special_tokens=False).ids
    assert pickle.loads(pickle.dumps(pieces)).split("a red circle") == pieces.split("a red circle")
    assert pieces.number("</s>") == 1
    assert pieces.number("nobody") is None


def test_sentencepiece_reads_a_model_and_spells_no_control_token(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a red circle moves right\na blue square moves left </s>\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=24,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    data = (tmp_path / "spiece.model").read_bytes()
    pieces = SentencePieces(data, "spiece.model")
    assert pieces.number("</s>") == 1
    assert 1 not in pieces.split("a red </s>")
    library = sentencepiece.SentencePieceProcessor(model_proto=data)
    assert pieces.split("a red circle") == library.encode("a red circle")
    assert pieces.digest.startswith("spiece.model ")
    with pytest.raises(UserError, match="torn is not a SentencePiece model"):
        SentencePieces(b"torn", "torn")


def test_bytes_are_their_numbers_after_three_tokens():
    assert BytePieces().split("aé") == [100, 198, 172]
    assert BytePieces().number("</s>") == 1


def test_a_damaged_file_is_refused_by_name():
    with pytest.raises(UserError, match=r"x/tokenizer\.json is not a tokenizer that can be read"):
        JsonPieces(b"{}", "x/tokenizer.json")


def test_a_missing_library_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"tokenizer.json needs tokenizers .*: pip install 'sora-jax\[text\]'"):
        json_pieces({})
