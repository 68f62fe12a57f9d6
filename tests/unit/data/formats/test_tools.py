import json
from typing import Any

import pytest

from erniekit.data.chat.conversation import ImagePart, SampleError, TextPart, ToolCallPart, VideoPart
from tests.unit.data.formats.parsing import outline, parse
from tests.unit.data.helpers import qa

INNER = {"name": "f", "description": "猫", "parameters": {"type": "object", "properties": {"b": {}, "a": {}}}}
WRAPPED = {"type": "function", "function": INNER}


@pytest.mark.parametrize(
    "tools",
    [
        [WRAPPED],
        [INNER],
        [{"type": "function", **INNER}],
        [{"function": INNER}],
        json.dumps([WRAPPED]),
        json.dumps([INNER]),
        json.dumps(INNER),
        [json.dumps(INNER)],
        INNER,
    ],
)
def test_tools_of_every_form(tools: Any) -> None:
    found = parse(qa("q", tools=tools)).tools
    assert json.dumps(found) == json.dumps((WRAPPED,))
    assert parse(qa("q", functions=tools)).tools == found


@pytest.mark.parametrize(
    "tools", [None, "", "[]", [], " \n", "null", " null ", {}, "{}", '""', {"name": None}]
)
def test_no_tools(tools: Any) -> None:
    assert parse(qa("q", tools=tools)).tools == ()


@pytest.mark.parametrize("parameters", [INNER["parameters"], json.dumps(INNER["parameters"])])
@pytest.mark.parametrize("key", ["parameters", "input_schema", "inputSchema"])
def test_schemas_of_arguments_under_every_name(key: str, parameters: Any) -> None:
    tool = {"name": "f", "description": "猫", key: parameters}
    for tools in (
        [tool],
        [{"type": "custom", **tool}] if key == "input_schema" else [tool],
        json.dumps([tool]),
    ):
        assert json.dumps(parse(qa("q", tools=tools)).tools) == json.dumps((WRAPPED,))
    texts = {"type": "object", "properties": json.dumps({"b": {}, "a": {}})}
    assert parse(qa("q", tools=[{**tool, key: texts}])).tools == (WRAPPED,)


@pytest.mark.parametrize("parameters", [None, "", " ", "null"])
def test_tools_without_a_schema(parameters: Any) -> None:
    assert parse(qa("q", tools=[{"name": "f", "parameters": parameters}])).tools == (
        {"type": "function", "function": {"name": "f"}},
    )


def test_tools_of_the_system_message() -> None:
    system = {"role": "system", "content": "s", "tools": [INNER]}
    turns = [system, *qa("q")["messages"]]
    assert parse({"messages": turns}).tools == (WRAPPED,)
    assert parse({"messages": turns, "functions": json.dumps([WRAPPED])}).tools == (WRAPPED,)
    other = [{"name": "g"}]
    pair = {"chosen": turns, "rejected": [*turns[:2], {"role": "assistant", "content": "b"}]}
    assert parse(pair).tools == (WRAPPED,)
    shared = [{"from": "system", "value": "s", "tools": [INNER]}, {"from": "human", "value": "q"}]
    assert parse({"conversations": shared}).tools == (WRAPPED,)
    for record, message in (
        ({"messages": turns, "tools": other}, "message 1 has different tools from the record"),
        ({"messages": [{**system, "functions": other}, *turns[1:]]}, "message 1 has different tools in"),
        (
            qa("q", tools=[INNER], functions=other),
            'the record has different tools in "tools" and "functions"',
        ),
        ({"messages": [{"role": "user", "content": "q", "tools": other}]}, 'message 1: "tools" is not read'),
    ):
        with pytest.raises(SampleError, match=message):
            parse(record)


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ([{"name": "f", "parameters": "{"}], 'tool 1: "parameters": not valid JSON'),
        (
            [{"name": "f", "parameters": "[]"}],
            '"parameters" must be a JSON schema .an object., not an array',
        ),
        ([{"name": "f", "inputSchema": 3}], '"inputSchema" must be a JSON schema'),
        (
            [{"name": "f", "parameters": {"a": 1}, "input_schema": {"b": 1}}],
            "different schemas in parameters and",
        ),
        ("[{", "tools: not valid JSON: .*character"),
        ("3", "tools must be a list .*, not a number"),
        (3, "tools must be a list .*, not a number"),
        ([3], "tool 1 must be an object, not a number"),
        (["f"], "tool 1: not valid JSON"),
        ([WRAPPED, {"type": "function"}], "tool 2 must be .* have a name"),
        ([{"function": {"name": ""}}], "have a name"),
        ([{"function": "f"}], "have a name"),
        ([{"name": 3}], "have a name"),
        ([{"type": "retrieval"}], 'its "type" must be "function", not \'retrieval\''),
        ('[{"name": "f", "default": NaN}]', "tools: not valid JSON: NaN is not JSON"),
        ([{"name": "f", "default": float("nan")}], "tool 1 cannot be written as JSON"),
        ([{"name": "f", "default": "\ud83d"}], "tool 1 cannot be written as JSON"),
        ("[" * 100_000, "tools: not valid JSON"),
    ],
)
def test_bad_tools(tools: Any, message: str) -> None:
    with pytest.raises(SampleError, match=message) as caught:
        parse(qa("q", tools=tools))
    assert caught.value.reason == "bad tools"


