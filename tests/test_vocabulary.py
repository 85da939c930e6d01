import json

import open_clip
import pytest
import torch

from models.vocabulary import (
    embed_texts,
    embed_vocabulary,
    require_text,
    text_features,
    vocabulary_texts,
)
from training.encoder_weights import load_encoder
from utils.errors import UserError


@pytest.fixture(scope="module")
def vit(tiny_vit):
    return load_encoder("ViT-B-32", tiny_vit)


@pytest.fixture(scope="module")
def all_texts():
    return vocabulary_texts()


def test_vocabulary_has_the_released_size(all_texts):
    assert len(all_texts) == len(set(all_texts)) == 48930
    assert {"bath", "bath ", "<start_of_text>", "<end_of_text>"} < set(all_texts)


@pytest.mark.parametrize(("batch", "per_row"), [(512, 16), (7, 3), (1, 1)])
def test_texts_embed_as_at_full_length(vit, all_texts, batch, per_row, monkeypatch):
    monkeypatch.setattr("models.vocabulary.TEXT_BATCH", batch)
    monkeypatch.setattr("models.vocabulary.TEXTS_PER_ROW", per_row)
    texts = [*all_texts[::500], "<start_of_text>", "<end_of_text>", ""]
    texts += ["a photograph taken against the light", "word" * 80, "<end_of_text> after the end"]
    tokens = open_clip.tokenize(texts)
    assert {3, 4, 8, 77} < set((tokens.argmax(dim=1) + 1).tolist())  # lengths
    with torch.no_grad():
        expected = vit.model.encode_text(tokens)
    assert (embed_texts(vit.model, texts) - expected).abs().max() <= 1e-5


def test_texts_of_equal_tokens_embed_alike(vit):
    embeddings = embed_texts(vit.model, ["light", "bath", "bath ", "a bath"])
    assert torch.equal(embeddings[1], embeddings[2])
    assert not torch.equal(embeddings[1], embeddings[3])


def test_vocabulary_embeds_its_texts_in_order(vit, monkeypatch):
    texts = ["a red bath", "night", "against the light"]
    monkeypatch.setattr("models.vocabulary.vocabulary_texts", lambda: texts)
    found, embeddings = embed_vocabulary(vit)
    with torch.no_grad():
        expected = vit.model.encode_text(open_clip.tokenize(texts))
    assert found == texts
    torch.testing.assert_close(embeddings, expected)


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


def test_another_kind_of_text_transformer_is_refused(tmp_path):
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32},
        "text_cfg": {"context_length": 8, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1},
    }
    (tmp_path / "few-words.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "few-words.json")
    with pytest.raises(UserError, match="few-words has no text transformer of OpenAI's kind"):
        require_text(open_clip.create_model("few-words"), "few-words")


def test_a_network_without_text_is_refused():
    encoder = load_encoder("timm/tf_efficientnet_lite0")
    with pytest.raises(UserError, match="lite0 has no text transformer of OpenAI's kind"):
        embed_vocabulary(encoder)
