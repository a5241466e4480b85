"""What nobody reads any more, as behind `| head`: work goes on, help ends, no traceback."""

import subprocess
import sys


def unread(*arguments: str) -> tuple[int, str]:
    """Exit code and standard error of Python whose standard output is closed at once."""
    with subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.close()
        said = program.stderr.read()
    return program.returncode, said


def test_a_run_goes_on_without_a_reader():
    code = "import sys; from harness.process.console import say; say('a'); say('b'); "
    code += "sys.exit('went on')"
    assert unread("-c", code) == (1, "went on\n")


def test_help_ends():
    assert unread("-m", "harness", "--help") == (141, "")
