from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from erniekit.data.conversation import Conversation, ImagePart, Message, ReasoningPart, SampleError, TextPart
from erniekit.data.document import IGNORE, Document
from erniekit.data.encode import Encoder, make_encoder
from erniekit.errors import CheckpointError
from tests.unit.data.helpers import SHARED, chat, encoded, make_checkpoint, noise, write_json

END = "<|end_of_sentence|>"
SMALL = encoded(noise(8, 8))  # 2 x 2 tokens
WIDE = encoded(noise(56, 140))  # 2 x 5 tokens
CHATS = [
    chat(("user", "what is one plus two?"), ("assistant", "Paris is seven.")),
    chat(
        ("system", "be brief"),
        ("user", "q"),
        ("assistant", "Paris"),
        ("user", "北京 ?\n"),
        ("assistant", "seven"),
    ),
]
PICTURE_CHATS = [
    chat(("user", [SMALL, "what is in the picture?"]), ("assistant", "a cat")),
    chat(
        ("user", ["a", WIDE, "b", SMALL]),
        ("assistant", "Paris"),
        ("user", [SMALL, WIDE]),
        ("assistant", "seven"),
    ),
]


def openai(conversation: Conversation) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for message in conversation.messages:
        texts = [part for part in message.parts if isinstance(part, TextPart)]
        if len(texts) == len(message.parts) == 1:
            messages.append({"role": message.role, "content": texts[0].text})
            continue
        parts = []
        for part in message.parts:
            parts.append(
                {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
            )
        messages.append({"role": message.role, "content": parts})
    return messages


def reference_ids(directory: Path, conversation: Conversation, **options: Any) -> list[int]:
    """apply_chat_template, pictures widened as transformers' processor and engines do it: in the text."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory))
    text = tokenizer.apply_chat_template(openai(conversation), tokenize=False, **options)
    text = text.replace("<|image@placeholder|>", "<|IMAGE_PLACEHOLDER|>")
    tokens: dict[str | bytes, int] = {SMALL: 4, WIDE: 10}
    sources = [part.source for m in conversation.messages for part in m.parts if isinstance(part, ImagePart)]
    pieces = text.split("<|IMAGE_PLACEHOLDER|>")
    for number, source in enumerate(sources):
        pieces[number] += "<|IMAGE_PLACEHOLDER|>" * tokens[source]
    ids: list[int] = tokenizer("".join(pieces), add_special_tokens=False)["input_ids"]
    return ids


def first_turn(conversation: Conversation) -> Conversation:
    roles = [message.role for message in conversation.messages]
    return Conversation(conversation.messages[: roles.index("assistant")], conversation.sample_id)


def unpicture(conversation: Conversation) -> bool:
    return not any(isinstance(part, ImagePart) for m in conversation.messages for part in m.parts)


def checkpoints() -> list[Any]:
    shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/reference_models")
    return [
        *(
            pytest.param(name, id=name)
            for name in ("text_checkpoint", "vl_checkpoint", "thinking_checkpoint")
        ),
        *(
            pytest.param(SHARED / "reference_models" / name, id=name, marks=shared)
            for name in ("dense", "vl_hub", "vl_hf")
        ),
    ]


@pytest.fixture(params=checkpoints())
def checkpoint(request: pytest.FixtureRequest) -> Path:
    found = request.param
    return request.getfixturevalue(found) if isinstance(found, str) else found


def chats_for(encoder: Encoder, directory: Path) -> list[Conversation]:
    if encoder.image_spec is None:
        return CHATS
    # The chat templates of the stored VL models leave system messages out: not so those of the released ones.
    stored = SHARED in directory.parents
    return [c for c in CHATS + PICTURE_CHATS if not (stored and c.messages[0].role == "system")]


def test_prompt_ids_equal_apply_chat_template(checkpoint: Path) -> None:
    encoder = make_encoder(checkpoint)
    for conversation in chats_for(encoder, checkpoint):
        prompt = Conversation(conversation.messages[:-1], "f:1")
        for part in (prompt, first_turn(conversation)):
            document = encoder.encode_prompt(part)
            assert document.input_ids.tolist() == reference_ids(checkpoint, part, add_generation_prompt=True)
            assert document.num_loss_tokens == 0


def test_first_answer_is_tokenised_apart_from_its_prompt(checkpoint: Path) -> None:
    encoder = make_encoder(checkpoint)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(checkpoint))
    for conversation in (CHATS[0], PICTURE_CHATS[0]):
        if encoder.image_spec is None and not unpicture(conversation):
            continue
        prompt = encoder.encode_prompt(first_turn(conversation)).input_ids.tolist()
        if encoder.template.name == "ernie_vl_thinking":
            prompt += tokenizer("x\n</think>\n\n", add_special_tokens=False)["input_ids"][1:]
        document = encoder.encode(conversation)
        answer = conversation.messages[1].parts[0]
        assert isinstance(answer, TextPart)
        answer_ids = tokenizer(answer.text + END, add_special_tokens=False)["input_ids"]
        if encoder.template.name == "ernie_vl_thinking":
            assert tokenizer.decode(document.input_ids[: -len(answer_ids)]).endswith(
                "<think>\n\n</think>\n\n"
            )
        else:
            assert document.input_ids[: -len(answer_ids)].tolist() == prompt
        assert document.input_ids[-len(answer_ids) :].tolist() == answer_ids


def test_whole_text_equals_apply_chat_template(text_checkpoint: Path, text_encoder: Encoder) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(text_checkpoint))
    for conversation in CHATS:
        text = tokenizer.apply_chat_template(
            openai(conversation), tokenize=False, add_generation_prompt=False
        )
        assert tokenizer.decode(text_encoder.encode(conversation).input_ids) == text


def test_whole_ids_equal_apply_chat_template_where_nothing_merges(
    text_checkpoint: Path, text_encoder: Encoder, vl_checkpoint: Path, vl_encoder: Encoder
) -> None:
    # No merge crosses a line end, so an answer that begins with one keeps apart from "Assistant: " by itself.
    turns = [("user", "q"), ("assistant", "\nParis"), ("user", "what is two?"), ("assistant", "\nseven")]
    text_ids = text_encoder.encode(chat(*turns)).input_ids.tolist()
    assert text_ids == reference_ids(text_checkpoint, chat(*turns), add_generation_prompt=False)
    # The last answer of a VL chat stands after the think block, with which nothing merges either.
    for conversation in (CHATS[0], PICTURE_CHATS[0]):
        block = Conversation((*conversation.messages[:-1], after_block(conversation.messages[-1])), "f:1")
        vl_ids = vl_encoder.encode(conversation).input_ids.tolist()
        assert vl_ids == reference_ids(vl_checkpoint, block, add_generation_prompt=False)


def after_block(message: Message) -> Message:
    return Message(message.role, (TextPart("<think>\n\n</think>\n\n" + message.parts[0].text),), True)  # type: ignore[union-attr]


def test_labels_are_shifted_and_end_with_the_stop_token(text_checkpoint: Path, tmp_path: Path) -> None:
    conversation = CHATS[1]
    for eos, label in ((2, 2), ([7, 2], 7), ([2, 4], 4), (4, 4)):  # 4 = <|end_of_sentence|>
        document = make_encoder(make_checkpoint(tmp_path / str(eos), "text", eos_token_id=eos)).encode(
            conversation
        )
        ends = np.flatnonzero(document.input_ids == 4)
        assert len(ends) == 2
        np.testing.assert_array_equal(document.labels[ends - 1], label)
        assert document.labels[-1] == IGNORE
        trained = np.flatnonzero(document.labels != IGNORE)
        inner = np.setdiff1d(trained, ends - 1)
        np.testing.assert_array_equal(document.labels[inner], document.input_ids[inner + 1])
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(text_checkpoint))
        assert tokenizer.decode(document.input_ids[trained + 1]) == f"Paris{END}seven{END}"


def test_untrained_answers_have_no_labels(text_encoder: Encoder) -> None:
    turns = chat(("user", "q"), ("assistant", "Paris", False), ("user", "q"), ("assistant", "seven"))
    document = text_encoder.encode(turns)
    other = text_encoder.encode(chat(("user", "q"), ("assistant", "seven")))
    assert document.num_loss_tokens == other.num_loss_tokens
    with pytest.raises(SampleError, match="no token carries loss") as caught:
        text_encoder.encode(chat(("user", "q"), ("assistant", "a", False), sample_id="d.jsonl:9"))
    assert (caught.value.reason, caught.value.sample_id) == ("no loss token", "d.jsonl:9")


def test_reasoning_is_trained(thinking_checkpoint: Path, thinking_encoder: Encoder) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(thinking_checkpoint))
    document = thinking_encoder.encode(
        chat(("user", "q"), ("assistant", [ReasoningPart("two and two"), "Paris"]))
    )
    trained = np.flatnonzero(document.labels != IGNORE)
    assert tokenizer.decode(document.input_ids[trained + 1]) == f"two and two\n</think>\n\nParis{END}"


def test_media_and_modality(vl_encoder: Encoder) -> None:
    document = vl_encoder.encode(PICTURE_CHATS[1])
    tokens = vl_encoder.media_tokens
    assert tokens is not None
    assert [item.source for item in document.media] == [WIDE, SMALL, SMALL, WIDE]
    assert [item.grid_thw for item in document.media] == [(1, 4, 10), (1, 4, 4), (1, 4, 4), (1, 4, 10)]
    for item in document.media:
        assert document.input_ids[item.start - 1] == tokens.image_start
        assert document.input_ids[item.start + item.tokens] == tokens.image_end
    placeholders = np.flatnonzero(document.input_ids == tokens.image_placeholder)
    np.testing.assert_array_equal(document.media_positions, placeholders)
    markers = np.isin(document.input_ids, [tokens.image_placeholder, tokens.image_start, tokens.image_end])
    np.testing.assert_array_equal(document.modality, markers.astype(np.int8))
    assert (document.labels[document.modality == 1] == IGNORE).all()


def test_positions_by_hand(vl_encoder: Encoder) -> None:
    document = vl_encoder.encode(chat(("user", ["a", WIDE]), ("assistant", "a")))
    start = document.media[0].start
    t, h, w = document.position_ids
    for axis in (t, h, w):
        np.testing.assert_array_equal(axis[:start], np.arange(start))
        np.testing.assert_array_equal(
            axis[start + 10 :], np.arange(start + 5, start + 5 + len(document) - start - 10)
        )
    assert t[start : start + 10].tolist() == [start] * 10
    assert (h[start : start + 10] - start).tolist() == [0] * 5 + [1] * 5
    assert (w[start : start + 10] - start).tolist() == [0, 1, 2, 3, 4] * 2


def transformers_positions(document: Document, placeholder: int) -> np.ndarray:
    torch = pytest.importorskip("torch")
    from transformers.models.ernie4_5_vl_moe.modeling_ernie4_5_vl_moe import Ernie4_5_VLMoeModel

    # The method needs of its model only two settings: a model need not be built.
    settings = SimpleNamespace(vision_config=SimpleNamespace(temporal_merge_size=2, spatial_merge_size=2))
    stand_in = SimpleNamespace(config=settings)
    stand_in.get_vision_position_ids = lambda *a, **k: Ernie4_5_VLMoeModel.get_vision_position_ids(
        stand_in, *a, **k
    )
    ids = torch.from_numpy(document.input_ids.astype(np.int64))[None]
    grids = torch.tensor([item.grid_thw for item in document.media])
    found, _ = Ernie4_5_VLMoeModel.get_rope_index(
        stand_in, ids, (ids == placeholder).int(), image_grid_thw=grids
    )
    positions: np.ndarray = found[:, 0].numpy()
    return positions


def test_positions_equal_transformers(vl_encoder: Encoder) -> None:
    assert vl_encoder.media_tokens is not None
    generator = np.random.default_rng(3)
    sizes = [(8, 8), (56, 140), (140, 56), (28, 300), (90, 90)]
    for _ in range(20):
        content: list[Any] = []
        for kind in generator.integers(0, len(sizes) + 2, 6):
            content.append(encoded(noise(*sizes[kind])) if kind < len(sizes) else "some text")
        if not any(isinstance(item, bytes) for item in content):
            continue
        document = vl_encoder.encode(chat(("user", content), ("assistant", "a")))
        expected = transformers_positions(document, vl_encoder.media_tokens.image_placeholder)
        np.testing.assert_array_equal(document.position_ids, expected)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/reference_models")
def test_positions_and_modality_of_the_stored_reference() -> None:
    stored = np.load(SHARED / "reference_models" / "ref_vl.npz")
    encoder = make_encoder(SHARED / "reference_models" / "vl_hub")
    assert encoder.media_tokens is not None
    conversation = chat(
        ("user", ["what is in the picture? ", (SHARED / "reference_models" / "ref_image.png").read_bytes()]),
        ("assistant", "a small cat and two apples on a table."),
    )
    document = encoder.encode(conversation)
    ids = stored["in_input_ids"][0]
    start = int(np.flatnonzero(ids == encoder.media_tokens.image_placeholder)[0])
    # The stored sequence has the same picture; its texts differ a little from the template's.
    item = document.media[0]
    assert (item.grid_thw, item.tokens) == (tuple(stored["in_image_grid_thw"][0]), 12)
    expected = stored["position_ids_thw"][:, 0]
    shift = item.start - start
    np.testing.assert_array_equal(
        document.position_ids[:, item.start : item.start + 16] - shift, expected[:, start : start + 16]
    )
    modality = document.modality[item.start - 1 : item.start + 13]
    np.testing.assert_array_equal(modality, stored["in_moe_mm_token_type_ids"][0, start - 1 : start + 13])


@pytest.mark.parametrize(
    "text",
    [
        "x<|IMAGE_PLACEHOLDER|>",
        "<|IMAGE_START|>",
        "<|VIDEO_END|>",
        "<|image@placeholder|>",
        END,
        "<|begin_of_sentence|>",
    ],
)
def test_tokens_of_the_template_in_a_text_are_refused(vl_encoder: Encoder, text: str) -> None:
    for turns in ([("user", text), ("assistant", "a")], [("user", "q"), ("assistant", text)]):
        with pytest.raises(
            SampleError, match=r"text contains <\|.*, which only the template may write"
        ) as caught:
            vl_encoder.encode(chat(*turns))
        assert caught.value.reason == "reserved token"


def test_pictures_that_cannot_be_used(text_encoder: Encoder, vl_encoder: Encoder) -> None:
    with pytest.raises(SampleError, match=r"^f:1: this model takes no pictures, the sample has /x\.png"):
        text_encoder.encode(Conversation(picture("/x.png"), "f:1"))
    with pytest.raises(SampleError, match=r"^f:1: no such picture: /none/x\.png"):
        vl_encoder.encode(Conversation(picture("/none/x.png"), "f:1"))
    with pytest.raises(SampleError, match="cannot be used: one side is more than 200 times the other"):
        vl_encoder.encode(chat(("user", encoded(noise(2, 900))), ("assistant", "a")))


def picture(path: str) -> tuple[Message, Message]:
    return Message("user", (ImagePart(path),), False), Message("assistant", (TextPart("a"),), True)


def test_bad_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        make_encoder(tmp_path)
    write_json(tmp_path / "config.json", {"model_type": "ernie4_5"})
    with pytest.raises(CheckpointError, match="no tokenizer can be loaded"):
        make_encoder(tmp_path)
    directory = make_checkpoint(tmp_path / "vl", "vl")
    write_json(directory / "config.json", {"model_type": "ernie4_5_moe_vl", "im_patch_id": 6})
    with pytest.raises(CheckpointError, match="needs the token ids image_start_token_id, image_end_token_id"):
        make_encoder(directory)
    ids = {key: 3 for key in ("image_start_token_id", "image_end_token_id", "video_start_token_id")}
    write_json(
        directory / "config.json",
        {"model_type": "ernie4_5_moe_vl", "im_patch_id": 99999, "video_end_token_id": 3, **ids},
    )
    with pytest.raises(CheckpointError, match="99999 as the id of a media token"):
        make_encoder(directory)
    plain = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>").save_pretrained(tmp_path / "plain")
    write_json(tmp_path / "plain" / "config.json", {"model_type": "ernie4_5"})
    with pytest.raises(CheckpointError, match=r"the tokenizer has no token <\|begin_of_sentence\|>"):
        make_encoder(tmp_path / "plain")


def test_nested_config_and_missing_generation_config(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, "vl")
    flat = make_encoder(directory)
    assert flat.media_tokens is not None
    tokens = flat.media_tokens
    write_json(
        directory / "config.json",
        {
            "model_type": "ernie4_5_vl_moe",
            "image_token_id": tokens.image_placeholder,
            "image_start_token_id": tokens.image_start,
            "image_end_token_id": tokens.image_end,
            "video_token_id": tokens.image_placeholder,
            "video_start_token_id": tokens.video_start,
            "video_end_token_id": tokens.video_end,
        },
    )
    (directory / "generation_config.json").unlink()
    nested = make_encoder(directory)
    assert nested.media_tokens == tokens
    for conversation in PICTURE_CHATS:
        one, other = flat.encode(conversation), nested.encode(conversation)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.input_ids, other.input_ids)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/reference_models")
def test_tokenizer_model_alone_is_enough(tmp_path: Path) -> None:
    source = SHARED / "reference_models" / "vl_hub"
    for name in (
        "config.json",
        "preprocessor_config.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "chat_template.jinja",
    ):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    one, other = make_encoder(source), make_encoder(tmp_path)
    for conversation in (CHATS[0], *PICTURE_CHATS):
        np.testing.assert_array_equal(
            one.encode(conversation).input_ids, other.encode(conversation).input_ids
        )