def called(calls: Any, **keys: Any) -> dict[str, Any]:
    answer = {"role": "assistant", "content": None, "tool_calls": calls, **keys}
    return {"messages": [{"role": "user", "content": "q"}, answer]}


@pytest.mark.parametrize(
    "calls",
    [
        [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "猫"}'}}],
        [{"function": {"name": "f", "arguments": {"a": "猫"}}}],
        [{"name": "f", "arguments": {"a": "猫"}, "function": None}],
        {"name": "f", "arguments": {"a": "猫"}},
        '{"name": "f", "arguments": {"a": "猫"}}',
    ],
)
def test_calls_of_every_form(calls: Any) -> None:
    assert outline(parse(called(calls)).messages)[1] == ("assistant", 'f({"a": "猫"})', True)
    answer = {"role": "assistant", "function_call": calls}
    assert parse({"messages": [{"role": "user", "content": "q"}, answer]}) == parse(called(calls))


@pytest.mark.parametrize("key", ["arguments", "parameters", "input", "args"])
def test_arguments_under_every_name(key: str) -> None:
    for arguments in ({"a": 1}, '{"a": 1}'):
        for call in ({"name": "f", key: arguments}, {"function": {"name": "f", key: arguments}}):
            assert parse(called([call])).messages[1].parts == (ToolCallPart("f", '{"a": 1}'),)
    with pytest.raises(SampleError, match=r"call 1 .'f'.: arguments in .* and .*: keep one of them"):
        parse(called([{"name": "f", "arguments": {"a": 1}, "parameters": {"a": 2}}]))


@pytest.mark.parametrize("arguments", [None, "", " \n", "null", "{}", {}, []])
def test_no_arguments(arguments: Any) -> None:
    assert parse(called([{"name": "f", "arguments": arguments}])).messages[1].parts == (
        ToolCallPart("f", "{}"),
    )
    value = json.dumps({"name": "f", "arguments": arguments})
    shared = [{"from": "human", "value": "q"}, {"from": "function_call", "value": value}]
    assert parse({"conversations": shared}).messages[1].parts == (ToolCallPart("f", "{}"),)


@pytest.mark.parametrize("nothing", [None, "", " ", "null", "[]", [], "{}", {}])
def test_no_calls(nothing: Any) -> None:
    for key in ("tool_calls", "function_call"):
        assert parse(qa("q") | {"messages": [{**one, key: nothing} for one in qa("q")["messages"]]}) == parse(
            qa("q")
        )
        with pytest.raises(SampleError, match="message 2"):
            parse(
                {"messages": [qa("q")["messages"][0], {"role": "assistant", "content": None, key: nothing}]}
            )


def test_calls_given_twice() -> None:
    one = {"name": "f", "arguments": {"a": 1}}
    same = {"name": "f", "arguments": '{"a":1}'}
    assert parse(called([one], function_call=same)) == parse(called([one]))
    with pytest.raises(SampleError, match="message 2: different calls in tool_calls and function_call"):
        parse(called([one], function_call={"name": "g"}))


def test_calls_and_their_parts_may_be_left_without_loss() -> None:
    first, second = parse(called([{"name": "f", "loss": 0}, json.dumps({"name": "g"})])).messages[1].parts
    assert (first, second) == (ToolCallPart("f", "{}", trained=False), ToolCallPart("g", "{}"))
    assert not parse(called([{"name": "f", "train": False}])).messages[1].trained


