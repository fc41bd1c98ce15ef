"""Prompts that a server makes long."""

from sora_jax.generate.remote_expansion import expand_by_server, question
from tests.fake_chat import fails, fake_chat, says

CAPTIONS = ["a red circle moves right on {black}", "two  squares\nmove up"]


def test_prompts_grow_in_the_manner_of_the_captions():
    grown = {"red circle right": '"a red circle moves\nright on grey"', "blue": "a blue square"}
    with fake_chat(lambda body: says(grown[body["messages"][1]["content"]])) as fake:
        found = expand_by_server(fake.client(in_flight=2), list(grown), CAPTIONS)
    assert found == ["a red circle moves right on grey", "a blue square"]
    system = fake.asked[0]["messages"][0]
    assert system["role"] == "system"
    assert "- a red circle moves right on {black}\n- two squares move up\n" in system["content"]


def test_a_prompt_without_an_answer_stays_and_is_named(caplog):
    with fake_chat(fails(400, "too rude")) as fake:
        assert expand_by_server(fake.client(), ["a dog"], CAPTIONS) == ["a dog"]
    assert "'a dog' stays as it is" in caplog.text
    assert "too rude" in caplog.text


def test_few_examples_are_sent():
    system = question("a dog", [f"caption {n}" for n in range(100)])[0]["content"]
    assert system.count("- caption ") == 12
