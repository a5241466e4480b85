"""Before texts: new words for a model of pictures, and heads that begin as copies of words.

Without this the heads learn within minutes where to look, but not to carry what they see: behind
the first layer a new word's small embedding is lost among what the layers add.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.embedded.words import TYPES, VALUES
from scripts.tiny_vlm.build import vocabulary

# The way to a word: a value holds its key, the tokens behind a question's key hold that key, then
# they look at what holds it: at the value (MATCH), or at the key itself (ECHO), which then holds
# what it belongs to. (layer, heads); pictures can do without these heads.
BIND, FETCH, ECHO, MATCH = (1, (0, 1)), (2, (2, 3)), (3, (0, 1)), ((3, (2, 3)), (5, (2, 3)))
# Where answers may come in any order, a head then takes away what has been said (see `hush`).
SAID, UNSAID = (5, (3,)), ((3, (2, 3)), (5, (2,)))


@torch.no_grad()
def extend(model: nn.Module, generator: torch.Generator, norm: float = 20.0) -> None:
    """Give a model of pictures the words of the texts; its old words keep their places.

    The new words' input embeddings are as long as what the first layer adds, so that a word can
    still be told behind it; outputs are untied from them. Words of a type begin alike.
    """
    words, old = vocabulary(), model.get_input_embeddings().weight.detach().clone()
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(old.clone())
    model.resize_token_embeddings(len(words), mean_resizing=False)
    directions = torch.randn(len(words), old.shape[1], generator=generator)
    for group in TYPES.values():
        common = 0.6 * torch.randn(old.shape[1], generator=generator)
        directions[[words.index(word) for word in group]] += common
    directions = nn.functional.normalize(directions, dim=1)[len(old) :]
    model.get_input_embeddings().weight[len(old) :] = norm * directions
    model.lm_head.weight[len(old) :] = old.norm(dim=1).mean() * directions


@torch.no_grad()
def wire(
    model: nn.Module, generator: torch.Generator, gain: float = 2.0, sharp: float = 2.0
) -> None:
    """Let the heads above begin as copies of words; training shapes what they look at.

    Words are copied in four orthogonal subspaces of 32 dimensions: own (P), bound (R), and two
    (S, T) through which values go to the answer. The matching heads compare own with bound in the
    slow half of the rotary dimensions, which distance turns little.
    """
    layers = model.model.language_model.layers
    width = model.config.text_config.hidden_size
    size = model.config.text_config.head_dim
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator))[0].T
    own, bound, first, second = basis.split(size)  # [32, width] each
    slow = torch.cat((torch.arange(9, 16), torch.arange(25, 32)))

    def copy(place, read: Tensor, write: Tensor, gain: float) -> None:
        layer, heads = layers[place[0]], place[1]
        scale = layer.input_layernorm.weight
        group = heads[0] // 2
        layer.self_attn.v_proj.weight[group * size : (group + 1) * size] = read / scale
        for head in heads:
            columns = slice(head * size, (head + 1) * size)
            layer.self_attn.o_proj.weight[:, columns] = write.T * gain / len(heads)

    def compare(place: tuple[int, tuple[int, ...]], read: Tensor) -> None:
        layer, heads = layers[place[0]], place[1]
        scale = layer.input_layernorm.weight
        mix = torch.linalg.qr(torch.randn(size, size, generator=generator))[0][: len(slow)] * sharp
        query, key = layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight
        key[heads[0] // 2 * size + slow] = mix @ (read / scale)
        for head in heads:
            query[head * size + slow] = mix @ (own / scale)

    copy(BIND, own, bound, gain)
    copy(FETCH, own, own, gain)
    copy(ECHO, bound, own, 2 * gain)
    compare(ECHO, own)
    for place, through in zip(MATCH, (first, second), strict=True):
        copy(place, through, through, 2 * gain)
        compare(place, bound)


@torch.no_grad()
def hush(model: nn.Module) -> None:
    """Turn the last of the matching heads into one that takes away the words it looks at.

    It begins by looking everywhere; its partner, which reads the same values, takes its share.
    """
    layer, (head,) = SAID
    size = model.config.text_config.head_dim
    attention = model.model.language_model.layers[layer].self_attn
    partner, own = (slice(h * size, (h + 1) * size) for h in (head - 1, head))
    attention.q_proj.weight[own] = 0.0
    attention.o_proj.weight[:, own] = -attention.o_proj.weight[:, partner]
    attention.o_proj.weight[:, partner] *= 2


@torch.no_grad()
def turn(model: nn.Module, generator: torch.Generator, gain: float = 2.0) -> None:
    """Turn the outputs' directions of values away from their inputs' by a random rotation.

    With both alike, a value that was just said speaks for itself once more, louder than the three
    of four that are still to be said. The heads that bring values write both directions from now.
    """
    values = torch.tensor([vocabulary().index(word) for word in VALUES])
    layers, scale = model.model.language_model.layers, model.model.language_model.norm.weight
    width, size = len(scale), model.config.text_config.head_dim
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    model.lm_head.weight[values] = (model.lm_head.weight[values] * scale) @ rotation.T / scale
    for layer, heads in (*UNSAID, SAID):
        output = layers[layer].self_attn.o_proj.weight
        for head in heads:
            columns = slice(head * size, (head + 1) * size)
            output[:, columns] += gain * rotation @ output[:, columns]