@pytest.mark.parametrize(
    "entry",
    [
        {"role": "assistant", "content": "a", "tool_call": {"name": "f"}},
        {"role": "user", "content": "a", "tool_responses": ["x"]},
    ],
)
def test_calls_and_results_at_other_places_are_refused(entry: Any) -> None:
    with pytest.raises(SampleError, match=r'message 1: "tool_.*" is not read'):
        parse({"messages": [entry]})


LOOK = [{"role": "user", "content": "<image>q"}, *called([{"name": "zoom"}])["messages"][1:]]


def test_images_in_results() -> None:
    parts = [
        {"type": "image", "image": "2.png"},
        {"type": "text", "text": "<image>"},
        {"type": "video", "video": "3.mp4"},
    ]
    result = {"role": "tool", "content": parts}
    found = parse({"messages": [*LOOK, result], "images": ["1.png"]}).messages
    zoomed = ImagePart("/data/2.png")
    assert found[2].parts == (zoomed, TextPart("<image>"), VideoPart("/data/3.mp4"))
    # A mark stands for an image where the record lists such, and else is text.
    marked = {"role": "tool", "content": {"crop": "<image>"}}
    found = parse({"messages": [*LOOK, marked], "images": ["1.png", "2.png"]}).messages
    assert found[2].parts == (TextPart('{"crop": "'), zoomed, TextPart('"}'))
    plain = [{"role": "user", "content": "q"}, LOOK[1], marked]
    assert parse({"messages": plain}).messages[2].parts == (TextPart('{"crop": "<image>"}'),)
    with pytest.raises(SampleError, match="2 <image> mark"):
        parse({"messages": [*LOOK, marked], "images": ["1.png"]})
    shared = [
        {"from": "human", "value": "<image>q"},
        {"from": "function_call", "value": '{"name": "zoom"}'},
        {"from": "observation", "value": "<image>"},
    ]
    assert parse({"conversations": shared, "images": ["1.png", "2.png"]}).messages[2].parts == (zoomed,)
    info = {
        "text_info": [
            {"text": "q", "tag": "mask"},
            {"tag": "no_mask", "tool_calls": [{"name": "zoom"}]},
            {"text": "x", "tag": "mask", "tool_response": 1},
        ],
        "image_info": [{"image_url": "2.png", "matched_text_index": 2}],
    }
    assert parse(info).messages[2].parts == (zoomed, TextPart("x"))


def test_text_before_calls_and_arguments_as_they_stand() -> None:
    calls = [{"name": "f", "arguments": ' {"a":1,\n"b": 1e3}'}, {"name": "g", "arguments": None}]
    found = parse(called(calls, content="Let me see.", loss=False))
    assert outline(found.messages)[1] == ("assistant", 'Let me see.|f( {"a":1,\n"b": 1e3})|g({})', False)
    assert parse(called(calls, content="")) == parse(called(calls, content=None))


def test_a_call_of_a_tool_that_is_not_listed_is_allowed() -> None:
    assert parse({**called([{"name": "g"}]), "tools": [INNER]}).tools == (WRAPPED,)


def test_results() -> None:
    def result(role: str, content: Any) -> tuple[str, str, bool]:
        messages = [
            *called([{"name": "f"}])["messages"],
            {"role": role, "content": content, "tool_call_id": "1"},
        ]
        return outline(parse({"messages": messages}).messages)[2]

    assert result("tool", "") == ("tool", "", False)
    assert result("function", '{"a":  1}') == ("tool", '{"a":  1}', False)
    assert result("tool", {"猫": [1, None]}) == ("tool", '{"猫": [1, null]}', False)
    assert result("tool", [{"type": "text", "text": "x"}]) == ("tool", "x", False)
    assert result("tool_response", "x") == ("tool", "x", False)
    for wrong in (None, 3, True, [1]):
        with pytest.raises(SampleError, match="message 3"):
            result("tool", wrong)


