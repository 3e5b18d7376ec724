"""The table of names: what fits, what does not, and that both directions are inverse."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from omniaudio.convert.base import (
    Converter,
    OnlyOurs,
    OnlyTheirs,
    Pattern,
    Reshape,
    Rule,
    Split,
    listed,
    read_tensors,
)
from omniaudio.errors import UserError

TABLE = Converter(
    [
        Rule("layers.{i}.pack.{leaf}", ("blocks.{i}.q.{leaf}", "blocks.{i}.k.{leaf}"), Split()),
        Rule("net.9.{leaf}", "net.out.{leaf}"),
        Rule("net.{i*3}.{leaf}", "net.{i}.conv.{leaf}"),
        Rule("net.{i*3+1}.{leaf}", "net.{i}.norm.{leaf}"),
        Rule("point.weight", "linear.weight", Reshape(lambda w: w[..., 0], lambda w: w[..., None])),
        Rule(("ffn.weight", "ffn.bias"), "ffn.weight", OnlyTheirs(lambda w: w.new_zeros(len(w)))),
        Rule("book.count", ("book.count", "book.unused"), OnlyOurs(torch.zeros_like)),
        Rule("layers.{i}.{rest}", "blocks.{i}.{rest}"),
    ],
    ignored=["vision.{rest}"],
)


def their_state(num_layers: int = 2) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    state = {
        "net.9.bias": draw(2),
        "point.weight": draw(2, 3, 1),
        "ffn.weight": draw(4, 2),
        "ffn.bias": torch.zeros(4),
    }
    state |= {f"net.{i}.weight": draw(i + 1) for i in (0, 1, 3, 4, 6, 7)}
    for i in range(num_layers):
        state |= {f"layers.{i}.pack.weight": draw(6, 2), f"layers.{i}.pack.bias": draw(6)}
        state |= {f"layers.{i}.norm.inner.scale": draw(3)}
    return {**state, "book.count": draw(5)}


def our_shapes(num_layers: int = 2) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"net.out.bias": (2,), "linear.weight": (2, 3), "ffn.weight": (4, 2)}
    shapes |= {f"net.{i}.conv.weight": (3 * i + 1,) for i in range(3)}
    shapes |= {f"net.{i}.norm.weight": (3 * i + 2,) for i in range(3)}
    for i in range(num_layers):
        shapes |= {f"blocks.{i}.q.weight": (4, 2), f"blocks.{i}.k.weight": (2, 2)}
        shapes |= {
            f"blocks.{i}.q.bias": (4,),
            f"blocks.{i}.k.bias": (2,),
            f"blocks.{i}.norm.inner.scale": (3,),
        }
    shapes |= {"book.count": (5,), "book.unused": (5,)}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_there_and_back() -> None:
    theirs = their_state()
    ours = TABLE.to_ours(theirs, our_shapes())
    assert list(ours) == list(our_shapes())
    assert torch.equal(
        torch.cat([ours["blocks.1.q.bias"], ours["blocks.1.k.bias"]]), theirs["layers.1.pack.bias"]
    )
    assert torch.equal(ours["net.2.norm.weight"], theirs["net.7.weight"])
    assert torch.equal(ours["linear.weight"], theirs["point.weight"].squeeze(-1))
    back = TABLE.to_theirs(ours)
    assert back.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(back[name], tensor), name


def test_parts_that_are_not_ours_are_ignored() -> None:
    theirs = {**their_state(), "vision.block.0.weight": torch.ones(3)}
    assert TABLE.to_ours(theirs, our_shapes()).keys() == our_shapes().keys()


def test_every_unused_and_missing_tensor_is_named() -> None:
    theirs = their_state()
    theirs["strange.weight"] = theirs.pop("net.4.weight")
    del theirs["ffn.bias"], theirs["layers.0.pack.weight"]
    with pytest.raises(UserError) as error:
        TABLE.to_ours(theirs, our_shapes(), where="x.safetensors")
    message = str(error.value)
    assert message.startswith("x.safetensors: not used: strange.weight; not found: ")
    missing = message.split("not found: ")[1]
    for name in ("net.4.weight", "ffn.bias", "layers.0.pack.weight"):
        assert name in missing
    assert "\n" not in message


def test_a_layer_too_many_or_too_few_is_named() -> None:
    with pytest.raises(UserError, match=r"not used: .*layers\.2\.norm\.inner\.scale"):
        TABLE.to_ours(their_state(3), our_shapes(2))
    with pytest.raises(UserError, match=r"not found: .*layers\.1\.norm\.inner\.scale"):
        TABLE.to_ours(their_state(1), our_shapes(2))


@pytest.mark.parametrize("name", ["net.0.weight", "layers.1.pack.bias"])
def test_another_shape_is_named_with_both_shapes(name: str) -> None:
    theirs = their_state()
    theirs[name] = torch.zeros(17)
    with pytest.raises(UserError, match=rf"{name}: .*17.* there, .* here"):
        TABLE.to_ours(theirs, our_shapes())


def test_to_theirs_names_what_it_cannot_use_or_find() -> None:
    ours = TABLE.to_ours(their_state(), our_shapes())
    ours["extra.weight"] = ours.pop("blocks.0.k.bias")
    with pytest.raises(UserError, match=r"model: not used: extra\.weight; not found: blocks\.0\.k\.bias"):
        TABLE.to_theirs(ours)


def test_two_tensors_for_one_name() -> None:
    table = Converter([Rule("a.{leaf}", "x.{leaf}"), Rule("b.{leaf}", "x.{leaf}")])
    with pytest.raises(UserError, match=r"two tensors for x\.weight"):
        table.to_ours({"a.weight": torch.ones(1), "b.weight": torch.ones(1)}, {"x.weight": torch.ones(1)})


def test_part_takes_one_module_and_ignores_the_rest() -> None:
    table = Converter([Rule("m.enc.{rest}", "tok.encoder.{rest}"), Rule("m.lm.{rest}", "lm.{rest}")])
    part = table.part("tok", theirs="m")
    theirs = {"enc.conv.weight": torch.ones(2), "lm.head": torch.ones(3)}
    ours = part.to_ours(theirs, {"encoder.conv.weight": torch.ones(2)})
    assert list(part.to_theirs(ours)) == ["enc.conv.weight"]


@settings(max_examples=25, deadline=None)
@given(
    i=st.integers(0, 10**6),
    leaf=st.from_regex(r"[a-z_]+", fullmatch=True),
    rest=st.from_regex(r"[a-z_]+(\.[0-9a-z]+){0,3}", fullmatch=True),
)
@pytest.mark.parametrize("text", ["a.{i}.b", "{i*3+1}.{leaf}", "x{i}.{rest}.{leaf}", "{i}.y.{i}", "{i*2}"])
def test_match_inverts_fill(text: str, i: int, leaf: str, rest: str) -> None:
    pattern = Pattern(text)
    names = {part[1] for part in Pattern.PART.finditer(text)}
    bindings = tuple(
        sorted((k, v) for k, v in {"i": str(i), "leaf": leaf, "rest": rest}.items() if k in names)
    )
    assert pattern.match(pattern.fill(bindings)) == bindings


@pytest.mark.parametrize(
    "name", ["net.1.conv", "net.-3.conv", "net.x.conv", "net.3.conv.more", "anet.3.conv"]
)
def test_pattern_refuses(name: str) -> None:
    assert Pattern("net.{i*3}.conv").match(name) is None
    assert Pattern("net.{i*3}.conv").match("net.6.conv") == (("i", "2"),)


def test_listed_writes_many_once() -> None:
    names = [f"layers.{i}.mlp.fc{j}.weight" for i in range(28) for j in (1, 2)]
    assert listed([*names, "head.0.bias"]) == "head.0.bias, layers.{0-27}.mlp.fc{1-2}.weight (56 tensors)"
    assert listed(["a.1", "a.10", "a.2"]) == "a.1, a.10, a.2"


def test_read_tensors(tmp_path: Path) -> None:
    state = {"a": torch.arange(3), "b": torch.ones(2)}
    save_file({"a": state["a"]}, tmp_path / "model-1.safetensors")
    save_file({"b": state["b"]}, tmp_path / "model-2.safetensors")
    torch.save(state, tmp_path / "other.pt")
    for path in (tmp_path, tmp_path / "other.pt"):
        read = read_tensors(path)
        assert read.keys() == state.keys() and all(torch.equal(read[k], state[k]) for k in state)


def test_read_tensors_refuses(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("executed",))

    torch.save({"a": Payload()}, tmp_path / "evil.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"12345")
    for name in ("evil.pt", "cut.safetensors", "absent.safetensors"):
        with pytest.raises(UserError, match=name):
            read_tensors(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no checkpoint there"):
        read_tensors(tmp_path / "empty")
