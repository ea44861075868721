"""Each exact rewrite equals the published form in float64, on shapes where a wrong sign, tap or padding would show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lavt_edge.export.rewrites.folding import (
    batch_norm_factors,
    linear,
    patch_projection,
    scaled_qkv,
)
from lavt_edge.export.rewrites.image_model import Block, BytePatchEmbed, Gate, ImageModel, Merge, stage_sizes
from lavt_edge.export.rewrites.pwam import FusedPWAM, QueryNorm, WordNorm, scores
from lavt_edge.export.rewrites.text_model import TextModel
from lavt_edge.export.rewrites.upsampling import (
    DecoderLevel,
    UpsampledConv,
    interpolation_matrix,
    shifted_interpolation,
)
from lavt_edge.export.rewrites.windows import GatheredAttention, WindowLayout, window_slots
from lavt_edge.export.rewrites.winograd import WinogradConv
from lavt_edge.export.rewrites.words import PromptEncoder, PromptReader, prompt_channels
from lavt_edge.reference import LAVT, LAVTConfig, TextConfig
from lavt_edge.reference.config import IMAGENET_MEAN, IMAGENET_STD
from lavt_edge.reference.decoder import Decoder, upsample
from lavt_edge.reference.fusion import apply_gate, language_gate
from lavt_edge.reference.swin import PatchEmbed, Stage, SwinBlock
from lavt_edge.tests.golden import byte_patches, fill, golden_lavt
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL_TEXT = TextConfig(
    vocab_size=60, hidden_size=24, num_layers=2, num_heads=2, intermediate_size=40, max_positions=20
)
WORD_COUNTS = (1, 2, 7, 20)


def error(found: Tensor, expected: Tensor) -> float:
    """Relative, norm over norm, of two float64 tensors of one shape."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype == torch.float64
    return float((found - expected).norm() / expected.norm())


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def random_bytes(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def normalised(image: Tensor) -> Tensor:
    """uint8 (B,H,W,3) -> float64 (B,3,H,W), as the official preprocessing does it."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((image.double() / 255 - mean) / std).permute(0, 3, 1, 2)


def mask_of(*counts: int, words: int = 20) -> Tensor:
    return (torch.arange(words) < torch.tensor(counts)[:, None]).double()


def small_lavt(heads: tuple[int, int, int, int] = (1, 1, 1, 1), window: int = 7) -> LAVT:
    return golden_lavt(LAVTConfig(swin="demo", window=window, fusion_heads=heads, text=SMALL_TEXT)).double()


@pytest.fixture(scope="module", params=[(1, 1, 1, 1), (1, 2, 4, 8), (3, 1, 2, 1)], ids=str)
def lavt(request: pytest.FixtureRequest) -> LAVT:
    return small_lavt(request.param)


# 1 and 2: PWAM


@pytest.mark.parametrize("heads", [1, 3])
def test_query_norm_gives_the_scores_of_normalised_queries(heads: int) -> None:
    query, key = random(2, 35, 12) * 3 + 5, random(2, 20, 12, seed=1)
    normed = F.instance_norm(query.transpose(1, 2)).transpose(1, 2)
    by_head = (x.unflatten(2, (heads, -1)) for x in (normed, key))
    expected = torch.einsum("bnhc,bthc->bhnt", *by_head)
    expected = expected if heads > 1 else expected[:, 0]
    scaled, mean = QueryNorm()(query, key, heads)
    assert error(scores(query, scaled, heads) - mean, expected) < 1e-12


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 1e-3])  # with small values eps decides
def test_word_norm_gives_the_normalised_product_without_its_bias(heads: int, scale: float) -> None:
    attention = random(2, 35, heads, 20).softmax(dim=-1).flatten(2)  # rows sum to one per head
    value, bias = scale * random(2, heads * 20, 12, seed=1), random(12, seed=2)
    expected = F.instance_norm((attention @ value + bias).transpose(1, 2)).transpose(1, 2)
    centred, scaled = WordNorm()(attention, value)
    assert error(centred @ scaled, expected) < 1e-11


@pytest.mark.parametrize("pixels", [2, 35, 144])
@pytest.mark.parametrize("stage", range(4))
def test_fused_pwam_is_the_published_pwam(lavt: LAVT, stage: int, pixels: int) -> None:
    pwam = lavt.backbone.stages[stage].fusion
    x, words = random(len(WORD_COUNTS), pixels, lavt.config.channels[stage]), random(len(WORD_COUNTS), 24, 20, seed=1)
    mask = mask_of(*WORD_COUNTS)
    word_bias, prompts = PromptReader(lavt.config)(PromptEncoder(lavt)(words.transpose(1, 2), mask), mask)
    found = FusedPWAM(pwam)(x, *prompts[stage], word_bias)
    expected = pwam(x, words, mask.unsqueeze(-1))
    for b in range(len(WORD_COUNTS)):
        assert error(found[b], expected[b]) < 1e-11, WORD_COUNTS[b]


def test_fused_pwam_keeps_the_digits_of_alike_words_that_the_published_form_loses() -> None:
    """float32 errors against float64, with words that differ by a thousandth: centring first is nearer the truth."""
    model = small_lavt((1, 2, 1, 1))
    pwam, mask = model.backbone.stages[1].fusion, mask_of(12)
    x = random(1, 900, model.config.channels[1])
    words = random(1, 24, 1, seed=1) + 1e-3 * random(1, 24, 20, seed=2)
    expected = pwam(x, words, mask.unsqueeze(-1))

    model.float()
    published = pwam(x.float(), words.float(), mask.float().unsqueeze(-1))
    encoder, reader = PromptEncoder(model), PromptReader(model.config)
    word_bias, prompts = reader(encoder(words.float().transpose(1, 2), mask.float()), mask.float())
    rewritten = FusedPWAM(pwam)(x.float(), *prompts[1], word_bias)
    assert error(rewritten.double(), expected) < 0.2 * error(published.double(), expected)


# 3: words


def test_prompt_holds_keys_and_values_of_every_stage_and_head(lavt: LAVT) -> None:
    """Centred by hand: keys are the published ones less their mean; values the same, through W of their own head."""
    words, mask = random(1, 24, 20, seed=1), mask_of(20)
    _, prompts = PromptReader(lavt.config)(PromptEncoder(lavt)(words.transpose(1, 2), mask), mask)
    for (prompt_key, prompt_value), stage in zip(prompts, lavt.backbone.stages, strict=True):
        attention = stage.fusion.image_lang_att
        channels, heads = attention.channels, attention.num_heads
        key, value = (
            (conv(words) - conv(words).mean(2, keepdim=True))[0] for conv in (attention.f_key, attention.f_value)
        )
        assert error(prompt_key[0], channels**-0.5 * key.T) < 1e-12
        weight = attention.W[0].weight[..., 0]
        per_head = zip(weight.split(channels // heads, dim=1), value.split(channels // heads), strict=True)
        assert error(prompt_value[0], torch.cat([(w @ v).T for w, v in per_head])) < 1e-12


def test_prompt_width_is_what_the_manifest_says(lavt: LAVT) -> None:
    prompt = PromptEncoder(lavt)(random(2, 20, 24), mask_of(3, 20))
    assert prompt.shape == (2, 20, prompt_channels(lavt.config))


def test_what_all_words_share_has_no_effect(lavt: LAVT) -> None:
    words, mask = random(4, 20, 24), mask_of(*WORD_COUNTS)
    encoder = PromptEncoder(lavt)
    assert error(encoder(words + random(4, 1, 24, seed=1), mask), encoder(words, mask)) < 1e-12


def test_words_beyond_the_sentence_are_zero_and_change_nothing(lavt: LAVT) -> None:
    words, mask = random(4, 20, 24), mask_of(*WORD_COUNTS)
    encoder = PromptEncoder(lavt)
    prompt = encoder(words, mask)
    assert not prompt[mask == 0].any()
    assert prompt[2, :7].any(dim=1).all()
    noisy = torch.where(mask.bool().unsqueeze(-1), words, 100 * random(4, 20, 24, seed=1))
    assert torch.equal(encoder(noisy, mask), prompt)


@pytest.mark.parametrize("counts", [(1,), (2, 20), (7, 19, 3)])
def test_text_model_is_bert_and_the_prompt_encoder(counts: tuple[int, ...]) -> None:
    model = small_lavt((1, 2, 4, 8))
    mask = mask_of(*counts).long()
    ids = torch.from_numpy(np.random.default_rng(0).integers(1, 60, (len(counts), 20))) * mask
    expected = PromptEncoder(model)(model.encode_words(ids, mask).transpose(1, 2), mask)
    found = TextModel(model)(ids, mask)
    if counts == (1,):  # a word alone is its own mean
        assert found.abs().max() < 1e-12
        assert expected.abs().max() < 1e-12
    else:
        assert error(found, expected) < 1e-12


# 4: windows

GRIDS = [(7, 7), (14, 21), (8, 5), (3, 3), (1, 9), (13, 20)]


@pytest.mark.parametrize(("height", "width"), GRIDS)
@pytest.mark.parametrize("window", [4, 7])
@pytest.mark.parametrize("shifted", [False, True])
def test_gathered_attention_is_the_padded_shifted_window_attention(
    height: int, width: int, window: int, shifted: bool
) -> None:
    block = fill(SwinBlock(24, num_heads=3, window=window, shifted=shifted).double())
    assert isinstance(block, SwinBlock)
    assert (block.shift > 0) == shifted
    layout = WindowLayout(height, width, window, block.shift, num_heads=3)
    x = random(2, height, width, 24)
    expected = block._attend(x).flatten(1, 2)
    assert error(GatheredAttention(block, layout)(x.flatten(1, 2)), expected) < 1e-12
    assert error(Block(block, layout)(x.flatten(1, 2)), block(x).flatten(1, 2)) < 1e-12


@pytest.mark.parametrize(("height", "width"), GRIDS)
@pytest.mark.parametrize("shift", [0, 2])
def test_every_pixel_has_one_slot_and_the_rest_are_padding(height: int, width: int, shift: int) -> None:
    slots = window_slots(height, width, 5, shift)
    assert slots.shape == (-(-height // 5) * -(-width // 5), 25)
    assert torch.equal(slots[slots < height * width].sort().values, torch.arange(height * width))
    assert slots.max() <= height * width


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 6), (4, 7), (5, 3), (1, 1)])
def test_merge_is_patch_merging(height: int, width: int) -> None:
    stage = Stage(8, 1, 2, 4, text_dim=24, fusion_heads=1, last=False).double()
    fill(stage)
    assert stage.downsample is not None
    x = random(2, height, width, 8)
    found = Merge(stage, height, width)(x.flatten(1, 2))
    assert error(found, stage.downsample(x).flatten(1, 2)) < 1e-12


def test_gate_is_the_language_pathway() -> None:
    gate, x, residual = fill(language_gate(12).double()), random(2, 9, 12), random(2, 9, 12, seed=1)
    assert error(Gate(gate)(x, residual), apply_gate(gate, x, residual)) < 1e-12


# 5: the decoder

AXES = [(1, 1), (1, 2), (1, 5), (2, 2), (2, 3), (3, 3), (4, 1), (7, 13), (13, 25), (15, 30), (30, 31), (25, 100)]


@pytest.mark.parametrize(("size", "target"), AXES)
def test_interpolation_matrix_is_torchs_with_aligned_corners(size: int, target: int) -> None:
    x = random(2, 3, size)
    expected = F.interpolate(x, size=target, mode="linear", align_corners=True)
    assert error(x @ interpolation_matrix(size, target).T, expected) < 1e-12


@pytest.mark.parametrize(("size", "target"), AXES)
def test_shifted_interpolation_is_what_each_tap_reads(size: int, target: int) -> None:
    x = random(size)
    padded = F.pad(interpolation_matrix(size, target) @ x, (1, 1))
    expected = torch.stack([padded[tap : tap + target] for tap in range(3)], dim=1)
    assert error(shifted_interpolation(size, target) @ x, expected) < 1e-12


SIZES = [((1, 1), (2, 2)), ((2, 3), (4, 5)), ((7, 4), (13, 8)), ((3, 1), (5, 1)), ((4, 5), (4, 5))]


@pytest.mark.parametrize(("size", "target"), SIZES)
def test_upsampled_conv_is_the_convolution_of_the_upsampled_map(size: tuple[int, int], target: tuple[int, int]) -> None:
    x, weight = random(2, 6, *size), random(5, 6, 3, 3, seed=1)
    expected = F.conv2d(upsample(x, *target), weight, padding=1).permute(0, 2, 3, 1)
    assert error(UpsampledConv(weight, size, target)(x.flatten(2).transpose(1, 2)), expected) < 1e-12


@pytest.mark.parametrize(("size", "target"), SIZES)
@pytest.mark.parametrize("level", Decoder.levels)
@pytest.mark.parametrize("winograd", [False, True])
def test_decoder_level_is_upsample_concat_and_two_convolutions(
    level: int, size: tuple[int, int], target: tuple[int, int], winograd: bool
) -> None:
    channels = (4, 8, 16, 32)
    decoder = fill(Decoder(channels).double())
    assert isinstance(decoder, Decoder)
    x, skip = random(2, 32 if level == 4 else 16, *size), random(2, channels[level - 2], *target, seed=1)
    joined = torch.cat([x if size == target else upsample(x, *target), skip], dim=1)
    expected = decoder._conv(2, level, decoder._conv(1, level, joined))
    made = DecoderLevel(decoder, level, size, target, winograd=winograd)
    found = made(x.flatten(2).transpose(1, 2), skip)
    assert error(found, expected) < 1e-12


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 3), (8, 13), (15, 30)])
def test_winograd_products_are_the_convolution(size: tuple[int, int]) -> None:
    x, weight, bias = random(2, 6, *size), random(5, 6, 3, 3, seed=1), random(5, seed=2)
    expected = F.conv2d(x, weight, bias, padding=1).flatten(2).transpose(1, 2)
    assert error(WinogradConv(weight, bias, size)(x.flatten(2).transpose(1, 2)), expected) < 1e-12


# 6: folding


def test_query_scale_folds_into_its_rows_alone() -> None:
    qkv = fill(nn.Linear(8, 24).double())
    assert isinstance(qkv, nn.Linear)
    query, key, value = qkv(random(2, 5, 8)).chunk(3, dim=-1)
    expected = torch.cat([0.3 * query, key, value], dim=-1)
    assert error(scaled_qkv(qkv.weight, qkv.bias, 0.3)(random(2, 5, 8)), expected) < 1e-12


def test_batch_norm_is_a_factor_and_an_offset() -> None:
    bn = nn.BatchNorm2d(6, eps=0.1).double()  # large, so that its place matters
    fill(bn)
    factor, offset = batch_norm_factors(bn)
    x = random(2, 6, 3, 4)
    assert error(x * factor[:, None, None] + offset[:, None, None], bn(x)) < 1e-12


@pytest.mark.parametrize("bias", [True, False])
def test_matmul_is_the_linear_layer(bias: bool) -> None:
    layer = fill(nn.Linear(8, 5, bias=bias).double())
    assert isinstance(layer, nn.Linear)
    assert error(linear(layer.weight, layer.bias)(random(3, 8)), layer(random(3, 8))) < 1e-12


def test_patch_projection_takes_centred_bytes() -> None:
    embed = fill(PatchEmbed(16).double())
    assert isinstance(embed, PatchEmbed)
    centre = torch.tensor([124.0, 116.0, 104.0]).double()
    weight, offset = patch_projection(embed.proj, centre)
    image = random_bytes(1, 4, 4, 3)
    expected = embed.proj(normalised(image)).flatten() - embed.proj.bias
    assert error(weight @ (image - centre).flatten() - offset.sum(dim=1), expected) < 1e-12


@pytest.mark.parametrize(("height", "width"), [(8, 12), (9, 12), (8, 13), (7, 10), (3, 5)])
def test_byte_patch_embedding_is_the_embedding_of_the_normalised_image(height: int, width: int) -> None:
    """Padding is zero after the normalisation, so it is no black pixel."""
    embed = fill(PatchEmbed(16).double())
    assert isinstance(embed, PatchEmbed)
    image = random_bytes(2, height, width, 3)
    found = BytePatchEmbed(embed, height, width)(image)
    assert error(found, embed(normalised(image)).flatten(1, 2)) < 1e-12


def test_byte_patches_of_the_golden_comparison_are_the_graphs_patches() -> None:
    image = random_bytes(2, 8, 12, 3)
    centred = image.double() - torch.tensor([124, 116, 104])
    expected = centred.reshape(2, 2, 4, 3, 12).transpose(2, 3).reshape(2, 6, 48)
    assert np.abs(byte_patches(normalised(image)) - expected.numpy()).max() < 1e-4


# the whole


@pytest.mark.parametrize(
    ("size", "window", "heads"),
    [
        ((96, 64), 12, (1, 1, 1, 1)),
        ((75, 102), 7, (1, 2, 4, 8)),
        ((33, 50), 5, (1, 1, 2, 1)),
    ],
)
def test_image_and_text_model_are_the_published_lavt(
    size: tuple[int, int], window: int, heads: tuple[int, int, int, int]
) -> None:
    model = small_lavt(heads, window)
    image, mask = random_bytes(2, *size, 3), mask_of(3, 20).long()
    ids = torch.from_numpy(np.random.default_rng(1).integers(1, 60, (2, 20))) * mask
    expected = model(normalised(image), ids, mask)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    prompt = TextModel(model)(ids, mask)
    logits, found = ImageModel(model, *size)(image, prompt, mask.double())
    assert error(logits, expected) < 1e-10
    assert found.dtype == torch.uint8
    assert torch.equal(found, expected.argmax(dim=1).to(torch.uint8))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("height", "width"), [(64, 64), (75, 102), (33, 50)])
def test_stage_sizes_are_those_of_the_backbone(height: int, width: int) -> None:
    model = small_lavt()
    maps = model.backbone(random(1, 3, height, width), random(1, 24, 20), mask_of(4).unsqueeze(-1))
    assert stage_sizes(height, width) == [tuple(map_.shape[-2:]) for map_ in maps]
