import math

import pytest
import torch

from models.criteria import (
    ClassificationCriterion,
    PromptCriterion,
    RankingCriterion,
    ResidualCriterion,
    WarmUpCriterion,
    luma_psnr,
)


class KnownEncoder:
    """Its embedding lies at an angle, in radians, that is the image's mean; its five feature maps
    are that mean times 1 to 5. It keeps a list of its passes."""

    def __init__(self, cells=0):
        self.cells = cells
        self.passes = []

    def embed(self, images):
        self.passes.append("embed")
        return self._embeddings(images)

    def feature_maps(self, images):
        self.passes.append("maps")
        return self._maps(images)

    def embed_and_feature_maps(self, images):
        self.passes.append("both")
        return self._embeddings(images), self._maps(images)

    def _embeddings(self, images):
        angles = images.mean(dim=(1, 2, 3))
        embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)  # (N, 2)
        return embeddings[:, None].repeat(1, self.cells, 1) if self.cells else embeddings

    def _maps(self, images):
        means = images.mean(dim=(1, 2, 3)).view(-1, 1, 1, 1)
        return [factor * means.expand(-1, 2, 3, 3) for factor in range(1, 6)]


def flat(*levels):
    """Images (N, 3, 4, 4) of one grey each."""
    return torch.tensor(levels).view(-1, 1, 1, 1).repeat(1, 3, 4, 4)


BACKLIT, ENHANCED = (0.2, 0.1), (0.7, 0.8)
SQUARES = 0.5**2 + 0.7**2  # of the means' differences, summed over the batch
WARM_UP_IDENTITY = SQUARES * (1 + 4 + 9 + 16 + 25)
ROUND_IDENTITY = SQUARES * (1 + 4 + 9 + 16 + 0.5 * 25)


def values(terms):
    return {name: value.item() for name, value in terms.items()}


# Totals of the enhancer


@pytest.mark.parametrize("scale", [1, 3])
def test_the_warm_up_keeps_the_image(scale):
    terms = WarmUpCriterion(KnownEncoder(), scale)(flat(*ENHANCED), flat(*BACKLIT))
    psnr = [20 * math.log10(255 / (219 * difference)) for difference in (0.5, 0.7)]
    assert values(terms) == pytest.approx(
        {"loss": scale * 25 * WARM_UP_IDENTITY, "psnr": sum(psnr) / 2}, rel=1e-5
    )


@pytest.mark.parametrize("scale", [1, 3])
def test_clip_lits_total(scale):
    vectors = torch.tensor([[3.0, 0.0], [0.0, 0.1]])
    terms = PromptCriterion(KnownEncoder(), KnownEncoder(), vectors, scale)(
        flat(*ENHANCED), flat(*BACKLIT)
    )
    logits = [100 * (math.sin(angle) - math.cos(angle)) for angle in ENHANCED]
    p_backlit = sum(1 / (1 + math.exp(logit)) for logit in logits) / 2
    guidance = 320 * p_backlit
    identity = scale * 0.9 * 25 * ROUND_IDENTITY
    total = guidance + identity
    expected = {"loss": total, "guidance": guidance, "identity": identity, "extension": total}
    expected |= {"p_backlit": p_backlit}
    assert values(terms) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scale", [1, 3])
def test_raves_total_and_its_extension_without_the_factor(scale):
    r, t = torch.tensor([0.0, 1.0]), torch.tensor(0.9)
    terms = ResidualCriterion(KnownEncoder(), KnownEncoder(), r, t, scale)(
        flat(*ENHANCED), flat(*BACKLIT)
    )
    guidance = 320 * sum((math.sin(angle) - 0.9) ** 2 for angle in ENHANCED) / 2
    identity = scale * 0.9 * 25 * ROUND_IDENTITY
    expected = {
        "loss": 6 * guidance + identity,
        "guidance": 6 * guidance,
        "identity": identity,
        "extension": guidance + identity,
    }
    assert values(terms) == pytest.approx(expected, rel=1e-5)


def every_total(guidance, identity):
    r, t = torch.tensor([0.0, 1.0]), torch.tensor(0.9)
    return {
        "warm-up": WarmUpCriterion(identity),
        "prompt": PromptCriterion(guidance, identity, torch.eye(2)),
        "residual": ResidualCriterion(guidance, identity, r, t),
    }


@pytest.mark.parametrize("name", ["warm-up", "prompt", "residual"])
def test_only_the_enhanced_image_gets_a_gradient(name):
    enhanced, backlit = flat(*ENHANCED).requires_grad_(), flat(*BACKLIT).requires_grad_()
    every_total(KnownEncoder(), KnownEncoder())[name](enhanced, backlit)["loss"].backward()
    assert enhanced.grad.abs().min() > 0 and backlit.grad is None


@pytest.mark.parametrize("name", ["prompt", "residual"])
def test_one_encoder_for_both_losses_sees_the_enhanced_image_once(name):
    guidance, identity, both = KnownEncoder(), KnownEncoder(), KnownEncoder()
    images = flat(*ENHANCED), flat(*BACKLIT)
    apart = every_total(guidance, identity)[name](*images)
    together = every_total(both, both)[name](*images)
    assert values(together) == values(apart)
    assert (guidance.passes, identity.passes) == (["embed"], ["maps", "maps"])
    assert both.passes == ["both", "maps"]  # the second of the backlit image


