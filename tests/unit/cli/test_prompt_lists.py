"""Lists of prompts: what each kind of file says, and the sentence for each mistake in one."""

import json
from pathlib import Path

import pytest

from audioldm2.cli.prompt_lists import Line, for_model, read_lines, require_distinct

pytestmark = pytest.mark.usefixtures("folder")

ROWS = [
    {"prompt": "rain", "seed": 3, "duration": 2.5, "negative_prompt": "wind"},
    {"prompt": "a dog, far away", "seed": None, "duration": None, "negative_prompt": None},
]
TABLES = {
    "list.csv": 'prompt,seed,duration,negative_prompt\nrain,3,2.5,wind\n\n"a dog, far away",,,\n',
    "marked.csv": '\ufeffPrompt;Seed;duration;negative_prompt\r\nrain;3;2.5;wind\r\n"a dog, far away";;;\r\n',
    "list.tsv": "prompt\tseed\tduration\tnegative_prompt\nrain\t3\t2.5\twind\na dog, far away\t\t\t\n",
    "list.jsonl": "\n".join(map(json.dumps, ROWS)) + "\n\n",
    "list.json": json.dumps(ROWS),
    "data.JSON": json.dumps({"data": ROWS}),
}
MISTAKES = {
    "unknown column": (
        "a.csv",
        "prompt,sed\nrain,1\n",
        "a.csv has the unknown column 'sed'; did you mean 'seed'?",
    ),
    "unknown key": (
        "a.jsonl",
        '{"prompt": "a"}\n{"prompt": "b", "loud": 1}',
        "a.jsonl, line 2 has the unknown column",
    ),
    "no prompts": ("a.csv", "seed\n1\n", "a.csv has no column 'prompt'."),
    "no prompt in an object": ("a.jsonl", '{"seed": 1}', "a.jsonl, line 1 has no column 'prompt'."),
    "empty prompt": (
        "a.csv",
        "prompt,seed\n,1\n",
        "a.csv, line 2: prompt is ''; it has to be a text that is not",
    ),
    "prompt that is a number": (
        "a.json",
        '[{"prompt": 5}]',
        "a.json, entry 1: prompt is 5; it has to be a text",
    ),
    "unquoted comma": (
        "a.csv",
        "prompt,seed\nrain, wind,1\n",
        "a.csv, line 2: 3 fields where the header has 2",
    ),
    "missing field": (
        "a.csv",
        "prompt,seed\nrain\n",
        "a.csv, line 2: 1 field where the header has 2: 'rain'.",
    ),
    "quotes": ("a.csv", 'prompt,seed\n"rain"s,1\n', "a.csv, line 2: the quotation marks of this row"),
    "column twice": ("a.csv", "prompt,prompt\na,b\n", "a.csv has more than one column 'prompt'"),
    "seed in words": (
        "a.csv",
        "prompt,seed\nrain,\nrain,x\n",
        "a.csv, line 3: seed is 'x'; it has to be a whole",
    ),
    "half a seed": (
        "a.jsonl",
        '{"prompt": "a", "seed": 1.5}',
        "a.jsonl, line 1: seed is 1.5; it has to be a whole",
    ),
    "seed as text": (
        "a.jsonl",
        '{"prompt": "a", "seed": "1"}',
        "a.jsonl, line 1: seed is '1'; it has to be a whole",
    ),
    "many seeds": (
        "a.jsonl",
        '{"prompt": "a", "seed": [1]}',
        "a.jsonl, line 1: seed is [1]; it has to be a number",
    ),
    "seed below 0": (
        "a.csv",
        "prompt,seed\nrain,-1\n",
        "a.csv, line 2: seed is -1; it has to be a whole number",
    ),
    "endless": (
        "a.csv",
        "prompt,duration\nrain,1e9\n",
        "a.csv, line 2: duration is 1000000000.0; it has to be above",
    ),
    "not a number": ("a.csv", "prompt,duration\nrain,nan\n", "a.csv, line 2: duration is nan; it has to be"),
    "a true duration": (
        "a.jsonl",
        '{"prompt": "a", "duration": true}',
        "line 1: duration is True; it has to be",
    ),
    "half a pair": (
        "a.jsonl",
        '{"prompt": "\\ud800"}',
        "a.jsonl, line 1: prompt is '\\ud800'; it has to be a text",
    ),
    "not JSON": ("a.jsonl", '{"prompt": "a"}\nrain\n', "a.jsonl, line 2 is not JSON"),
    "a number too long": ("a.json", f"[{'9' * 5000}]", "a.json is not JSON"),
    "texts": ("a.json", '["rain"]', 'a.json, entry 1 has to be an object such as {"prompt": '),
    "no rows": ("a.csv", "prompt\n", "a.csv: the file has no prompt"),
    "empty table": ("a.csv", "", "a.csv is empty; its first line has to name the columns."),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_all_kinds_say_the_same(name):
    Path(name).write_bytes(TABLES[name].encode())
    first, second = read_lines(Path(name))
    assert (first.prompt, first.seed, first.duration, first.negative_prompt) == ("rain", 3, 2.5, "wind")
    assert second == Line(second.where, "a dog, far away", "a dog, far away")
    where = second.where.removeprefix(f"{name}, ")
    assert where == {"list.csv": "line 4", "list.json": "entry 2", "data.JSON": "entry 2"}.get(
        name, "line 3" if name.endswith("sv") else "line 2"
    )


def test_text_has_a_prompt_a_line():
    Path("list.txt").write_bytes('\ufeffrain, "wind"\r\n\r\n  a dog | woof \r\n'.encode())
    lines = read_lines(Path("list.txt"))
    assert [line.prompt for line in lines] == ['rain, "wind"', "a dog | woof"]
    assert lines[1].where == "list.txt, line 3"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_in_a_table_is_a_sentence_with_its_row(mistake):
    name, content, sentence = MISTAKES[mistake]
    Path(name).write_text(content)
    with pytest.raises(ValueError) as caught:
        read_lines(Path(name))
    assert sentence in str(caught.value)
    assert str(caught.value).endswith((".", "?")) and "\n" not in str(caught.value)


def test_all_lines_are_checked_before_a_model_is_looked_for(run):
    Path("list.csv").write_text("prompt,duration\nrain,1\nwind,0.001\n")
    code, out, err = run("--prompts", "list.csv", "--model", "./nowhere", "-o", "out")
    assert (code, out) == (2, "") and "list.csv, line 3: duration is 0.001; it has to be from 0.01" in err
    assert not Path("out").exists()


def test_line_that_repeats_another_is_refused_unless_seeds_differ():
    lines = [Line("a.csv, line 2", "rain", "rain"), Line("a.csv, line 5", "rain", "rain", seed=0)]
    with pytest.raises(ValueError, match=r"^a\.csv, line 5 repeats line 2: "):
        require_distinct(lines, 0)
    require_distinct(lines, 1)
    require_distinct([lines[0], lines[0]], None)
    require_distinct([lines[0], Line("a.csv, line 5", "rain", "rain", duration=2.0)], 0)


def test_model_that_speaks_finds_words_behind_the_bar():
    lines = [Line("a.txt, line 1", "a man | hello, you | and me", "...")]
    (line,) = for_model(lines, True, Path("a.txt"))
    assert (line.prompt, line.transcription) == ("a man", "hello, you | and me")
    assert for_model(lines, False, Path("a.txt")) == lines
    with pytest.raises(ValueError, match=r"a\.txt, line 2 has no words to speak"):
        for_model([Line("a.txt, line 2", "a man", "a man")], True, Path("a.txt"))
    with pytest.raises(ValueError, match=r"line 3 has words to speak, and this model makes sounds"):
        for_model([Line("a.csv, line 3", "a man", "a man", phonemes="h")], False, Path("a.csv"))
