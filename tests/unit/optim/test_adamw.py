"""AdamW against its definition in float64, and the norm and clipping of gradients."""

from collections.abc import Iterator

import numpy as np
import paddle
import pytest

from erniekit.errors import CheckpointError, ConfigError
from erniekit.kernels.choice import use_forms
from erniekit.optim.adamw import AdamW, GroupRule
from erniekit.optim.clip import clip_scale, gradient_norm
from tests.closeness import BFLOAT16, FLOAT32, assert_close
from tests.unit.kernels.forms import TRITON

SHAPES = {"embed.weight": (7, 5), "mlp.weight": (4, 5), "norm.weight": (5,), "head.bias": (3,)}
Values = dict[str, np.ndarray]


@pytest.fixture(params=["plain", TRITON], autouse=True)
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_forms(adamw=request.param):
        yield request.param


def make(seed: int = 0, dtype: str = "float32") -> tuple[list[tuple[str, paddle.Tensor]], Values]:
    rng = np.random.default_rng(seed)
    values = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    named = []
    for name, value in values.items():
        parameter = paddle.to_tensor(value).astype(dtype).detach()
        parameter.stop_gradient = False
        named.append((name, parameter))
    return named, values


def gradients(seed: int, scale: float = 1.0) -> Values:
    rng = np.random.default_rng(100 + seed)
    return {name: (scale * rng.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()}


def give(named: list[tuple[str, paddle.Tensor]], grads: Values) -> None:
    for name, parameter in named:
        parameter.clear_gradient(False)
        if name in grads:
            (parameter.astype("float32") * paddle.to_tensor(grads[name])).sum().backward()


def oracle(values: Values, steps: list[Values], rates: list[float], decay: Values, ratio: Values) -> Values:
    """AdamW by its definition, in float64; a gradient that is not there is zero."""
    result = {name: value.astype(np.float64) for name, value in values.items()}
    first = {name: np.zeros(value.shape) for name, value in values.items()}
    second = {name: np.zeros(value.shape) for name, value in values.items()}
    for t, (grads, rate) in enumerate(zip(steps, rates, strict=True), 1):
        for name, p in result.items():
            g = grads.get(name, np.zeros(p.shape)).astype(np.float64)
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.95 * second[name] + 0.05 * g * g
            step = (first[name] / (1 - 0.9**t)) / (np.sqrt(second[name] / (1 - 0.95**t)) + 1e-8)
            lr = rate * float(ratio[name])
            result[name] = p * (1 - lr * float(decay[name])) - lr * step
    return result


def run(
    named: list[tuple[str, paddle.Tensor]], optimizer: AdamW, steps: list[Values], rates: list[float]
) -> None:
    for grads, rate in zip(steps, rates, strict=True):
        give(named, grads)
        optimizer.step(rate)


def test_equals_the_definition_with_groups_and_missing_gradients() -> None:
    named, values = make()
    rules = [GroupRule("mlp.*", learning_rate_ratio=0.5, weight_decay=0.3), GroupRule("*.bias", 2.0, 0.9)]
    optimizer = AdamW(named, weight_decay=0.1, rules=rules)
    steps = [gradients(k) for k in range(20)]
    for k in (0, 3, 4, 11):
        del steps[k]["mlp.weight"]
        del steps[k]["norm.weight"]
    rates = [1e-2 * (k + 1) / 20 for k in range(20)]
    run(named, optimizer, steps, rates)
    decay = {"embed.weight": 0.1, "mlp.weight": 0.3, "norm.weight": 0.0, "head.bias": 0.0}
    ratio = {"embed.weight": 1.0, "mlp.weight": 0.5, "norm.weight": 1.0, "head.bias": 2.0}
    expected = oracle(values, steps, rates, decay, ratio)  # type: ignore[arg-type]
    for name, parameter in named:
        assert_close(parameter, expected[name], what=name)


def test_equals_paddles_own_adamw() -> None:
    named, _ = make()
    theirs, _ = make()
    optimizer = AdamW(named, weight_decay=0.1)
    reference = paddle.optimizer.AdamW(
        1e-2,
        beta1=0.9,
        beta2=0.95,
        parameters=[p for _, p in theirs],
        weight_decay=0.1,
        apply_decay_param_fun=lambda name: name in {p.name for _, p in theirs if p.ndim > 1},
    )
    for k in range(10):
        give(named, gradients(k))
        give(theirs, gradients(k))
        optimizer.step(1e-2)
        reference.step()
    for (name, ours), (_, other) in zip(named, theirs, strict=True):
        assert_close(ours, other, what=name)


def test_a_missing_gradient_is_a_zero_gradient() -> None:
    absent, _ = make()
    zero, _ = make()
    first, second = AdamW(absent), AdamW(zero)
    for k in range(4):
        grads = gradients(k)
        give(zero, {**grads, "mlp.weight": np.zeros((4, 5), np.float32)} if k else grads)
        give(absent, {n: g for n, g in grads.items() if k == 0 or n != "mlp.weight"})
        first.step(1e-2)
        second.step(1e-2)
    for (_, a), (_, b) in zip(absent, zero, strict=True):
        assert np.array_equal(a.numpy(), b.numpy())


def test_only_matrices_decay() -> None:
    def decayed(*rules: GroupRule) -> list[str]:
        """Without gradients nothing but weight decay changes a parameter."""
        named, before = make()
        AdamW(named, weight_decay=0.1, rules=rules).step(0.1)
        return [name for name, parameter in named if not np.array_equal(parameter.numpy(), before[name])]

    assert decayed() == ["embed.weight", "mlp.weight"]
    assert decayed(GroupRule("embed*", 1.0, 0.0)) == ["mlp.weight"]


def test_bfloat16_parameters_follow_a_float32_master(form: str) -> None:
    named, _ = make(dtype="bfloat16")
    values = {name: p.astype("float32").numpy() for name, p in named}
    optimizer = AdamW(named, weight_decay=0.1)
    steps = [gradients(k) for k in range(30)]
    for grads in steps:
        for name, grad in grads.items():
            grads[name] = paddle.to_tensor(grad).astype("bfloat16").astype("float32").numpy()
    # Each step moves a parameter by less than half of a bfloat16 unit: without a master nothing would change.
    run(named, optimizer, steps, [1e-3] * 30)
    decay = {name: 0.1 if len(shape) > 1 else 0.0 for name, shape in SHAPES.items()}
    expected = oracle(values, steps, [1e-3] * 30, decay, dict.fromkeys(SHAPES, 1.0))  # type: ignore[arg-type]
    state = optimizer.state_tensors()
    for name, parameter in named:
        assert parameter.dtype == paddle.bfloat16
        master = state[f"{name}.master"]
        assert_close(master, expected[name], what=name)
        if form == "plain":
            assert np.array_equal(parameter.numpy(), master.astype("bfloat16").numpy())
        else:  # Triton's interpreter rounds to bfloat16 towards zero
            assert_close(parameter, master, 2 * BFLOAT16)


def test_bfloat16_foundof_several_rows_are_summed_in_float32() -> None:
    named, _ = make(dtype="bfloat16")
    optimizer = AdamW(named)
    for _ in range(257):
        # In bfloat16 a sum of ones stops at 256.
        for _, parameter in named:
            parameter.astype("float32").sum().backward()
        optimizer.collect_gradients()
    found = optimizer.gradients()
    assert len(found) == len(named)
    for gradient in found:
        assert gradient.dtype == paddle.float32
        assert np.array_equal(gradient.numpy(), np.full(gradient.shape, 257.0, np.float32))
    scale = clip_scale(gradient_norm(found), 1.0)
    optimizer.step(1e-2, scale)
    state = optimizer.state_tensors()
    assert_close(gradient_norm([state[f"{name}.moment1"] for name in SHAPES]), 0.1)
    assert state["norm.weight.moment1"].numpy().std() == 0
    optimizer.clear_gradients()
    assert optimizer.gradients() == []


def test_state_goes_out_and_in_exactly() -> None:
    named, _ = make()
    whole = AdamW(named)
    run(named, whole, [gradients(k) for k in range(3)], [1e-2] * 3)
    saved = {name: tensor.numpy().copy() for name, tensor in whole.state_tensors().items()}
    weights = {name: p.numpy().copy() for name, p in named}
    run(named, whole, [gradients(k) for k in range(3, 6)], [1e-2] * 3)

    again, _ = make(seed=9)
    for name, parameter in again:
        parameter.set_value(weights[name])
    resumed = AdamW(again)
    resumed.load_state(3, saved, saved.__getitem__)
    run(again, resumed, [gradients(k) for k in range(3, 6)], [1e-2] * 3)
    for (_, a), (_, b) in zip(named, again, strict=True):
        assert np.array_equal(a.numpy(), b.numpy())


def test_state_of_other_parameters_is_refused() -> None:
    named, _ = make()
    optimizer = AdamW(named)
    saved = {name: np.zeros(t.shape, np.float32) for name, t in optimizer.state_tensors().items()}
    with pytest.raises(CheckpointError, match=r"missing: head.bias.moment1"):
        optimizer.load_state(1, [name for name in saved if "bias" not in name], saved.__getitem__)
    with pytest.raises(CheckpointError, match=r"not trained here: router.moment1"):
        optimizer.load_state(1, [*saved, "router.moment1"], saved.__getitem__)
    saved["mlp.weight.moment2"] = np.zeros((5, 4), np.float32)
    with pytest.raises(CheckpointError, match=r"mlp.weight.moment2: shape \(5, 4\), expected \(4, 5\)"):
        optimizer.load_state(1, saved, saved.__getitem__)


def test_rules_and_parameters_must_exist() -> None:
    named, _ = make()
    with pytest.raises(ConfigError, match=r"'vision\*' matches no trained parameter"):
        AdamW(named, rules=[GroupRule("vision*")])
    with pytest.raises(ConfigError, match="nothing to train"):
        AdamW([])


def test_norm_and_clipping() -> None:
    named, _ = make()
    optimizer = AdamW(named)
    assert gradient_norm(optimizer.gradients()) == 0.0
    grads = gradients(0)
    del grads["embed.weight"]
    give(named, grads)
    expected = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
    found = optimizer.gradients()
    assert len(found) == 3
    norm = gradient_norm(found)
    assert_close(norm, expected)
    assert clip_scale(norm, 0.0) == clip_scale(norm, norm * 2) == 1.0
    assert_close(clip_scale(norm, 0.5) * norm, 0.5)
    optimizer.step(1e-2, clip_scale(norm, 0.5))
    state = optimizer.state_tensors()
    # (1 - beta1) times the gradient of each parameter, 0 for the one without.
    assert_close(gradient_norm([state[f"{name}.moment1"] for name in SHAPES]), 0.05)
    assert not state["embed.weight.moment1"].numpy().any()


def test_norm_shows_what_is_not_finite() -> None:
    named, _ = make()
    grads = gradients(0)
    grads["mlp.weight"][0, 0] = np.nan
    give(named, grads)
    assert np.isnan(gradient_norm(AdamW(named).gradients()))


def test_the_rate_of_routers_has_a_factor_of_its_own() -> None:
    names = [
        "model.layers.1.mlp.gate.weight",
        "model.layers.1.mlp.gate.weight_1",
        "model.layers.1.mlp.experts.0.gate_proj.weight",
    ]

    def moved(rules: list[GroupRule]) -> list[float]:
        named = [(name, paddle.create_parameter([2, 2], "float32")) for name in names]
        for _, parameter in named:
            parameter.set_value(paddle.zeros([2, 2]))
            parameter.sum().backward()
        AdamW(named, weight_decay=0.0, rules=rules, router_ratio=0.25).step(1e-2)
        return [-parameter.numpy()[0, 0].item() for _, parameter in named]

    assert_close(moved([]), [2.5e-3, 2.5e-3, 1e-2])
    assert_close(moved([GroupRule("*.gate.weight_1", 2.0)]), [2.5e-3, 5e-3, 1e-2])


def test_experts_that_are_stacked_have_one_rule() -> None:
    stack = paddle.create_parameter([2, 2, 2], "float32")
    names = {"experts.down.weight": ["experts.0.down_proj.weight", "experts.1.down_proj.weight"]}

    def moved(match: str) -> float:
        stack.set_value(paddle.zeros([2, 2, 2]))
        stack.clear_gradient(False)
        stack.sum().backward()
        named = [("experts.down.weight", stack)]
        AdamW(named, weight_decay=0.0, rules=[GroupRule(match, 0.5)], hub_names=names).step(1e-2)
        return -stack.numpy()[0, 0, 0].item()

    assert_close(moved("experts.*.down_proj.*"), 5e-3)
    with pytest.raises(ConfigError, match=r"'\*\.0\.\*' matches only one of experts\.0.* and experts\.1"):
        moved("*.0.*")
    with pytest.raises(ConfigError, match="matches no trained parameter"):
        moved("experts.down.*")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gradient_is_added_to_those_of_the_rows(dtype: str) -> None:
    named, _ = make(dtype=dtype)
    optimizer = AdamW(named)
    extra = paddle.full([7, 5], 0.5)
    (named[0][1].astype("float32") * 2.0).sum().backward()
    optimizer.collect_gradients()
    for name in ("embed.weight", "mlp.weight"):
        optimizer.add_gradient(name, extra.clone() if name == "embed.weight" else extra[:4].clone())
    found = optimizer.gradients()
    assert [gradient.numpy().flat[0] for gradient in found] == [2.5, 0.5]
    optimizer.clear_gradients()
    assert optimizer.gradients() == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_descending_past_the_moments(dtype: str) -> None:
    named, _ = make(dtype=dtype)
    before = {name: p.astype("float32").numpy().copy() for name, p in named}
    optimizer = AdamW(named, rules=[GroupRule("mlp.*", learning_rate_ratio=0.5)])
    optimizer.descend("mlp.weight", paddle.full([4, 5], 2.0), 0.125)
    moved = {name: before[name] - p.astype("float32").numpy() for name, p in named}
    assert [name for name, change in moved.items() if change.any()] == ["mlp.weight"]
    steps, size = np.full((4, 5), 0.125), float(np.linalg.norm(before["mlp.weight"]))
    precision = FLOAT32 if dtype == "float32" else BFLOAT16
    assert_close(moved["mlp.weight"], steps, precision, scale=size)
    state = optimizer.state_tensors()
    assert not any(tensor.numpy().any() for name, tensor in state.items() if "moment" in name)
    if dtype == "bfloat16":
        assert_close(state["mlp.weight.master"], before["mlp.weight"] - 0.125)