@pytest.mark.parametrize("name", ["warm-up", "prompt", "residual"])
def test_the_terms_of_parts_add_up_to_those_of_the_batch(name):
    criterion = every_total(KnownEncoder(), KnownEncoder())[name]
    enhanced, backlit = flat(0.7, 0.78, 0.8, 0.9), flat(0.2, 0.1, 0.3, 0.05)
    whole = values(criterion(enhanced, backlit))
    parts = [
        values(criterion(enhanced[rows], backlit[rows], share=share))
        for rows, share in ((slice(1), 0.25), (slice(1, 4), 0.75))
    ]
    assert {term: sum(part[term] for part in parts) for term in whole} == pytest.approx(whole)


def test_the_losses_of_the_guidances_parts_add_up():
    logits, labels = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), torch.eye(2)[0]
    labels = labels.long().repeat(2)
    levels = logits[:, None].repeat(1, 3, 1) * torch.tensor([3.0, 1.0, -2.0])[:, None]
    for criterion, of_batch in (
        (ClassificationCriterion(), [logits, labels]),
        (RankingCriterion(), [levels]),
    ):
        whole = criterion(*of_batch)["loss"].item()
        parts = [
            criterion(*(each[rows] for each in of_batch), share=share)["loss"].item()
            for rows, share in ((slice(1), 0.25), (slice(1, 4), 0.75))
        ]
        assert abs(whole) > 0 and sum(parts) == pytest.approx(whole)


def test_psnr_is_of_luma():
    for channel, weight in enumerate((65.481, 128.553, 24.966)):
        enhanced = torch.zeros(1, 3, 4, 4)
        enhanced[:, channel] = 0.5
        expected = 20 * math.log10(255 / (0.5 * weight))
        assert luma_psnr(enhanced, torch.zeros(1, 3, 4, 4)).item() == pytest.approx(expected)


def test_psnr_is_the_mean_of_the_images_not_the_batchs():
    images, zeros = flat(0.01, 0.5), flat(0.0, 0.0)
    alone = [luma_psnr(images[i : i + 1], zeros[:1]).item() for i in range(2)]
    assert luma_psnr(images, zeros).item() == pytest.approx(sum(alone) / 2)
    assert math.isfinite(luma_psnr(images, images))


# Partners


@pytest.mark.parametrize("cells", [0, 3])
def test_a_partner_guides_its_image_and_the_vector_the_others(cells):
    encoder = KnownEncoder(cells)
    r, t = torch.tensor([0.0, 1.0]), torch.tensor(0.9)
    if cells:
        r, t = r.repeat(cells, 1), t.repeat(cells)
    criterion = ResidualCriterion(encoder, KnownEncoder(), r, t)
    enhanced = flat(0.5, 0.7).requires_grad_()
    backlit, partners = flat(0.2, 0.1), flat(0.6, 0.1)  # one that has none stands for its own
    terms = criterion(enhanced, backlit, partners, torch.tensor([True, False]))
    squares = 2 - 2 * math.cos(0.6 - 0.5), (math.sin(0.7) - 0.9) ** 2
    assert terms["guidance"].item() == pytest.approx(6 * 320 * sum(squares) / 2, rel=1e-4)
    (gradient,) = torch.autograd.grad(terms["guidance"], enhanced)
    assert gradient[0].sum() < 0  # towards the brighter partner


# Guidance


def test_label_0_is_backlit():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    found = ClassificationCriterion()(logits, torch.tensor([0, 1]))["loss"]
    assert found.item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)


def logits_of(*rows):
    """Logits (N, levels, 2) with these probabilities of "backlit"."""
    p = torch.tensor(rows)
    return torch.stack([p.log(), (1 - p).log()], dim=-1)


@pytest.mark.parametrize(
    ("probabilities", "hinges"),
    [
        ((0.9, 0.2), [1.0 - 0.7]),
        # backlit and well-lit, backlit and the first enhanced; then from level to level
        ((0.9, 0.5, 0.4), [0.9 - 0.5, 0.9 - 0.4, 0.2 - 0.1]),
        ((0.99, 0.05, 0.04), [0, 0, 0.2 - 0.01]),
        ((0.9, 0.4, 0.37, 0.3), [0.9 - 0.6, 0.9 - 0.5, 0.1 - 0.03, 0.1 - 0.07]),
        ((0.9, 0.37, 0.4, 0.3), [0.9 - 0.6, 0.9 - 0.53, 0.1 + 0.03, 0]),  # the newer is worse
        ((0.999, 0.09, 0.05, 0.01), [0, 0, 0.1 - 0.04, 0.1 - 0.04]),
    ],
)
def test_ranking(probabilities, hinges):
    found = RankingCriterion()(logits_of(probabilities))["loss"].item()
    assert found == pytest.approx(200 * sum(hinges), rel=1e-4)


def test_ranking_averages_over_the_tuples():
    rows = (0.9, 0.5, 0.4), (0.5, 0.9, 0.4)
    alone = [RankingCriterion()(logits_of(row))["loss"].item() for row in rows]
    found = RankingCriterion()(logits_of(*rows))["loss"].item()
    assert found == pytest.approx(sum(alone) / 2, rel=1e-5)
