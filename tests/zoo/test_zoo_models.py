"""Heads, fine-tuning and bits per byte of the zoo against references of another kind."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np  # noqa: E402
import tiny_zoo  # noqa: E402
from demo import score  # noqa: E402

from merganser.running import Head as PublicHead  # noqa: E402
from zoo import encoders, jobs, llamas  # noqa: E402
from zoo.jobs import ENCODER  # noqa: E402

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny_zoo.base(tmp_path_factory.mktemp("base") / "model")


def points(seed=0):
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(90, 5, generator=draw)
    labels = (values[:, :3] + torch.randn(90, 3, generator=draw)).argmax(1)
    return values, labels


def test_a_head_is_the_minimum_of_its_loss(tmp_path):
    values, labels = points()
    head = encoders.fit_head(values, labels, 3, 10.0)
    # At the minimum the gradient is zero: mean((softmax - onehot)' x) + W / (C n) = 0 and mean(softmax - onehot) = 0.
    gap = torch.softmax(head(values), 1) - torch.nn.functional.one_hot(labels, 3)
    assert (gap.T @ values / 90 + head.weight / 900).abs().max() < 1e-5
    assert gap.mean(0).abs().max() < 1e-5
    assert float((head(values).argmax(1) == labels).double().mean()) > 0.5


def test_a_head_is_read_by_merganser(tmp_path):
    values, labels = points()
    head = encoders.fit_head(values, labels, 3, 10.0)
    encoders.save_head(head, ("x", "y", "z"), tmp_path / jobs.HEAD_FILE)
    public = PublicHead.open(tmp_path / jobs.HEAD_FILE)
    assert (public.labels, public.pooling, public.normalize) == (("x", "y", "z"), "mean", True)
    assert torch.equal(public(values), torch.nn.functional.linear(values, head.weight, head.bias))
    again = encoders.load_head(tmp_path)
    assert torch.equal(again.weight, head.weight) and torch.equal(again.bias, head.bias)


def prepared(base, count=24):
    tokens, heads = {}, {}
    for task in tiny_zoo.tasks():
        rows = score.tokenize(base, task.train, 16)
        tokens[task.name] = score.Tokens(rows.ids[:count], rows.labels[:count])
        values = score.features(score.load(base), tokens[task.name])
        heads[task.name] = encoders.fit_head(values, tokens[task.name].labels, 2, 10.0)
    return tokens, heads


def losses(model, tokens, heads):
    return {
        name: float(torch.nn.functional.cross_entropy(heads[name](score.features(model, t)), t.labels))
        for name, t in tokens.items()
    }


def test_fine_tuning_moves_every_layer_and_nothing_else(base):
    tokens, heads = prepared(base)
    kept = {name: (h.weight.clone(), h.bias.clone()) for name, h in heads.items()}
    settings = {**ENCODER, "learning_rate": 1e-2, "epochs": 4}
    tuned = encoders.fine_tune(base, tokens, heads, settings, 1, lambda share: None).eval()
    before, after = score.load(base).state_dict(), tuned.state_dict()
    for name, tensor in after.items():
        same = torch.equal(tensor, before[name])
        # A key's bias adds the same to all scores of a query, so that its gradient is rounding; Adam may move it.
        assert ".key.bias" in name or same == ("encoder.layer" not in name), name
    assert all(
        torch.equal(heads[n].weight, w) and torch.equal(heads[n].bias, b) for n, (w, b) in kept.items()
    )
    low, high = losses(tuned, tokens, heads), losses(score.load(base), tokens, heads)
    assert all(low[name] < high[name] for name in tokens)


def test_the_same_seed_gives_the_same_model_and_another_one_another(base):
    tokens, heads = prepared(base)
    one, again, two = (
        encoders.fine_tune(base, tokens, heads, ENCODER, seed, lambda share: None).state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[n], again[n]) for n in one)
    assert not all(torch.equal(one[n], two[n]) for n in one)


def tiny_llama(tokenizer, window=16):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            initializer_range=0.3,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    ).eval()


def texts():
    return [p for d in tiny_zoo.domains() for p in d.train]


def test_the_tokenizer_is_the_same_each_time_and_loses_nothing():
    one, two = (llamas.make_tokenizer(texts(), 300) for _ in range(2))
    assert one.backend_tokenizer.to_str() == two.backend_tokenizer.to_str()
    assert len(one) == 300
    for text in ("the dog\n\tfound  it", "naïve café → ✓"):
        ids = one(text)["input_ids"]
        assert ids[0] == one.bos_token_id
        assert one.decode(ids[1:]) == text


def test_blocks_hold_the_passages_behind_each_other():
    tokenizer = llamas.make_tokenizer(texts(), 300)
    some = texts()[:3]
    found = llamas.blocks(tokenizer, some, 32)
    flat = [i for t in some for i in (*tokenizer(t)["input_ids"], tokenizer.eos_token_id)]
    assert found.shape == (len(flat) // 32, 32)
    assert found.flatten().tolist() == flat[: found.numel()]


def test_blocks_are_drawn_equally_from_all_parts_and_not_twice():
    parts = [torch.arange(10).view(10, 1), 100 + torch.arange(4).view(4, 1)]
    rows = llamas.shuffled(parts, 8, 1).flatten().tolist()
    assert sorted(r >= 100 for r in rows) == [False] * 4 + [True] * 4
    assert len(set(rows)) == 8
    assert (
        rows
        == llamas.shuffled(parts, 8, 1).flatten().tolist()
        != llamas.shuffled(parts, 8, 2).flatten().tolist()
    )
    more = llamas.shuffled(parts, 16, 1).flatten().tolist()  # the second part is used up, and begun again
    assert sorted(r for r in more if r >= 100) == [100, 100, 101, 101, 102, 102, 103, 103]


def test_bits_per_byte_of_a_short_text_is_its_likelihood():
    tokenizer = llamas.make_tokenizer(texts(), 300)
    model = tiny_llama(tokenizer)
    text = "the dog found a café"
    ids = tokenizer(text)["input_ids"]
    with torch.inference_mode():
        logs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    nats = -sum(float(logs[n, token]) for n, token in enumerate(ids[1:]))
    got = llamas.bits_per_byte(model, tokenizer, [text])
    assert got == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-5)


def test_a_model_that_knows_nothing_needs_the_logarithm_of_its_vocabulary():
    tokenizer = llamas.make_tokenizer(texts(), 300)
    model = tiny_llama(tokenizer)
    model.lm_head.weight.data.zero_()
    passages = [" ".join(texts()), "short"]
    tokens = sum(len(ids) - 1 for ids in tokenizer(passages)["input_ids"])
    assert tokens > 3 * jobs.WINDOW
    wanted = tokens * math.log2(300) / sum(len(p.encode()) for p in passages)
    assert llamas.bits_per_byte(model, tokenizer, passages) == pytest.approx(wanted, rel=1e-5)


def test_windows_see_what_they_should():
    """Each prediction by hand, from the tokens its window begins with."""
    tokenizer = llamas.make_tokenizer(texts(), 300)
    model = tiny_llama(tokenizer)
    text = " ".join(texts())[:1200]
    ids = tokenizer(text)["input_ids"]
    nats, first, stride = [], jobs.WINDOW, jobs.STRIDE
    with torch.inference_mode():
        for target in range(1, len(ids)):
            step = max(0, -(-(target - first) // stride))
            begin = step * stride
            row = torch.tensor([ids[begin:target]])
            assert row.shape[1] <= first
            nats.append(-float(model(row).logits[0, -1].double().log_softmax(-1)[ids[target]]))
    assert len(ids) > first + 2 * stride
    wanted = np.sum(nats) / math.log(2) / len(text.encode())
    assert llamas.bits_per_byte(model, tokenizer, [text]) == pytest.approx(wanted, rel=1e-5)
