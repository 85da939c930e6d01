import json

import open_clip
import pytest
import torch

import models.vocabulary as vocabulary_module
from models.encoders import load_encoder
from models.residual import build_residual, shift_residual, token_scores, token_table
from models.vocabulary import (
    embed_texts,
    embed_vocabulary,
    require_text,
    text_features,
    tokenize,
    vocabulary_texts,
)
from utils.errors import UserError


@pytest.fixture(scope="module")
def vit(shared):
    return load_encoder("ViT-B-32", shared / "golden" / "tiny_clip_vit.pt")


@pytest.fixture(scope="module")
def texts():
    return vocabulary_texts()


@pytest.fixture(scope="module")
def vocabulary(vit, texts):
    return embed_texts(vit.model, texts)


@pytest.fixture(scope="module")
def residual(golden):
    return build_residual(golden["emb_backlit"], golden["emb_welllit"])


def test_vocabulary_has_the_released_size(texts, golden):
    assert len(texts) == golden["vocab_size"] == 48930
    assert len(set(texts)) == len(texts)


def test_embedding_cut_short_is_the_full_length_one(vit, texts, vocabulary):
    tokens = open_clip.tokenize(texts)
    lengths = tokens.argmax(dim=1)
    chosen = torch.cat(
        [(lengths == length).nonzero()[:9, 0] for length in lengths.unique()]
        + [torch.tensor([texts.index("<start_of_text>"), texts.index("<end_of_text>")])]
    )
    with torch.no_grad():
        expected = vit.model.encode_text(tokens[chosen])
    assert len(chosen) > 30
    assert (vocabulary[chosen] - expected).abs().max() <= 1e-5


def test_words_are_tokenised_as_clip_does(texts):
    texts = [*texts, "word" * 40, "<end_of_text> after the end"]
    expected = open_clip.tokenize(texts)
    for ids, full in zip(tokenize(texts, 77), expected.tolist(), strict=True):
        assert list(ids) == full[: full.index(49407) + 1]


def test_a_word_and_its_end_of_word_form_embed_alike(texts, vocabulary):
    assert torch.equal(vocabulary[texts.index("bath")], vocabulary[texts.index("bath ")])


def test_texts_beyond_the_vocabulary_embed_too(vit):
    texts = ["a photograph taken against the light", "bath", "", "bath"]
    with torch.no_grad():
        expected = vit.model.encode_text(open_clip.tokenize(texts))
    assert (embed_texts(vit.model, texts, batch_size=1) - expected).abs().max() <= 1e-5


def test_nearest_and_farthest_tokens_are_the_released_ones(golden, texts, vocabulary, residual):
    scores = token_scores(vocabulary, residual.r)
    where = {text: index for index, text in enumerate(texts)}
    for name, end in (("top_tokens", "nearest"), ("bottom_tokens", "farthest")):
        released = golden[name]
        for text, score in released:
            assert scores[where[text]].item() == pytest.approx(score, abs=1e-6)
        rows = token_table(texts, vocabulary, residual, count=len(released))
        found = [row["score_before"] for row in rows if row["end"] == end]
        assert found == pytest.approx([score for _, score in released], abs=1e-6)


@pytest.mark.parametrize("n", [5, 15])
def test_shifts_are_the_released_ones(golden, vocabulary, residual, n):
    shifted = shift_residual(residual, vocabulary, n)
    assert (shifted.r - golden[f"rv_shift{n}"]).abs().max() <= 1e-6
    assert shifted.t == pytest.approx(golden[f"rv_shift{n}_thr"], abs=1e-6)


def test_text_features_and_their_gradients_ignore_what_follows_the_end(vit):
    clip = vit.model
    tokens = open_clip.tokenize(["against the light", "night"])
    ends = tokens.argmax(dim=1)
    embedded = clip.token_embedding(tokens).detach().requires_grad_()
    found = text_features(clip, embedded, ends)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((found * weights).sum(), embedded)

    hidden = clip.transformer(embedded + clip.positional_embedding, attn_mask=clip.attn_mask)
    full = clip.ln_final(hidden)[torch.arange(2), ends] @ clip.text_projection
    (expected,) = torch.autograd.grad((full * weights).sum(), embedded)
    assert (full - clip.encode_text(tokens)).abs().max() <= 1e-5
    assert (found - full).abs().max() <= 1e-5
    assert (gradient - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert gradient[1, ends[1] + 1 :].abs().max() == 0 < gradient[1, ends[1]].abs().max()


def test_vocabulary_is_embedded_once_for_the_same_weights(vit, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(vocabulary_module, "vocabulary_texts", lambda: ["bath", "light"])
    texts, first = embed_vocabulary(vit)
    monkeypatch.setattr(vocabulary_module, "embed_texts", None)  # must not be called again
    assert torch.equal(embed_vocabulary(vit)[1], first)
    assert texts == ["bath", "light"]
    assert [path.name for path in tmp_path.rglob("*.pt")] == [f"vocabulary-{vit.fingerprint}.pt"]


def test_text_free_encoder_has_no_vocabulary():
    encoder = load_encoder("timm/tf_efficientnet_lite0")
    with pytest.raises(UserError, match="--remove_first_n_tokens needs a text encoder"):
        embed_vocabulary(encoder)


def test_another_kind_of_text_transformer_is_refused(tmp_path):
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32},
        "text_cfg": {"context_length": 8, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1},
    }
    (tmp_path / "few-words.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "few-words.json")
    with pytest.raises(UserError, match="few-words is not of OpenAI's kind"):
        require_text(open_clip.create_model("few-words"), "few-words")