def test_the_roles_of_ms_swift_join_calls_to_the_text_before_them() -> None:
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "Let me see."},
        {"role": "tool_call", "content": '{"name": "f", "arguments": {}}'},
        {"role": "tool_call", "content": '{"name": "g", "arguments": {}}', "loss": False},
        {"role": "tool_response", "content": "x"},
        {"role": "tool_response", "content": "y"},
    ]
    found = parse({"messages": messages}).messages
    assert outline(found) == [
        ("user", "q", False),
        ("assistant", "Let me see.|f({})|g({})", True),
        ("tool", "x", False),
        ("tool", "y", False),
    ]
    assert [part.trained for part in found[1].parts if not isinstance(part, ImagePart | VideoPart)] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ("{", "message 2: the tool call: not valid JSON"),
        (3, "message 2: tool calls must be a list"),
        ([3], "message 2, tool call 1 must be an object, not a number"),
        ([{"id": 1}], "message 2, tool call 1 has no name"),
        ([{"name": ""}], "message 2, tool call 1 has no name"),
        ([{"function": {"arguments": {}}}], "has no name"),
        ([{"function": "f"}], "has no name"),
        ([{"name": "f", "arguments": "x=1"}], "tool call 1 .'f'.: the arguments: not valid JSON"),
        (
            [{"name": "f"}, {"name": "g", "arguments": "[1]"}],
            "call 2 .'g'.: arguments must be a JSON object, .*array",
        ),
        ([{"name": "f", "arguments": 3}], "arguments must be a JSON object, here is a number"),
        ([{"name": "f", "arguments": '{"a": NaN}'}], "NaN is not JSON"),
        ([{"name": "f", "arguments": {"a": float("inf")}}], "cannot be written as JSON"),
    ],
)
def test_bad_calls(calls: Any, message: str) -> None:
    with pytest.raises(SampleError, match=message) as caught:
        parse(called(calls))
    assert caught.value.reason == "bad tool call"


def test_only_the_assistant_calls() -> None:
    with pytest.raises(SampleError, match="message 1: only the assistant calls tools, not the user"):
        parse({"messages": [{"role": "user", "content": "q", "tool_calls": [{"name": "f"}]}]})


AREA = {
    "name": "area",
    "parameters": {"type": "object", "properties": {"w": {}, "h": {}}, "required": ["w", "h"]},
}


def calling(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    call = {"function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call], **more}


@pytest.mark.parametrize(
    ("call", "notices"),
    [
        (calling("area", {"w": 1, "h": 0}), ()),
        (calling("area", '{"h": null, "w": 2, "unit": "m"}'), ()),
        (calling("volume", {"w": 1}), ("a call of 'volume', which is not in the tools of the sample",)),
        (calling("area", {"h": 2}), ("a call of 'area' without the required argument 'w'",)),
        (
            calling("area", ""),
            tuple(f"a call of 'area' without the required argument '{name}'" for name in "wh"),
        ),
        (calling("volume", {}, loss=False), ()),
    ],
)
def test_calls_that_do_not_fit_the_tools_are_noted(call: dict[str, Any], notices: tuple[str, ...]) -> None:
    chat = [{"role": "user", "content": "q"}, call]
    if call.get("loss") is False:
        chat += [{"role": "tool", "content": "no such function"}, {"role": "assistant", "content": "a"}]
    for tools in ([AREA], json.dumps([{"type": "function", "function": AREA}])):
        assert parse({"messages": chat, "tools": tools}).notices == notices
        system = {"role": "system", "content": "s", "tools": tools}
        assert parse({"messages": [system, *chat]}).notices == notices
    assert parse({"messages": chat}).notices == ()
    assert (
        parse({"messages": chat, "tools": [{"name": "area"}, {"name": "volume", "parameters": {}}]}).notices
        == ()
    )


def test_calls_of_other_formats_are_compared_with_the_tools() -> None:
    unknown = "a call of 'volume', which is not in the tools of the sample"
    called = {"from": "function_call", "value": json.dumps({"name": "volume", "arguments": {}})}
    turns = [{"from": "human", "value": "q"}, called]
    assert parse({"conversations": turns, "tools": json.dumps([AREA])}).notices == (unknown,)
    xlam = {"query": "q", "tools": [{"name": "area", "parameters": {"w": {"type": "int"}}}]}
    rewritten = "the parameters of xLAM's tools are rewritten as JSON schemas"
    missing = "a call of 'area' without the required argument 'w'"
    assert parse({**xlam, "answers": [{"name": "area", "arguments": {}}]}).notices == (rewritten, missing)
    blocks = [{"type": "tool_use", "id": "1", "name": "volume", "input": {}}]
    anthropic = [{"role": "user", "content": "q"}, {"role": "assistant", "content": blocks}]
    tool = {"name": "area", "input_schema": AREA["parameters"]}
    assert parse({"messages": anthropic, "tools": [tool]}).notices == (unknown,)
    # A rejected answer may be wrong.
    pair = {
        "messages": [{"role": "user", "content": "q"}],
        "tools": [AREA],
        "chosen": calling("area", {"w": 1, "h": 1}),
    }
    assert parse({**pair, "rejected": calling("volume", {})}).notices == ()
