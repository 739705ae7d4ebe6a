"""The documentation tells the truth: every Python example in README.md and docs/ runs, and every link in them leads somewhere.

A page's ```python blocks are one program, run as a reader would run it: as a script, in an empty folder, with warnings as errors.
Its lines keep their numbers, so that a traceback points into the page. Two words after `python` say more:

    ```python file=tasks.py      is written to that file first, for the blocks after it to import
    ```python fresh              begins another program
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]

FENCE = re.compile(r"^(?P<indent> *)(?P<marks>```+|~~~+) *(?P<words>[^`]*)$")
LINK = re.compile(r"\[[^\]]*\]\(<?(?P<target>[^)\s>]+)>?(?: \"[^\"]*\")?\)|^\[[^\]]+\]: *(?P<reference>\S+)", re.MULTILINE)
HEADING = re.compile(r"^#{1,6} +(?P<text>.+?) *#*$", re.MULTILINE)
TIMEOUT_SECONDS = 120


@dataclass
class Program:
    """The Python blocks of a page that belong together, by line number, and the files that they import."""

    first_line: int
    lines: dict[int, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def source(self) -> str:
        """The program, each line at its place in the page."""
        return "\n".join(self.lines.get(number, "") for number in range(1, max(self.lines, default=0) + 1)) + "\n"


def blocks(text: str) -> Iterator[tuple[list[str], int, list[str]]]:
    """Every fenced block of a page: the words after its fence, the number of its first line, and its lines."""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        number += 1
        if opening:
            end = next((n for n in range(number, len(lines)) if closes(lines[n], opening["marks"])), len(lines))
            indent = re.compile(f"^ {{0,{len(opening['indent'])}}}")
            yield opening["words"].split(), number + 1, [indent.sub("", line, count=1) for line in lines[number:end]]
            number = end + 1


def closes(line: str, marks: str) -> bool:
    """Whether a line ends a block that began with these marks."""
    return line.strip().startswith(marks) and not line.strip().strip(marks[0])


def programs(text: str) -> list[Program]:
    """What a page asks its reader to run."""
    found: list[Program] = []
    for words, first_line, content in blocks(text):
        if words[:1] != ["python"]:
            continue
        if not found or "fresh" in words:
            found.append(Program(first_line))
        file = next((word.removeprefix("file=") for word in words if word.startswith("file=")), None)
        if file:
            found[-1].files[file] = "\n".join(content) + "\n"
        else:
            found[-1].lines.update(enumerate(content, start=first_line))
    return found


def run(program: Program, page: Path, folder: Path) -> None:
    """Run a program in a folder; fail with its output."""
    for name, source in program.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source)
    script = folder / page.with_suffix(".py").name
    script.write_text(program.source())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JOBQ_")}
    command = [sys.executable, "-W", "error", script.name]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.fail(f"{page.name}: the example did not end within {TIMEOUT_SECONDS} s", pytrace=False)
    if done.returncode:
        pytest.fail(f"{page.name}: the example failed; its lines are those of the page\n{done.stdout}{done.stderr}", pytrace=False)


def prose(text: str) -> str:
    """A page without its code, in which brackets are no links."""
    lines = text.splitlines()
    for _, first_line, content in blocks(text):
        lines[first_line - 1 : first_line - 1 + len(content)] = [""] * len(content)
    return re.sub(r"`[^`\n]*`", "", "\n".join(lines))


def anchors(text: str) -> set[str]:
    """The names that a page's headings can be linked by: as on GitHub, lower case, punctuation gone, hyphens for blanks."""
    found: set[str] = set()
    for heading in HEADING.finditer(prose(text.replace("`", ""))):
        name = re.sub(r"[^\w\- ]", "", heading["text"].lower()).replace(" ", "-")
        repeats = sum(1 for other in found if re.fullmatch(re.escape(name) + r"(-\d+)?", other))
        found.add(f"{name}-{repeats}" if repeats else name)
    return found


def broken_links(page: Path) -> Iterator[str]:
    """The links of a page to files and headings of this repository that are not there."""
    text = page.read_text(encoding="utf-8")
    for match in LINK.finditer(prose(text)):
        target = match["target"] or match["reference"]
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue  # another site; whether it is up says nothing about this page
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.is_relative_to(REPOSITORY) or not file.exists():
            yield f"{target}: no such file"
        elif anchor and anchor not in anchors(file.read_text(encoding="utf-8")):
            yield f"{target}: {file.name} has no such heading"


EXAMPLES = [
    pytest.param(page, program, id=f"{page.relative_to(REPOSITORY)}:{program.first_line}")
    for page in PAGES
    for program in programs(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("page", "program"), EXAMPLES)
def test_examples_run(page: Path, program: Program, tmp_path: Path) -> None:
    """A reader who copies a page's code into a file and runs it sees no error."""
    run(program, page, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    """Links to files and headings of this repository are good."""
    assert list(broken_links(page)) == []


# The checks themselves.

PAGE = """# One page

```python file=tasks.py
answer = 42
```

- in a list:

  ```python
  import tasks
  ```

```sh
python -m this-is-not-python [not](a-link)
```

```python
assert tasks.answer == 42
```

## A `second` program, too

```python fresh
raise SystemExit("line 24")
```
"""


def test_blocks_of_a_page_are_one_program(tmp_path: Path) -> None:
    """Blocks share their names and import the page's files; shell blocks are left alone; `fresh` begins anew."""
    first, second = programs(PAGE)
    run(first, tmp_path / "page.md", tmp_path)
    assert first.source().splitlines()[9] == "import tasks"
    assert "tasks" not in second.source()


def test_a_failing_example_fails(tmp_path: Path) -> None:
    """The failure shows the example's own output."""
    _, second = programs(PAGE)
    with pytest.raises(pytest.fail.Exception, match="line 24"):
        run(second, tmp_path / "page.md", tmp_path)


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("[a](README.md) [b](#here)\n# Here", []),
        ("[a](missing.md)", ["missing.md: no such file"]),
        ("[a]: missing.md", ["missing.md: no such file"]),
        ("![a](missing.png)", ["missing.png: no such file"]),
        ("[a](../elsewhere)", ["../elsewhere: no such file"]),
        ("[a](#nowhere)", ["#nowhere: page.md has no such heading"]),
        ("[a](#a-second-program-too)\n## A `second` program, too", []),
        ("[a](https://example.org/missing.md) `[b](c)`", []),
    ],
)
def test_links_are_checked(text: str, broken: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that leads nowhere is found, whatever its form; links to other sites and in code are not looked at."""
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    (tmp_path / "README.md").touch()
    page = tmp_path / "page.md"
    page.write_text(text)
    assert list(broken_links(page)) == broken
