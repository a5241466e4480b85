"""Sharpness of attention against what can be said of it without a sum."""

import json
import math

import pytest
import torch

from scripts.attention_sharpness import main, sharpness


def test_even_attention_is_not_sharp_at_all():
    weights = torch.ones(2, 3, 40).tril(37)
    weights = weights / weights.sum(-1, keepdim=True)
    entropy, share, mass = sharpness(weights)
    assert entropy == pytest.approx(sum(map(math.log, (38, 39, 40))) / 3)
    assert share == pytest.approx(1)
    assert mass == pytest.approx((10 / 38 + 10 / 39 + 10 / 40) / 3)


def test_attention_to_one_entry_is_as_sharp_as_can_be():
    weights = torch.zeros(2, 3, 40)
    weights[..., 5] = 1
    assert sharpness(weights) == (0, 0, 1)


def test_a_prompt_of_one_token_has_no_share():
    assert sharpness(torch.ones(2, 1, 1)) == (0, 0, 1)


def test_the_command_measures_the_prompts_of_a_run(capsys):
    main(["limit=2", "--prompts", "2"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["prompts"] == 2
    assert 100 < found["tokens"] < 125
    assert 0 < found["share_of_even"] < 1
    assert found["share_of_even"] * math.log(found["tokens"]) == pytest.approx(
        found["entropy"], rel=0.1
    )
    assert 0 < found["top_10"] < 1
