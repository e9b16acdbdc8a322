"""Every layout that replay reads, and every way in which a file can be broken."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semcache.errors import DatasetError, UsageError
from semcache.replay.dataset import Row, bundled, load_dataset
from semcache.replay.layouts import parse_mapping

ORIGINALS = Path(__file__).parents[3] / "shared" / "datasets" / "original"


@pytest.fixture
def load(tmp_path: Path):
    """Write text, bytes or a JSON tree to a file and load it."""

    def loaded(content: Any, name: str = "data.json", mapping: dict[str, str] | None = None) -> list[Row]:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8", newline="")
        return load_dataset(str(path), mapping).rows

    return loaded


def pairs(rows: list[Row]) -> list[tuple[str, str | None]]:
    return [(row.question, row.answer) for row in rows]


# Layouts


@pytest.mark.parametrize("key", ["question", "prompt", "input", "text", "Question", "Questions", "RawQuestion"])
def test_list_with_each_question_field(load, key):
    assert pairs(load([{key: "q", "answer": "a"}])) == [("q", "a")]


@pytest.mark.parametrize("wrapper", ["questions", "data", "entries", "intents", "Questions"])
def test_wrappers(load, wrapper):
    assert pairs(load({"version": 1, wrapper: [{"question": "q"}, {"prompt": "p", "answer": 3}]})) == [
        ("q", None), ("p", "3"),
    ]  # fmt: skip


def test_list_of_plain_questions(load):
    assert pairs(load(["one", "two"])) == [("one", None), ("two", None)]


def test_single_object_is_one_row(load):
    assert pairs(load({"question": "q", "answer": "a"})) == [("q", "a")]


def test_webqsp(load):
    answers = [{"AnswerArgument": "m.1", "EntityName": "Jaxon"}, {"AnswerArgument": "1999", "EntityName": None}]
    tree = {"Version": "1", "Questions": [
        {"RawQuestion": "who?", "ProcessedQuestion": "who", "Parses": [{"Answers": answers}]},
        {"ProcessedQuestion": "only processed"},
    ]}  # fmt: skip
    first, second = load(tree)
    assert (first.question, first.accepted) == ("who?", ("Jaxon", "1999"))
    assert (second.question, second.accepted) == ("only processed", ())


def test_instruction_is_the_system_message_only_with_an_input(load):
    with_input, without = load([
        {"instruction": "Translate.", "input": "Hallo", "output": "Hello"},
        {"instruction": "Say hello.", "input": "", "output": "Hello"},
    ])  # fmt: skip
    assert (with_input.context, with_input.question, with_input.answer) == ("Translate.", "Hallo", "Hello")
    assert (without.context, without.question) == (None, "Say hello.")


def test_instruction_joins_a_given_system_message(load):
    (row,) = load([{"system": "Be brief.", "instruction": "Translate.", "input": "Hallo"}])
    assert row.context == "Be brief.\n\nTranslate."


def test_intents_are_groups_of_wordings(load):
    tree = {"intents": [
        {"intent": "greet", "text": ["Hi", "Hello"], "responses": ["Hey"], "context": {"in": ""}},
        {"tag": "bye", "patterns": ["Bye"]},
    ]}  # fmt: skip
    rows = load(tree)
    assert [(row.number, row.question, row.group, row.answer) for row in rows] == [
        (1, "Hi", "greet", None), (2, "Hello", "greet", None), (3, "Bye", "bye", None),
    ]  # fmt: skip
    assert all(row.context is None for row in rows)


def test_sharegpt_takes_the_first_question_and_its_answer(load):
    turns = [("system", "s"), ("gpt", "welcome"), ("human", "q1"), ("gpt", "a1"), ("human", "q2"), ("gpt", "a2")]
    (row,) = load([{"id": "1", "conversations": [{"from": who, "value": text} for who, text in turns]}])
    assert (row.question, row.answer, row.context) == ("q1", "a1", "s")


def test_chat_messages(load):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "q"}]}]
    (row,) = load(json.dumps({"messages": messages}), "chat.jsonl")
    assert (row.question, row.answer, row.context) == ("q", None, "s")


@pytest.mark.parametrize("name", ["context", "system"])
def test_context_group_and_split(load, name):
    (row,) = load([{"question": "q", name: "c", "group": "g", "split": "train"}])
    assert (row.context, row.group, row.split) == ("c", "g", "train")


def test_several_accepted_answers(load):
    (row,) = load([{"question": "q", "answer": ["a", "b"]}])
    assert (row.answer, row.also) == ("a", ("b",))


def test_jsonl_keeps_separators_inside_strings(load):
    text = '\ufeff{"question":"a\u2028b"}\r\n\n{"question":"c","class_id":7}\n'
    rows = load(text, "data.jsonl")
    assert [row.question for row in rows] == ["a\u2028b", "c"]
    assert rows[1].group == "7"


def test_json_lines_under_the_name_json(load):
    assert len(load('{"question":"a"}\n{"question":"b"}\n')) == 2


def test_csv_with_bom_and_questions_column(load):
    rows = load("\ufeffTopic,Score,Questions\r\nData,0,What?\r\n".encode(), "data.csv")
    assert pairs(rows) == [("What?", None)]


def test_csv_act_prompt_with_line_breaks(load):
    rows = load('"act","prompt"\n"Poet","Write\na ""poem"", please"\n\n', "data.csv")
    assert pairs(rows) == [('Write\na "poem", please', None)]


def test_map_names_the_fields(load):
    mapping = parse_mapping("question=q, answer=a,system=s")
    rows = load([{"q": "x", "a": "y", "s": "z", "question": "no"}, {"q": "w"}], mapping=mapping)
    assert pairs(rows) == [("x", "y"), ("w", None)]
    assert rows[0].context == "z"


# Broken files


@pytest.mark.parametrize(("content", "name", "said"), [
    (b"", "e.json", "the file is empty"),
    (b"\xef\xbb\xbf \n", "e.json", "the file is empty"),
    (b'[{"question":"caf\xe9"}]', "l.json", "byte 0xe9 at offset 17"),
    (b"\xff\xfe[\x00]\x00", "u.json", "byte 0xff at offset 0"),
    ('[{"question":"a"},\n{"question":', "t.json", "line 2, column 13"),
    ("[" * 100_000, "d.json", "cannot read this JSON"),
    ("[]", "n.json", "holds no rows"),
    ("5", "s.json", "expected a list of rows, found a number"),
    ([{"question": "a"}, {"question": "  "}], "b.json", "row 2: the question is empty"),
    ([{"question": "a"}, 7], "k.json", "row 2: expected an object with a question, found a number"),
    ([{"question": None}], "k.json", "row 1: 'question' is null"),
    ([{"question": ["a"]}], "k.json", "row 1: 'question' is a list, not text"),
    ([{"question": "a", "context": {"x": 1}}], "k.json", "row 1: 'context' is an object, not text"),
    ([{"question": "a", "answer": {"x": 1}}], "k.json", "row 1: 'answer' is an object, not text"),
    ('[{"question":"\\ud800"}]', "h.json", "row 1: holds half of a surrogate pair"),
    ([{"q": "x", "title": "y"}], "w.json", "it has 'q', 'title'.*--map question=FIELD"),
    ({"rows": [1]}, "w.json", "it has 'rows'.*--map question=FIELD"),
    ({"questions": [{"question": "a"}], "data": []}, "w.json", "'questions' and 'data'; keep one"),
    ({"intents": [{"intent": "i", "text": ["a", ""]}]}, "i.json", "row 1: intent 'i', text 2: the question is empty"),
    ({"intents": [{"intent": "i", "text": []}]}, "i.json", "row 1: intent 'i' has no text"),
    ([{"conversations": [{"from": "gpt", "value": "a"}]}], "c.json", "row 1: the conversation has no turn of a user"),
    ([{"conversations": [{"value": "a"}]}], "c.json", "row 1: turn 1 has no 'from' or 'role'"),
    ('{"question":"a"}\n\n{"question":\n', "x.jsonl", "line 3: not valid JSON at column 13"),
    ('{"question":"a"}\n[]\n', "x.jsonl", "line 2: expected an object with a question, found a list"),
    ('question\na\n"b\nc', "x.csv", "line 3: not valid CSV"),
    ('question,answer\n"a\nb",c\nd\n', "x.csv", "line 4: 1 cells, but the header has 2"),
    ("question,question\na,b\n", "x.csv", "column 'question' occurs twice"),
    ("title\na\n", "x.csv", "line 2: no field holds the question; it has 'title'"),
    ("question,answer\n,x\n", "x.csv", "line 2: the question is empty"),
    ("question\n", "x.csv", "holds no rows"),
    ("a question", "x.txt", "must say the format"),
])  # fmt: skip
def test_broken_files_name_the_file_the_place_and_the_reason(load, content, name, said):
    with pytest.raises(DatasetError, match=said) as failure:
        load(content, name)
    assert name in failure.value.message


def test_mapped_field_that_no_row_has(load):
    with pytest.raises(DatasetError, match="no row has a field 'anser'; fields seen: 'q', 'answer'"):
        load([{"q": "a", "answer": "b"}], mapping={"question": "q", "answer": "anser"})
    with pytest.raises(DatasetError, match="row 2: no field 'q' for the question"):
        load([{"q": "a"}, {"p": "b"}], mapping={"question": "q"})


@pytest.mark.parametrize("text", ["question", "question=", "title=t", "question=a,question=b"])
def test_map_that_makes_no_sense(text):
    with pytest.raises(UsageError, match="--map"):
        parse_mapping(text)


def test_missing_file_lists_what_is_bundled(tmp_path):
    with pytest.raises(DatasetError, match=r"class\.json"):
        load_dataset("nowhere.json")
    with pytest.raises(DatasetError, match="is a folder"):
        load_dataset(str(tmp_path))


# Real files


def test_bundled_datasets_load_by_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in bundled():
        dataset = load_dataset(name)
        assert dataset.rows
        assert dataset.name == Path(name).stem
    (tmp_path / "class.json").write_text('["mine"]')
    assert len(load_dataset("class.json").rows) == 1


@pytest.mark.parametrize(("name", "num_rows", "num_answers"), [
    ("trivia.json", 30, 30), ("UseCase1_01.json", 217, 217), ("UseCase1_02.json", 412, 0),
    ("UseCase2_01.json", 79, 79), ("UseCase4_02.csv", 1688, 0), ("UseCase5_01.csv", 203, 0),
])  # fmt: skip
def test_original_files_load_whole(name, num_rows, num_answers):
    path = ORIGINALS / name
    if not path.exists():
        pytest.skip(f"{ORIGINALS} is absent: the original files are not part of the project")
    dataset = load_dataset(str(path))
    assert len(dataset.rows) == num_rows
    assert sum(row.answer is not None for row in dataset.rows) == num_answers
    assert [row.number for row in dataset.rows] == list(range(1, num_rows + 1))
    assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


# Round trip

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
tables = st.lists(st.tuples(texts, st.none() | texts), min_size=1, max_size=8)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(rows=tables)
@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_what_was_written_is_read(load, suffix, rows):
    records = [{"question": question, "answer": answer} for question, answer in rows]
    if suffix == "csv":
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, ["question", "answer"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(records)
        text = buffer.getvalue()
    elif suffix == "jsonl":
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    else:
        text = json.dumps(records)
    assert pairs(load(text, f"data.{suffix}")) == rows
